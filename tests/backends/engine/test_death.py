"""The sentences for the ways in which an engine dies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.engine import death
from backends.engine import protocol as p
from backends.engine.child import Child
from backends.system import cgroups

LOG = Path("/tmp/engine.log")


@pytest.mark.parametrize(
    ("returncode", "tail", "oom", "words"),
    [
        (-9, "", True, "memory ran out"),
        (-9, "", False, "killed from outside"),
        (-6, "x\n/src/ggml/src/ggml.c:12: GGML_ASSERT(a == b) failed\nmore\n", False, "GGML_ASSERT(a == b) failed"),
        (-6, "/src/llama-context.cpp:100: fatal error\n", False, "fatal error"),
        (-6, "terminate called\n  what():  Unexpected empty grammar stack\n", False, "Unexpected empty grammar"),
        (-6, "", False, "internal check; the log"),
        (-7, "", False, "model file changed"),
        (-11, "", False, "SIGSEGV"),
        (-4, "", False, "another processor"),
        (-15, "", False, "SIGTERM"),
        (-99, "", False, "signal 99"),
        (70, "Traceback\nValueError: no\n", False, "ValueError: no"),
        (None, "", False, "stopped answering"),
    ],
)
def test_one_sentence_for_each_end(returncode: int | None, tail: str, oom: bool, words: str) -> None:
    error = death.describe(returncode, tail, oom=oom, log_path=LOG)
    sentence = error.message
    assert error.code == "engine_died"
    assert words in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_the_tail_starts_where_this_child_began(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old child: GGML_ASSERT(old) failed\nnew child\n")
    assert death.read_tail(log, 35) == "new child\n"
    assert death.read_tail(tmp_path / "none", 0) == ""


@pytest.mark.parametrize(("version", "name"), [(2, "memory.events"), (1, "memory.oom_control")])
def test_the_kernels_count_of_kills_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, name: str
) -> None:
    monkeypatch.setattr(cgroups, "folders", lambda pid=None: [(version, tmp_path, tmp_path)])
    before = cgroups.oom_kills()
    (tmp_path / name).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert cgroups.oom_kills() == before + 3


def test_a_file_that_goes_while_it_is_loaded_is_named(tmp_path: Path) -> None:
    commands, events = os.pipe(), os.pipe()
    child = Child(commands[0], events[1])
    gone = tmp_path / "gone.gguf"
    child._guard("call-1", lambda: gone.stat() and None)
    child._out.close()
    with os.fdopen(events[0], "rb") as pipe:
        failure = p.event_decoder.decode(pipe.readline())
    os.close(commands[1])
    assert isinstance(failure, p.Failure)
    assert failure.code == "not_found"
    assert failure.message == f"{gone} can't be read: No such file or directory."
