"""Widgets that say what Textual can't know of them, so that a new line of an answer costs little.

Settled: a layout is settled once it has been laid out. Even: the lines below what is in it all look alike. Bare:
there is nothing around its lines.
"""

from __future__ import annotations

from textual.geometry import Region, Size
from textual.strip import Strip
from textual.widget import Widget


class Settled(Widget):
    """A widget that is as high as what is in it, and never scrolls.

    When a layout gives it another size, Textual lays the whole screen out once more: a scrollbar could come or go.
    """

    def _size_updated(self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True) -> bool:
        return super()._size_updated(size, virtual_size, container_size, False)


class Even(Widget):
    """A container without lines of its own above or below: what is seen between its children is drawn once.

    Textual draws every line of a container, also those that its children cover.
    """

    def render_lines(self, crop: Region) -> list[Strip]:
        """The first line, as often as there are lines."""
        if crop.height < 1:
            return []
        return super().render_lines(crop.crop_size((crop.width, 1))) * crop.height


class Bare(Widget):
    """A widget that draws whole lines in `render_line` and keeps them. Where neither border nor padding is around them,
    what Textual would look up for those, line by line, is left out."""

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`."""
        if self.opacity < 1 or any(self.styles.gutter):
            return super().render_lines(crop)
        background = self.background_colors[1]
        strips = [self.render_line(y) for y in crop.line_range]
        for line_filter in self.get_line_filters():
            strips = [strip.apply_filter(line_filter, background) for strip in strips]
        if crop.column_span != (0, self.size.width):
            strips = [strip.crop(*crop.column_span) for strip in strips]
        return strips
