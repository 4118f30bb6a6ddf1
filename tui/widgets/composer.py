"""Where the user types: several lines, prompt history, large pastes and files as attachments."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from flashmoe import figures
from flashmoe.text_safety import encodable, visible_line
from tui.keymap import bindings
from tui.widgets.fields import TextField

PASTE_LIMIT = 8_000
"""Characters: a larger paste becomes an attachment, since an editor of that size can't echo a key in 50 ms."""
HISTORY_LENGTH = 200


@dataclass
class Attachment:
    """A text that goes with the next question. `tokens` is None until they are counted."""

    name: str
    text: str
    tokens: int | None = None


class Composer(TextField):
    """The editor itself. Enter and the line break are bindings, so both can be remapped."""

    BINDINGS = bindings("composer")

    DEFAULT_CSS = """
    Composer {
        height: auto; min-height: 3; max-height: 12; margin: 0 1;
        border: round $border-blurred; padding: 0 1; background: $background;
        &:focus { border: round $primary; }
        &.-short { max-height: 5; }
        & .text-area--placeholder { color: $text-muted; }
        & .text-area--cursor-line { background: transparent; }
    }
    """

    class Sent(Message):
        """The user sends what was typed, with the attachments."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class LargePaste(Message):
        """A paste that is too large for the editor."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class DropAttachment(Message):
        """Backspace in an empty composer: the last attachment goes."""

    class EditorWanted(Message):
        """The user wants to write in their own editor."""

    def __init__(self, *, blink: bool) -> None:
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
            placeholder="Ask something",
            id="composer",
        )
        self.cursor_blink = blink
        self._history: list[str] = []
        self._position: int | None = None
        self._draft = ""

    # ---- sending --------------------------------------------------------------------------------------------------

    def action_send(self) -> None:
        """Sends; the screen clears the composer once the question is accepted, so nothing typed is lost."""
        self.post_message(self.Sent(encodable(self.text)))

    def action_newline(self) -> None:
        """Breaks the line at the cursor."""
        self.replace("\n", *self.selection, maintain_selection_offset=False)
        self.scroll_cursor_visible()

    def accepted(self, sent: str) -> None:
        """`sent` was sent: remember it and start afresh, with what was typed since."""
        self.remember(sent)
        rest = self.text[len(sent) :] if self.text.startswith(sent) else ""
        self._position = None
        self.set_text(rest)

    def clear_text(self) -> None:
        """Empties the editor and its undo history."""
        self.load_text("")
        self._position = None

    def set_text(self, text: str) -> None:
        """Puts `text` in, the cursor at its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    # ---- prompt history -------------------------------------------------------------------------------------------

    def remember(self, text: str) -> None:
        """Adds a prompt to the history, newest last, without repeats in a row."""
        if text.strip() and (not self._history or self._history[-1] != text):
            self._history.append(text)
            del self._history[:-HISTORY_LENGTH]
        self._position = None

    def remember_all(self, texts: list[str]) -> None:
        """The prompts of earlier chats, oldest first."""
        self._history = [text for text in texts if text.strip()][-HISTORY_LENGTH:] + self._history
        del self._history[:-HISTORY_LENGTH]

    def action_history(self, step: int) -> None:
        """On the first or last line walks the history; elsewhere moves the cursor."""
        line = self.wrapped_document.location_to_offset(self.cursor_location).y
        at_edge = line == 0 if step < 0 else line >= self.wrapped_document.height - 1
        if not at_edge or not self._history or (step > 0 and self._position is None):
            if step < 0:
                self.action_cursor_up()
            else:
                self.action_cursor_down()
            return
        if self._position is None:
            self._draft = self.text
            self._position = len(self._history)
        position = self._position + step
        if position < 0:
            return
        if position >= len(self._history):
            self._position = None
            self.set_text(self._draft)
            return
        self._position = position
        self.set_text(self._history[position])

    # ---- keys and pastes ------------------------------------------------------------------------------------------

    def action_delete_left(self) -> None:
        """Backspace; in an empty composer the last attachment goes."""
        if not self.text:
            self.post_message(self.DropAttachment())
        super().action_delete_left()

    def paste(self, text: str) -> None:
        """A text of some length goes along as an attachment."""
        if len(text) > PASTE_LIMIT:
            self.post_message(self.LargePaste(text))
        else:
            super().paste(text)

    def action_editor(self) -> None:
        """Opens the text in the user's editor."""
        self.post_message(self.EditorWanted())


class AttachmentBar(Widget):
    """One line a file that goes with the next question, with its size and tokens."""

    DEFAULT_CSS = """
    AttachmentBar { height: auto; max-height: 4; padding: 0 2; display: none; color: $text-muted; }
    AttachmentBar.-some { display: block; }
    """

    def __init__(self) -> None:
        super().__init__(id="attachments")
        self.items: list[Attachment] = []

    def changed(self) -> None:
        """To be called after `items` changed."""
        self.set_class(bool(self.items), "-some")
        self.refresh(layout=True)

    def render(self) -> Content:
        """``+ notes.txt  12 kB  3,201 tokens``."""
        lines: list[Content] = []
        for item in self.items:
            tokens = f"  {item.tokens:,} tokens" if item.tokens is not None else ""
            lines.append(
                Content.assemble(
                    ("+ ", "bold $primary"),
                    (visible_line(item.name, 60), "$foreground"),
                    f"  {figures.size(len(item.text.encode('utf-8', 'replace')))}{tokens}",
                    "  (Backspace takes it away)" if item is self.items[-1] else "",
                )
            )
        return Content("\n").join(lines)
