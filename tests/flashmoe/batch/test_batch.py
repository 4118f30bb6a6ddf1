"""`batch` through its command line, with real engines and real kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from backends.interface import GenerateRequest
from flashmoe.batch.lines import Item, Problem, read_items
from flashmoe.batch.order import by_prefix
from flashmoe.batch.output import Output, OutputError
from flashmoe.batch.width import WidthSearch
from flashmoe.cli.main import main
from tests.gguf_factory import make_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("batch") / "tiny.gguf", n_ctx_train=4096)


def command(model: Path, source: Path, out: Path, *more: str) -> list[str]:
    args = ["batch", str(model), str(source), "-o", str(out), "--seq-ctx", "256", "--backend", "mmap", *more]
    return [sys.executable, "-m", "flashmoe.cli.main", *args]


def prompts(path: Path, n: int, max_tokens: int = 6) -> Path:
    lines = [
        json.dumps({"id": f"p{i}", "prompt": f"say {i}", "max_tokens": max_tokens, "temperature": 0}) for i in range(n)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def results(path: Path) -> dict[str, dict[str, object]]:
    out: dict[str, dict[str, object]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        name = row.get("custom_id", row["id"])
        assert name not in out, f"{name} twice"
        out[name] = row
    return out


def test_lines_good_and_bad(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"id": "a", "prompt": "x"}\n'
        b"\n"
        b"{broken\n"
        b'{"id": "a", "prompt": "again"}\n'
        b'{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions",'
        b' "body": {"messages": [{"role": "user", "content": "y"}]}}\n'
        b'{"id": "c", "messages": [{"role": "user", "content": "z"}], "wat": 1}\n'
        b'{"prompt": "no id"}\n'
        b'{"id": "d"}\n'
        b"[1]\n"
        b"\xff\n"
    )
    rows = list(read_items(source))
    assert [(r.line, r.id) for r in rows if isinstance(r, Item)] == [(1, "a"), (5, "b"), (7, "line-7")]
    assert [r.line for r in rows if isinstance(r, Problem)] == [3, 4, 6, 8, 9, 10]


def test_equal_beginnings_stand_together(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    rows = []
    for i in range(9):
        system = {"role": "system", "content": f"rules {i % 3}"}
        rows.append(json.dumps({"id": str(i), "messages": [system, {"role": "user", "content": f"q{i}"}]}))
    source.write_text("\n".join(rows))
    ordered = by_prefix([i for i in read_items(source) if isinstance(i, Item)])
    assert [i.id for i in ordered] == ["0", "3", "6", "1", "4", "7", "2", "5", "8"]


def test_torn_last_line_is_cut_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text('{"id": "a", "answer": "1"}\n{"id": "b", "ans')
    with Output(path) as output:
        assert output.done == {"a"}
        assert output.torn_bytes > 0
        with pytest.raises(OutputError, match="another batch"):
            Output(path)
        output.write({"id": "b", "answer": "2"})
    assert set(results(path)) == {"a", "b"}
    path.write_text("my diary\nsecond line\n")
    with pytest.raises(OutputError, match="line 1"):
        Output(path)
    assert path.read_text().startswith("my diary")


def test_what_is_no_file_of_answers_is_refused_and_left_alone(tmp_path: Path) -> None:
    picture = tmp_path / "picture"
    picture.write_bytes(b"\xff\xd8\xff\n\x00\n")
    with pytest.raises(OutputError, match="line 1"):
        Output(picture)
    assert picture.read_bytes() == b"\xff\xd8\xff\n\x00\n"
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/full"), Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(OutputError, match="not a file"):
            Output(path)
    with pytest.raises(OutputError, match="can't be written"):
        Output(tmp_path)


def test_failed_lines_go_and_the_others_stay_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real.jsonl"
    before = b'{"id": "a", "answer": "1"}\n{"id": "b", "error": {"code": "x"}}\n'
    real.write_bytes(before)
    link = tmp_path / "link.jsonl"
    link.symlink_to(real)
    write = os.write

    def half(fd: int, data: bytes) -> int:
        if len(data) > 8:
            return write(fd, data[:8])
        raise OSError(28, "No space left on device")

    with Output(link) as output:
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OutputError, match="No space left"):
            output.forget_failed()
        monkeypatch.undo()
        assert real.read_bytes() == before
        assert sorted(p.name for p in tmp_path.iterdir()) == ["link.jsonl", "real.jsonl"]
        output.forget_failed()
        output.write({"id": "b", "answer": "2"})
    assert link.is_symlink()
    assert set(results(real)) == {"a", "b"}


def search(
    rate_at: Callable[[int], float],
    limit: int,
    *,
    seconds: float = 1000.0,
    begin: int | None = None,
    waiting: int = 9999,
) -> WidthSearch:
    """Runs a search against an engine with this rate at each width."""
    found, now, tokens = WidthSearch(limit, window_s=5.0), 0.0, 0.0
    if begin is not None:
        found.begin_at(begin)
    while not found.settled and now < seconds:
        found.observe(int(tokens), found.width, 0, waiting, now)
        now += 0.5
        tokens += 0.5 * rate_at(found.width)
    assert found.settled
    return found


def test_width_search_doubles_while_it_pays_and_then_stays() -> None:
    def engine(rates: dict[int, float]) -> Callable[[int], float]:
        return lambda width: rates[width]

    assert search(engine({4: 8, 8: 11, 16: 12, 32: 12, 64: 9}), 64).width == 16
    assert search(engine({8: 24, 16: 48, 32: 96, 64: 192}), 64).width == 64
    assert search(engine({8: 24, 16: 48, 24: 60}), 24).width == 24
    assert search(engine({1: 10, 2: 11, 4: 10, 8: 5, 16: 1}), 64).width == 2  # narrower is better: it looks there, too
    assert search(engine({1: 2, 2: 4, 4: 8, 8: 7}), 8).width == 4
    assert search(engine({1: 1, 2: 1.01}), 2).width in (1, 2)
    streaming = search(engine({16: 4, 32: 8, 64: 12, 128: 14}), 128, begin=32)
    assert streaming.width == 128
    assert 16 not in streaming.rates
    assert search(engine({8: 3, 16: 9, 32: 8, 64: 5}), 128, begin=32).width == 16
    assert search(engine({6: 9, 12: 10}), 12, begin=32).width == 12
    assert search(engine({16: 5, 32: 9, 64: 8}), 64, begin=64).width == 32  # from the widest on
    short = search(engine({32: 9, 64: 8}), 64, begin=64, waiting=200)  # half as many would cost more than they save
    assert (short.width, short.rates) == (64, {64: 8.0})


def test_width_search_does_not_measure_while_prompts_are_read_or_places_are_empty() -> None:
    found = WidthSearch(64, window_s=5.0)
    for second in range(60):
        found.observe(second * 100, 7, 0, 999, float(second))  # one place is empty
    assert not found.rates
    for second in range(60):
        found.observe(second * 100, 8, 5, 999, float(second))  # five of the eight are prompts
    assert not found.rates
    for second in range(60, 70):
        found.observe(second * 100, 8, 1, 999, float(second))
    assert found.rates == {8: 100.0}


def test_batch_answers_everything_and_a_second_call_does_nothing(model: Path, tmp_path: Path) -> None:
    source, out = prompts(tmp_path / "in.jsonl", 10), tmp_path / "out.jsonl"
    with source.open("a") as f:
        f.write("{bad\n")
        f.write(
            json.dumps({"custom_id": "oa", "body": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}})
        )
    done = subprocess.run(command(model, source, out, "--json"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr  # one line was bad
    assert "line 11" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["done"], summary["bad_lines"], summary["failed"]) == (11, 1, 0)
    rows = results(out)
    assert set(rows) == {f"p{i}" for i in range(10)} | {"oa"}
    assert rows["oa"]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"  # type: ignore[index]
    before = out.read_bytes()
    again = subprocess.run(command(model, source, out, "--json"), capture_output=True, text=True, timeout=300)
    assert json.loads(again.stdout)["skipped"] == 11
    assert out.read_bytes() == before


def test_what_was_written_is_synced_before_a_batch_ends(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    write, sync = Output.write, Output.sync
    monkeypatch.setattr(Output, "write", lambda self, line: (write(self, line), done.append("write"))[0])
    monkeypatch.setattr(Output, "sync", lambda self: (done.append("sync"), sync(self))[0])
    source = prompts(tmp_path / "in.jsonl", 5)
    assert main(["batch", str(model), str(source), "-o", str(tmp_path / "out.jsonl"), "--parallel", "2"]) == 0
    assert done.count("write") == 5
    assert done[-1] == "sync"


def test_batch_greedy_equals_one_alone(model: Path, tmp_path: Path) -> None:
    source = prompts(tmp_path / "in.jsonl", 6)
    for name, width in (("one", "1"), ("many", "6")):
        cmd = command(model, source, tmp_path / name, "--parallel", width)
        assert subprocess.run(cmd, capture_output=True, timeout=300).returncode == 0
    one, many = results(tmp_path / "one"), results(tmp_path / "many")
    assert {k: v["answer"] for k, v in one.items()} == {k: v["answer"] for k, v in many.items()}


def test_lines_that_failed_are_told_until_they_are_run_again(model: Path, tmp_path: Path) -> None:
    source, out = prompts(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    with source.open("a") as f:
        f.write(json.dumps({"id": "bad", "prompt": [10**6], "max_tokens": 2}))
    for more, done, before, failed_before in (((), 2, 0, 0), ((), 0, 2, 1), (("--retry-failed",), 0, 2, 0)):
        run = subprocess.run(command(model, source, out, "--json", *more), capture_output=True, text=True, timeout=300)
        assert run.returncode == 1  # not everything is answered, whichever call it was
        summary = json.loads(run.stdout)
        assert (summary["done"], summary["skipped"], summary["failed_before"]) == (done, before, failed_before)
        assert summary["remaining"] == 0


def test_answers_that_grow_longer_than_was_likely_all_end(model: Path, tmp_path: Path) -> None:
    """The context is made for answers of 256 tokens; here all eight grow to 600."""
    source = prompts(tmp_path / "in.jsonl", 8, max_tokens=600)
    for name, width in (("one", "1"), ("many", "8")):
        cmd = command(model, source, tmp_path / name, "--parallel", width, "--json", "--threads", "1")
        cmd += ["--seq-ctx", "1024"]
        done = subprocess.run(cmd, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["done"] == 8
    one, many = results(tmp_path / "one"), results(tmp_path / "many")
    lengths = {k: (v["finish_reason"], v["usage"]["completion_tokens"]) for k, v in many.items()}  # type: ignore[index]
    assert sum(n for _, n in lengths.values()) > 8 * (64 + 256)
    assert {reason for reason, _ in lengths.values()} <= {"length", "stop"}
    # among thousands of tokens of random weights a near tie may break the other way at another width;
    # tests/backends/llamacpp/test_outgrow.py looks at the logits
    assert sum(one[k]["answer"] == v["answer"] for k, v in many.items()) >= 6


def kill_campaign(model: Path, tmp_path: Path, n: int, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    source, out = prompts(tmp_path / "in.jsonl", n, max_tokens=12), tmp_path / "out.jsonl"
    for _ in range(kills):
        process = subprocess.Popen(command(model, source, out), stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(rng.uniform(0.3, 3.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if out.exists():
            whole = out.read_bytes()
            for line in whole[: whole.rfind(b"\n") + 1].splitlines():
                json.loads(line)
    before = len(out.read_bytes().splitlines()) if out.exists() else 0
    last = subprocess.run(command(model, source, out, "--json"), capture_output=True, text=True, timeout=600)
    assert last.returncode == 0, last.stderr
    summary = json.loads(last.stdout)
    assert (summary["skipped"], summary["done"]) == (before, n - before)  # what was done is not computed again
    assert set(results(out)) == {f"p{i}" for i in range(n)}


def test_batch_survives_kills(model: Path, tmp_path: Path) -> None:
    kill_campaign(model, tmp_path, n=60, kills=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_batch_survives_many_kills(model: Path, tmp_path: Path) -> None:
    kill_campaign(model, tmp_path, n=500, kills=20, seed=2)


def test_prompts_from_stdin_are_named_so(tmp_path: Path) -> None:
    cmd = command(Path("demo"), Path("-"), tmp_path / "out.jsonl", "--threads", "1")
    text = '{"id": "a", "prompt": "Who are you?", "max_tokens": 3}\n{bad\n'
    done = subprocess.run(cmd, input=text, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "flashmoe-tui: stdin, line 2: not valid JSON" in done.stderr
    assert "1 answered, 1 bad line in" in done.stderr
    assert set(results(tmp_path / "out.jsonl")) == {"a"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.gguf"], "nothing.gguf"),
        (["in.jsonl"], "GGUF"),
    ],
)
def test_batch_bad_model(tmp_path: Path, arguments: list[str], says: str) -> None:
    source = prompts(tmp_path / "in.jsonl", 1)
    cmd = command(tmp_path / arguments[0], source, tmp_path / "out.jsonl")
    done = subprocess.run(cmd, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def with_limit(request: GenerateRequest, max_tokens: int | None) -> GenerateRequest:
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, max_tokens=max_tokens))


def test_prompts_longer_than_was_counted_are_answered_too(model: Path, tmp_path: Path) -> None:
    """The tiny model has a token for each byte, where half as many are counted on."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lengths = [10] * 20 + [900, 1100]
    rows = [
        {"id": f"p{i}", "prompt": "x" * n, "max_tokens": 4, "temperature": 0, "seed": 1} for i, n in enumerate(lengths)
    ]
    source.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    cmd = [*command(model, source, out), "--seq-ctx", "2048", "--json"]
    done = subprocess.run(cmd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "outgrew their own context" in done.stderr
    rows_out = results(out)
    assert len(rows_out) == len(lengths)
    assert not any("error" in row for row in rows_out.values())
    assert json.loads(done.stdout)["done"] == len(lengths)


def test_width_leaves_the_memory_to_the_experts(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backends.gguf.file import read_gguf
    from backends.planner.kv import kv_bytes
    from backends.planner.machine import Machine
    from flashmoe.batch import sizing

    items = [i for i in read_items(prompts(tmp_path / "in.jsonl", 40, max_tokens=100)) if isinstance(i, Item)]
    free = Machine.detect()
    wide = sizing.choose(model, items, 4096, 64, fixed=False)
    assert wide.sequences == 40
    assert 40 * 100 < wide.n_ctx < 40 * 300  # what they need, not what they may have
    assert wide.own_caches
    assert not wide.crowded
    assert not sizing.choose(model, items, 4096, 8, fixed=True).own_caches  # too few to be worth it
    recurrent = make_gguf(tmp_path / "recurrent.gguf", arch="qwen35moe", n_ctx_train=4096)
    assert not sizing.choose(recurrent, items, 4096, 64, fixed=False).own_caches
    small = msgspec.structs.replace(free, ram_available=4 << 20)
    monkeypatch.setattr(sizing.Machine, "detect", staticmethod(lambda: small))
    narrow = sizing.choose(model, items, 4096, 64, fixed=False)
    assert 1 <= narrow.sequences < 40
    assert sizing.choose(model, items, 4096, 64, fixed=True).sequences == 40
    # 40 answers of 4,000 tokens don't fit each into a cache of its own; sharing one, most may be short
    endless = [msgspec.structs.replace(i, request=with_limit(i.request, None)) for i in items]
    per_token = kv_bytes(read_gguf(model), 256).per_token
    some = msgspec.structs.replace(free, ram_available=int(40 * 500 * per_token / sizing.KV_SHARE))
    monkeypatch.setattr(sizing.Machine, "detect", staticmethod(lambda: some))
    shared = sizing.choose(model, endless, 4096, 64, fixed=False)
    assert shared.sequences == 40
    assert not shared.own_caches
    assert shared.crowded == 4096
    # llama.cpp allocates 256 cells for each at least; the kernel doesn't promise more than the machine has
    few = msgspec.structs.replace(free, ram_total=30 * 256 * per_token)
    monkeypatch.setattr(sizing.Machine, "detect", staticmethod(lambda: few))
    fitting = sizing.choose(model, items, 4096, 64, fixed=False)
    assert fitting.own_caches
    assert fitting.sequences == 30
