"""The two kinds of text field: one line (`LineField`) and several (`TextField`).

Both know a shell's editing keys, move and delete by whole characters (an emoji with its skin tone is one), and take a
paste once. Their keys are the scope ``field`` of `tui.keymap`.
"""

from __future__ import annotations

from typing import Any

from rich.style import StyleType
from rich.text import Text
from textual import events
from textual.document._document import Location, Selection
from textual.widgets import Input, TextArea
from textual.widgets.input import Selection as LineSelection

from flashmoe.text_safety import encodable
from tui.keymap import bindings
from tui.widgets import graphemes
from tui.widgets.kill_ring import KILLED, shell_word_before, word_after, word_before


def pasted(text: str) -> str:
    """A paste as text: one kind of line break, nothing that can't be stored."""
    return encodable(text.replace("\r\n", "\n").replace("\r", "\n"))


class _WholeCharacters(Text):
    """A drawn line in which a style never ends within a character."""

    def stylize(self, style: StyleType, start: int = 0, end: int | None = None) -> None:
        """As `Text.stylize`."""
        if end is not None and 0 < end < len(self):
            snapped = graphemes.snapped(self.plain, end)
            end = snapped if snapped == end else graphemes.after(self.plain, snapped)
        super().stylize(style, start, end)


class TextField(TextArea):
    """Several lines of text."""

    BINDINGS = bindings("field")

    # ---- whole characters ------------------------------------------------------------------------------------------

    def get_cursor_left_location(self) -> Location:
        """One character to the left."""
        row, column = self.cursor_location
        if column == 0:
            return super().get_cursor_left_location()
        return row, graphemes.before(self.document[row], column)

    def get_cursor_right_location(self) -> Location:
        """One character to the right."""
        row, column = self.cursor_location
        line = self.document[row]
        if column >= len(line):
            return super().get_cursor_right_location()
        return row, graphemes.after(line, column)

    def _validate_selection(self, selection: Selection) -> Selection:
        start, end = super()._validate_selection(selection)
        return Selection(self._snapped(start), self._snapped(end))

    def _snapped(self, location: Location) -> Location:
        row, column = location
        return row, graphemes.snapped(self.document[row], column)

    def get_line(self, line_index: int) -> Text:
        """A line as it is drawn."""
        line = super().get_line(line_index)
        if line.plain.isascii():
            return line
        return _WholeCharacters(line.plain, style=line.style, end=line.end, no_wrap=line.no_wrap)

    # ---- as in a shell ---------------------------------------------------------------------------------------------

    def get_cursor_line_start_location(self, smart_home: bool = False) -> Location:
        """Where Home goes: always the beginning, also of an indented line."""
        return super().get_cursor_line_start_location(smart_home=False)

    def _state(self) -> object:
        return id(self), self.text, self.cursor_location

    def _kill(self, start: Location, end: Location, *, backwards: bool) -> None:
        if self.read_only:
            return
        before, text = self._state(), self.get_text_range(start, end)
        self._delete_via_keyboard(start, end)
        KILLED.cut(text, backwards=backwards, before=before, after=self._state())

    def action_line_start(self) -> None:
        """To the beginning of the line, however it is wrapped."""
        self.move_cursor((self.cursor_location[0], 0))

    def action_line_end(self) -> None:
        """To the end of the line, however it is wrapped."""
        row = self.cursor_location[0]
        self.move_cursor((row, len(self.document[row])))

    def action_kill_to_end(self) -> None:
        """Cuts the rest of the line; at its end, the line break."""
        row, column = self.cursor_location
        end = (row, len(self.document[row]))
        if column == end[1]:
            end = self.get_cursor_right_location()
        self._kill((row, column), end, backwards=False)

    def action_kill_to_start(self) -> None:
        """Cuts what is before the cursor in the line; at its beginning, the line break before it."""
        row, column = self.cursor_location
        start = (row, 0) if column else self.get_cursor_left_location()
        self._kill(start, (row, column), backwards=True)

    def action_kill_word(self) -> None:
        """Cuts the word before the cursor, back to a blank."""
        self._kill_before(shell_word_before)

    def action_kill_letters(self) -> None:
        """Cuts the word before the cursor, of letters and digits."""
        self._kill_before(word_before)

    def _kill_before(self, where: Any) -> None:
        row, column = self.cursor_location
        start = (row, where(self.document[row][:column])) if column else self.get_cursor_left_location()
        self._kill(start, (row, column), backwards=True)

    def action_kill_word_ahead(self) -> None:
        """Cuts to the end of the word."""
        row, column = self.cursor_location
        line = self.document[row]
        end = (row, column + word_after(line[column:])) if column < len(line) else self.get_cursor_right_location()
        self._kill((row, column), end, backwards=False)

    def action_yank(self) -> None:
        """Puts back what was cut last."""
        if KILLED.text:
            self._replace_via_keyboard(KILLED.text, *self.selection)
            self.scroll_cursor_visible()

    # ---- pastes ----------------------------------------------------------------------------------------------------

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()  # else Textual's own handler, of the class above, would run too
        event.stop()
        self.paste(pasted(event.text))

    def paste(self, text: str) -> None:
        """Takes a paste in, at the cursor or in place of what is selected."""
        self._replace_via_keyboard(text, *self.selection)
        self.scroll_cursor_visible()


class LineField(Input):
    """One line of text."""

    BINDINGS = bindings("field")

    # ---- whole characters ------------------------------------------------------------------------------------------

    def action_cursor_left(self, select: bool = False) -> None:
        """One character to the left."""
        start, end = self.selection
        if not select and not self.selection.is_empty:
            self.cursor_position = min(start, end)
            return
        there = graphemes.before(self.value, end)
        self.selection = LineSelection(start if select else there, there)

    def action_cursor_right(self, select: bool = False) -> None:
        """One character to the right; at the end takes what is suggested."""
        start, end = self.selection
        if not select and (not self.selection.is_empty or (self.cursor_at_end and self._suggestion)):
            super().action_cursor_right()
            return
        there = graphemes.after(self.value, end)
        self.selection = LineSelection(start if select else there, there)

    def action_delete_left(self) -> None:
        """Deletes the character before the cursor."""
        if self.selection.is_empty:
            self.delete(graphemes.before(self.value, self.cursor_position), self.cursor_position)
        else:
            self.delete_selection()

    def action_delete_right(self) -> None:
        """Deletes the character at the cursor."""
        if self.selection.is_empty:
            self.delete(self.cursor_position, graphemes.after(self.value, self.cursor_position))
        else:
            self.delete_selection()

    def validate_selection(self, selection: LineSelection) -> LineSelection:
        """Within the text, and never within a character (a click can point there)."""
        length = len(self.value)
        start, end = (graphemes.snapped(self.value, max(0, min(index, length))) for index in selection)
        return LineSelection(start, end)

    @property
    def _value(self) -> Text:
        value = super()._value
        if value.plain.isascii():
            return value
        whole = _WholeCharacters("", no_wrap=True, overflow="ignore", end="")
        whole.append_text(value)
        return whole

    # ---- as in a shell ---------------------------------------------------------------------------------------------

    def _state(self) -> object:
        return id(self), self.value, self.cursor_position

    def _kill(self, start: int, end: int, *, backwards: bool) -> None:
        before, text = self._state(), self.value[start:end]
        self.delete(start, end)
        KILLED.cut("" if self.password else text, backwards=backwards, before=before, after=self._state())

    def action_line_start(self) -> None:
        """To the beginning."""
        self.cursor_position = 0

    def action_line_end(self) -> None:
        """To the end."""
        self.cursor_position = len(self.value)

    def action_cursor_word_left(self) -> None:
        """A word to the left."""
        self.action_cursor_left_word()

    def action_cursor_word_right(self) -> None:
        """A word to the right."""
        self.action_cursor_right_word()

    def action_kill_to_end(self) -> None:
        """Cuts what is behind the cursor."""
        self._kill(self.cursor_position, len(self.value), backwards=False)

    def action_kill_to_start(self) -> None:
        """Cuts what is before the cursor."""
        self._kill(0, self.cursor_position, backwards=True)

    def action_kill_word(self) -> None:
        """Cuts the word before the cursor, back to a blank."""
        self._kill(shell_word_before(self.value[: self.cursor_position]), self.cursor_position, backwards=True)

    def action_kill_letters(self) -> None:
        """Cuts the word before the cursor, of letters and digits."""
        self._kill(word_before(self.value[: self.cursor_position]), self.cursor_position, backwards=True)

    def action_kill_word_ahead(self) -> None:
        """Cuts to the end of the word."""
        here = self.cursor_position
        self._kill(here, here + word_after(self.value[here:]), backwards=False)

    def action_yank(self) -> None:
        """Puts back what was cut last, in one line."""
        self.paste(KILLED.text)

    # ---- pastes ----------------------------------------------------------------------------------------------------

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()  # else Textual's own handler, of the class above, would run too
        event.stop()
        self.paste(pasted(event.text))

    def paste(self, text: str) -> None:
        """Takes a paste in, several lines as one."""
        if "\n" in text:
            text = " ".join(line.strip() for line in text.split("\n") if line.strip())
        self.replace(text, *self.selection)
