"""A scroll that follows its end, as a terminal does, until the reader scrolls away from it."""

from __future__ import annotations

from textual.containers import VerticalScroll
from textual.geometry import Size
from textual.layout import DockArrangeResult


class TailScroll(VerticalScroll):
    """Follows its end from the start. Content that is shorter than the screen begins at the top."""

    # Textual's anchor pins the end of the content to the bottom even where it is shorter than the screen. A short chat
    # should begin at the top, so the anchor counts only once the content is taller.

    def arrange(self, size: Size, optimal: bool = False) -> DockArrangeResult:
        """Lays out, and notes whether the chat is taller than the screen."""
        result = super().arrange(size, optimal)
        self._taller = result.spatial_map.total_region.bottom > size.height
        return result

    # A chat that grows in a scroll of the same size: Textual would lay out the screen a second time, and send the
    # whole chat to the terminal again with the next frame. Only where a scrollbar may come or go is there a reason.

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:
        same = self.show_vertical_scrollbar and virtual_size.height > size.height and size == self._size
        return super()._size_updated(size, virtual_size, container_size, layout and not same)

    @property
    def _anchored(self) -> bool:
        return self._wants_anchor and self._taller

    @_anchored.setter
    def _anchored(self, value: bool) -> None:
        self._wants_anchor = value

    _wants_anchor = False
    _taller = False

    def on_mount(self) -> None:
        """Follows the tail from the start."""
        self.anchor()

    @property
    def following(self) -> bool:
        """Whether new text scrolls into view by itself."""
        return not self._anchor_released or self.max_scroll_y == 0 or self.scroll_offset.y >= self.max_scroll_y

    def follow(self) -> None:
        """Goes to the end and follows it."""
        self._anchor_released = False
        self.anchor()
        self.scroll_end(animate=False, immediate=False)
