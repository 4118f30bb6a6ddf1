"""Text that grows piece by piece looks at every moment as if it had been drawn as a whole, and costs less."""

from __future__ import annotations

import random

import pytest
from textual.app import App, ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.screen import Screen

from tui.widgets.safe_markdown import SafeMarkdown

TEXT = (
    """A router scores **every expert** for each token and keeps the *best* eight; only those are computed.

- a list with `code` that is long enough to break in the middle of it
- 漢字かな交じり文 and שלום עולם and 👩‍👩‍👧 in one item
  that goes on in a second line

```python
scores = router(hidden_states)  # a line of code that is longer than the column is wide
```

| layer | experts |
|---|---|
| 0 | 128 |

> a quotation that **becomes bold late

The end: """
    + "word " * 40
)


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
        lines = ["".join(s.text for s in strip.crop(0, 40)) for strip in self.screen._compositor.render_strips()]
        others = ["".join(s.text for s in strip.crop(40, 80)) for strip in self.screen._compositor.render_strips()]
        return "\n".join(lines), "\n".join(others)


@pytest.mark.parametrize("seed", range(3))
async def test_grown_text_looks_as_if_drawn_whole(seed: int) -> None:
    rng = random.Random(seed)
    app = SideBySide()
    async with app.run_test(size=(80, 60)) as pilot:
        grown, whole = app.query_one(".grown", SafeMarkdown), app.query_one(".whole", SafeMarkdown)
        at = 0
        while at < len(TEXT):
            step = rng.randint(1, 12)
            await grown.append(TEXT[at : at + step])
            at += step
            if rng.random() < 0.3 or at >= len(TEXT):
                await whole.update(TEXT[:at])
                await pilot.pause()
                left, right = app.halves()
                assert left == right


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
        await markdown.append("words ")
        await pilot.pause()
        monkeypatch.setattr(Screen, "_refresh_layout", counted)
        for _ in range(60):  # 300 characters: some eight lines
            await markdown.append("word ")
            await pilot.pause()
        assert 0 < layouts < 30
