"""Benches that don't measure the disk: a test imports `no_disk_probe` where nothing looks at the bound."""

from __future__ import annotations

import pytest

__all__ = ["no_disk_probe"]


@pytest.fixture(autouse=True)
def no_disk_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench ends with a second of reads for its bound."""
    for module in ("backends.streaming.backend", "backends.llamacpp.backend"):
        monkeypatch.setattr(f"{module}.disk_bytes_per_second", lambda _: None)
