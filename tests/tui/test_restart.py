"""Coming back: the computed context of a chat outlives the app, and its folder stays within bounds."""

from __future__ import annotations

import os
from pathlib import Path

from backends.interface import LoadRequest
from flashmoe import paths
from flashmoe.config.schema import Config, KvCacheConfig, LoadedConfig
from tests.tui_support import ask, home, limit, ready, running, tiny, until
from tui.app import AppOptions, FlashmoeApp
from tui.chat import kv_store

__all__ = ["home", "tiny"]


def app_with(model: Path, **kv: object) -> FlashmoeApp:
    """An app that keeps contexts as `kv` says."""
    config = Config(kv_cache=KvCacheConfig(**kv))  # type: ignore[arg-type]
    request = LoadRequest(path=str(model), n_ctx=512, backend="mmap", n_threads=1)
    options = AppOptions(request=request, measure=False)
    return FlashmoeApp(options, LoadedConfig(config, paths.config_file(), False))


async def test_a_chats_context_is_there_after_a_restart(tiny: Path) -> None:
    first = app_with(tiny, min_tokens=1)
    async with running(first) as pilot:
        await ready(pilot)
        limit(first, 8)
        await ask(pilot, "A question that is long enough to be worth keeping")
        await first.chat_screen.flow.leave()
        conversation = first.chat_screen.flow.conversation
        assert kv_store.kv_file(conversation.uid).stat().st_size > 0
    second = app_with(tiny, min_tokens=1)
    async with running(second) as pilot:
        await ready(pilot)
        await second.chat_screen.flow.open_chat(conversation.id or 0)
        await until(pilot, lambda: "need not be read again" in second.chat_screen.activity.text)
        limit(second, 4)
        turn = await ask(pilot, "More")
        assert turn.figures is not None
        assert (turn.figures.reused_tokens or 0) > 20


async def test_the_context_is_brought_back_when_the_model_comes_after_the_chat_or_instead_of_another(
    tiny: Path,
) -> None:
    """The chat may be open before its model is ready (--chat), and the model may be loaded again under an open chat."""
    first = app_with(tiny, min_tokens=1)
    async with running(first) as pilot:
        await ready(pilot)
        limit(first, 8)
        await ask(pilot, "A question that is long enough to be worth keeping")
        chat = first.chat_screen.flow.conversation.id or 0
        await first.chat_screen.flow.leave()
    config = Config(kv_cache=KvCacheConfig(min_tokens=1))
    request = LoadRequest(path=str(tiny), n_ctx=512, backend="mmap", n_threads=1)
    options = AppOptions(request=request, defaults=request, measure=False, chat=chat)
    second = FlashmoeApp(options, LoadedConfig(config, paths.config_file(), False))
    async with running(second) as pilot:
        flow = second.chat_screen.flow
        await until(pilot, lambda: flow.conversation.id == chat)
        await ready(pilot)
        limit(second, 4)
        turn = await ask(pilot, "More")
        assert turn.figures is not None
        assert (turn.figures.reused_tokens or 0) > 20
        await flow.leave()  # as the choice of a model does
        second.controller.load(second.with_defaults(str(tiny)))
        await until(pilot, lambda: second.controller.loads == 2)
        turn = await ask(pilot, "And more")
        assert turn.figures is not None
        assert (turn.figures.reused_tokens or 0) > 40


async def test_nothing_is_kept_of_short_chats_or_where_it_is_off(tiny: Path) -> None:
    for settings in ({"min_tokens": 5000}, {"min_tokens": 1, "max_gib": 0.0}):
        app = app_with(tiny, **settings)
        async with running(app) as pilot:
            await ready(pilot)
            limit(app, 4)
            await ask(pilot, "Hi")
            await app.chat_screen.flow.leave()
        assert not list(paths.kv_dir().glob("*.kv"))


def test_the_oldest_contexts_go_first() -> None:
    folder = paths.ensure_dir(paths.kv_dir())
    for age, name in enumerate(("new", "middle", "old")):
        path = folder / f"{name}.kv"
        path.write_bytes(b"x" * 1000)
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    kv_store.prune(2000)
    assert sorted(path.stem for path in folder.glob("*.kv")) == ["middle", "new"]
    kv_store.forget(["new", "../../escape"])
    assert [path.stem for path in folder.glob("*.kv")] == ["middle"]
