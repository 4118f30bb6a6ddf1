"""The last line: the keys in force for what can be done now, as many as fit."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from tui.keymap import KEYS, Keymap

_LABELS = {spec.id: spec.label for spec in KEYS}


class KeyBar(Widget):
    """Shows keys by binding id. Ids come in order of importance; the last one is kept whatever the width."""

    DEFAULT_CSS = """
    KeyBar { height: 1; padding: 0 1; color: $text-muted; background: $background; }
    """

    def __init__(self, keymap: Keymap, ids: list[str]) -> None:
        super().__init__(id="key-bar")
        self._keymap = keymap
        self._ids = ids

    def show(self, ids: list[str]) -> None:
        """Replaces the keys that are shown."""
        if ids != self._ids:
            self._ids = ids
            self.refresh()

    def render(self) -> Content:
        """As many keys as fit, with the last id always among them."""
        items = [self._item(binding_id) for binding_id in self._ids if self._keymap.display(binding_id)]
        if not items:
            return Content()
        *rest, last = items
        room = self.size.width - last.cell_length
        shown: list[Content] = []
        for item in rest:
            if item.cell_length + 2 > room:
                break
            shown.append(item)
            room -= item.cell_length + 2
        return Content("  ").join([*shown, last])

    def _item(self, binding_id: str) -> Content:
        label = _LABELS.get(binding_id) or binding_id.partition(".")[2].replace("_", " ")
        return Content.assemble((self._keymap.display(binding_id), "bold $primary"), " ", label)
