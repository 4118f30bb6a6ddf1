"""The line in the chat above which the model sees nothing any more, with the summary that it is shown instead."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from flashmoe.history.records import ContextCut
from flashmoe.text_safety import visible, visible_line
from tui.keymap import Keymap


class CutLine(Widget):
    """Quiet: a rule with a few words. The summary is one line until it is unfolded."""

    DEFAULT_CSS = """
    CutLine { height: auto; margin: 0 0 1 0; padding: 0 2; color: $text-muted; }
    """

    def __init__(self, keymap: Keymap) -> None:
        super().__init__()
        self._keymap = keymap
        self._cut: ContextCut | None = None
        self._count = 0
        self._open = False

    def show(self, cut: ContextCut, count: int) -> None:
        """What was left out: the `count` messages above."""
        if (cut, count) != (self._cut, self._count):
            self._cut, self._count = cut, count
            self.refresh(layout=True)

    def toggle(self) -> None:
        """Shows or folds the summary."""
        if self._cut is not None and self._cut.summary:
            self._open = not self._open
            self.refresh(layout=True)

    def on_click(self) -> None:
        """As the key does."""
        self.toggle()

    def render(self) -> Content:
        """The rule, and the summary below it."""
        cut, width = self._cut, self.content_size.width or 60
        if cut is None:
            return Content()
        undo, fold = self._keymap.display("chat.show_all"), self._keymap.display("transcript.summary")
        which = f"the {self._count} messages above" if self._count > 1 else "the message above"
        verb = "has a summary of" if cut.summary else "isn't shown"
        words = [f"the model {verb} {which}", *([f"{undo} undoes that"] if undo else [])]
        text = " · ".join(words)
        if len(text) + 4 > width:
            text = " · ".join([f"{self._count} above {'summarised' if cut.summary else 'left out'}", *words[1:]])
        rule = max(0, width - len(text) - 2)
        left = rule // 2
        line = Content.styled(f"{'╌' * left} {text} {'╌' * (rule - left)}"[: max(width, 8)], "$foreground-muted")
        if not cut.summary:
            return line
        if self._open:
            return Content("\n").join([line, Content.assemble(("▾ ", ""), visible(cut.summary.strip()))])
        hint = f" · {fold}" if fold and self.has_focus else ""
        room = max(10, width - 4 - len(hint))
        return Content("\n").join([line, Content(f"▸ {visible_line(cut.summary.strip(), room)}{hint}")])
