"""A widget whose height follows from what is in it: its layout is settled once it has been laid out."""

from __future__ import annotations

from textual.geometry import Size
from textual.widget import Widget


class Settled(Widget):
    """A widget that is as high as what is in it, and never scrolls.

    When a layout gives it another size, Textual lays the whole screen out once more: a scrollbar could come or go.
    """

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:
        return super()._size_updated(size, virtual_size, container_size, False)
