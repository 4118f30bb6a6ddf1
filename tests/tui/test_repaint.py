"""The terminal is sent what it doesn't show yet: at every moment it shows what Textual composed, for fewer bytes."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from textual._text_area_theme import TextAreaTheme
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.drivers.headless_driver import HeadlessDriver
from textual.widgets import Static, TextArea

from tests.places import ROOT
from tests.tui_support import home, new_app, running, settle, shown, until
from tui.terminal.repaint import SparingApp
from tui.widgets.transcript.safe_markdown import SafeMarkdown

sys.path.insert(0, str(ROOT / "benchmarks"))
from tui_screen import Screen

__all__ = ["home"]

TEXT = """A router scores **every expert** for each token and keeps the *best* eight; only those are computed, so that
a model of 30 billion parameters does the work of three.

- a list with `code` that is long enough to break in the middle of it
- 漢字かな交じり文 and café and 🦙 in one item
  1. nested ▰▰▱▱ shapes → arrows
  2. and a second one

> a quotation that **becomes bold late** and goes on for more than a line of this column

| layer | experts |
|---|---|
| 0 | 128 |

```python
scores = router(hidden_states)
```

"""


class Terminal(HeadlessDriver):
    """Keeps what is written to the terminal instead of throwing it away."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.screen = Screen(80, 24)
        self.written = 0

    @property
    def is_headless(self) -> bool:
        return False

    def write(self, data: str) -> None:
        self.written += len(data.encode())
        self.screen.feed(data.encode())


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apps under test write to a `Terminal`."""
    monkeypatch.setattr("textual.drivers.headless_driver.HeadlessDriver", Terminal)


class Chat(SparingApp):
    """A text that grows and scrolls beside panes that change."""

    CSS = "VerticalScroll { width: 50; } #pane { width: 30; height: 100%; background: $panel; }"

    def compose(self) -> ComposeResult:
        with Horizontal():
            with VerticalScroll():
                yield SafeMarkdown("")
            yield Static("", id="pane", markup=False)

    @property
    def terminal(self) -> Terminal:
        """Its terminal."""
        assert isinstance(self._driver, Terminal)
        return self._driver

    def composed(self) -> list[list[tuple[str, str]]]:
        """What should stand there now."""
        fresh = Screen(*self.size)
        chops = self.screen._compositor._render_chops(self.size.region, lambda y: True)
        for y, line in enumerate(chops):
            for x, strip in sorted(line.items()):
                fresh.feed(f"\x1b[{y + 1};{x + 1}H{strip.render(self.console)}".encode())
        return fresh.cells


@pytest.mark.parametrize("seed", range(2))
async def test_the_terminal_shows_what_was_composed(seed: int) -> None:
    rng = random.Random(seed)
    app = Chat()
    async with app.run_test(size=(80, 24)) as pilot:
        markdown, pane = app.query_one(SafeMarkdown), app.query_one("#pane", Static)
        scroll = app.query_one(VerticalScroll)
        scroll.anchor()
        at, text = 0, TEXT
        while at < len(text):
            what = rng.random()
            if what < 0.7:
                step = rng.randint(1, 30)
                markdown.append(text[at : at + step])
                at += step
            elif what < 0.85:
                pane.update("\n".join(f"{n} {'▰' * rng.randint(0, 9)} {rng.choice('aé漢🦙')}" for n in range(20)))
            elif what < 0.9:
                app.notify("something", timeout=0.05)
            elif what < 0.95:
                scroll.scroll_relative(y=rng.choice((-3, 3)), animate=False)
            else:
                app.shown.forget()
            await pilot.pause(0.02)
            assert app.terminal.screen.cells == app.composed()


async def test_another_size_is_drawn_anew() -> None:
    app = Chat()
    async with app.run_test(size=(80, 24)) as pilot:
        app.query_one(SafeMarkdown).append(TEXT)
        for size in ((100, 30), (60, 20), (80, 24)):
            app.terminal.screen.resize(*size)
            await pilot.resize_terminal(*size)
            await pilot.pause()
            assert app.terminal.screen.cells == app.composed()


async def test_what_is_shown_already_is_not_sent() -> None:
    app = Chat()
    async with app.run_test(size=(80, 24)) as pilot:
        markdown = app.query_one(SafeMarkdown)
        markdown.append(TEXT[:200])
        await pilot.pause()
        before = app.terminal.written
        for widget in (app.query_one("#pane"), markdown):  # not what fills the screen: that is sent whole
            widget.refresh()
        await pilot.pause()
        assert app.terminal.written == before
        markdown.refresh(layout=True)
        markdown.append("word")
        await pilot.pause()
        assert 0 < app.terminal.written - before < 300
        assert "word" in app.terminal.screen.text()


async def test_what_others_wrote_goes_when_asked() -> None:
    app = Chat()
    async with app.run_test(size=(80, 24)) as pilot:
        app.query_one(SafeMarkdown).append(TEXT)
        await pilot.pause()
        app.terminal.screen.feed(b"\x1b[5;5Ha message to all")
        app.redraw()
        await pilot.pause()
        assert app.terminal.screen.cells == app.composed()


@pytest.mark.usefixtures("home")
async def test_a_key_works_out_no_colours_and_another_theme_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    apply_css = TextAreaTheme.apply_css

    def counted(theme: TextAreaTheme, field: TextArea) -> None:
        asked.append(field)
        apply_css(theme, field)

    monkeypatch.setattr(TextAreaTheme, "apply_css", counted)
    app = new_app()
    async with running(app) as pilot:
        composer = app.chat_screen.composer
        await until(pilot, lambda: app.focused is composer)
        await pilot.press(*"ab")
        await until(pilot, lambda: "ab" in shown(app))
        n_before = len(asked)
        assert n_before
        await pilot.press(*"cdefgh")
        await until(pilot, lambda: "abcdefgh" in shown(app))
        assert len(asked) == n_before
        changes: list[Callable[[], object]] = [
            lambda: setattr(app, "theme", "paper"),
            lambda: app.screen.set_focus(None),
            lambda: app.screen.set_focus(composer),
        ]
        for change in changes:
            change()
            await settle(pilot, 0.3)
            drawn = _colours(composer)
            apply_css(composer._theme, composer)
            assert _colours(composer) == drawn


def _colours(field: TextArea) -> tuple[object, ...]:
    assert field._theme is not None
    return field._theme.base_style, field._theme.cursor_style, field._theme.selection_style
