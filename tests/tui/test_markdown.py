"""Markdown as lines: what stands where, at any width, whatever the model wrote."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.content import Content
from textual.geometry import Offset
from textual.selection import Selection

from tests.markdown_text import TEXT
from tui.widgets.transcript.markdown_lines import Layout
from tui.widgets.transcript.safe_markdown import SafeMarkdown, _parser


def lines(markdown: str, width: int = 40) -> list[str]:
    """The lines of all blocks, without free lines between them."""
    layout = Layout(width, lambda code, language: Content(code))
    blocks = layout.lines(_parser().parse(markdown), markdown)
    return [line.plain.rstrip() for block in blocks for line in block]


def test_lists_hang_and_nest() -> None:
    assert lines("- a point that is longer than the line\n  - nested\n- last", 20) == [
        "• a point that is",
        "  longer than the",
        "  line",
        "  ▪ nested",
        "• last",
    ]
    assert lines("9. nine\n10. ten\n\n    more", 20) == ["  9. nine", " 10. ten", "", "     more"]
    assert lines("-\n- x") == ["•", "• x"]


def test_code_that_is_too_long_goes_on_in_the_next_line() -> None:
    assert lines("```\nabcdefghijklmnop\n\tx\n```", 12) == [" abcdefghij", "↪klmnop", "     x"]
    assert lines("> ```\n> x = 1\n> ```", 12) == ["▌  x = 1"]
    assert lines("    indented", 20) == [" indented"]


def test_a_table_is_as_wide_as_it_needs_and_never_wider_than_the_column() -> None:
    table = "| a | number |\n|---|--:|\n| one two three four | 1 |\n| | 22 | \n"
    assert lines(table, 60) == [
        "┌────────────────────┬────────┐",
        "│ a                  │ number │",
        "├────────────────────┼────────┤",
        "│ one two three four │      1 │",
        "├────────────────────┼────────┤",
        "│                    │     22 │",
        "└────────────────────┴────────┘",
    ]
    assert lines(table, 24) == [
        "┌─────────────┬────────┐",
        "│ a           │ number │",
        "├─────────────┼────────┤",
        "│ one two     │      1 │",
        "│ three four  │        │",
        "├─────────────┼────────┤",
        "│             │     22 │",
        "└─────────────┴────────┘",
    ]
    many = "|" + "a|" * 60 + "\n|" + "-|" * 60 + "\n"
    assert " · ".join("a" * 5) in lines(many, 40)[0]


DEEP = "> " * 40 + "deep\n\n" + "- " * 40 + "points\n\n"


@pytest.mark.parametrize("width", [8, 13, 21, 34, 55, 120])
def test_nothing_is_wider_than_the_column(width: int) -> None:
    for line in lines(TEXT + "\n\n" + DEEP, width):
        assert cell_len(line) <= width


def test_nothing_that_was_written_is_left_out() -> None:
    shown = " ".join(lines(DEEP + "[x]: http://a\n<script>no</script>\n\n![i](http://b)", 60))
    for word in ("deep", "points", "<script>no</script>", "‹http://b›"):
        assert word in shown
    assert lines("***") == ["─" * 40]
    assert lines("") == []


class Page(App[None]):
    """One text."""

    CSS = "SafeMarkdown { width: 30; }"

    def compose(self) -> ComposeResult:
        yield SafeMarkdown("A **bold** word\n\n- one\n- two\n\n```python\nx = 1  # code\n```")


async def test_the_mouse_marks_text_and_themes_colour_it() -> None:
    app = Page()
    async with app.run_test(size=(40, 12)) as pilot:
        markdown = app.query_one(SafeMarkdown)
        chosen = Selection(Offset(2, 0), Offset(3, 2))
        assert markdown.get_selection(chosen) == ("bold word\n\n• o", "\n")
        app.screen.selections = {markdown: Selection(Offset(2, 0), Offset(6, 0))}
        await pilot.pause()
        marked = {segment.text: segment.style for segment in markdown.render_line(0)}
        plain = {segment.text: segment.style for segment in markdown.render_line(2)}
        assert marked["bold"] is not None
        assert marked["bold"].bgcolor != plain["one"].bgcolor if plain["one"] else True
        before = [markdown.render_line(y) for y in range(6)]
        app.theme = "textual-light"
        await pilot.pause()
        assert all(old != markdown.render_line(y) for y, old in enumerate(before))


async def test_another_width_is_laid_out_anew_and_text_goes_on() -> None:
    app = Page()
    async with app.run_test(size=(40, 12)) as pilot:
        markdown = app.query_one(SafeMarkdown)
        markdown.update("- " + "word " * 10)
        await pilot.pause()
        assert markdown.size.height == len(markdown.lines) == 2
        markdown.styles.width = 12
        await pilot.pause()
        assert markdown.size.height == len(markdown.lines) == 5
        markdown.append("\n- and more")
        await pilot.pause()
        assert markdown.lines[-1].plain == "• and more"
        assert markdown.size.height == 6


async def test_text_that_takes_long_to_parse_does_not_stop_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Page()
    async with app.run_test(size=(40, 12)) as pilot:
        markdown = app.query_one(SafeMarkdown)
        markdown.update("")
        shown = 0
        show = markdown._show

        def counted() -> None:
            nonlocal shown
            shown += 1
            show()

        monkeypatch.setattr(markdown, "_show", counted)
        for _ in range(300):
            markdown.append("[" * 40)  # markdown-it looks for an end of each
        await pilot.pause()
        assert shown < 200
        markdown.update("[" * 12000)
        await pilot.pause()
        assert sum(len(line.plain) for line in markdown.lines) == 12000
