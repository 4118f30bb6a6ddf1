"""Coming back: what the engine has read of a chat outlives the app, and goes when the chat is deleted."""

from __future__ import annotations

from pathlib import Path

from backends.interface import LoadRequest
from flashmoe import paths
from flashmoe.config.schema import Config, HistoryConfig, KvCacheConfig, LoadedConfig
from tests.tui_support import ask, home, limit, ready, running, tiny, until
from tui.app import AppOptions, FlashmoeApp

__all__ = ["home", "tiny"]

LONG = "A question that is long enough to be worth keeping"


def app_with(model: Path, *, n_ctx: int = 512, chat: int | None = None, **kv: object) -> FlashmoeApp:
    """An app that keeps prompts as `kv` says."""
    config = Config(kv_cache=KvCacheConfig(**kv), history=HistoryConfig(trash_days=0))  # type: ignore[arg-type]
    request = LoadRequest(path=str(model), n_ctx=n_ctx, backend="mmap", n_threads=1)
    options = AppOptions(request=request, defaults=request, measure=False, chat=chat)
    return FlashmoeApp(options, LoadedConfig(config, paths.config_file(), False))


def kept() -> list[Path]:
    return sorted(paths.prompts_dir().rglob("*.kv"))


async def asked(model: Path, **kv: object) -> int:
    """A chat with one question and answer, in an app that has ended since."""
    app = app_with(model, **kv)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 8)
        await ask(pilot, LONG)
        await until(pilot, lambda: bool(kept()) or kv != {"min_tokens": 1})
        return app.chat_screen.flow.conversation.id or 0


async def test_what_was_read_of_a_chat_is_there_after_a_restart(tiny: Path) -> None:
    """The chat may be open before its model is ready (--chat), and its context may have another size."""
    chat = await asked(tiny, min_tokens=1)
    assert kept()
    app = app_with(tiny, n_ctx=1024, chat=chat, min_tokens=1)
    async with running(app) as pilot:
        await until(pilot, lambda: app.chat_screen.flow.conversation.id == chat)
        await ready(pilot)
        limit(app, 4)
        turn = await ask(pilot, "More")
        assert turn.figures is not None
        assert (turn.figures.reused_tokens or 0) > 20
        await app.load_model(str(tiny))
        await until(pilot, lambda: app.controller.loads == 2)
        turn = await ask(pilot, "And more")
        assert turn.figures is not None
        assert (turn.figures.reused_tokens or 0) > 40


async def test_a_deleted_chat_leaves_nothing_of_what_was_read(tiny: Path) -> None:
    one, two = await asked(tiny, min_tokens=1), await asked(tiny, min_tokens=1)
    app = app_with(tiny, min_tokens=1)
    async with running(app) as pilot:
        await ready(pilot)
        await app.chat_screen.flow.open_chat(two)
        await ask(pilot, "Only here, and long enough to be kept as well")
        await until(pilot, lambda: len(kept()) > 1)
        both = len(kept())
        history = await app.chat_screen.history()
        await history.in_thread(history.delete_chat, two)
    app = app_with(tiny, min_tokens=1)
    async with running(app) as pilot:
        await ready(pilot)
        await until(pilot, lambda: len(kept()) < both)
        assert kept()
        history = await app.chat_screen.history()
        await history.in_thread(history.delete_chat, one)
    app = app_with(tiny, min_tokens=1)
    async with running(app) as pilot:
        await ready(pilot)
        await until(pilot, lambda: not kept())
    answers = list(paths.prompts_dir().glob("answers-*.jsonl"))
    assert [path.read_bytes() for path in answers] == [b""]
    assert not list((paths.prompts_dir() / "chats").iterdir())


async def test_nothing_is_kept_of_short_chats_or_where_it_is_off(tiny: Path) -> None:
    for settings in ({"min_tokens": 5000}, {"min_tokens": 1, "max_gib": 0.0}):
        await asked(tiny, **settings)
        assert not kept()
