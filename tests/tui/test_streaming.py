"""Text that grows piece by piece looks at every moment as if it had been drawn as a whole, and costs less."""

from __future__ import annotations

import random

import pytest
from textual.app import App, ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.screen import Screen

from tests.markdown_text import TEXT
from tui.widgets.transcript.safe_markdown import SafeMarkdown


class SideBySide(App[None]):
    """On the left the text grows, on the right it is always drawn anew."""

    CSS = "SafeMarkdown { width: 40; height: auto; } VerticalScroll { width: 40; }"

    def compose(self) -> ComposeResult:
        with Horizontal():
            with VerticalScroll():
                yield SafeMarkdown("", classes="grown")
            with VerticalScroll():
                yield SafeMarkdown("", classes="whole")

    def halves(self) -> tuple[str, str]:
        """What stands on the left and on the right."""
        lines = [
            "".join(s.text for s in strip.crop(0, 40)).rstrip() for strip in self.screen._compositor.render_strips()
        ]
        others = [
            "".join(s.text for s in strip.crop(40, 80)).rstrip() for strip in self.screen._compositor.render_strips()
        ]
        return "\n".join(lines), "\n".join(others)


@pytest.mark.parametrize("seed", range(2))
async def test_grown_text_looks_as_if_drawn_whole(seed: int) -> None:
    rng = random.Random(seed)
    app = SideBySide()
    async with app.run_test(size=(80, 90)) as pilot:
        grown, whole = app.query_one(".grown", SafeMarkdown), app.query_one(".whole", SafeMarkdown)
        at = 0
        while at < len(TEXT):
            step = rng.randint(1, 12)
            grown.append(TEXT[at : at + step])
            at += step
            if rng.random() < 0.12 or at >= len(TEXT):
                whole.update(grown.source)  # a line that has only begun isn't shown yet
                await pilot.pause(0.05)  # the layout that follows on another's
                left, right = app.halves()
                assert left == right
                assert len(TEXT[:at]) - len(grown.source) < 12


async def test_a_piece_within_a_line_is_no_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = 0
    refresh_layout = Screen._refresh_layout

    def counted(screen: Screen[None], *arguments: object, **options: object) -> None:
        nonlocal layouts
        layouts += 1
        refresh_layout(screen, *arguments, **options)  # type: ignore[arg-type]

    app = SideBySide()
    async with app.run_test(size=(80, 30)) as pilot:
        markdown = app.query_one(".grown", SafeMarkdown)
        markdown.append("words ")
        await pilot.pause()
        monkeypatch.setattr(Screen, "_refresh_layout", counted)
        for _ in range(60):  # 300 characters: some eight lines
            markdown.append("word ")
            await pilot.pause()
        assert 0 < layouts < 30


async def test_a_list_keeps_its_items_while_it_grows() -> None:
    app = SideBySide()
    async with app.run_test(size=(80, 30)) as pilot:
        markdown = app.query_one(".grown", SafeMarkdown)
        for start in ("- first point\n- second point\n- thi", "1. first point\n2. second point\n3. thi"):
            markdown.update("")
            markdown.append(start)
            await pilot.pause()
            before = list(markdown.lines)
            assert len(before) == 3
            for piece in ("rd", " point", "\n", "- " if start[0] == "-" else "4. ", "fourth", "\n\n    > quoted"):
                markdown.append(piece)
                await pilot.pause()
            assert all(line is kept for line, kept in zip(markdown.lines[:2], before[:2], strict=True))
            assert [line.plain.strip() for line in markdown.lines[2:]] == [
                f"{'•' if start[0] == '-' else '3.'} third point",
                f"{'•' if start[0] == '-' else '4.'} fourth",
                "▌ quoted",
            ]


@pytest.mark.parametrize("sign", ["-", "=", "1", "#"])
async def test_a_line_that_has_only_begun_changes_nothing_above_it(sign: str) -> None:
    app = SideBySide()
    async with app.run_test(size=(80, 30)) as pilot:
        markdown = app.query_one(".grown", SafeMarkdown)
        markdown.append("A first line\n")
        await pilot.pause()
        before = app.halves()[0]
        markdown.append(sign)
        await pilot.pause()
        assert app.halves()[0] == before
        markdown.append("x and more")
        await pilot.pause()
        assert f"{sign}x and more" in app.halves()[0]
