"""What decode asks of Python: a layer's products are pointed at the pool without being asked about, guesses are ggml's
own products; and the logits are mmap's whatever of that is taken away."""

from __future__ import annotations

import ctypes as C
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.interface import LoadRequest
from backends.llamacpp import native
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch
from backends.planner.plan import working_set
from backends.streaming import abi
from backends.streaming.backend import StreamBackend
from backends.streaming.hook import RouterHook
from backends.streaming.known_products import KnownProducts
from backends.streaming.predictor import Predictor
from backends.streaming.router_product import Kernels, Products, RouterProduct, copied_bytes
from backends.streaming.trampoline import Trampoline, assemble
from tests.gguf_factory import make_gguf

TOKENS = [3, 9, 4, 9, 7, 1, 30, 9, 3, 5]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("decode") / "m.gguf", n_layer=4, n_expert=16, n_expert_used=3)


def load(path: Path, backend: str = "stream", **options: Any) -> Any:
    from backends.gguf.file import read_gguf

    if backend == "mmap":
        return MmapBackend().load(LoadRequest(path=str(path), n_ctx=256, n_threads=1, **options), lambda _: True)
    options.setdefault("ram_bytes", 2 * working_set(read_gguf(path)))
    options.setdefault("store", "pool")
    return StreamBackend().load(LoadRequest(path=str(path), n_ctx=256, n_threads=1, **options), lambda _: True)


def decode(model: Any, tokens: list[int], start: int = 0) -> list[bytes]:
    out = []
    for i, token in enumerate(tokens, start):
        batch = Batch()
        batch.add(token, i, 0, True)
        model.context.decode(batch)
        out.append(np.ctypeslib.as_array(model.context.logits(-1), (model.context.n_vocab,)).tobytes())
    return out


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The products that Python was asked about."""
    nodes: list[int] = []
    real = RouterHook._ask_product

    def noting(self: RouterHook, node: int) -> bool:
        nodes.append(node)
        return real(self, node)

    monkeypatch.setattr(RouterHook, "_ask_product", noting)
    return nodes


def test_known_products_are_not_asked_about(path: Path, asked: list[int]) -> None:
    model = load(path)
    try:
        got = decode(model, TOKENS[:2])
        assert asked
        asked.clear()
        got += decode(model, TOKENS[2:], 2)
        assert not asked
    finally:
        model.close()
    plain = load(path, "mmap")
    assert got == decode(plain, TOKENS)
    plain.close()


def test_what_stands_elsewhere_is_asked_about_again(path: Path, asked: list[int]) -> None:
    model, plain = load(path), load(path, "mmap")
    try:
        reference = decode(plain, TOKENS)
        got = decode(model, TOKENS[:4])
        known: KnownProducts = model._parts.hook._known
        assert len(known._known) == 4
        for layer in known._known.values():
            layer.up[0].seen = b""  # as if another graph had another weight there
        asked.clear()
        got += decode(model, TOKENS[4:5], 4)
        assert len(asked) >= 4 * 3
        asked.clear()
        got += decode(model, TOKENS[5:], 5)
        assert not asked
        assert got == reference
    finally:
        model.close()
        plain.close()


def test_prompts_and_tokens_in_turn(path: Path) -> None:
    """A prompt's graph lies in the same memory as a token's: what is known of one says nothing of the other."""
    results = []
    for backend in ("mmap", "stream"):
        model, got = load(path, backend), []
        at = 0
        for n in (7, 1, 1, 1, 3, 1, 1, 12, 1, 1, 1):
            batch = Batch()
            for i in range(n):
                batch.add((at * 5 + 3) % 32, at, 0, i == n - 1)
                at += 1
            model.context.decode(batch)
            got.append(np.ctypeslib.as_array(model.context.logits(-1), (model.context.n_vocab,)).tobytes())
        results.append(got)
        model.close()
    assert results[0] == results[1]


@pytest.mark.parametrize("without", ["stub", "kernels"])
def test_without_machine_code_or_ggmls_products(path: Path, without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if without == "stub":
        monkeypatch.setattr(Trampoline, "__init__", _refuse)
    else:
        monkeypatch.setattr(Kernels, "__init__", _refuse)
    model, plain = load(path), load(path, "mmap")
    assert decode(model, TOKENS) == decode(plain, TOKENS)
    if without == "stub":
        assert model._parts.hook._stub is None
    else:
        assert model._parts.hook._predictor.accuracy is not None  # numpy guesses
    model.close()
    plain.close()


def _refuse(*_: object, **__: object) -> None:
    raise OSError("not here")


def test_guesses_of_both_kinds_are_right_as_often(path: Path) -> None:
    rates = []
    for threads in (1, None):
        model = load(path)
        hook = model._parts.hook
        hook._predictor.close()
        hook._predictor = Predictor(len(model.pager.layout.rows), 3, n_threads=threads)
        decode(model, TOKENS * 3)
        rates.append(hook._predictor.accuracy)
        hook._predictor.close()
        model.close()
    assert rates[0] == pytest.approx(rates[1], abs=0.1)


def test_a_router_names_the_experts_that_numpy_names() -> None:
    native.lib()
    kernels = Kernels(1)
    numbers = np.random.default_rng(5)
    weight = numbers.normal(size=(64, 96)).astype(np.float32)
    scale, bias = numbers.uniform(0.5, 2, 96).astype(np.float32), numbers.normal(size=64).astype(np.float32)
    choice = numbers.uniform(0, 0.2, 64).astype(np.float32)
    for sigmoid in (False, True):
        product = RouterProduct(
            kernels, weight, scaled=True, logit_bias=bias, choice_bias=choice, sigmoid=sigmoid, most=8
        )  # fmt: skip
        products = Products(kernels, [product], [scale.ctypes.data])
        right = 0
        for _ in range(20):
            x = numbers.normal(size=96).astype(np.float32)
            scores = weight @ (x * scale) + bias
            soft = np.exp(scores - scores.max())
            p = 1 / (1 + np.exp(-scores)) if sigmoid else soft / soft.sum()
            best = np.argsort(-(p + choice))[:8]
            right += len(set(products.best(x.ctypes.data, 8)[0]) & set(best.tolist()))
        assert right >= 0.9 * 8 * 20  # eight bits round
        products.close()
        product.close()
    assert copied_bytes(64, 96) == 64 * 3 * 34
    assert copied_bytes(64, 100) == 0
    with pytest.raises(ValueError, match="100"):
        RouterProduct(
            kernels, np.zeros((4, 100), np.float32), scaled=False, logit_bias=None, choice_bias=None, sigmoid=False,
            most=4,
        )  # fmt: skip
    kernels.close()


def test_jumps_go_where_their_labels_are() -> None:
    code = assemble(["back", b"\x90", (b"\x0f\x84", "on"), (b"\x0f\x85", "back"), b"\x90\x90", "on", b"\xc3"])
    assert code[3:7] == (6 + 2).to_bytes(4, "little")
    assert int.from_bytes(code[9:13], "little", signed=True) == -13


def test_the_stub_asks_python_only_for_what_it_can_not_tell(path: Path) -> None:
    called: list[int] = []
    kind = C.CFUNCTYPE(C.c_bool, C.c_void_p, C.c_bool, C.c_void_p)

    def handler(node: int, _ask: bool, _data: object) -> bool:
        called.append(node)
        return False

    keep = kind(handler)
    op = abi.ggml().op("MUL_MAT_ID")
    try:
        stub = Trampoline(int(C.cast(keep, C.c_void_p).value or 0), op, [0x1234])
    except OSError:
        pytest.skip("no stub for this machine")
    ask = kind(stub.address)
    product, topk, table, other = (abi.Tensor(name=n) for n in (b"p", b"ffn_moe_topk-3", b"t", b"ffn_moe_argsort-3"))
    product.op = op
    table.src[0] = 0x1234
    at = {t.name: C.addressof(t) for t in (product, topk, table, other)}

    def asks(want: bool) -> list[bytes]:
        """What Python is called for."""
        called.clear()
        for t in (product, topk, table, other):
            ask(at[t.name], want, None)
        return [name for node in called for name, address in at.items() if address == node]

    assert asks(True) == [b"p", b"ffn_moe_topk-3", b"t"]
    assert len(asks(False)) == 4  # what was computed is always told
    stub.silence(True)
    assert asks(True) == [b"ffn_moe_topk-3", b"t"]
    assert not ask(at[b"p"], True, None)
    stub.silence(True, at[b"p"])
    assert ask(at[b"p"], True, None)
    stub.silence(False)
    stub.sure(True)
    assert asks(True) == [b"p", b"t"]
    assert ask(at[b"ffn_moe_topk-3"], True, None)
    stub.rest(True)
    assert asks(True) == []
    stub.close()
