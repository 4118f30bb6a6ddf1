"""The router hook: llama.cpp's eval callback, which makes the chosen experts resident before they are computed on.

Asking for ``ffn_moe_topk-<layer>`` makes ggml compute up to it and call back with the ids. While gate and up compute,
the down matrices may still be on their way: then the last product before them is asked for too. The safety net: an
expert product whose ids did not come from a top-k node that was serviced in this graph has all experts of its layer
made resident before it runs, and keeps them; with the pool it computes on the mapped file.
"""

from __future__ import annotations

import ctypes as C
import functools
import re
import time
from typing import Any, Literal

import numpy as np

from backends.interface import EngineError
from backends.llamacpp import native
from backends.llamacpp.abi import gpu_devices
from backends.llamacpp.context import AbortFlag, Batch
from backends.llamacpp.pass_meter import PassMeter
from backends.streaming import abi
from backends.streaming.known_products import KnownProducts, LayerProducts, Product
from backends.streaming.layout import ExpertLayout
from backends.streaming.pager import Guess, Pager
from backends.streaming.pool import PoolStore
from backends.streaming.predictor import Predictor
from backends.streaming.scratch import Scratch
from backends.streaming.stores import I64
from backends.streaming.tables import Tables
from backends.streaming.trampoline import TOPK_PREFIX, Trampoline
from backends.streaming.whole_layers import AGE_TOKENS

_COPY = re.compile(r"^[^#]*#(.*)#\d+$")
_TOPK = re.compile(r"^ffn_moe_topk-(\d+)$")
WATCH_EVERY = 32
"""Measured: a token whose graph is cut at each router takes half as long again, so it may be one in many only."""


def undecorated(name: str) -> str:
    """A tensor's name without what the scheduler adds to copies between backends: ``CPU#ffn_moe_topk-3#0``."""
    match = _COPY.match(name)
    return match[1] if match else name


def _no_such_expert(layout: ExpertLayout, row: int) -> EngineError:
    return EngineError("bad_model", f"Layer {layout.rows[row].layer} chose an expert that isn't there.")


def _ids_of(ggml: abi.Ggml, node: int, t: abi.Tensor, count: int) -> tuple[Any, int]:
    """The first `count` ids in the memory of a choice (its strides included), and the buffer that holds them, 0 where
    they lie in VRAM."""
    holder: int = (abi.Tensor.from_address(t.view_src).buffer if t.view_src else t.buffer) or 0
    raw = (C.c_int32 * count)()
    if holder and ggml.buffer_is_host(holder):
        C.memmove(raw, t.data, 4 * count)
        return raw, holder
    ggml.tensor_get(node, C.addressof(raw), 0, count * 4)
    return raw, 0


class RouterHook:
    """`backends.llamacpp.context.EvalHook` over a `Pager`."""

    def __init__(
        self,
        layout: ExpertLayout,
        pager: Pager,
        abort: AbortFlag,
        predictor: Predictor | None = None,
        *,
        tables: Tables | None = None,
        stub: bool = True,
    ) -> None:
        self._ggml = abi.ggml()
        self._layout, self._pager, self._abort, self._predictor = layout, pager, abort, predictor
        self._slots = pager.store if isinstance(pager.store, PoolStore) else None
        self._whole = pager.whole
        self._tables = {} if tables is None else dict.fromkeys(tables.pointers, tables)
        self._product, self._get_rows = self._ggml.op("MUL_MAT_ID"), self._ggml.op("GET_ROWS")
        self._known = None if self._slots is None else KnownProducts(len(layout.rows), self._slots.slotted)
        self._on_gpu = bool(gpu_devices())
        self._stop, self._silent = 0, False
        """While silent, no product but the node `_stop` needs Python: all of the layer's are pointed at the slots,
        those of `_later` once that node was computed."""
        self._later: list[Product] = []
        self._foreign = False
        """Choices were asked about that aren't of our layers."""
        self._weights = {
            t.pointer: (row, index, t.is_down) for row, r in enumerate(layout.rows) for index, t in enumerate(r.tensors)
        }
        self._by_name = {t.entry.name: self._weights[t.pointer] for row in layout.rows for t in row.tensors}
        self._row_of_topk = {TOPK_PREFIX + str(layer).encode(): row for layer, row in layout.row_of.items()}
        self._all = [frozenset(range(len(r.tensors))) for r in layout.rows]
        self._up = [frozenset(i for i, t in enumerate(r.tensors) if not t.is_down) for r in layout.rows]
        self._left: dict[int, set[int]] = {}
        self._ids: dict[int, int] = {}
        self._boundary: dict[int, int] = {}
        self._staged: set[int] = set()
        """Rows whose products compute on a staged layer this time."""
        self._unslotted: set[int] = set()
        """Rows whose products compute on the mapped file this time: the pool couldn't hold their experts at once."""
        self._error: EngineError | None = None
        self._resting, self._coast, self._weight = False, 0, 1
        self._stopped = False
        self._tokens = 1
        self.passes = PassMeter(len(layout.rows))
        self.scratch = Scratch()
        self.hook_s = 0.0
        kind = native.lib().ggml_backend_sched_eval_callback
        self._python = kind(self._on_node)
        self.callback: Any = self._python
        self._stub: Trampoline | None = None
        if stub:
            try:
                handler = int(C.cast(self._python, C.c_void_p).value or 0)
                self._stub = Trampoline(handler, self._product, list(self._tables))
                self.callback = kind(self._stub.address)
            except OSError:
                pass

    # ---- EvalHook ------------------------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """A decode starts."""
        self._error, self._stopped, self._tokens = None, False, len(batch)
        self._left.clear()
        self._ids.clear()
        self._boundary.clear()
        self._staged.clear()
        self._speak()
        if self._predictor is not None:
            self._predictor.begin(len(batch), self._pager.reads_a_row())
        self.passes.begin(len(batch))
        self.scratch.begin(len(batch))
        try:
            for tables in self._tables.values():
                tables.mend()
            staged = self._whole is not None and self._whole.begin(batch)
            self._pager.begin(len(batch), AGE_TOKENS if staged else None)
            self._rest(len(batch))
        except EngineError as e:
            self._error = e

    def end(self) -> Literal["ok", "retry", "cancelled"]:
        """A decode ended; raises what went wrong in it."""
        self.passes.end()
        if self._slots is not None:
            self._slots.unpatch()
        if self._resting:
            self._pager.coasted()
            self._resting = False
        self._speak()
        if self._stub is not None:
            self._stub.rest(False)
            self._stub.sure(not self._foreign and self._error is None)
        if self._whole is not None:
            self._whole.end(self._error is None and not self._stopped)
        self._pager.end()
        if self._error is not None:
            raise self._error
        return "cancelled" if self._stopped else "ok"

    def _rest(self, tokens: int) -> None:
        """With every expert in memory the router is watched for one token in 32, whose uses count so often: cutting
        the graph at each layer costs a tenth of the speed there, and nothing depends on it in the page cache."""
        self._weight = 1
        if tokens != 1 or self._stub is None or not self._pager.all_there():
            self._coast = 0
            return
        self._coast += 1
        if self._coast % WATCH_EVERY == 1:
            self._weight = WATCH_EVERY if self._coast > 1 else 1
        else:
            self._resting = True
            self._stub.rest(True)

    def close(self) -> None:
        """Frees the stub; only after the context was freed."""
        if self._stub is not None:
            self._stub.close()

    # ---- the callback --------------------------------------------------------------------------------------------

    def _on_node(self, node: int, ask: bool, _: object) -> bool:
        if self._error is not None or self._stopped:
            return bool(ask)  # asking for the very next node and refusing it ends each split soonest
        try:
            if ask:
                op = C.c_int.from_address(node + abi.OP).value
                if op == self._product:
                    return self._ask_product(node)
                if op == self._get_rows:
                    return self._ask_rows(node)
                name = C.string_at(node + abi.NAME)
                if name in self._row_of_topk:
                    return True
                self._foreign |= name.startswith(TOPK_PREFIX)  # of a layer whose experts are in VRAM
                return False
            if self._slots is not None:
                self._slots.unpatch()
            started = time.perf_counter()
            waited = self._pager.stall_s
            row = self._boundary.pop(node, None)
            if row is None:
                self._chosen(node)
            elif row not in self._staged:
                self._pager.finish(row)
                self._point_later()
            elif self._whole is not None:
                (self._whole.middle if self._left.get(row) else self._whole.done)(row)
            self.hook_s += time.perf_counter() - started - (self._pager.stall_s - waited)
            if self._abort.is_set():
                self._stopped = True
                self._speak()
                return False
            return True
        except EngineError as e:
            self._error = e
        except BaseException as e:  # nothing may be raised into C
            self._error = EngineError("internal", f"The router hook failed ({type(e).__name__}: {e})", "see the log.")
        self._speak()
        return bool(ask)

    def _chosen(self, node: int) -> None:
        layer = self._known.standing(node) if self._known is not None else None
        if layer is not None and layer.shape[1] == 1 and layer.shape[0] == layer.n_used and self._may_hurry():
            self._hurry(layer)
            return
        self._look(node)

    def _may_hurry(self) -> bool:
        """Whether a known layer of one token needs no look at its nodes: its ids are in host memory."""
        return not self._on_gpu and (self._whole is None or not self._whole.active)

    def _hurry(self, layer: LayerProducts) -> None:
        """One token's choice where all that follows from it is known."""
        row = layer.row
        ids: list[int] = layer.ids.from_address(layer.data.value)[:]
        if max(ids) >= self._layout.rows[row].n_experts or min(ids) < 0:
            raise _no_such_expert(self._layout, row)
        self.passes.layer(row)
        self._staged.discard(row)
        if self._take(row, layer.topk, ids, None):
            self._point(row, layer)
        else:  # the mapped file serves it
            self._left[row], self._ids[row] = set(self._all[row]), layer.topk
            self._speak()

    def _look(self, node: int) -> None:
        """A choice of any kind."""
        row = self._row_of_topk.get(C.string_at(node + abi.NAME))
        if row is None:
            self._foreign = True
            if self._stub is not None:
                self._stub.sure(False)
            return  # a layer whose experts aren't ours
        t = abi.Tensor.from_address(node)
        k, n, _, _ = t.ne
        stride = t.nb[1] // 4
        count = (n - 1) * stride + k
        self.passes.layer(row)
        self._left[row] = set(self._all[row])
        self._ids[row] = node
        self._staged.discard(row)
        self._speak()
        if count <= 0:
            return  # the last layer of a ubatch that wants no logits computes on no token
        raw, holder = _ids_of(self._ggml, node, t, count)
        if holder:
            self.scratch.seen(holder, self._tokens)
        experts = self._layout.rows[row].n_experts
        if n == 1:
            listed = raw[:]
            if max(listed) >= experts or min(listed) < 0:
                raise _no_such_expert(self._layout, row)
            counts = None if self._weight == 1 else np.full(k, self._weight)
            if self._whole is None or not self._whole.active:
                if self._take(row, node, listed, counts) and self._known is not None:
                    self._known.learn(node, row)
                return
            ids = np.array(listed, np.int64)
        else:
            table = np.lib.stride_tricks.as_strided(np.frombuffer(raw, np.int32), (n, k), (stride * 4, 4))
            found = np.bincount(table.ravel(), minlength=experts)
            if len(found) > experts:
                raise _no_such_expert(self._layout, row)
            ids = np.flatnonzero(found)
            counts = found[ids]
        if self._whole is not None:
            if self._whole.covers(row, n):
                self._staged.add(row)
                if self._predictor is not None and counts is not None and n > 1:
                    self._predictor.learn(row, ids, counts, n)
                self._whole.chosen(row, ids, counts)
                return
            self._whole.settle()
        ahead: Guess | None = None
        likely = None
        if self._predictor is not None and self._weight == 1:
            ahead = functools.partial(self._predictor.seen, row, ids, node, n, counts)
            if n > 1:
                likely = functools.partial(self._predictor.likely, row, n)
        held = self._pager.chosen(row, ids.tolist(), counts, ahead, likely)
        self._unslotted.discard(row)
        if not held:
            self._unslotted.add(row)
        elif self._slots is not None:
            self._slots.translate(row, np.frombuffer(raw, np.int32).reshape(1, k) if n == 1 else table)

    def _take(self, row: int, node: int, ids: list[int], counts: I64 | None) -> bool:
        """Brings in what one token chose; False where the products are to compute on the mapped file."""
        ahead = None
        if self._predictor is not None and counts is None:
            ahead = functools.partial(self._predictor.seen, row, ids, node, 1, None)
        if not self._pager.chosen(row, ids, counts, ahead):
            self._unslotted.add(row)
            return False
        self._unslotted.discard(row)
        if self._slots is not None:
            self._slots.translate_one(row, ids)
        return True

    def _point(self, row: int, layer: LayerProducts) -> None:
        """Points the row's products at the slots without being asked."""
        assert self._slots is not None
        stop = 0
        if self._pager.unfinished(row):  # down waits until gate and up were computed
            self._slots.patch_known(layer.up)
            stop, self._later = layer.up[-1].node, layer.down
            self._boundary[stop] = row
        else:
            self._slots.patch_known(layer.all)
        self._be_silent(stop)
        self._slots.go_on()

    def _be_silent(self, stop: int) -> None:
        if not self._silent or stop != self._stop:
            self._silent, self._stop = True, stop
            if self._stub is not None:
                self._stub.silence(True, stop)

    def _point_later(self) -> None:
        if self._slots is not None:
            self._slots.patch_known(self._later)
            self._slots.go_on()
        self._later = []
        if self._silent:
            self._be_silent(0)

    def _speak(self) -> None:
        """From here on Python is asked about products again."""
        if self._known is not None:
            self._known.forget()
        self._later = []
        if self._silent:
            self._stop, self._silent = 0, False
            if self._stub is not None:
                self._stub.silence(False)

    def _ask_product(self, node: int) -> bool:
        if self._silent:
            return node == self._stop
        weight = C.c_void_p.from_address(node + abi.SRC).value or 0
        ours = self._weights.get(weight)
        if ours is None:
            name = C.string_at(weight + abi.NAME).decode("utf-8", "replace")
            ours = self._by_name.get(undecorated(name)) if "_exps" in name else None
            if ours is None:
                return False
        row, index, is_down = ours
        self._pager.store.go_on()
        left = self._left.get(row)
        if left is None or index not in left or not self._same_ids(node, row):
            self._pager.pin(row)
            return False
        left.discard(index)
        if row in self._staged:
            if not left or (not is_down and not left & self._up[row]):
                self._boundary[node] = row  # what was computed on makes room in the buffers
                return True
            return False
        if self._slots is not None and row not in self._unslotted:
            if self._known is not None:
                self._known.asked(node, index, is_down, not left)
            self._slots.patch(node, row, index)
        if is_down:
            self._pager.finish(row)
        elif self._pager.unfinished(row) and not left & self._up[row]:
            self._boundary[node] = row
            return True
        return False

    def _ask_rows(self, node: int) -> bool:
        """Rows of a table are about to be gathered: brings those of ours in. Never needs the node."""
        source = abi.Sources.from_address(node + abi.SRC)
        table = source[0] or 0
        tables = self._tables.get(table)
        if tables is not None and source[1]:
            self._pager.waited(tables.gathered(table, source[1]))
        return False

    def _same_ids(self, node: int, row: int) -> bool:
        ids = C.c_void_p.from_address(node + abi.SRC + 16).value or 0
        if ids == self._ids.get(row):
            return True
        match = _TOPK.match(undecorated(C.string_at(ids + abi.NAME).decode("utf-8", "replace"))) if ids else None
        return match is not None and self._layout.row_of.get(int(match[1])) == row
