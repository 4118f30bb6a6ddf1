"""The child process and its client: answers, deaths, cancelling, slow readers, several requests at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from backends.engine.client import Died, EngineClient
from backends.engine.inbox import Inbox
from backends.engine.outbox import Outbox
from backends.engine.protocol import ChildEvent, event_decoder
from backends.interface import (
    BenchRequest,
    ChatMessage,
    Delta,
    EngineError,
    ExpertMap,
    Finished,
    GenerateRequest,
    LoadProgress,
    LoadRequest,
    PrefillProgress,
    Sampling,
    Telemetry,
)
from tests import places
from tests.gguf_factory import make_gguf

ROOT = str(places.ROOT)
GREEDY = Sampling(temperature=0.0, max_tokens=24)
ENDLESS = Sampling(temperature=0.0, max_tokens=100_000, grammar="root ::= [a-z ]+")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", name="tiny", endless=True)


@pytest.fixture
def events() -> list[ChildEvent | Died]:
    return []


@pytest.fixture
async def client(tmp_path: Path, events: list[ChildEvent | Died]) -> AsyncIterator[EngineClient]:
    made = EngineClient(log_path=tmp_path / "logs" / "engine.log", on_event=events.append)
    yield made
    await made.stop()
    assert not made.alive


def request(path: Path, **more: object) -> LoadRequest:
    return LoadRequest(path=str(path), backend="mmap", n_threads=1, **more)  # type: ignore[arg-type]


def ask(request_id: str, text: str = "hello", sampling: Sampling = GREEDY, **more: object) -> GenerateRequest:
    return GenerateRequest(
        id=request_id,
        messages=(ChatMessage("user", text),),
        sampling=sampling,
        **more,  # type: ignore[arg-type]
    )


async def answer(client: EngineClient, wanted: GenerateRequest) -> tuple[str, Finished]:
    text = ""
    async for event in client.generate(wanted):
        if isinstance(event, Delta):
            text += event.text
        if isinstance(event, Finished):
            return text, event
    raise AssertionError("no end")


async def until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


async def test_load_answer_count_bench_unload(client: EngineClient, tiny: Path) -> None:
    progress: list[LoadProgress] = []
    info = await client.load(request(tiny), progress.append)
    assert info.name == "tiny"
    assert progress
    assert client.model == info
    assert client.pid is not None
    assert set(client.backends) >= {"mmap", "stream"}
    text, end = await answer(client, ask("1"))
    assert text
    assert end.usage.completion_tokens
    assert await client.count_tokens(ask("2")) == end.usage.prompt_tokens
    done: list[int] = []
    result = await client.bench(BenchRequest(tokens=3), lambda n, _: done.append(n))
    assert result.tokens == 3
    assert done[-1] == 3
    await client.unload()
    assert client.model is None
    with pytest.raises(EngineError, match="No model is loaded"):
        await answer(client, ask("3"))


async def test_several_answers_at_once_keep_apart(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny, n_seq_max=4))
    alone = [(await answer(client, ask(f"a{i}", f"question {i}")))[0] for i in range(6)]
    together = await asyncio.gather(*(answer(client, ask(f"b{i}", f"question {i}")) for i in range(6)))
    assert [text for text, _ in together] == alone


async def test_kill_in_mid_answer_keeps_the_text_and_the_next_load_answers(
    client: EngineClient, tiny: Path, events: list[ChildEvent | Died]
) -> None:
    await client.load(request(tiny))
    text = ""

    async def read() -> None:
        nonlocal text
        async for event in client.generate(ask("1", sampling=ENDLESS)):
            if isinstance(event, Delta):
                text += event.text
                assert client.pid is not None
                os.kill(client.pid, signal.SIGKILL)

    with pytest.raises(EngineError) as raised:
        await read()
    assert text
    assert raised.value.code == "engine_died"
    assert "killed" in raised.value.message
    assert [e.message for e in events if isinstance(e, Died)] == [raised.value.message]
    assert client.model is None
    with pytest.raises(EngineError) as again:
        await answer(client, ask("2"))
    assert again.value.code == "engine_died"
    await client.load(request(tiny))
    assert (await answer(client, ask("3")))[0]


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGABRT, "internal check"), (signal.SIGBUS, "model file changed"), (signal.SIGSEGV, "crashed")],
)
async def test_each_way_of_dying_has_its_sentence(
    client: EngineClient, tiny: Path, number: signal.Signals, words: str
) -> None:
    await client.load(request(tiny))
    running = asyncio.create_task(answer(client, ask("1", sampling=ENDLESS)))
    await asyncio.sleep(0.05)
    assert client.pid is not None
    os.kill(client.pid, number)
    with pytest.raises(EngineError, match=words):
        await running


async def test_a_model_file_that_shrinks_while_in_use_is_named_and_the_engine_lives(
    client: EngineClient, tmp_path: Path
) -> None:
    path = make_gguf(tmp_path / "shrinks.gguf")
    await client.load(request(path))
    os.truncate(path, 4096)
    with pytest.raises(EngineError, match=r"shrinks\.gguf was changed on disk while in use"):
        await answer(client, ask("1"))
    assert client.alive


async def test_a_real_assertion_of_llama_cpp_is_quoted(client: EngineClient, tiny: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "site"
    (plugin / "bad-1.0.dist-info").mkdir(parents=True)
    (plugin / "bad-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (plugin / "bad-1.0.dist-info" / "entry_points.txt").write_text("[flashmoe.backends]\nbad = bad_backend:Bad\n")
    (plugin / "bad_backend.py").write_text(
        "import ctypes as C\n"
        "from backends.llamacpp import abi\n"
        "class Bad:\n"
        "    name = 'bad'\n"
        "    def why_not(self, request): return None\n"
        "    def load(self, request, progress):\n"
        "        abi.declare(abi.ggml_base(), 'ggml_new_tensor_1d', C.c_void_p, C.c_void_p, C.c_int, C.c_int64)\\\n"
        "            and abi.declare(abi.ggml_base(), 'ggml_abort', None, C.c_char_p, C.c_int, C.c_char_p)(\n"
        "                b'ggml.c', 7, b'GGML_ASSERT(x > 0) failed')\n"
    )
    made = EngineClient(log_path=tmp_path / "bad.log", env={"PYTHONPATH": str(plugin)})
    with pytest.raises(EngineError) as raised:
        await made.load(LoadRequest(path=str(tiny), backend="bad"))
    assert raised.value.code == "engine_died"
    assert "GGML_ASSERT(x > 0) failed" in raised.value.message
    await made.stop()


async def test_cancel_ends_with_finished_and_the_engine_goes_on(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny))
    expected, _ = await answer(client, ask("0"))
    async for event in client.generate(ask("1", sampling=ENDLESS, session="s")):
        if isinstance(event, Delta):
            await client.cancel("1")
        if isinstance(event, Finished):
            assert event.reason == "cancelled"
    assert (await answer(client, ask("2", session="s")))[0] == expected
    await client.cancel("nobody")


async def test_a_request_cancelled_before_it_started(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny))
    first = asyncio.create_task(answer(client, ask("1", sampling=ENDLESS)))
    second = asyncio.create_task(answer(client, ask("2", sampling=ENDLESS)))
    await asyncio.sleep(0)
    await client.cancel("2")
    assert (await second)[1].reason == "cancelled"
    await client.cancel("1")
    assert (await first)[1].reason == "cancelled"


async def test_a_cancel_that_comes_late_does_not_meet_a_later_request(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny))
    text, _ = await answer(client, ask("same"))
    await client.cancel("same")
    again, end = await answer(client, ask("same"))
    assert end.reason != "cancelled"
    assert again == text


async def test_leaving_the_loop_cancels(client: EngineClient, tiny: Path, events: list[ChildEvent | Died]) -> None:
    await client.load(request(tiny))
    await client.watch(0.02)
    stream = client.generate(ask("1", sampling=ENDLESS))
    async for event in stream:
        if isinstance(event, Delta):
            break
    await stream.aclose()  # type: ignore[attr-defined]

    def idle() -> bool:
        seen = [e for e in events if isinstance(e, Telemetry)]
        return bool(seen) and seen[-1].prefill_tokens > 0 and seen[-1].n_active == 0

    await until(idle)


async def test_watch_sends_telemetry_and_maps(
    client: EngineClient, tiny: Path, events: list[ChildEvent | Died]
) -> None:
    await client.watch(0.02, 0.05)
    await client.load(request(tiny))
    await until(lambda: any(isinstance(e, ExpertMap) for e in events))
    await until(lambda: sum(isinstance(e, Telemetry) for e in events) >= 3)
    await client.watch(0.0, 0.0)
    await asyncio.sleep(0.1)
    n = len(events)
    await asyncio.sleep(0.2)
    assert len(events) == n


async def test_a_reader_that_sleeps_gets_fewer_and_longer_deltas(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny))
    long = Sampling(temperature=0.0, max_tokens=140, grammar="root ::= [a-z ]+")
    quick, _ = await answer(client, ask("1", sampling=long))
    slow, n = "", 0
    async for event in client.generate(ask("2", sampling=long)):
        if isinstance(event, Delta):
            slow, n = slow + event.text, n + 1
            await asyncio.sleep(0.3)
    assert slow == quick
    assert n < 30


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda p: p / "absent.gguf", "not_found"),
        (lambda p: p, "not_a_file"),
        (lambda p: _write(p / "text.gguf", b"this is no model at all" * 9), "not_gguf"),
        (lambda p: _write(p / "empty.gguf", b""), "not_gguf"),
        (lambda p: _write(p / "cut.gguf", make_gguf(p / "whole.gguf").read_bytes()[:-5000]), "truncated"),
        (lambda p: _write(p / "head.gguf", make_gguf(p / "whole.gguf").read_bytes()[:2000]), "truncated"),
        (lambda p: make_gguf(p / "odd.gguf", extra_kv={"general.architecture": "martian"}), "unknown_architecture"),
    ],
)
async def test_bad_files_get_one_clear_sentence(
    client: EngineClient, tiny: Path, tmp_path: Path, make: Callable[[Path], Path], code: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(EngineError) as raised:
        await client.load(LoadRequest(path=str(path)))
    assert raised.value.code == code
    assert "\n" not in raised.value.message
    assert path.name in raised.value.message
    assert await client.load(request(tiny))


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


async def test_a_context_larger_than_memory_names_what_fits(client: EngineClient, tiny: Path) -> None:
    with pytest.raises(EngineError) as raised:
        await client.load(request(tiny, n_ctx=2_000_000_000))
    assert raised.value.code == "context_too_large"
    assert "at most" in raised.value.message


async def test_a_prompt_longer_than_the_context_names_both(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny, n_ctx=512))
    with pytest.raises(EngineError) as raised:
        await answer(client, ask("1", "word " * 3000))
    assert raised.value.code == "prompt_too_long"
    assert "512" in raised.value.message
    assert (await answer(client, ask("2")))[0]


async def test_a_dense_model_works_and_says_that_nothing_streams(client: EngineClient, tmp_path: Path) -> None:
    info = await client.load(LoadRequest(path=str(make_gguf(tmp_path / "dense.gguf", dense=True)), n_threads=1))
    assert info.n_experts == 0
    assert info.backend == "mmap"
    assert "dense" in info.backend_reason
    assert (await answer(client, ask("1")))[0]


async def test_text_that_is_no_unicode_is_refused(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny))
    with pytest.raises(EngineError, match="valid Unicode"):
        await answer(client, ask("1", "a\udc80b"))
    assert (await answer(client, ask("2")))[0]


async def test_a_callback_that_raises_does_not_stop_the_client(tmp_path: Path, tiny: Path) -> None:
    def bad(_: object) -> None:
        raise RuntimeError("a bug in the app")

    seen: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(str(context["exception"])))
    client = EngineClient(log_path=tmp_path / "engine.log", on_event=bad)
    await client.watch(0.02)
    await client.load(request(tiny))
    await until(lambda: seen)
    assert (await answer(client, ask("1")))[0]
    await client.stop()


async def test_cancel_of_a_load(client: EngineClient, tiny: Path) -> None:
    await client.start()
    task = asyncio.create_task(client.load(request(tiny)))
    await until(lambda: client._load_id is not None)
    await client.cancel_load()
    (result,) = await asyncio.gather(task, return_exceptions=True)  # a load this small may be done before
    assert getattr(result, "code", "loaded") in {"loaded", "cancelled"}
    assert await client.load(request(tiny))


async def test_a_load_right_after_a_kill_has_a_child_of_its_own(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny))
    first = client.pid
    client._child.end(EngineError("cancelled", "Loading was cancelled."), quiet=True)  # nobody waits for its end
    assert await client.load(request(tiny))
    assert client.pid != first


async def test_a_load_that_hangs_is_killed_when_cancelled(
    client: EngineClient, tiny: Path, events: list[ChildEvent | Died]
) -> None:
    await client.start()
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)  # stands for a load that the kernel won't let go of
    task = asyncio.create_task(client.load(request(tiny)))
    await asyncio.sleep(0.05)
    await client.cancel_load()
    with pytest.raises(EngineError) as raised:
        await task
    assert raised.value.code == "cancelled"
    assert not [e for e in events if isinstance(e, Died)]
    assert await client.load(request(tiny))


async def test_nothing_that_is_printed_reaches_the_pipe(client: EngineClient, tiny: Path, tmp_path: Path) -> None:
    await client.load(request(tiny))
    log = (tmp_path / "logs" / "engine.log").read_text()
    assert "llama" in log


async def test_the_child_ends_with_its_parent(tmp_path: Path, tiny: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from backends.engine.client import EngineClient\n"
        "from backends.interface import LoadRequest\n"
        "async def main():\n"
        f"    c = EngineClient(log_path=Path({str(tmp_path / 'x.log')!r}))\n"
        f"    await c.load(LoadRequest(path={str(tiny)!r}, backend='mmap', n_threads=1))\n"
        "    print(c.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert parent.stdout is not None
    child = int(await parent.stdout.readline())
    parent.kill()
    await parent.wait()
    await until(lambda: not Path(f"/proc/{child}").exists() or _zombie(child))


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


async def test_stop_is_quick_and_can_be_repeated(client: EngineClient, tiny: Path) -> None:
    await client.load(request(tiny))
    running = asyncio.create_task(answer(client, ask("1", sampling=ENDLESS)))
    await asyncio.sleep(0.05)
    await client.stop()
    await client.stop()
    with pytest.raises(EngineError):
        await running


# ---- the queues --------------------------------------------------------------------------------------------------


async def test_an_inbox_joins_what_waits() -> None:
    inbox = Inbox()
    inbox.put(PrefillProgress(id="1", done=1, total=9))
    inbox.put(PrefillProgress(id="1", done=9, total=9))
    for text, kind in (("a", "thinking"), ("b", "thinking"), ("c", "answer"), ("d", "answer")):
        inbox.put(Delta(id="1", text=text, kind=kind))  # type: ignore[arg-type]
    got = [await inbox.get() for _ in range(3)]
    assert got == [
        PrefillProgress(id="1", done=9, total=9),
        Delta(id="1", text="ab", kind="thinking", n_tokens=2),
        Delta(id="1", text="cd", kind="answer", n_tokens=2),
    ]
    inbox.fail(EngineError("engine_died", "gone"))
    with pytest.raises(EngineError, match="gone"):
        await inbox.get()


def test_an_outbox_never_blocks_and_loses_no_text() -> None:
    reader, writer = os.pipe()
    outbox = Outbox(writer)
    for i in range(20_000):  # far more than a pipe holds, while nobody reads
        outbox.put(Delta(id="ab"[i % 2], text=f"{i},"))
        outbox.put(Telemetry(t=float(i)))
    data = b""
    texts = {"a": "", "b": ""}
    last = -1.0

    def close() -> None:
        outbox.close(20)
        os.close(writer)

    closer = threading.Thread(target=close)
    closer.start()
    while chunk := os.read(reader, 1 << 16):
        data += chunk
    closer.join()
    os.close(reader)
    for line in data.splitlines():
        event = event_decoder.decode(line)
        if isinstance(event, Delta):
            texts[event.id] += event.text
        elif isinstance(event, Telemetry):
            assert event.t > last
            last = event.t
    assert texts["a"] == "".join(f"{i}," for i in range(0, 20_000, 2))
    assert texts["b"] == "".join(f"{i}," for i in range(1, 20_000, 2))
    assert last == 19_999.0
    assert data.count(b"\n") < 10_000


@pytest.mark.parametrize(
    ("own", "spins"), [({}, b"GOMP_SPINCOUNT=1000"), ({"GOMP_SPINCOUNT": "7"}, b"GOMP_SPINCOUNT=7")]
)
async def test_threads_that_wait_do_not_spin_for_long(tmp_path: Path, own: dict[str, str], spins: bytes) -> None:
    client = EngineClient(log_path=tmp_path / "engine.log", env=own)
    try:
        await client.start()
        environ = await asyncio.to_thread(Path(f"/proc/{client.pid}/environ").read_bytes)
        assert spins in environ.split(b"\0")
    finally:
        await client.stop()
