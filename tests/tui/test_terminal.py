"""Manners, in a real pseudo-terminal: signals, a lost terminal, suspending; the engine never outlives the app."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe.history import History
from tests.places import ROOT
from tests.tui.typing_probe import INTERRUPT, Probe
from tests.tui_support import home, slow

sys.path.insert(0, str(ROOT / "benchmarks"))
from tui_bench import App

__all__ = ["home", "slow"]


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def state(pid: int) -> str:
    """R, S, T (stopped), Z; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def wait_for(what: object, seconds: float = 300.0, app: App | None = None) -> bool:
    """Waits until `what()` is true, reading what the app writes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():  # type: ignore[operator]
            return True
        if app is not None:
            app.read(0.05)
        else:
            time.sleep(0.05)
    return False


@contextlib.contextmanager
def ready(home: Path, model: Path, ctx: int) -> Iterator[tuple[App, int]]:
    """The app with a model, and its engine's process id; both are gone afterwards."""
    app = App(home, 100, 30, model=str(model), ctx=ctx)
    try:
        assert app.read(300, b"is ready after")
        engines = [pid for pid in children(app.pid) if state(pid) not in ("", "Z")]
        assert len(engines) == 1
        yield app, engines[0]
    finally:
        with contextlib.suppress(OSError):
            os.kill(app.pid, signal.SIGKILL)
            os.waitpid(app.pid, 0)
        with contextlib.suppress(OSError):
            os.close(app.fd)


@pytest.fixture
def answering(home: Path, slow: Path) -> Iterator[tuple[App, int]]:
    """The app in the middle of an answer, and its engine's process id."""
    with ready(home, slow, 16384) as (app, engine):
        app.write("tell me much\r")
        assert app.read(300, b"Answering") or app.read(1, b"tokens")
        yield app, engine


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_stops_the_engine_and_restores_the_terminal(answering: tuple[App, int], number: int) -> None:
    app, engine = answering
    os.kill(app.pid, number)
    ended: list[int] = []

    def gone() -> bool:
        pid, status = os.waitpid(app.pid, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(pid)

    assert wait_for(gone, app=app)
    assert ended == [128 + number]
    assert wait_for(lambda: state(engine) in ("", "Z"))
    app.read(0.2)
    assert b"\x1b[?1049l" in app.tail  # the normal screen is back
    assert b"\x1b[?25h" in app.tail  # and the cursor
    with History() as history:
        chat = history.chats()[0]
        path = history.path(chat.id)
        assert path[0].content == "tell me much"
        assert path[1].status in ("partial", "done")


def test_a_lost_terminal_ends_the_app_and_its_engine(answering: tuple[App, int]) -> None:
    app, engine = answering
    os.close(app.fd)  # the far end is gone
    assert wait_for(lambda: os.waitpid(app.pid, os.WNOHANG)[0] != 0)
    assert wait_for(lambda: state(engine) in ("", "Z"))
    with History() as history:
        assert history.path(history.chats()[0].id)[0].content == "tell me much"


def test_a_terminal_lost_while_a_dialog_waits_ends_the_app_too(home: Path, slow: Path) -> None:
    with ready(home, slow, 512) as (app, engine):
        app.write("much to read " * 400 + "\r")
        assert app.read(300, b"The context is full")
        os.close(app.fd)
        assert wait_for(lambda: os.waitpid(app.pid, os.WNOHANG)[0] != 0)
        assert wait_for(lambda: state(engine) in ("", "Z"))


def test_suspending_stops_the_engine_too_and_both_go_on(answering: tuple[App, int]) -> None:
    app, engine = answering
    app.tail = b""
    os.kill(app.pid, signal.SIGTSTP)
    assert wait_for(lambda: state(app.pid) == "T" and state(engine) == "T", app=app)
    assert b"\x1b[?1049l" in app.tail
    assert termios.tcgetattr(app.fd)[3] & termios.ICANON
    app.tail = b""
    os.kill(app.pid, signal.SIGCONT)
    assert wait_for(lambda: state(app.pid) != "T" and state(engine) != "T", app=app)
    assert wait_for(lambda: b"\x1b[?1049h" in app.tail, app=app)
    # The terminal begins empty, so all is sent again, also what hasn't changed meanwhile.
    assert wait_for(lambda: b"tell me much" in app.tail and b"F1" in app.tail, app=app)


def test_ctrl_q_ends_with_code_0(answering: tuple[App, int]) -> None:
    app, engine = answering
    app.write("\x11")
    codes: list[int] = []

    def gone() -> bool:
        pid, status = os.waitpid(app.pid, os.WNOHANG)
        if pid:
            codes.append(os.waitstatus_to_exitcode(status))
        return bool(pid)

    assert wait_for(gone, app=app)
    assert codes == [0]
    assert wait_for(lambda: state(engine) in ("", "Z"))


def test_a_continue_without_a_stop_starts_nothing_twice(answering: tuple[App, int]) -> None:
    """The kernel sends one along with the SIGHUP of a lost terminal: threads that were started twice never ended, and
    neither did the app."""
    app, engine = answering
    tasks = Path(f"/proc/{app.pid}/task")
    before = len(list(tasks.iterdir()))
    for _ in range(4):
        app.tail = b""
        os.kill(app.pid, signal.SIGCONT)
        assert wait_for(lambda: b"\x1b[?1049h" in app.tail, app=app)  # drawn anew
    app.read(0.5)
    assert len(list(tasks.iterdir())) <= before + 1  # of threads that work a while, one may have come
    app.write("\x11")
    assert wait_for(lambda: os.waitpid(app.pid, os.WNOHANG)[0] != 0, app=app)
    assert wait_for(lambda: state(engine) in ("", "Z"))


def test_a_signal_while_something_is_written_blocks_nothing(home: Path) -> None:
    probe = Probe(home)
    try:
        for _ in range(3):
            probe.written = b""
            probe.type(INTERRUPT)
            assert probe.field()["id"] == "composer"
            assert wait_for(lambda: b"\x1b[?1049h" in probe.written or probe.wait(0.05))  # it went on
    finally:
        probe.close()
