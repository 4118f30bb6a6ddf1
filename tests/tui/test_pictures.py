"""Pictures of the main screen at every layout and in every colour mode, from fixed chats and figures."""

from __future__ import annotations

from typing import Any

import pytest
from textual.pilot import Pilot

from flashmoe import paths
from flashmoe.history import Figures, History
from tests.monitor_demo import shared_feed
from tests.tui_support import home, new_app, until
from tui.app import FlashmoeApp
from tui.widgets.title_bar import TitleBar

__all__ = ["home"]

ANSWER = """A router scores **every** expert and keeps the best eight; only those are computed.

| layer | experts | used |
|---|---|---|
| 0 | 128 | 8 |

```python
scores = router(h)
best = scores.topk(8)
```

- wide: 漢字かな 🙂 and right-to-left: שלום עולם
- a link [to a page](https://example.org/page) shows where it goes
"""


def make_chat() -> int:
    """Two exchanges: one with thinking, one with a second answer that was stopped."""
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Why only some experts?")
        history.add_message(chat.id, "user", "Why do only some experts run for each token?")
        writer = history.start_answer(chat.id, model="Qwen3-30B-A3B")
        writer.add("The user asks about routing.\nKeep it short.", thinking=True)
        writer.add(ANSWER)
        figures = Figures(
            prompt_tokens=24, completion_tokens=118, decode_s=24.6, tok_s=4.8, hit_rate=0.84, thinking_s=12
        )
        writer.finish("stop", figures)
        question = history.add_message(chat.id, "user", "And what bounds the speed?")
        for reason in ("stop", "cancelled"):
            writer = history.start_answer(chat.id, parent_id=question.id, model="Qwen3-30B-A3B")
            writer.add("The SSD: every token that misses reads 24 MiB.")
            writer.finish(reason, Figures(prompt_tokens=170, completion_tokens=12, decode_s=2.5, tok_s=4.8))
        return chat.id


async def draw(pilot: Pilot[Any], chat: int | None) -> None:
    """Puts fixed figures everywhere."""
    app = pilot.app
    assert isinstance(app, FlashmoeApp)
    await until(pilot, lambda: len(app.monitoring._panes) == 2)
    feed = shared_feed("capped")
    for pane in app.monitoring._panes:
        pane.feed = feed
        pane.update_view()
    app.query_one(TitleBar).show_model(feed.model)
    if chat is not None:
        await app.chat_screen.flow.open_chat(chat)
        app.query_one(TitleBar).show_rate(4.8)
    await pilot.pause(0.2)


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (100, 30), (120, 36), (200, 60)])
def test_chat_picture(snap_compare: Any, size: tuple[int, int]) -> None:
    chat = make_chat()

    async def ready(pilot: Pilot[Any]) -> None:
        await draw(pilot, chat)

    assert snap_compare(new_app(), run_before=ready, terminal_size=size)


@pytest.mark.parametrize("colours", ["paper", "contrast", "terminal", "none"])
def test_chat_picture_in_colour_modes(snap_compare: Any, monkeypatch: pytest.MonkeyPatch, colours: str) -> None:
    chat = make_chat()
    if colours == "none":
        monkeypatch.setenv("NO_COLOR", "1")

    async def ready(pilot: Pilot[Any]) -> None:
        await draw(pilot, chat)

    app = new_app(theme=None if colours == "none" else colours)
    assert snap_compare(app, run_before=ready, terminal_size=(120, 36))


@pytest.mark.parametrize(("name", "keys"), [("welcome", []), ("help", ["f1"]), ("settings", ["f3"])])
@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
def test_other_pictures(snap_compare: Any, name: str, keys: list[str], size: tuple[int, int]) -> None:
    async def ready(pilot: Pilot[Any]) -> None:
        await draw(pilot, None)
        await pilot.press(*keys)
        await pilot.pause(0.5)

    assert snap_compare(new_app(), run_before=ready, terminal_size=size)


def test_folded_and_opened_pictures(snap_compare: Any) -> None:
    chat = make_chat()

    async def ready(pilot: Pilot[Any]) -> None:
        await draw(pilot, chat)
        await pilot.press("f2")
        await pilot.pause(0.2)
        for pane in pilot.app.monitoring._panes:  # type: ignore[attr-defined]
            pane.update_view()
        await pilot.pause()

    assert snap_compare(new_app(), run_before=ready, terminal_size=(80, 24))
