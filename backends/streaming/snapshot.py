"""What is known of every expert at a moment, for the monitor."""

from __future__ import annotations

import numpy as np

from backends.interface import ExpertMap
from backends.streaming.layout import ExpertLayout
from backends.streaming.ledger import RESIDENT, Ledger
from backends.streaming.pagecache import PageCacheStore
from backends.streaming.reuse_distance import ReuseMeter
from backends.streaming.stores import Store

LOOK_S = 0.002
"""How long it may ask the kernel which pages are there."""


def expert_map(layout: ExpertLayout, store: Store, ledger: Ledger, meter: ReuseMeter) -> ExpertMap:
    """Uses, heat and residency of each expert of each row; may be called from another thread than the one that moves
    experts."""
    rows = layout.rows
    share = np.where(ledger.state == RESIDENT, np.uint8(255), np.uint8(0))
    if isinstance(store, PageCacheStore):
        held = store.residency(LOOK_S)
        if held is not None:
            share = np.minimum(255, np.round(255 * held / store.whole)).astype(np.uint8)
    return ExpertMap(
        n_layers=len(rows),
        n_experts=layout.n_experts,
        first_layer=rows[0].layer,
        layers=tuple(r.layer for r in rows),
        expert_bytes=tuple(r.expert_bytes for r in rows),
        uses=ledger.uses.tobytes(),
        heat=ledger.heat().tobytes(),
        last_used=ledger.last_used.tobytes(),
        residency=share.tobytes(),
        hits=ledger.row_hits.astype(np.uint32).tobytes(),
        misses=ledger.row_misses.astype(np.uint32).tobytes(),
        next_token_reuse=meter.next_token_reuse_by_row().tobytes(),
    )
