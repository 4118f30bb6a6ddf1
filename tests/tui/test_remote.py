"""The app on the backend `remote`, against a real `serve`: it chats like on a local model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.interface import LoadRequest, Sampling
from flashmoe.history import ChatSettings, History
from tests.gguf_factory import make_gguf
from tests.serving import Running, serving
from tests.tui_support import ask, home, new_app, ready, running, shown, until
from tui.app import AppOptions, FlashmoeApp

__all__ = ["home"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    model = make_gguf(folder / "served.gguf", n_layer=4, n_embd=256, n_ctx_train=8192)
    with serving(model, folder / "log", n_ctx=4096) as started:
        yield started


def remote_app(server: Running) -> FlashmoeApp:
    request = LoadRequest(path=server.url + "/v1")
    return FlashmoeApp(AppOptions(request=request, defaults=request, measure=False))


def greedy(app: FlashmoeApp, max_tokens: int) -> None:
    sampling = Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=max_tokens)
    app.chat_screen.flow.conversation.settings = ChatSettings(sampling=sampling)


QUESTIONS = ("What is an expert?", "And a router?")


async def test_two_turns_are_what_the_model_says_here(server: Running) -> None:
    told: list[list[str]] = []
    for app in (remote_app(server), new_app(Path(server.engine.request.path), n_ctx=4096)):
        async with running(app) as pilot:
            await ready(pilot)
            greedy(app, 12)
            told.append([(await ask(pilot, question)).content for question in QUESTIONS])
            turn = app.chat_screen.flow.conversation.turns[-1]
            assert turn.ending == "length"
            assert turn.figures is not None
            assert turn.figures.completion_tokens == 12
            assert turn.figures.prompt_tokens
            chat_id = app.chat_screen.flow.conversation.id
        with History() as history:
            assert [m.content for m in history.path(chat_id or 0)][1::2] == told[-1]
    assert told[0] == told[1]


async def test_the_screen_says_that_the_text_leaves_this_machine_and_invents_nothing(server: Running) -> None:
    app = remote_app(server)
    async with running(app, size=(120, 36)) as pilot:
        await ready(pilot)
        greedy(app, 8)
        turn = await ask(pilot, "Hello")
        assert turn.figures is not None
        assert turn.figures.hit_rate is None
        assert turn.figures.read_bytes is None
        assert "127.0.0.1" in shown(app) or "remote" in shown(app)
        assert "hits 0" not in shown(app)


async def test_stop_regenerate_and_a_server_that_goes_away(tmp_path: Path) -> None:
    model = make_gguf(tmp_path / "served.gguf", n_layer=4, n_embd=256, n_ctx_train=32768, endless=True)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(model, tmp_path / "log", n_ctx=16384))
        app = remote_app(server)
        async with running(app) as pilot:
            await ready(pilot)
            greedy(app, 16000)
            await ask(pilot, "Go on for long", wait=False)
            flow = app.chat_screen.flow
            await until(pilot, lambda: flow.turn is not None and len(flow.turn.content) > 20)
            await pilot.press("escape")
            await until(pilot, lambda: not flow.busy)
            stopped = flow.conversation.turns[-1]
            assert stopped.ending == "cancelled"
            assert stopped.content
            await until(pilot, lambda: server.engine.in_flight == 0)  # and the server works no longer for it
            greedy(app, 6)
            await pilot.press("ctrl+x", "r")
            await until(pilot, lambda: flow.conversation.turns[-1].variants == 2 and not flow.busy)
            assert flow.conversation.turns[-1].ending == "length"
            await asyncio.to_thread(stack.close)
            await ask(pilot, "Are you there?", wait=False)
            await until(pilot, lambda: not flow.busy and "No server answers" in shown(app))
            assert "Traceback" not in shown(app)
            assert app.controller.pid is not None  # the engine child lives; only the server is gone
