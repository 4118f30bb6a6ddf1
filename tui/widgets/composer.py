"""Where the user types: several lines, prompt history, large pastes and files as attachments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from flashmoe import figures
from flashmoe.text_safety import encodable, visible_line
from tui.keymap import bindings
from tui.widgets.fields import TextField
from tui.widgets.offers import Offer
from tui.widgets.prompt_history import PromptHistory

PASTE_LIMIT = 8_000
"""Characters: a larger paste becomes an attachment, since an editor of that size can't echo a key in 50 ms."""


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

    class TakeBack(Message):
        """Up in an empty composer: the question that was queued last is to be edited."""

    class EditorWanted(Message):
        """The user wants to write in their own editor."""

    class OffersChanged(Message):
        """Other completions are to be shown."""

        def __init__(self, offers: list[Offer], marked: int) -> None:
            super().__init__()
            self.offers = offers
            self.marked = marked

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
        self.has_queued = False
        """Whether a question waits for the end of an answer."""
        self.prompts = PromptHistory()
        self.completer: Callable[[str], list[Offer]] = lambda _: []
        """What could complete a text that begins with a slash."""
        self._marked = ("", 0)
        """A text, and which of its completions is marked."""
        self._offering = False
        self._refused = ""

    # ---- sending --------------------------------------------------------------------------------------------------

    def action_send(self) -> None:
        """Sends; the screen clears the composer once the question is accepted, so nothing typed is lost. Behind a
        backslash at the end it breaks the line."""
        row, column = self.cursor_location
        if self.selection.is_empty and self.document[row][:column].endswith("\\"):
            self.replace("\n", (row, column - 1), (row, column), maintain_selection_offset=False)
            self.scroll_cursor_visible()
            return
        self.post_message(self.Sent(encodable(self.text)))

    def accepted(self, sent: str) -> None:
        """`sent` was sent: remember it and start afresh, with what was typed since. A text that it doesn't begin with
        any more was put there meanwhile, and stays."""
        self.prompts.remember(sent)
        text = encodable(self.text)
        if text.startswith(sent):
            self.set_text(text[len(sent) :])

    def clear_text(self) -> None:
        """Empties the editor and its undo history."""
        self.load_text("")
        self.prompts.leave()

    def set_text(self, text: str) -> None:
        """Puts `text` in, the cursor at its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    # ---- earlier prompts ------------------------------------------------------------------------------------------

    def action_cut_all(self) -> None:
        """Cuts all of it."""
        self._kill((0, 0), self.document.end, backwards=True)

    def on_text_area_selection_changed(self) -> None:
        """Where the cursor is, in a text that isn't seen whole."""
        hidden = self.wrapped_document.height > self.max_lines
        place = f"line {self.cursor_location[0] + 1:,} of {self.document.line_count:,}" if hidden else ""
        if place != (self.border_subtitle or ""):
            self.border_subtitle = place

    @property
    def max_lines(self) -> int:
        """As many lines are seen at most."""
        most = self.styles.max_height
        return int(most.value) - 2 if most is not None else 10

    def action_history(self, step: int) -> None:
        """On the first or last line walks the prompts; elsewhere moves the cursor."""
        if step < 0 and self.has_queued and not self.text:
            self.post_message(self.TakeBack())
            return
        line = self.wrapped_document.location_to_offset(self.cursor_location).y
        at_edge = line == 0 if step < 0 else line >= self.wrapped_document.height - 1
        if at_edge and self.prompts and (step < 0 or self.prompts.walking):
            self.action_prompt(step)
        elif step < 0:
            self.action_cursor_up()
        else:
            self.action_cursor_down()

    def action_prompt(self, step: int) -> None:
        """Walks the prompts, wherever the cursor is."""
        text = self.prompts.step(step, self.text)
        if text is not None:
            self.set_text(text)

    def action_search_prompts(self) -> None:
        """Searches them backwards: what is typed from now on is searched for."""
        self.prompts.begin_search(self.text)
        self._show_search()

    def _show_search(self, *, missed: bool = False) -> None:
        query = self.prompts.query
        if query is None:
            self.border_title = ""
        else:
            found = "no match for:" if missed else "search prompts:"
            self.border_title = Content(f"{found} {visible_line(query, 40)}▁  Enter uses it · Esc cancels")

    def _search(self, event: events.Key) -> bool:
        """A key while prompts are searched; False where it ends the search and does what it does."""
        keys: str = self.app.keymap.keys["composer.history_search"]  # type: ignore[attr-defined]
        query, older = self.prompts.query or "", event.key in keys.split(",")
        if event.key in ("escape", "ctrl+g"):
            self.set_text(self.prompts.give_up())
            self._show_search()
            return True
        if event.key == "backspace":
            self.prompts.restart_search()
            query = query[:-1]
        elif event.is_printable:
            query += event.character or ""
        elif not older:
            self.prompts.leave()
            self._show_search()
            return event.key == "enter"
        text = self.prompts.search(query, older=older)
        if text is not None:
            self.set_text(text)
        self._show_search(missed=text is None)
        return True

    # ---- / commands -----------------------------------------------------------------------------------------------

    @property
    def offers(self) -> list[Offer]:
        """What could complete the text that stands here."""
        text = self.text
        return self.completer(text) if text.startswith("/") and "\n" not in text and text != self._refused else []

    def show_offers(self) -> None:
        """Shows them, or takes them away; after every change of the text."""
        offers = self.offers
        if offers or self._offering:
            self._offering = bool(offers)
            self.post_message(self.OffersChanged(offers, self._mark(offers)))

    def _mark(self, offers: list[Offer]) -> int:
        text, index = self._marked
        return index if text == self.text and index < len(offers) else 0

    def on_text_area_changed(self) -> None:
        """The text is another one."""
        self.show_offers()
        self.on_text_area_selection_changed()

    def grab_key(self, event: events.Key) -> bool:
        """Takes the keys that mean something else while prompts are searched or a command is completed."""
        if self.prompts.query is not None:
            return self._search(event)
        if not self.text.startswith("/") or event.is_printable:
            return False
        offers = self.offers
        if not offers:
            return False
        if event.key in ("up", "down", "ctrl+p", "ctrl+n"):
            step = 1 if event.key in ("down", "ctrl+n") else -1
            self._marked = (self.text, (self._mark(offers) + step) % len(offers))
            self.show_offers()
            return True
        offer = offers[self._mark(offers)]
        if event.key == "escape":
            self._refused = self.text
            self.show_offers()
            return True
        if event.key == "tab":
            self.set_text(offer.text)
            return True
        if event.key == "enter" and offer.text.rstrip() != self.text.rstrip():
            self.set_text(offer.text)
            return not offer.runs
        return False

    def action_complete(self) -> None:
        """Tab, where there is nothing to complete: to the chat."""
        self.screen.focus_next()

    # ---- keys and pastes ------------------------------------------------------------------------------------------

    def action_delete_left(self) -> None:
        """Backspace; in an empty composer the last attachment goes."""
        if not self.text:
            self.post_message(self.DropAttachment())
        super().action_delete_left()

    async def action_delete_or_quit(self) -> None:
        """As in a shell: deletes a character, or ends where there is nothing."""
        if self.text:
            self.action_delete_right()
        else:
            await self.app.action_quit()

    def paste(self, text: str) -> None:
        """A text of some length goes along as an attachment; while prompts are searched, it is searched for."""
        if self.prompts.query is not None:
            found = self.prompts.search(self.prompts.query + text.partition("\n")[0])
            if found is not None:
                self.set_text(found)
            self._show_search(missed=found is None)
        elif len(text) > PASTE_LIMIT:
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
                    "  (Backspace removes it)" if item is self.items[-1] else "",
                )
            )
        return Content("\n").join(lines)
