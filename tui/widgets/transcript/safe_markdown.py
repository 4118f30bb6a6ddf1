"""Markdown that can hold a hostile model's output: text stays text.

HTML is shown, not dropped; links and images show their target and do nothing; control characters arrive here already
made visible (`flashmoe.text_safety`). `append` is fed at the repaint rate by the streaming message: it lays out the
last block, or the last item of a list, and has only those lines painted that differ.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from rich.segment import Segment
from textual import highlight
from textual.content import Content
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style

from tui.texts import markdown_parser
from tui.widgets.transcript.code_colours import OwnColours, ThemeColours
from tui.widgets.transcript.lit import lit
from tui.widgets.transcript.markdown_lines import Layout
from tui.widgets.transcript.settled import Bare, Settled

_UNCLEAR = re.compile(r"[ \t]*(?:\d{1,9}[.)]?|[-+*=]+|[`~]{1,2}|#{1,6})[ \t]?")
"""A line that has only begun and may become a list's item, a rule, a heading or code: a lone ``-`` would turn the line
above into a heading for a moment, a lone ``3`` would end the list that it is to continue."""

SLOW_S = 0.05
"""A last block that takes longer to parse (twenty thousand brackets take a second) is shown in steps of an eighth."""


def _text(content: str) -> Token:
    return Token("text", "", 0, content=content)


def _disarm(children: Sequence[Token]) -> list[Token]:
    """Replaces links and images by their text and target."""
    result: list[Token] = []
    opened: list[tuple[str, int]] = []
    for token in children:
        if token.type == "link_open":
            opened.append((str(token.attrs.get("href", "")), len(result)))
        elif token.type == "link_close" and opened:
            href, start = opened.pop()
            label = "".join(child.content for child in result[start:])
            shown = href.removeprefix("mailto:").removeprefix("http://").removeprefix("https://").rstrip("/")
            if href and shown not in label.rstrip("/"):
                result.append(_text(f" ‹{href}›"))
        elif token.type == "image":
            alt = token.content or "image"
            result.append(_text(f"[{alt}] ‹{token.attrs.get('src', '')}›"))
        else:
            result.append(token)
    return result


def _disarm_rule(state: StateCore) -> None:
    for token in state.tokens:
        if token.type == "inline" and token.children:
            token.children = _disarm(token.children)


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = markdown_parser()
    parser.core.ruler.push("disarm", _disarm_rule)
    return parser


class SafeMarkdown(Settled, Bare):
    """Markdown without clickable links, images or HTML, drawn line by line."""

    COMPONENT_CLASSES = {
        "bar",
        "code_inline",
        "heading",
        "line",
        "rule",
        "sign",
        "subheading",
        "table_head",
    }

    DEFAULT_CSS = """
    SafeMarkdown {
        width: 1fr;
        height: auto;
        color: $foreground;
        & > .heading { color: $primary; text-style: bold; }
        & > .subheading { color: $foreground; text-style: bold; }
        & > .sign { color: $text-primary; }
        & > .bar { color: $border; }
        & > .rule { color: $secondary; }
        & > .line { color: $border; }
        & > .table_head { color: $primary; text-style: bold; }
        & > .code_inline { background: $panel; color: $text-warning; }
        &:light > .sign { color: $text-secondary; }
        &:light > .code_inline { color: $text-error; }
        &:ansi > .code_inline { background: transparent; }
    }
    """

    def __init__(self, markdown: str = "", *, classes: str | None = None) -> None:
        super().__init__(classes=classes)
        self.source = markdown
        """What is shown."""
        self._held = ""
        self._growing = False
        self._slow = False
        self._layout: Layout | None = None
        self.lines: list[Content] = []
        """As laid out for the widget's width."""
        self._strips: list[Strip | None] = []
        self._strips_style: Style | None = None
        self._last_line = 0
        self._last_char = 0
        """Where the last block begins, which the next piece of text may change."""

    def update(self, markdown: str) -> None:
        """Shows `markdown`, all of it."""
        self._held, self._growing = "", False
        self.source = markdown
        self._last_line = self._last_char = 0
        self._show()

    def append(self, markdown: str) -> None:
        """Adds text at the end; a last line that can't be told yet waits for what follows, or for `update`."""
        text = self._held + markdown
        if self._slow and len(text) < (len(self.source) - self._last_char) // 8:
            self._held = text
            return
        start = text.rfind("\n") + 1
        unclear = (start > 0 or self.source.endswith("\n") or not self.source) and _UNCLEAR.fullmatch(text[start:])
        self._held, self._growing = text[start:] if unclear else "", True
        self.source += text[: len(text) - len(self._held)]
        self._show()

    # ---- lines ----------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        """Has what changed painted."""
        if self._layout is None:  # not laid out yet
            self.refresh(layout=True)
            return
        before = len(self.lines)
        first = self._lay_out()
        if len(self.lines) != before or first < before:
            changed = Region(0, first, self._layout.width, max(before, len(self.lines)) - first)
            self.refresh(changed, layout=len(self.lines) != before)

    def _lay_out(self) -> int:
        """Lays out the last block and what follows it; returns the first line that differs from before."""
        assert self._layout is not None
        source = self.source[self._last_char :]
        started = time.perf_counter()
        tokens = _parser().parse(source)
        self._slow = time.perf_counter() - started > SLOW_S
        lines, last = self.lines[: self._last_line], self._last_line
        for block in self._layout.lines(tokens, source, growing=self._growing):
            last = len(lines)  # with the free line before it
            lines += [Content(), *block] if lines else block
        first = self._last_line
        for old, new in zip(self.lines[first:], lines[first:], strict=False):
            if old is not new and not old.is_same(new):
                break
            first += 1
        self.lines = lines
        self._strips = [*self._strips[:first], *[None] * (len(lines) - first)]
        begins = next((token.map[0] for token in reversed(tokens) if token.map and not token.level), 0)
        if begins:
            self._last_char += sum(map(len, source.split("\n")[:begins])) + begins
        self._last_line = last
        return first

    def _forget(self) -> None:
        self._layout = None
        self.lines, self._strips = [], []
        self._last_line = self._last_char = 0

    def _laid(self, width: int) -> list[Content]:
        if self._layout is None or self._layout.width != width:
            self._forget()
            self._layout = Layout(width, self._highlight)
            self._lay_out()
        return self.lines

    def _highlight(self, code: str, language: str) -> Content:
        theme = OwnColours if self.app.native_ansi_color else ThemeColours
        return highlight.highlight(code, language=language or None, theme=theme)

    def notify_style_update(self) -> None:
        """Another theme, or other styles: code is coloured by the theme's kind."""
        super().notify_style_update()
        self._forget()

    def light_changed(self) -> None:
        """Another text is lit."""
        self._strips = [None] * len(self.lines)
        self.refresh()

    # ---- widget ---------------------------------------------------------------------------------------------------

    def get_content_width(self, container: Size, viewport: Size) -> int:
        """All there is."""
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As many lines as the text takes at this width."""
        return len(self._laid(width))

    def render_line(self, y: int) -> Strip:
        """One line, as wide as the widget."""
        width, base = self.size.width, self.visual_style
        lines = self._laid(width)
        if y >= len(lines):
            return Strip.blank(width, base.rich_style)
        if base != self._strips_style:
            self._strips, self._strips_style = [None] * len(lines), base
        selection = self.text_selection
        strip = self._strips[y] if selection is None else None
        if strip is None:
            line = lit(lines[y])
            if selection is not None and (span := selection.get_span(y)) is not None:
                chosen = Style.from_styles(self.screen.get_component_styles("screen--selection"))
                line = line.stylize(chosen, span[0], len(line) if span[1] == -1 else span[1])
            strip = self._strip(line, y, width, base)
            if selection is None:
                self._strips[y] = strip
        return strip

    def _strip(self, line: Content, y: int, width: int, base: Style) -> Strip:
        segments = [
            Segment(text, style.rich_style) for text, style in line.render(base, "", parse_style=self._get_style)
        ]
        strip = Strip(segments, line.cell_length).adjust_cell_length(width, base.rich_style)
        return strip.apply_offsets(0, y)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """What the mouse marked."""
        return selection.extract("\n".join(line.plain for line in self.lines)), "\n"
