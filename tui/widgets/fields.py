"""The two kinds of text field: one line (`LineField`) and several (`TextField`).

Both know a shell's editing keys, move and delete by whole characters (an emoji with its skin tone is one), and take a
paste once. Their keys are the scope ``field`` of `tui.keymap`.
"""

from __future__ import annotations

from typing import Any

from rich.style import Style, StyleType
from rich.text import Text
from textual import events
from textual.binding import Binding
from textual.document._document import Location, Selection
from textual.geometry import Offset, Region
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, TextArea
from textual.widgets.input import Selection as LineSelection

from flashmoe.text_safety import typeable
from tui.keymap import bindings
from tui.widgets import graphemes
from tui.widgets.kill_ring import KILLED, shell_word_before, word_after, word_before


def key_number(field: Widget) -> int:
    """How many keys the app was given so far, this one among them."""
    number: int = getattr(field.app, "n_keys", 0)
    return number


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

    # ^J is what Enter is in a paste that isn't marked as one.
    BINDINGS = [*bindings("field"), Binding("ctrl+j", "newline", "Break the line", show=False)]
    DEFAULT_CSS = """
    TextField:light .text-area--cursor { color: $background; background: $foreground; }
    """

    _dressed: tuple[Style, str, object] | None = None
    """What the colours of cursor and selection were worked out from."""

    def render_lines(self, crop: Region) -> list[Strip]:
        """As Textual's, which works out the colours of cursor and selection for each key: a fifth of what it takes."""
        made_of = (self.rich_style, self.app.theme, self._theme)
        if self._dressed is None or self._dressed[:2] != made_of[:2] or self._dressed[2] is not self._theme:
            self._theme.apply_css(self)
            self._dressed = made_of
        return super(TextArea, self).render_lines(crop)

    def notify_style_update(self) -> None:
        """Other styles are in force."""
        self._dressed = None
        super().notify_style_update()

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

    def get_cursor_up_location(self) -> Location:
        """The character over the cursor; from the first row, the beginning."""
        x, y = self.wrapped_document.location_to_offset(self.cursor_location)
        return self._at(max(x, self.navigator.last_x_offset), y - 1) if y else (0, 0)

    def get_cursor_down_location(self) -> Location:
        """The character under the cursor; from the last row, the end."""
        x, y = self.wrapped_document.location_to_offset(self.cursor_location)
        if y + 1 >= self.wrapped_document.height:
            return self.document.end
        return self._at(max(x, self.navigator.last_x_offset), y + 1)

    def get_target_document_location(self, event: events.MouseEvent) -> Location:
        """The character that is clicked at."""
        left, top = self.gutter.top_left
        scrolled_x, scrolled_y = self.scroll_offset
        x, y = event.x - self.gutter_width - left + scrolled_x, event.y - top + scrolled_y
        return self._at(max(0, int(x)), max(0, min(int(y), self.wrapped_document.height - 1)))

    def _at(self, x: int, y: int) -> Location:
        """The character at a cell of what is drawn; Textual counts the cells of a family of emoji one by one."""
        row, start = self.wrapped_document.offset_to_location(Offset(0, y))
        line = self.document[row]
        end = next((offset for offset in self.wrapped_document.get_offsets(row) if offset > start), len(line))
        column = start + graphemes.at_cell(line[start:end], x, self.indent_width)
        # Behind the last character of a wrapped row is the beginning of the next one.
        return row, column if column < end or end == len(line) else graphemes.before(line, end)

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
        """Where Home goes: the beginning of the line, however it is indented or wrapped."""
        return self.cursor_location[0], 0

    def get_cursor_line_end_location(self) -> Location:
        """Where End goes: the end of the line. The end of a wrapped row is no place to type at: what stands behind its
        last character is the beginning of the next row."""
        row = self.cursor_location[0]
        return row, len(self.document[row])

    def _kill(self, start: Location, end: Location, *, backwards: bool) -> None:
        if self.read_only:
            return
        text = self.get_text_range(start, end)
        self._delete_via_keyboard(start, end)
        KILLED.cut(text, backwards=backwards, key=key_number(self))

    def action_line_start(self) -> None:
        """To the beginning of the line."""
        self.move_cursor(self.get_cursor_line_start_location())

    def action_line_end(self) -> None:
        """To the end of the line."""
        self.move_cursor(self.get_cursor_line_end_location())

    def action_newline(self) -> None:
        """Breaks the line at the cursor."""
        self.replace("\n", *self.selection, maintain_selection_offset=False)
        self.scroll_cursor_visible()

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

    # ---- pastes, and texts of others -------------------------------------------------------------------------------

    def _set_document(self, text: Any, language: str | None) -> None:
        super()._set_document(typeable(text) if isinstance(text, str) else text, language)

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()  # else Textual's own handler, of the class above, would run too
        event.stop()
        self.paste(typeable(event.text))

    def paste(self, text: str) -> None:
        """Takes a paste in, at the cursor or in place of what is selected."""
        self._replace_via_keyboard(text, *self.selection)
        self.scroll_cursor_visible()


class LineField(Input):
    """One line of text."""

    BINDINGS = bindings("field")
    DEFAULT_CSS = """
    LineField:ansi {
        & > .input--cursor, & > .input--selection {
            background: ansi_default; color: ansi_default; text-style: reverse;
        }
        & > .input--placeholder, & > .input--suggestion { color: ansi_default; text-style: italic; }
    }
    """

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

    def _kill(self, start: int, end: int, *, backwards: bool) -> None:
        text = self.value[start:end]
        self.delete(start, end)
        KILLED.cut("" if self.password else text, backwards=backwards, key=key_number(self))

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

    # ---- pastes, and texts of others -------------------------------------------------------------------------------

    def validate_value(self, value: str) -> str:
        """Nothing that the terminal would act on."""
        return typeable(value)

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()  # else Textual's own handler, of the class above, would run too
        event.stop()
        self.paste(typeable(event.text))

    def paste(self, text: str) -> None:
        """Takes a paste in, several lines as one."""
        if "\n" in text:
            text = " ".join(line.strip() for line in text.split("\n") if line.strip())
        self.replace(text, *self.selection)
