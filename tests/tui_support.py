"""The app under test: a home of its own, a tiny model with the real engine, and waiting for what should happen."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from backends.interface import LoadRequest, Sampling
from flashmoe.history import ChatSettings
from tests.gguf_factory import make_gguf
from tui.app import AppOptions, FlashmoeApp
from tui.chat.conversation import Turn


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Config, chats and logs of this test only; a terminal with all colours."""
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "TMUX", "STY", "FLASHMOE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, tiny qwen3moe with random weights: it answers nonsense, quickly."""
    return make_gguf(tmp_path_factory.mktemp("tui") / "tiny.gguf")


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A larger one, so that there is time to do something to an answer."""
    return make_gguf(
        tmp_path_factory.mktemp("tui") / "slow.gguf", n_layer=4, n_embd=256, n_ctx_train=32768, endless=True
    )


def new_app(model: Path | None = None, *, n_ctx: int = 512, measure: bool = False, **options: Any) -> FlashmoeApp:
    """An app on `model` (mmap: the fastest to load), without machine figures."""
    request = LoadRequest(path=str(model), n_ctx=n_ctx, backend="mmap", n_threads=1) if model is not None else None
    defaults = LoadRequest(path="", n_ctx=n_ctx, backend="mmap", n_threads=1)
    return FlashmoeApp(AppOptions(request=request, defaults=defaults, measure=measure, **options))


@contextlib.asynccontextmanager
async def running(app: FlashmoeApp, size: tuple[int, int] = (100, 30)) -> AsyncIterator[Pilot[int]]:
    """Runs the app headless; its engine is stopped at the end whatever happens."""
    async with app.run_test(size=size) as pilot:
        try:
            yield pilot
            assert app.caught == [], "a worker failed; the app went on, but that is a fault"
        finally:
            await app.controller.close()
            with contextlib.suppress(Exception):
                (await app.chat_screen.history()).close()


async def until(pilot: Pilot[int], what: Callable[[], object], seconds: float = 300.0) -> None:
    """Waits until `what()` is true; fails with the screen's last sentence where it doesn't come."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            app = pilot.app
            said = app.chat_screen.activity.text if isinstance(app, FlashmoeApp) else ""
            raise AssertionError(f"it did not happen within {seconds} s; the app says: {said!r}")
        await pilot.pause(0.02)


async def ready(pilot: Pilot[int]) -> None:
    """Waits until the model is loaded."""
    app = pilot.app
    assert isinstance(app, FlashmoeApp)
    await until(pilot, lambda: app.controller.state == "ready")
    await pilot.pause()


def limit(app: FlashmoeApp, max_tokens: int | None, *, seed: int = 3) -> None:
    """Makes answers of the shown chat this long, and the same each time; without a limit it repeats itself for ever."""
    sampling = Sampling(max_tokens=max_tokens, seed=seed, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    if max_tokens is None:
        sampling = Sampling(temperature=0.0)
    app.chat_screen.flow.conversation.settings = ChatSettings(sampling=sampling)


async def send(pilot: Pilot[int], text: str) -> None:
    """Sends a text; short ones are typed key by key, longer ones put in (a key takes Pilot some 50 ms)."""
    app = pilot.app
    assert isinstance(app, FlashmoeApp)
    if len(text) > 8:
        app.chat_screen.composer.set_text(text)
        await pilot.press("enter")
    else:
        await pilot.press(*keys(text), "enter")


async def ask(pilot: Pilot[int], text: str, *, wait: bool = True) -> Turn:
    """Types a question, sends it and (unless told not to) waits for the end of the answer; returns the last turn."""
    app = pilot.app
    assert isinstance(app, FlashmoeApp)
    before = len(app.chat_screen.flow.conversation.turns)
    await send(pilot, text)
    await until(pilot, lambda: len(app.chat_screen.flow.conversation.turns) > before + (1 if wait else 0))
    if wait:
        await until(pilot, lambda: not app.chat_screen.flow.busy)
        await pilot.pause()
    return app.chat_screen.flow.conversation.turns[-1]


def keys(text: str) -> list[str]:
    """A text as Pilot's keys."""
    names = {" ": "space", "\n": "ctrl+j", ".": "full_stop", ",": "comma", "?": "question_mark", "-": "minus"}
    return [names.get(char, char) for char in text]


async def screen_is(pilot: Pilot[int], name: str) -> None:
    """Waits until a screen of that class is up and has its focus: a key that comes before goes nowhere."""
    app = pilot.app
    await until(pilot, lambda: type(app.screen).__name__ == name and app.screen.is_mounted and app.focused is not None)
    await pilot.pause()


def shown(app: FlashmoeApp) -> str:
    """Everything on the screen as plain text."""
    strips = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


async def settle(pilot: Pilot[int], seconds: float = 0.1) -> None:
    """Lets timers and workers run."""
    await asyncio.sleep(seconds)
    await pilot.pause()
