"""Every theme can be read in every colour mode: text on all that it stands on, selected rows among them; borders."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.color import Color as RichColor
from rich.color import ColorSystem
from rich.segment import Segment
from textual.color import Color
from textual.widgets import OptionList

from flashmoe import paths
from flashmoe.history import History
from tests.tui_support import home, running, screen_is, shown, until
from tui import themes
from tui.app import AppOptions, FlashmoeApp
from tui.terminal import facts
from tui.terminal.ascii import Ascii, in_ascii
from tui.theme_fit import DECORATION, TEXT, contrast

__all__ = ["home"]

MODES = ("truecolor", "256", "16", "none")
NAMES = sorted(themes.load_themes(paths.builtin_themes_dir()).themes)
TEXTS = (
    "foreground", "foreground-muted", "text-muted", "primary", "secondary", "accent", "warning", "error", "success",
    "text-primary", "text-secondary", "text-accent", "text-warning", "text-error", "text-success",
)  # fmt: skip


def in_mode(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """The environment of a terminal with these colours."""
    monkeypatch.delenv("COLORTERM", raising=False)
    monkeypatch.setenv("TERM", {"256": "xterm-256color", "16": "xterm"}.get(mode, "xterm-256color"))
    if mode == "truecolor":
        monkeypatch.setenv("COLORTERM", "truecolor")
    if mode == "none":
        monkeypatch.setenv("NO_COLOR", "1")
    assert facts.colours() == mode


def seen(colour: Color, mode: str) -> Color:
    """A colour as the terminal shows it."""
    if mode not in ("256", "16"):
        return colour
    system = ColorSystem.EIGHT_BIT if mode == "256" else ColorSystem.STANDARD
    return Color(*RichColor.from_rgb(colour.r, colour.g, colour.b).downgrade(system).get_truecolor())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "terminal"])
def test_text_and_borders_have_contrast(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_mode(monkeypatch, mode)
    app = FlashmoeApp(AppOptions(measure=False, theme=name))
    variables = app.get_css_variables()

    def colour(variable: str) -> Color:
        value = variables[variable]
        assert " " not in value, (variable, value)
        return seen(Color.parse(value), mode)

    if mode == "none":
        return  # there are no colours then; the selected row is reversed (see below)
    for back in ("background", "surface", "panel", "selected"):
        for text in TEXTS:
            assert contrast(colour(text), colour(back)) >= TEXT, (text, back)
    for back in ("background", "surface", "panel"):
        for border in ("border", "border-blurred"):
            assert contrast(colour(border), colour(back)) >= DECORATION, (border, back)
    assert colour("selected") not in (colour("background"), colour("surface"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
async def test_the_selected_row_can_be_read(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_mode(monkeypatch, mode)
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        for title in ("First", "Second"):
            chat = history.create_chat(title=title)
            history.add_message(chat.id, "user", f"About {title}")
    app = FlashmoeApp(AppOptions(measure=False, theme=name))
    async with running(app, (100, 30)) as pilot:
        await pilot.press("ctrl+t")
        await screen_is(pilot, "ChatsScreen")
        await until(pilot, lambda: "First" in shown(app))
        options = app.screen.query_one(OptionList)
        await until(pilot, lambda: options.highlighted is not None)
        await pilot.pause()
        row = app.screen._compositor.render_strips()[options.content_region.y]
        segments: list[Segment] = list(row)
        for line_filter in app._filters:
            segments = line_filter.apply(segments, app.background_colors[1])
        texts = [s for s in segments if s.text.strip() and s.text.strip() not in "│┃▏▎"]
        assert any("Second" in segment.text for segment in texts)
        for segment in texts:
            style = segment.style
            assert style is not None
            own = not style.bgcolor or style.bgcolor.is_default  # the terminal's own colours, reversed
            if mode == "none" or (own and name == "terminal"):
                continue
            assert style.color is not None
            assert style.bgcolor is not None
            text, back = (Color(*c.get_truecolor()) for c in (style.color, style.bgcolor))
            assert contrast(seen(text, mode), seen(back, mode)) >= TEXT, segment
        if mode == "none" or name == "terminal":
            assert any(segment.style is not None and (segment.style.reverse or segment.style.bold) for segment in texts)


def test_a_theme_of_ones_own_is_made_readable_too(tmp_path: Path) -> None:
    (tmp_path / "dim.yaml").write_text('primary: "#333333"\nforeground: "#444444"\nbackground: "#222222"')
    theme = themes.load_themes(tmp_path).themes["dim"]
    assert theme.foreground is not None
    assert theme.background is not None
    assert contrast(Color.parse(theme.foreground), Color.parse(theme.background)) >= TEXT


@pytest.mark.parametrize(
    ("environ", "without"),
    [
        ({"TERM": "linux"}, True),
        ({"TERM": "vt100"}, True),
        ({"TERM": "xterm-256color", "LANG": "de_DE.ISO-8859-1"}, True),
        ({"TERM": "xterm-256color", "LANG": "C.UTF-8"}, False),
        ({"TERM": "xterm-256color"}, False),
    ],
)
def test_consoles_that_draw_with_ascii(environ: dict[str, str], without: bool) -> None:
    assert facts.without_drawing(environ) is without


def test_ascii_keeps_every_cell_and_what_people_wrote() -> None:
    assert in_ascii("╭─ chat ─╮ ▁▂▃▅▇ ░▒▓█ · …") == "+- chat -+ __==# .o## . ~"
    assert in_ascii("⠀⣿⡇") == " @*"
    assert in_ascii("für 漢字 👍🏽") == "für 漢字 👍🏽"


async def test_the_ascii_screen_has_no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "linux")
    app = FlashmoeApp(AppOptions(measure=False))
    assert any(isinstance(each, Ascii) for each in app._filters)
    async with running(app, (120, 36)) as pilot:
        await until(pilot, lambda: "flashmoe" in shown(app))
        text = "".join(in_ascii(s.text) for strip in app.screen._compositor.render_strips() for s in strip)
        assert text.isascii(), {char for char in text if not char.isascii()}
