"""What may follow the leader key, while it is awaited: a box over the key bar, in as many columns as there is room."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from tui.key_table import KEYS
from tui.keymap import Keymap, display_key
from tui.texts import whole_words


class LeaderHints(Widget):
    """Lies over what is at the bottom of its screen."""

    DEFAULT_CSS = """
    LeaderHints {
        dock: bottom; layer: hints; width: 1fr; height: auto; max-height: 80%; margin: 0 0 1 0; padding: 0 1;
        background: $panel; color: $foreground; border-top: solid $primary;
    }
    """

    def __init__(self, keymap: Keymap, leader: str, scopes: frozenset[str]) -> None:
        """`scopes`: of the screens and widgets that are alive."""
        super().__init__()
        self._items: list[tuple[str, str]] = []
        for spec in KEYS:
            if spec.scope in scopes:
                for key in keymap.keys[spec.id].split(","):
                    if key.startswith(f"{leader} "):
                        title = spec.description.partition(":")[0].partition(";")[0].partition(" (")[0]
                        self._items.append((display_key(key.partition(" ")[2]), title))

    def _columns(self, width: int) -> int:
        most_rows = max(1, self.screen.size.height * 4 // 5 - 1)  # of the height that the style leaves, less the border
        return max(1, min(4, width // 36), min(width // 18, -(-len(self._items) // most_rows)))

    def get_content_height(self, container: object, viewport: object, width: int) -> int:
        """As many lines as the columns need."""
        return -(-len(self._items) // self._columns(width))

    def render(self) -> Content:
        """``n New chat   o Models …``, downwards."""
        width = self.size.width
        columns = self._columns(width)
        rows = -(-len(self._items) // columns)
        room = width // columns
        lines = []
        for row in range(rows):
            line = Content()
            for key, title in self._items[row::rows]:
                words = whole_words(title, room - 8)
                cell = Content.assemble((f"{key:>5}", "bold $primary"), " ", words).truncate(room - 2, ellipsis=True)
                line += cell.pad_right(max(0, room - cell.cell_length))
            lines.append(line)
        return Content("\n").join(lines)
