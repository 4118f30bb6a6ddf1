"""LlamaModel over real llama.cpp and tiny models: batching, KV reuse, stopping, samplers, states."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.interface import (
    BenchRequest,
    ChatMessage,
    Delta,
    EngineError,
    Event,
    Finished,
    GenerateRequest,
    LoadRequest,
    PrefillProgress,
    Sampling,
)
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.model import LlamaModel
from tests.gguf_factory import make_gguf

GREEDY = Sampling(temperature=0.0, max_tokens=24)


def load(path: Path, **request: Any) -> LlamaModel:
    # one thread: ggml's threads spin at barriers, which takes seconds where other tests have the cores
    return MmapBackend().load(LoadRequest(path=str(path), n_threads=1, **request), lambda _: True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def hybrid_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("models") / "hybrid.gguf", arch="qwen35moe")


@pytest.fixture
def model(tiny: Path) -> Iterator[LlamaModel]:
    made = load(tiny, n_seq_max=4)
    yield made
    made.close()


@pytest.fixture
def hybrid(hybrid_path: Path) -> Iterator[LlamaModel]:
    made = load(hybrid_path, n_seq_max=2)
    yield made
    made.close()


def drain(model: LlamaModel, limit: int = 20_000) -> list[Event]:
    events: list[Event] = []
    for _ in range(limit):
        if not model.busy():
            return events
        events += model.step()
    raise AssertionError("the model never ends")


def text_of(events: list[Event], request_id: str) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta) and e.id == request_id)


def end_of(events: list[Event], request_id: str) -> Finished:
    found = [e for e in events if isinstance(e, Finished) and e.id == request_id]
    assert len(found) == 1
    return found[0]


def chat(request_id: str, *texts: str, sampling: Sampling = GREEDY, **more: Any) -> GenerateRequest:
    roles = ("user", "assistant")
    messages = tuple(ChatMessage(roles[i % 2], text) for i, text in enumerate(texts))
    return GenerateRequest(id=request_id, messages=messages, sampling=sampling, **more)


def answer(model: LlamaModel, request: GenerateRequest) -> tuple[str, Finished]:
    model.submit(request)
    events = drain(model)
    return text_of(events, request.id), end_of(events, request.id)


def tokens(seed: int, n: int, n_vocab: int = 500) -> tuple[int, ...]:
    ids: NDArray[np.int64] = np.random.default_rng(seed).integers(0, n_vocab, n)
    return tuple(int(t) for t in ids)


# ---- KV reuse ----------------------------------------------------------------------------------------------------


def test_second_turn_prefills_only_what_is_new_and_says_the_same(model: LlamaModel) -> None:
    first, _ = answer(model, chat("1", "hello there", session="s"))
    second = chat("2", "hello there", first, "and now?", session="s")
    warm, end = answer(model, second)
    fresh, fresh_end = answer(model, chat("3", "hello there", first, "and now?", session="other-s"))
    assert end.usage.reused_tokens is not None
    assert end.usage.reused_tokens >= 20
    assert warm == fresh
    assert end.usage.prompt_tokens == fresh_end.usage.prompt_tokens


def test_an_edited_message_reuses_up_to_the_edit(model: LlamaModel) -> None:
    head = tokens(1, 100)
    a, _ = answer(model, GenerateRequest(id="a", tokens=head + tokens(2, 50), session="s", sampling=GREEDY))
    b, end = answer(model, GenerateRequest(id="b", tokens=head + tokens(3, 50), session="s", sampling=GREEDY))
    assert end.usage.reused_tokens == 100
    model.forget()
    fresh, end = answer(model, GenerateRequest(id="c", tokens=head + tokens(3, 50), sampling=GREEDY))
    assert end.usage.reused_tokens == 0
    assert b == fresh
    assert a != b


def test_regenerating_decodes_one_token_of_the_prompt(model: LlamaModel) -> None:
    one, _ = answer(model, chat("1", "again", session="s"))
    two, end = answer(model, chat("2", "again", session="s"))
    assert one == two
    assert end.usage.reused_tokens == (end.usage.prompt_tokens or 0) - 1


def test_progress_counts_up_to_the_prompt(tiny: Path) -> None:
    model = load(tiny, n_ubatch=32)
    model.submit(GenerateRequest(id="1", tokens=tokens(1, 100), sampling=GREEDY))
    done = [e.done for e in drain(model) if isinstance(e, PrefillProgress)]
    model.close()
    assert done == [0, 32, 64, 96, 100]


# ---- several sequences -------------------------------------------------------------------------------------------


def test_parallel_greedy_answers_equal_those_alone(model: LlamaModel) -> None:
    prompts = [tokens(seed, 20 + 13 * seed) for seed in range(7)]
    alone = []
    for i, prompt in enumerate(prompts):
        alone.append(answer(model, GenerateRequest(id=f"a{i}", tokens=prompt, sampling=GREEDY))[0])
    for i, prompt in enumerate(prompts):
        model.submit(GenerateRequest(id=f"b{i}", tokens=prompt, sampling=GREEDY))
    most, events = 0, []
    while model.busy():
        events += model.step()
        most = max(most, model.telemetry().n_active)
    assert [text_of(events, f"b{i}") for i in range(len(prompts))] == alone
    assert most == 4


def test_a_shared_prefix_is_prefilled_once(model: LlamaModel) -> None:
    shared = tokens(9, 300)
    before = model.telemetry().prefill_tokens
    for i in range(4):
        model.submit(GenerateRequest(id=str(i), tokens=shared + tokens(20 + i, 10), sampling=GREEDY))
    events = drain(model)
    assert model.telemetry().prefill_tokens - before == 310 + 3 * 10
    assert sorted(end_of(events, str(i)).usage.reused_tokens or 0 for i in range(4)) == [0, 300, 300, 300]
    for i in range(4):
        model.forget()
        alone, _ = answer(model, GenerateRequest(id="x", tokens=shared + tokens(20 + i, 10), sampling=GREEDY))
        assert text_of(events, str(i)) == alone


def test_more_requests_than_the_cache_holds_all_finish_right(tiny: Path) -> None:
    model = load(tiny, n_seq_max=6, n_ctx=512, n_ubatch=64)
    wanted = {}
    for i in range(12):
        prompt = tokens(i, 60 + 10 * i)
        sampling = Sampling(temperature=0.0, max_tokens=100 if i % 2 else None)
        request = GenerateRequest(id=f"r{i}", tokens=prompt, sampling=sampling)
        wanted[request.id] = request
        model.submit(request)
    events = drain(model)
    assert {e.id for e in events if isinstance(e, Finished)} == set(wanted)
    assert model.telemetry().ctx_used <= model.info.n_ctx
    model.close()
    alone = load(tiny, n_ctx=512)
    for request_id in ("r1", "r7", "r11"):
        assert answer(alone, wanted[request_id])[0] == text_of(events, request_id)
    alone.close()


def test_every_cell_is_free_again(model: LlamaModel) -> None:
    for i in range(20):
        model.submit(GenerateRequest(id=str(i), tokens=tokens(i % 3, 40), session=f"s{i % 5}", sampling=GREEDY))
    drain(model)
    book = model._scheduler.book
    assert book.used == len({c for s in book.sequences for c in s.cells})
    while book.evict_idle():
        pass
    assert book.used == 0
    assert all(model.context.length(i) == 0 for i in range(model.context.n_seqs))


# ---- stopping ----------------------------------------------------------------------------------------------------


def cancel_when(model: LlamaModel, request_id: str, ready: Callable[[], bool]) -> threading.Thread:
    def run() -> None:
        while not ready():
            time.sleep(0.0005)
        model.cancel(request_id)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("fixture", ["model", "hybrid"])
def test_cancel_while_decoding_then_the_next_answer_is_right(fixture: str, request: pytest.FixtureRequest) -> None:
    model: LlamaModel = request.getfixturevalue(fixture)
    long = Sampling(temperature=0.0)
    expected, _ = answer(model, GenerateRequest(id="0", tokens=tokens(5, 30), sampling=GREEDY))
    model.submit(GenerateRequest(id="1", tokens=tokens(4, 30), sampling=long, session="s"))
    start = model.telemetry().decode_tokens
    thread = cancel_when(model, "1", lambda: model.telemetry().decode_tokens > start + 20)
    events = drain(model)
    thread.join()
    assert end_of(events, "1").reason == "cancelled"
    got, _ = answer(model, GenerateRequest(id="2", tokens=tokens(5, 30), sampling=GREEDY, session="s"))
    assert got == expected


@pytest.mark.parametrize("arch", ["qwen3moe", "qwen35moe"])
def test_an_abort_in_the_middle_of_a_prefill_leaves_a_consistent_cache(arch: str, tmp_path: Path) -> None:
    model = load(make_gguf(tmp_path / "m.gguf", arch=arch, n_layer=8, n_embd=256), n_ubatch=256)
    prompt = tokens(1, 1500)
    expected, _ = answer(model, GenerateRequest(id="0", tokens=prompt, sampling=GREEDY))
    stopped_inside = 0
    for delay in (0.002, 0.006, 0.012, 0.02):
        model.forget()
        model.submit(GenerateRequest(id="1", tokens=prompt, sampling=GREEDY, session="s"))
        timer = threading.Timer(delay, model.cancel, ("1",))
        timer.start()
        events = drain(model)
        timer.join()
        done = max((e.done for e in events if isinstance(e, PrefillProgress)), default=0)
        stopped_inside += end_of(events, "1").reason == "cancelled" and done < len(prompt)
        again, _ = answer(model, GenerateRequest(id="2", tokens=prompt, sampling=GREEDY, session="s"))
        assert again == expected
    model.close()
    assert stopped_inside


def test_the_abort_flag_stops_a_running_batch(model: LlamaModel) -> None:
    from backends.llamacpp.context import Batch

    batch = Batch()
    for i, token in enumerate(tokens(1, 64)):
        batch.add(token, i, 0, i == 63)
    model.context.abort.set()
    result = model.context.decode(batch)
    assert result.status == "cancelled"
    assert model.context.length(0) == 0
    model.context.abort.clear()
    assert model.context.decode(batch).status == "ok"
    assert model.context.length(0) == 64


def test_cancel_of_a_waiting_request_and_of_an_unknown_one(model: LlamaModel) -> None:
    for i in range(6):
        model.submit(GenerateRequest(id=str(i), tokens=tokens(i, 20), sampling=GREEDY))
    model.cancel("5")
    model.cancel("nobody")
    events = drain(model)
    assert end_of(events, "5").reason == "cancelled"
    assert all(end_of(events, str(i)).reason != "cancelled" for i in range(5))


def test_stop_strings_end_before_the_match(model: LlamaModel) -> None:
    whole, _ = answer(model, GenerateRequest(id="1", tokens=tokens(3, 20), sampling=GREEDY))
    stop = whole[7:10]
    at = whole.find(stop)
    sampling = Sampling(temperature=0.0, max_tokens=24, stop=(stop, "never seen"))
    text, end = answer(model, GenerateRequest(id="2", tokens=tokens(3, 20), sampling=sampling))
    assert text == whole[:at]
    assert end.reason == "stop"


def test_the_answer_ends_with_its_length_and_with_the_context(model: LlamaModel) -> None:
    _, end = answer(model, GenerateRequest(id="1", tokens=tokens(3, 20), sampling=GREEDY))
    assert (end.reason, end.usage.completion_tokens) in {("length", 24), ("stop", end.usage.completion_tokens)}
    n = model.info.n_ctx_train
    sampling = Sampling(temperature=0.0, grammar="root ::= [a-z ]+", max_tokens=10 * n)
    _, end = answer(model, GenerateRequest(id="2", tokens=tokens(3, n - 10), sampling=sampling))
    assert end.reason == "context"
    assert end.usage.completion_tokens == 10


@pytest.mark.parametrize("n_ctx", [1, 3])
def test_a_tiny_context_is_rounded_up_and_works(tiny: Path, n_ctx: int) -> None:
    model = load(tiny, n_ctx=n_ctx, n_seq_max=4)
    assert model.info.n_ctx == 256
    _, end = answer(model, GenerateRequest(id="1", tokens=tokens(3, 20), sampling=GREEDY))
    assert end.usage.completion_tokens
    model.close()


# ---- samplers ----------------------------------------------------------------------------------------------------


def test_a_seed_repeats_an_answer_and_no_seed_is_told(model: LlamaModel) -> None:
    def run(seed: int | None) -> tuple[str, int | None]:
        sampling = Sampling(temperature=1.0, top_k=0, min_p=0.0, top_p=1.0, seed=seed, max_tokens=24)
        text, end = answer(model, GenerateRequest(id="1", tokens=tokens(3, 20), sampling=sampling))
        return text, end.usage.seed

    one, seed = run(7)
    assert seed == 7
    assert run(7)[0] == one
    free, drawn = run(None)
    assert drawn is not None
    assert run(drawn)[0] == free
    assert len({run(s)[0] for s in range(1, 6)}) > 1


def test_penalties_change_a_greedy_answer(model: LlamaModel) -> None:
    prompt = tokens(3, 20)
    plain, _ = answer(model, GenerateRequest(id="1", tokens=prompt, sampling=GREEDY))
    sampling = Sampling(temperature=0.0, max_tokens=24, repeat_penalty=50.0, presence_penalty=5.0)
    other, _ = answer(model, GenerateRequest(id="2", tokens=prompt, sampling=sampling))
    assert plain != other


def test_a_grammar_binds_the_answer(model: LlamaModel) -> None:
    sampling = Sampling(temperature=1.0, seed=1, grammar='root ::= "yes" | "no"')
    text, end = answer(model, chat("1", "well?", sampling=sampling))
    assert text in {"yes", "no"}
    assert end.reason == "stop"


def test_a_json_schema_binds_the_answer(model: LlamaModel) -> None:
    import json

    schema = '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}'
    text, _ = answer(model, chat("1", "well?", sampling=Sampling(seed=1, json_schema=schema, max_tokens=200)))
    assert set(json.loads(text)) == {"ok"}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=-1.0), Sampling(temperature=float("nan")), Sampling(top_p=2.0), Sampling(max_tokens=0),
        Sampling(repeat_penalty=0.0), Sampling(grammar="root ::= ("), Sampling(grammar="x ::= y"),
        Sampling(json_schema="{"), Sampling(stop=("x",) * 100),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_and_the_model_goes_on(model: LlamaModel, sampling: Sampling) -> None:
    with pytest.raises(EngineError) as raised:
        model.submit(chat("1", "hi", sampling=sampling))
    assert raised.value.code == "bad_request"
    assert answer(model, chat("1", "hi"))[1].reason in {"length", "stop"}


def test_a_grammar_that_allows_nothing_is_refused_alone(model: LlamaModel) -> None:
    model.submit(chat("good", "hi"))
    for grammar in ("root ::= [b-a]", "root ::= root"):  # an empty range, and a rule that never ends
        with pytest.raises(EngineError) as raised:
            model.submit(chat("bad", "hi", sampling=Sampling(grammar=grammar)))
        assert raised.value.code == "bad_request"
    assert end_of(drain(model), "good")


# ---- thinking ----------------------------------------------------------------------------------------------------


def test_thinking_comes_apart_and_the_grammar_starts_after_it(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<think>\n{% endif %}"
    model = load(make_gguf(tmp_path / "t.gguf", chat_template=template))
    assert model.info.can_think
    sampling = Sampling(temperature=0.0, max_tokens=40, grammar='root ::= "never reached"')
    model.submit(chat("1", "hi", sampling=sampling))
    events = drain(model)
    assert {e.kind for e in events if isinstance(e, Delta)} == {"thinking"}
    end = end_of(events, "1")
    assert end.usage.thinking_tokens == end.usage.completion_tokens
    model.close()


def test_continue_final_goes_on_where_the_answer_was_cut(model: LlamaModel) -> None:
    whole, _ = answer(model, chat("1", "tell me", sampling=Sampling(temperature=0.0, max_tokens=16)))
    prompt = model.count_tokens(chat("2", "tell me"))
    request = chat("3", "tell me", "Half an answer", continue_final=True)
    _, end = answer(model, request)
    assert end.usage.prompt_tokens == prompt + len(model._vocab.tokenize("Half an answer"))
    assert whole


# ---- hybrids: a state that can't be rolled back --------------------------------------------------------------------


def test_a_hybrid_goes_back_to_its_checkpoint(hybrid: LlamaModel) -> None:
    first, _ = answer(hybrid, chat("1", "hello " * 30, session="s"))
    # history drops the answer's last words, so that the new prompt parts from the cache inside the answer
    second = chat("2", "hello " * 30, first[: len(first) // 2], "go on", session="s")
    warm, end = answer(hybrid, second)
    hybrid.forget()
    fresh, fresh_end = answer(hybrid, chat("3", "hello " * 30, first[: len(first) // 2], "go on"))
    assert end.usage.reused_tokens
    assert fresh_end.usage.reused_tokens == 0
    assert warm == fresh


def test_parallel_hybrid_answers_equal_those_alone(hybrid: LlamaModel) -> None:
    alone = [answer(hybrid, GenerateRequest(id="a", tokens=tokens(i, 40), sampling=GREEDY))[0] for i in range(4)]
    for i in range(4):
        hybrid.submit(GenerateRequest(id=str(i), tokens=tokens(i, 40), sampling=GREEDY))
    events = drain(hybrid)
    assert [text_of(events, str(i)) for i in range(4)] == alone


# ---- the benchmark --------------------------------------------------------------------------------------------------


def test_bench_is_repeatable_and_leaves_the_model_usable(model: LlamaModel) -> None:
    request = BenchRequest(prompt_tokens=8, tokens=6, seed=3)
    one, two = (model.bench(request, lambda *_: True) for _ in range(2))
    assert one.logits_sha256 == two.logits_sha256
    other = model.bench(BenchRequest(prompt_tokens=8, tokens=6, seed=4), lambda *_: True)
    assert other.logits_sha256 != one.logits_sha256
    wide = model.bench(BenchRequest(prompt_tokens=8, tokens=6, seed=3, parallel=3), lambda *_: True)
    assert wide.parallel == 3
    with pytest.raises(EngineError) as raised:
        model.bench(request, lambda done, _: done < 2)
    assert raised.value.code == "cancelled"
    assert answer(model, chat("1", "hi"))[1].reason in {"length", "stop"}


def test_bench_hashes_the_logits_of_every_step(model: LlamaModel) -> None:
    """An independent loop over llama-cpp-python's low-level API gives the same hash."""
    import hashlib

    import llama_cpp.llama_cpp as L

    result = model.bench(BenchRequest(prompt_tokens=8, tokens=4, seed=5), lambda *_: True)
    ids = np.random.default_rng(5).integers(0, model.info.n_vocab, 12).tolist()
    digest, position, ctx = hashlib.sha256(), 0, model.context.pointer
    for part in (ids[:8], *([t] for t in ids[8:])):
        batch = L.llama_batch_init(len(part), 0, 1)
        for i, token in enumerate(part):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i == len(part) - 1
        batch.n_tokens = len(part)
        assert L.llama_decode(ctx, batch) == 0
        position += len(part)
        digest.update(np.ctypeslib.as_array(L.llama_get_logits_ith(ctx, -1), (model.info.n_vocab,)).tobytes())
        L.llama_batch_free(batch)
    assert digest.hexdigest() == result.logits_sha256


def test_the_expert_map_tells_what_is_cached(model: LlamaModel) -> None:
    known = model.expert_map()
    assert known is not None
    assert known.layers == (0, 1)
    assert known.uses is None
    if known.residency is not None:
        assert len(known.residency) == known.n_layers * known.n_experts
        assert max(known.residency) == 255


def test_requests_that_can_never_run_are_refused(model: LlamaModel) -> None:
    n = model.info.n_ctx_train
    cases = [
        (GenerateRequest(id="1"), "bad_request"),
        (GenerateRequest(id="1", prompt="a", tokens=(1,)), "bad_request"),
        (GenerateRequest(id="1", tokens=(10**6,)), "bad_request"),
        (GenerateRequest(id="1", tokens=()), "bad_request"),
        (GenerateRequest(id="1", messages=()), "bad_request"),
        (GenerateRequest(id="1", tokens=tokens(1, n)), "prompt_too_long"),
        (GenerateRequest(id="1", prompt="x" * 3_000_000), "prompt_too_long"),
    ]
    for request, code in cases:
        with pytest.raises(EngineError) as raised:
            model.submit(request)
        assert raised.value.code == code
        if code == "prompt_too_long":
            assert str(n) in raised.value.message or str(model.info.n_ctx) in raised.value.message
    model.submit(GenerateRequest(id="1", prompt="x", sampling=GREEDY))
    with pytest.raises(EngineError, match="running already"):
        model.submit(GenerateRequest(id="1", prompt="x", sampling=GREEDY))
    drain(model)


def test_only_the_markers_of_thinking_are_visible_among_control_tokens(model: LlamaModel) -> None:
    vocab = model._vocab
    (think,), (end,) = vocab.tokenize("<think>"), vocab.tokenize("<|im_end|>")
    assert vocab.piece(think) == b"<think>"
    assert vocab.piece(end) == b""
    assert vocab.is_end(end)
    assert vocab.tokenize("<|im_end|>", special=False) != [end]
    text = "héllo wörld ∑\n\ttab"
    assert b"".join(vocab.piece(t) for t in vocab.tokenize(text)).decode() == text
