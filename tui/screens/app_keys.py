"""What keys mean to the app as a whole: the set in force, the leader and its hints, ^C."""

from __future__ import annotations

import time
from typing import Any

from textual.timer import Timer
from textual.widgets import Input, TextArea

from flashmoe.config.chosen import choose
from flashmoe.config.schema import Config
from tui import keymap as keys
from tui.keymap import Keymap
from tui.terminal.key_order import KeyOrder
from tui.widgets.key_bar import KeyBar

HINT_AFTER_S = 0.3
"""Who knows the second key has pressed it by then, and nothing is drawn."""
TOLD_S = 4.0
"""How long a sentence about a key stays."""
TWICE_S = 2.0
"""^C twice within this time quits."""


class AppKeys(KeyOrder):
    """An app with the keys of `tui.keymap`."""

    keymap: Keymap
    config: Config

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._hint: Timer | None = None
        self._interrupted = float("-inf")

    # ---- the set in force ------------------------------------------------------------------------------------------

    def use_keys(self, keymap: Keymap) -> None:
        """Puts keys in force, now or later than the start."""
        self.keymap = keymap
        self.leaders = keymap.leaders
        self.set_keymap(keymap.overrides)

    def choose_key_set(self, name: str) -> None:
        """Takes the named set, with the user's own keys of the configuration, and keeps the choice."""
        self.use_keys(keys.resolve({**self.config.ui.keys, "set": name}))
        choose(keys=name)
        for screen in self.screen_stack:
            for bar in screen.query(KeyBar):
                bar.use(self.keymap)

    # ---- the leader ------------------------------------------------------------------------------------------------

    def leader_changed(self, leader: str, missed: str = "") -> None:
        """Shows what may follow, a moment later; or takes that away."""
        if self._hint is not None:
            self._hint.stop()
            self._hint = None
        for hints in self.screen.query("LeaderHints"):
            hints.remove()
        if leader:
            self._hint = self.set_timer(HINT_AFTER_S, lambda: self._show_hints(leader))
        elif missed:
            self.tell(
                f"{keys.display_key(missed)} does nothing here; {self.keymap.display('app.help')} shows the keys."
            )

    def _show_hints(self, leader: str) -> None:
        from tui.widgets.leader_hints import LeaderHints

        scopes = {"app"}
        for node, _ in self.screen._binding_chain:
            for bound in node._bindings.key_to_bindings.values():
                scopes |= {binding.id.partition(".")[0] for binding in bound if binding.id}
        self.screen.mount(LeaderHints(self.keymap, leader, frozenset(scopes)))

    # ---- ^C --------------------------------------------------------------------------------------------------------

    async def action_interrupt(self) -> None:
        """Copies what is selected; else stops what runs; else says how to quit, and quits when pressed once more."""
        field = self.focused
        selected = field.selected_text if isinstance(field, TextArea | Input) else ""
        selected = selected or self.screen.get_selected_text() or ""
        if selected:
            self.copy_to_clipboard(selected)
            return
        now = time.monotonic()
        if await self.stop_what_runs():
            self._interrupted = float("-inf")
        elif now - self._interrupted < TWICE_S:
            await self.action_quit()
        else:
            self._interrupted = now
            again, quits = self.keymap.display("app.interrupt"), self.keymap.display("app.quit")
            self.tell(f"Nothing is running. Press {again} again or {quits} to quit; chats are saved.")

    async def stop_what_runs(self) -> bool:
        """Stops an answer or a load; False where there is none."""
        return False

    def tell(self, sentence: str) -> None:
        """One sentence for the person at the keyboard."""
        self.notify(sentence, markup=False, timeout=TOLD_S)
