"""Markdown that can hold a hostile model's output: text stays text.

HTML is shown, not dropped; links and images show their target and do nothing; control characters arrive here already
made visible (`flashmoe.text_safety`). `Markdown.append` is fed at the repaint rate by the streaming message.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from textual.content import Content
from textual.geometry import Region
from textual.widgets import Markdown
from textual.widgets._markdown import MarkdownParagraph


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
    parser = MarkdownIt("gfm-like", {"html": False, "linkify": False, "maxNesting": 12})
    parser.core.ruler.push("disarm", _disarm_rule)
    return parser


class GrowingParagraph(MarkdownParagraph):
    """A paragraph that is being written: most pieces of text end in the line that they began in.

    Textual lays the whole screen out anew and sends the whole paragraph for each of them. Here a piece that leaves the
    height as it was costs neither, and where text was only added, just the last line goes to the terminal.
    """

    _changed: Region | None = None

    def set_content(self, content: Content) -> None:
        """Shows `content` with as little work as it allows."""
        before, (width, height) = self._content, self.content_size
        if not width or content.get_height(cast(Any, self.styles), width) != height:
            super().set_content(content)
            return
        grown = content.plain.startswith(before.plain) and content.spans[: len(before.spans)] == before.spans
        self._content = content
        self._changed = Region(0, height - 1, width, 1) if grown else None
        self.update(content, layout=False)
        self._changed = None

    def refresh(self, *regions: Region, **options: Any) -> Any:
        """As always, but for `set_content`, which knows what changed."""
        if self._changed is not None and not regions:
            regions = (self._changed,)
        return super().refresh(*regions, **options)


class SafeMarkdown(Markdown):
    """Textual's Markdown without clickable links, images or HTML."""

    BLOCKS = {**Markdown.BLOCKS, "paragraph_open": GrowingParagraph}

    DEFAULT_CSS = """
    SafeMarkdown {
        padding: 0;
        margin: 0;
        background: transparent;
    }
    SafeMarkdown > MarkdownBlock:last-child { margin-bottom: 0; }
    SafeMarkdown MarkdownH1, SafeMarkdown MarkdownH2, SafeMarkdown MarkdownH3 {
        content-align: left middle;
        color: $primary;
        background: transparent;
        text-style: bold;
        margin: 0 0 1 0;
        border: none;
        padding: 0;
    }
    SafeMarkdown MarkdownH2, SafeMarkdown MarkdownH3 { color: $foreground; }
    SafeMarkdown MarkdownFence { margin: 0 0 1 0; background: $surface; max-height: 200; }
    SafeMarkdown MarkdownFence > Label { padding: 0 1; width: 1fr; }
    SafeMarkdown MarkdownBlockQuote { background: transparent; border-left: outer $border; margin: 0 0 1 0; }
    SafeMarkdown MarkdownTableContent { margin: 0; }
    """

    def __init__(self, markdown: str | None = None, *, classes: str | None = None) -> None:
        super().__init__(markdown, classes=classes, parser_factory=_parser, open_links=False)
