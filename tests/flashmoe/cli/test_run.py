"""``run`` and ``demo`` with the real engine on tiny models."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flashmoe.cli.main import main
from flashmoe.paths import guide_model
from tests.gguf_factory import make_gguf

ENGINE = "backends.engine"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def command(*argv: str | Path) -> list[str]:
    return [sys.executable, "-m", "flashmoe.cli.main", *map(str, argv)]


def run(*argv: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*argv), input=stdin, capture_output=True, text=True, timeout=300, errors="surrogateescape"
    )


def test_the_answer_is_all_of_stdout_and_repeats_with_its_seed(model: Path) -> None:
    first = run("run", model, "--max-tokens", "12", "Hello", "--seed", "7", "--stats")
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith("\n")
    assert "12 tokens" in first.stderr
    assert "seed" in first.stderr
    second = run("run", model, "-", "--seed", "7", "--max-tokens", "12", stdin="Hello\n")
    assert (second.stdout, second.stderr) == (first.stdout, "")


def test_json_lines_tell_the_whole_story(model: Path) -> None:
    done = run("run", model, "Hello", "--json", "--max-tokens", "8", "--system", "Be brief.", "--temperature", "0")
    assert done.returncode == 0, done.stderr
    events: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["type"] for event in events]
    assert kinds[0] == "model"
    assert kinds[-1] == "finished"
    assert {"prefill", "delta"} <= set(kinds)
    text = "".join(event["text"] for event in events if event["type"] == "delta" and event["kind"] == "answer")
    finished = events[-1]
    assert finished["text"] == text
    assert finished["reason"] in ("length", "stop")
    assert finished["usage"]["completion_tokens"] <= 8
    assert events[0]["architecture"] == "qwen3moe"


def test_files_go_before_the_question(model: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("x" * 100)
    plain = run("run", model, "Hello", "--json", "--max-tokens", "1")
    with_file = run("run", model, "Hello", "-f", note, "-f", "-", "--json", "--max-tokens", "1", stdin="y" * 100)

    def total(done: subprocess.CompletedProcess[str]) -> int:
        return max(json.loads(x)["total"] for x in done.stdout.splitlines() if '"prefill"' in x)

    assert total(with_file) > total(plain) + 100


def test_an_answer_keeps_to_a_schema(model: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    wanted = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "kind": {"enum": ["a\\b", 'q"r']}},
        "required": ["name", "kind"],
        "additionalProperties": False,
    }
    schema.write_text(json.dumps(wanted))
    for seed in ("1", "2"):
        done = run("run", model, "Invent", "--schema", schema, "--seed", seed, "--temperature", "1.5", "--top-k", "0")
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout)
        assert set(value) == {"name", "kind"}
        assert value["kind"] in wanted["properties"]["kind"]["enum"]  # type: ignore[index]
        assert len(value["name"]) <= 12


def test_a_schema_cut_short_is_a_failure(model: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "string", "minLength": 50}}, "required": ["a"]}')
    done = run("run", model, "Invent", "--schema", schema, "--max-tokens", "5")
    assert done.returncode == 1
    assert "isn't complete JSON" in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("notes.gguf", b"this is no model", 1, "GGUF"),
        ("empty.gguf", b"", 1, "empty.gguf"),
        ("folder", None, 2, "folder without GGUF files"),
    ],
)
def test_what_is_no_model_gets_one_sentence(
    tmp_path: Path, name: str, content: bytes | None, code: int, words: str
) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    done = run("run", path, "hi")
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_truncated_model_and_a_bad_schema_are_named(model: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(model.read_bytes()[:-5000])
    done = run("run", torn, "hi")
    assert done.returncode == 1
    assert "torn.gguf" in done.stderr
    schema = tmp_path / "schema.json"
    schema.write_text('{"$ref": "https://example.org/schema"}')
    done = run("run", model, "hi", "--schema", schema)
    assert done.returncode == 2
    assert "only references within it" in done.stderr
    schema.write_text("{")
    assert main(["run", str(model), "hi", "--schema", str(schema)]) == 2


def test_a_prompt_longer_than_the_context_says_so(model: Path) -> None:
    done = run("run", model, "--ctx", "128", stdin="word " * 2000)
    assert done.returncode == 1
    assert "context" in done.stderr
    assert done.stderr.count("\n") == 1


def children(pid: int) -> set[int]:
    return {int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_printed_and_leaves_no_engine(model: Path, number: int) -> None:
    process = subprocess.Popen(
        command("run", model, "Hello", "--ctx", "2048"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    first = process.stdout.read(3)
    engines = children(process.pid)
    assert engines
    process.send_signal(number)
    rest, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert len(first + rest) >= 3
    assert rest.endswith(b"\n")
    assert err == b""
    deadline = time.monotonic() + 300
    while any(map(alive, engines)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, engines))


def test_an_engine_that_is_killed_is_one_sentence_and_worth_trying_again(model: Path, tmp_path: Path) -> None:
    endless = tmp_path / "endless.gbnf"  # the answer must not end before the engine does
    endless.write_text("root ::= [a-z] root")
    argv = command("run", model, "Hello", "--ctx", "2048", "--grammar", endless)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(3)
    for engine in children(process.pid):
        os.kill(engine, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 3
    assert err.count(b"\n") == 1
    assert b"engine" in err.lower()


def test_a_terminal_gets_no_control_characters(model: Path, tmp_path: Path) -> None:
    """The grammar forces the answer to be an escape sequence: on a terminal it is shown, in a pipe it is raw."""
    grammar = tmp_path / "evil.gbnf"
    grammar.write_text(r'root ::= "\x1b]0;owned\x07"')
    argv = command("run", model, "hi", "--grammar", grammar)
    piped = subprocess.run(argv, capture_output=True, timeout=300)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == b"\x1b]0;owned\x07\n"
    leader, follower = pty.openpty()
    process = subprocess.Popen(argv, stdin=follower, stdout=follower, stderr=subprocess.DEVNULL)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    assert process.wait(300) == 0
    assert "␛]0;owned␇".encode() in shown
    assert b"\x1b]" not in shown


def test_a_reader_that_goes_away_stops_the_engine(model: Path) -> None:
    process = subprocess.Popen(
        command("run", model, "Hello", "--ctx", "2048"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(300) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_model_in_the_library_is_found_by_its_name(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "Tiny-Model-Q4_K_M.gguf").symlink_to(model)
    monkeypatch.setenv("FLASHMOE_MODELS", str(folder))
    done = run("run", "tiny-model-q4_k_m", "Hello", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    done = run("run", "tiny-modle-q4_k_m", "Hello")
    assert done.returncode == 2
    assert "did you mean tiny-model-q4_k_m" in done.stderr.lower()


def test_no_write_access_doesnt_stop_an_answer(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "file"))
    done = run("run", model, "Hello", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout


# ---- the demo model


@pytest.fixture
def guide() -> Path:
    path = guide_model()
    if not path.exists():
        pytest.skip("flashmoe/assets/guide.gguf is not trained yet")
    return path


def test_the_demo_answers_rightly_and_twice_the_same_with_a_seed(guide: Path) -> None:
    done = run("demo", "--text", "What is an expert?", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert "router" in done.stdout or "network" in done.stdout
    assert done.stderr == ""
    again = run("run", "demo", "What is an expert?", "--seed", "1")
    assert again.stdout == done.stdout
    other_backend = run("run", "demo", "What is an expert?", "--seed", "1", "--backend", "mmap")
    assert other_backend.stdout == done.stdout


def test_flags_of_the_app_and_of_the_answer_dont_mix(guide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seed", "3"]) == 2
    assert "--seed goes only with --text" in capsys.readouterr().err
    assert main(["demo", "--text", "hi", "--calm"]) == 2
    assert "--calm does not go with --text" in capsys.readouterr().err
