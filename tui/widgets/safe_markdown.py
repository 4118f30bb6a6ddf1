"""Markdown that can hold a hostile model's output: text stays text.

HTML is shown, not dropped; links and images show their target and do nothing; control characters arrive here already
made visible (`flashmoe.text_safety`). `Markdown.append` is fed at the repaint rate by the streaming message.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from textual.await_complete import AwaitComplete
from textual.widgets import Markdown

from tui.widgets.growing_blocks import GrowingBulletList, GrowingOrderedList, GrowingParagraph, GrowingQuote
from tui.widgets.settled import Settled

_UNCLEAR = re.compile(r"[ \t]*(?:\d{1,9}[.)]?|[-+*=]+|[`~]{1,2}|#{1,6})[ \t]?")
"""A line that has only begun and may become a list's item, a rule, a heading or code: a lone ``-`` would turn the line
above into a heading for a moment, a lone ``3`` would end the list that it is to continue."""


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


class SafeMarkdown(Markdown, Settled):
    """Textual's Markdown without clickable links, images or HTML."""

    BLOCKS = {
        **Markdown.BLOCKS,
        "paragraph_open": GrowingParagraph,
        "blockquote_open": GrowingQuote,
        "bullet_list_open": GrowingBulletList,
        "ordered_list_open": GrowingOrderedList,
    }

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
        self._held = ""

    def update(self, markdown: str) -> AwaitComplete:
        """Shows `markdown`, all of it."""
        self._held = ""
        return super().update(markdown)

    def append(self, markdown: str) -> AwaitComplete:
        """Adds text at the end; a last line that can't be told yet waits for what follows, or for `update`."""
        text = self._held + markdown
        start = text.rfind("\n") + 1
        unclear = (start > 0 or self.source.endswith("\n") or not self.source) and _UNCLEAR.fullmatch(text[start:])
        self._held = text[start:] if unclear else ""
        shown = text[: len(text) - len(self._held)]
        return super().append(shown) if shown else AwaitComplete()
