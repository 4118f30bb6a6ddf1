"""Blocks of Markdown that grow where they stand.

Textual draws a paragraph anew for each piece of text that it gains, and a list or a quotation it even takes away and
mounts again, with a widget for every item: tens of milliseconds for a piece of four letters. Here what was there stays,
and only the last block of the last item changes.
"""

from __future__ import annotations

from typing import Any, cast

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.geometry import Region
from textual.widget import Widget
from textual.widgets import _markdown as blocks
from textual.widgets._markdown import MarkdownBlock

from tui.widgets.settled import Settled


class GrowingParagraph(blocks.MarkdownParagraph, Settled):
    """A paragraph that is being written: most pieces of text end in the line that they began in.

    Textual lays the whole screen out anew and sends the whole paragraph for each of them. Here a piece that leaves the
    height as it was costs neither, and where text was only added, just the last line is painted.
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


class GrowingQuote(blocks.MarkdownBlockQuote, Settled):
    """A quotation whose last block grows."""

    def takes(self, block: MarkdownBlock) -> bool:
        """Whether this can become `block` where it stands."""
        return type(block) is type(self)

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if self.takes(block):
            await _grow(self, block._blocks)
            self._copy_context(block)
        else:
            await super()._update_from_block(block)


class Bullet(blocks.MarkdownBullet, Settled):
    """An item's sign, as high as the item."""


class ListRow(Horizontal, Settled):
    """An item: its bullet and, beside it, what it says."""


class ListText(Vertical, Settled):
    """What an item says."""


class GrowingList(blocks.MarkdownList, Settled):
    """A list whose last item grows, and which gains items."""

    def takes(self, block: MarkdownBlock) -> bool:
        """Whether this can become `block` where it stands: the same items with the same bullets, and more."""
        items, rows = _items(block), self._rows()
        symbols = [row.query_one(blocks.MarkdownBullet).symbol for row in rows]
        return type(block) is type(self) and bool(rows) and self._symbols(items)[: len(rows)] == symbols

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not self.takes(block):
            await super()._update_from_block(block)
            return
        items, rows = _items(block), self._rows()
        await _grow(rows[-1].query_one(ListText), items[len(rows) - 1]._blocks)
        self._copy_context(block)
        if len(items) > len(rows):
            await self.mount_all(self._made(items, len(rows)))

    def compose(self) -> ComposeResult:
        """A row for each item."""
        yield from self._made(_items(self), 0)
        self._blocks.clear()

    def _made(self, items: list[blocks.MarkdownListItem], first: int) -> list[ListRow]:
        rows = []
        for item, symbol in list(zip(items, self._symbols(items), strict=True))[first:]:
            bullet = Bullet()
            bullet.symbol = symbol
            rows.append(ListRow(bullet, ListText(*item._blocks)))
        return rows

    def _rows(self) -> list[ListRow]:
        return [row for row in self.children if isinstance(row, ListRow)]

    def _symbols(self, items: list[blocks.MarkdownListItem]) -> list[str]:
        return [item.bullet for item in items]


class GrowingBulletList(blocks.MarkdownBulletList, GrowingList):
    """Points."""

    def compose(self) -> ComposeResult:
        """A row for each item."""
        yield from GrowingList.compose(self)


class GrowingOrderedList(blocks.MarkdownOrderedList, GrowingList):
    """Numbers; a tenth one moves the others to the right, and the whole list is drawn anew."""

    def compose(self) -> ComposeResult:
        """A row for each item."""
        yield from GrowingList.compose(self)

    def _symbols(self, items: list[blocks.MarkdownListItem]) -> list[str]:
        first = int(items[0].bullet) if items and items[0].bullet.isdecimal() else 1
        numbers = [f"{number}. " for number in range(first, first + len(items))]
        width = max(map(len, numbers), default=0) + 1
        return [number.rjust(width) for number in numbers]


def _items(block: MarkdownBlock) -> list[blocks.MarkdownListItem]:
    return [item for item in block._blocks if isinstance(item, blocks.MarkdownListItem)]


async def _grow(parent: Widget, wanted: list[MarkdownBlock]) -> None:
    """Makes the blocks in `parent` those of `wanted`, of which all but the last were there before."""
    present = [child for child in parent.children if isinstance(child, MarkdownBlock)]
    same = 0
    for old, new in zip(present, wanted, strict=False):
        if type(old) is not type(new):
            break
        same += 1
    if same and same == len(present):
        last, block = present[-1], wanted[same - 1]
        if isinstance(last, GrowingParagraph | blocks.MarkdownFence) or (
            isinstance(last, GrowingList | GrowingQuote) and last.takes(block)
        ):
            await last._update_from_block(block)
        else:
            same -= 1
    for old in present[same:]:
        await old.remove()
    if wanted[same:]:
        await parent.mount_all(wanted[same:])
