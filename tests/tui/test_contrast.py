"""Every theme can be read in every colour mode: text on all that it stands on, selected rows among them; borders."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.color import Color as RichColor
from rich.color import ColorSystem, ColorType
from rich.segment import Segment
from textual.color import Color
from textual.widgets import OptionList

from flashmoe import paths
from flashmoe.history import History
from tests.tui.test_pictures import draw, make_chat
from tests.tui_support import home, running, screen_is, settle, shown, until
from tui import themes
from tui.app import AppOptions, FlashmoeApp
from tui.terminal import facts
from tui.terminal.ascii import Ascii, in_ascii
from tui.theme_fit import DECORATION, TEXT, contrast

__all__ = ["home"]

MODES = ("truecolor", "256", "16", "none")
SCREENS = {
    "slash": "ChatScreen",
    "escape a b shift+left": "ChatScreen",
    "f1": "HelpScreen",
    "f3": "SettingsScreen",
    "ctrl+t": "ChatsScreen",
    "ctrl+o": "ModelsScreen",
    "ctrl+x x": "CommandPalette",
    "ctrl+x T": "ThemePicker",
}
"""Keys that lead to a screen, and its class."""
NAMES = sorted(themes.load_themes(paths.builtin_themes_dir()).themes)
TEXTS = (
    "foreground", "foreground-muted", "text-muted", "primary", "secondary", "accent", "warning", "error", "success",
    "text-primary", "text-secondary", "text-accent", "text-warning", "text-error", "text-success", "text-disabled",
    "footer-key-foreground",
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


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])  # which has no colours
@pytest.mark.parametrize("name", [name for name in NAMES if name != "terminal"])
def test_text_and_borders_have_contrast(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_mode(monkeypatch, mode)
    app = FlashmoeApp(AppOptions(measure=False, theme=name))
    variables = app.get_css_variables()

    def colour(variable: str) -> Color:
        value = variables[variable]
        assert " " not in value, (variable, value)
        return seen(Color.parse(value), mode)

    for back in ("background", "surface", "panel", "selected"):
        for text in TEXTS:
            assert contrast(colour(text), colour(back)) >= TEXT, (text, back)
    for back in ("background", "surface", "panel"):
        for border in ("border", "border-blurred", "scrollbar", "scrollbar-hover", "scrollbar-active"):
            assert contrast(colour(border), colour(back)) >= DECORATION, (border, back)
    assert colour("selected") not in (colour("background"), colour("surface"))
    for selection in ("input-selection", "screen-selection", "block-cursor"):
        assert contrast(colour(f"{selection}-foreground"), colour(f"{selection}-background")) >= TEXT, selection
        assert colour(f"{selection}-background") not in (colour("background"), colour("surface"))


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
        texts = [s for s in row if s.text.strip() and s.text.strip() not in "│┃▏▎"]
        assert any("Second" in segment.text for segment in texts)
        for segment in texts:
            assert not unreadable(segment, mode), (segment, unreadable(segment, mode))
            assert segment.style is not None
            if mode == "none" or name == "terminal":
                assert segment.style.reverse, segment


XTERM = (
    "000000 cd0000 00cd00 cdcd00 0000ee cd00cd 00cdcd e5e5e5 7f7f7f ff0000 00ff00 ffff00 5c5cff ff00ff 00ffff ffffff"
)
"""What a terminal's own sixteen colours may be: xterm's."""


def as_shown(colour: RichColor | None, mode: str) -> Color | None:
    """What the terminal shows of it; None for its own foreground or background."""
    if colour is None or colour.is_default:
        return None
    if colour.type is ColorType.STANDARD:
        assert colour.number is not None
        return Color.parse(f"#{XTERM.split()[colour.number]}")
    return seen(Color(*colour.get_truecolor()), mode)


def unreadable(segment: Segment, mode: str) -> str:
    """Why a piece of the screen can't be read, or isn't seen; empty where it can."""
    text, style = segment.text.strip(), segment.style
    if not text or style is None:
        return ""
    if style.dim:
        return "dim"
    fore, back = as_shown(style.color, mode), as_shown(style.bgcolor, mode)
    if mode == "none":
        return "a colour" if fore or back else ""
    if fore is None and back is None:
        return ""  # the terminal's own two, perhaps reversed
    if fore is None:
        return "the terminal's own colour on another"
    need = TEXT if any(char.isalnum() for char in text) else DECORATION
    found = contrast(fore, back or Color(0, 0, 0))
    return "" if found >= need else f"{found:.1f}"


@pytest.mark.parametrize("mode", MODES)
async def test_every_screen_can_be_read(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_mode(monkeypatch, mode)
    chat = make_chat()
    app = FlashmoeApp(AppOptions(measure=False))
    bad: set[str] = set()
    async with running(app, (120, 36)) as pilot:
        for keys, name in SCREENS.items():
            if name == "ChatScreen":
                await draw(pilot, chat)
            await pilot.press(*keys.split())
            await until(pilot, lambda name=name: type(app.screen).__name__ == name)
            await settle(pilot, 0.4)
            for theme in NAMES:
                app.theme = theme
                await settle(pilot, 0.05)
                region = app.screen.children[0].region if app.screen.is_modal else app.screen.region
                for strip in app.screen._compositor.render_strips()[region.y : region.bottom]:
                    for segment in strip.crop(region.x, region.right):
                        if why := unreadable(segment, mode):
                            bad.add(f"{theme} {keys}: {segment.text.strip()[:40]!r} {why} {segment.style}")
            if name != "ChatScreen":
                await pilot.press("escape")
                await until(pilot, lambda: app.screen is app.chat_screen)
    assert not bad, "\n".join(sorted(bad))


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


def test_consoles_without_colours_get_none() -> None:
    assert [facts.colours({"TERM": term}) for term in ("dumb", "vt100", "vte-256color", "linux")] == [
        "none", "none", "256", "16"
    ]  # fmt: skip


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
