"""Markdown as the lines that it takes in a column of a given width.

A message is one widget that knows its lines. With a widget for every paragraph and every item, as in Textual's own
Markdown, a line that an answer gains costs the layout and the painting of a hundred of them.

Parsing, wrapping, highlighting and styles are markdown-it's, Textual's and Pygments'; here blocks are put together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from textual.content import Content, Span

from flashmoe.text_safety import visible_exact
from tui.widgets.transcript.markdown_table import table_lines

BULLETS = ("• ", "▪ ", "‣ ", "⭑ ", "◦ ")
"""Of points, points in points, and so on, around again."""
CODE = "on $surface"
"""Textual's component styles are mixed with what is below them, and an opaque background is lost in that."""
APART = ("fence", "code_block", "table")
"""What has a free line around it even within an item."""
STEP = 16
"""Lines of code that are coloured at a time while more of them come: what goes over the edge of such a part, as a long
string does, may have another colour until the answer ends."""
NARROWEST = 10
"""Cells that a text has at least, however deep it is nested: in a narrower place nothing is set in any further."""

Highlight = Callable[[str, str], Content]
"""Code and the language that the fence names ("" for none), in colours."""

_STYLES = {"em": "italic", "strong": "bold", "s": "strike"}


class Layout:
    """Lays out blocks of Markdown for one width; what it has laid out once it knows, as an answer grows at its end.

    Args:
        width: Of the column, in cells.
        highlight: Colours code.
    """

    def __init__(self, width: int, highlight: Highlight) -> None:
        self.width = width
        self._highlight = highlight
        self._known: dict[tuple[object, ...], list[Content]] = {}
        self._used: dict[tuple[object, ...], list[Content]] = {}

    def lines(self, tokens: Sequence[Token], source: str, *, growing: bool = False) -> Iterator[list[Content]]:
        """The lines of each block of `tokens`, which were parsed from `source`; whether more text is to come."""
        self._growing = growing
        self._source = source.split("\n")
        self._used = {}
        for node in SyntaxTreeNode(tokens).children:
            yield self._block(node, self.width, 0)
        self._known = self._used

    def _block(self, node: SyntaxTreeNode, width: int, depth: int) -> list[Content]:
        match node.type:
            case "paragraph":
                return inline(node.children[0]).wrap(width)
            case "heading":
                level = ".heading" if node.tag == "h1" else ".subheading"
                return inline(node.children[0]).stylize_before(level).wrap(width)
            case "bullet_list" | "ordered_list":
                return self._list(node, width, depth)
            case "blockquote":
                bar = Content.styled("▌", ".bar") + " " if width - 2 >= NARROWEST else Content()
                return [bar + line for line in self._blocks(node.children, width - len(bar), depth)]
            case "fence" | "code_block":
                return self._code(node, width)
            case "hr":
                return [Content.styled("─" * width, ".rule")]
            case "table":
                rows = [
                    [(inline(cell.children[0]), str(cell.attrs.get("style", ""))) for cell in row.children]
                    for part in node.children
                    for row in part.children
                ]
                return table_lines(rows, width)
            case _:  # nothing that the model wrote is left out
                return Content(node.content).wrap(width)

    def _blocks(self, nodes: Sequence[SyntaxTreeNode], width: int, depth: int) -> list[Content]:
        """Blocks within an item or a quotation, with a free line where the text has paragraphs apart."""
        lines: list[Content] = []
        before: SyntaxTreeNode | None = None
        for node in nodes:
            if before is not None and (before.type in APART or node.type in APART or (_loose(before) and _loose(node))):
                lines.append(Content())
            lines += self._block(node, width, depth)
            before = node
        return lines

    def _list(self, node: SyntaxTreeNode, width: int, depth: int) -> list[Content]:
        lines: list[Content] = []
        before: SyntaxTreeNode | None = None
        for item, sign in zip(node.children, _signs(node, depth), strict=True):
            if before is not None and before.children and before.children[-1].type in APART:
                lines.append(Content())
            lines += self._item(item, sign, width, depth)
            before = item
        return lines

    def _item(self, item: SyntaxTreeNode, sign: str, width: int, depth: int) -> list[Content]:
        if width - len(sign) < NARROWEST:
            sign = ""
        first, last = item.map or (0, 0)
        loose = sum(map(_loose, item.children)) > 1
        key = (sign, loose, depth, width, *self._source[first:last])
        lines = self._known.get(key)
        if lines is None:
            body = self._blocks(item.children, width - len(sign), depth + 1) or [Content()]
            lines = [Content.styled(sign, ".sign") + body[0], *(line.pad_left(len(sign)) for line in body[1:])]
        self._used[key] = lines
        return lines

    def _code(self, node: SyntaxTreeNode, width: int) -> list[Content]:
        language = node.info.split()[0] if node.info.strip() else ""
        code = visible_exact(node.content).rstrip().split("\n")
        step = STEP if self._growing else len(code)
        lines: list[Content] = []
        for start in range(0, len(code), step):
            lines += self._code_lines("\n".join(code[start : start + step]), language, width)
        return lines

    def _code_lines(self, code: str, language: str, width: int) -> list[Content]:
        """Code on its own background; a line that is too long goes on in the next, with a sign before it."""
        key = ("code", width, language, code)
        lines = self._known.get(key)
        if lines is None:
            lines = []
            for line in self._highlight(code, language).split(allow_blank=True):
                for number, part in enumerate(line.expand_tabs(4).fold(width - 2)):
                    padded = part.pad_right(max(width - 1 - part.cell_length, 0))
                    sign = Content.styled("↪", ".line") if number else Content(" ")
                    lines.append((sign + padded).stylize_before(CODE))
        self._used[key] = lines
        return lines


def _loose(node: SyntaxTreeNode) -> bool:
    return node.type == "paragraph" and not node.hidden


def _signs(node: SyntaxTreeNode, depth: int) -> list[str]:
    """What stands before each item: a bullet by depth, or numbers set flush right."""
    count = len(node.children)
    if node.type == "bullet_list":
        return [BULLETS[depth % len(BULLETS)]] * count
    first = int(node.attrs.get("start", 1))
    numbers = [f"{number}. " for number in range(first, first + count)]
    width = max(map(len, numbers)) + 1
    return [number.rjust(width) for number in numbers]


def inline(node: SyntaxTreeNode) -> Content:
    """Text with its emphasis. `node` is of the type `inline`."""
    parts: list[str] = []
    spans: list[Span] = []
    at = 0

    def add(text: str) -> None:
        nonlocal at
        parts.append(text)
        at += len(text)

    def walk(nodes: Sequence[SyntaxTreeNode]) -> None:
        for child in nodes:
            start = at
            if child.type == "text":
                add(re.sub(r"\s+", " ", child.content))
            elif child.type == "softbreak":
                add(" ")
            elif child.type == "hardbreak":
                add("\n")
            elif child.type == "code_inline":
                add(visible_exact(child.content))
                spans.append(Span(start, at, ".code_inline"))
            elif child.children:
                walk(child.children)
                if child.type in _STYLES and at > start:
                    spans.append(Span(start, at, _STYLES[child.type]))
            else:
                add(child.content)

    walk(node.children)
    return Content("".join(parts), spans)
