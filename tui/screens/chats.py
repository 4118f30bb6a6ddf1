"""^T: all chats; typing searches in titles and messages. Rename, pin, delete with undo, export."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import NamedTuple

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from flashmoe import figures, paths
from flashmoe.history import Chat, History, HistoryError, Hit
from flashmoe.text_safety import visible_line
from tui.keymap import Keymap, bindings
from tui.screens.dialogs import TextDialog
from tui.texts import fitting, typed_path
from tui.widgets.fields import LineField
from tui.widgets.key_bar import KeyBar

LISTED = 200


class Opened(NamedTuple):
    """A chat to open, at a message where a search found one."""

    chat_id: int
    message_id: int | None = None


_BINDINGS: list[BindingType] = [
    *bindings("chats"),
    Binding("down", "move(1)", show=False, priority=True),
    Binding("up", "move(-1)", show=False, priority=True),
    Binding("pagedown", "move(10)", show=False, priority=True),
    Binding("pageup", "move(-10)", show=False, priority=True),
]


class ChatsScreen(ModalScreen[Opened | None]):
    """Newest first, pinned on top. Letters always go into the search; the list moves with the arrow keys."""

    CSS = """
    ChatsScreen { align: center middle; background: $background 60%; }
    ChatsScreen > Vertical {
        width: 122; max-width: 100%; height: 1fr; margin: 1 0 0 0;
        border: round $primary; background: $surface; padding: 0 1;
    }
    ChatsScreen Input { border: none; height: 1; padding: 0 1; background: $panel; margin: 0 0 1 0; }
    ChatsScreen OptionList { height: 1fr; border: none; background: $surface; padding: 0; }
    ChatsScreen #state { height: auto; color: $text-muted; padding: 0 1; }
    ChatsScreen KeyBar { background: $surface; }
    """
    BINDINGS = _BINDINGS

    def __init__(
        self, keymap: Keymap, history: History, current: int | None, *, search: bool = False, writing: int | None = None
    ) -> None:
        """`writing` is the chat in which an answer is being written."""
        super().__init__()
        self._keymap = keymap
        self._history = history
        self._current = current
        self._search_first = search
        self._writing = writing
        self._rows: list[Opened] = []
        self._chats: dict[int, Chat] = {}
        self._deleted: list[int] = []
        self._query = ""
        self._generation = 0

    def compose(self) -> ComposeResult:
        """Search, list, what happened, keys."""
        with Vertical() as box:
            box.border_title = "Chats"
            yield LineField(placeholder="Type to search in all chats", id="search")
            yield OptionList(id="list")
            yield Static(id="state", markup=False)
            yield KeyBar(
                self._keymap,
                [
                    "chats.open",
                    "chats.rename",
                    "chats.pin",
                    "chats.delete",
                    "chats.undo",
                    "chats.export",
                    "chats.import",
                    "chats.back",
                ],
            )

    async def on_mount(self) -> None:
        """Lists."""
        field = self.query_one(Input)
        field.cursor_blink = False
        field.focus()
        await self._list()

    async def on_input_changed(self, event: Input.Changed) -> None:
        """Searches as the user types; a slower, older search never overwrites a newer one."""
        self._query = event.value.strip()
        await self._list()

    async def _list(self, keep: int | None = None) -> None:
        self._generation += 1
        generation = self._generation
        try:
            if self._query:
                hits = await self._history.in_thread(self._history.search, self._query, limit=100)
                chats = None
            else:
                hits = []
                chats = await self._history.in_thread(self._history.chats, limit=LISTED, empty=False)
        except HistoryError as error:
            self._say(error.message)
            return
        if generation != self._generation:
            return
        options = self.query_one(OptionList)
        options.clear_options()
        now = time.time()
        if chats is None:
            self._rows = [Opened(hit.chat.id, hit.message_id) for hit in hits]
            self._chats = {hit.chat.id: hit.chat for hit in hits}
            options.add_options([Option(self._hit(hit, now)) for hit in hits])
            self._say(f"{len(hits)} found." if hits else "Nothing found.")
        else:
            self._rows = [Opened(chat.id) for chat in chats]
            self._chats = {chat.id: chat for chat in chats}
            options.add_options([Option(self._row(chat, now)) for chat in chats])
            more = f"Showing the newest {LISTED}; search finds the rest." if len(chats) == LISTED else ""
            self._say(more if chats else "There are no chats yet.")
        if self._rows:
            ids = [row.chat_id for row in self._rows]
            wanted = keep if keep in ids else self._current if chats is not None else None  # of hits: the best
            options.highlighted = ids.index(wanted) if wanted in ids and wanted is not None else 0

    def _row(self, chat: Chat, now: float) -> Content:
        room = min(122, self.size.width) - 10  # border, padding, scrollbar, marks
        wide = self.size.width >= 100
        count = f"{chat.messages} message{'s' if chat.messages != 1 else ''}" if wide else ""
        model = visible_line(chat.model, 24 if wide else 16) if self.size.width >= 72 else ""
        rest = f"{figures.ago(chat.updated, now):<14}{count:<13}" if wide else f"{figures.ago(chat.updated, now):<14}"
        width = max(20, room - len(rest) - (26 if wide else 18 if model else 0))
        title = fitting(chat.title or "Untitled", width)
        mark = "• " if chat.id == self._current else "  "
        pin = ("▲ ", "$text-warning") if chat.pinned else ("  ", "")
        if chat.id == self._writing:
            mark = "✎ "
        return Content.assemble(
            (mark, "$text-primary"),
            pin,
            (title + " " * max(1, width + 2 - Content(title).cell_length), "bold"),
            (f"{rest}{model}", "$foreground-muted"),
        )

    def _hit(self, hit: Hit, now: float) -> Content:
        head = self._row(hit.chat, now)
        if not hit.snippet:
            return head
        snippet = Content(hit.snippet)
        room = min(122, self.size.width) - 13
        for start, end in hit.spans:
            snippet = snippet.stylize("bold $text-accent", start, end)
        if visible_line(hit.snippet) != hit.snippet:  # something unprintable: shown, without the marks
            snippet = Content(visible_line(hit.snippet))
        return Content.assemble(head, "\n      ", snippet.truncate(max(20, room), ellipsis=True))

    def _say(self, sentence: str) -> None:
        self.query_one("#state", Static).update(Content(sentence))

    def _here(self) -> Opened | None:
        index = self.query_one(OptionList).highlighted
        return self._rows[index] if index is not None and index < len(self._rows) else None

    # ---- actions -------------------------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        """Moves the cursor of the list, whatever has the focus."""
        options = self.query_one(OptionList)
        if self._rows:
            options.highlighted = min(max((options.highlighted or 0) + step, 0), len(self._rows) - 1)

    def action_open(self) -> None:
        """Opens the chat under the cursor."""
        here = self._here()
        if here is not None:
            self.dismiss(here)

    def on_option_list_option_selected(self, _: OptionList.OptionSelected) -> None:
        """A click opens too."""
        self.action_open()

    def action_back(self) -> None:
        """Empties the search, then leaves."""
        field = self.query_one(Input)
        if field.value:
            field.value = ""
        else:
            self.dismiss(None)

    def action_rename(self) -> None:
        """Asks for another title."""
        here = self._here()
        if here is None:
            return
        chat = self._chats[here.chat_id]

        def renamed(title: str | None) -> None:
            if title is not None and title.strip():
                self.run_worker(self._change(self._history.rename, chat.id, title.strip(), said="Renamed."))

        self.app.push_screen(TextDialog("Rename", "", chat.title), renamed)

    async def action_pin(self) -> None:
        """Pins or unpins."""
        here = self._here()
        if here is not None:
            pinned = not self._chats[here.chat_id].pinned
            await self._change(
                self._history.set_pinned, here.chat_id, pinned, said="Pinned." if pinned else "Unpinned."
            )

    async def action_delete(self) -> None:
        """Deletes; undo brings it back."""
        here = self._here()
        if here is None:
            return
        undo = self._keymap.display("chats.undo")
        title = visible_line(self._chats[here.chat_id].title or "Untitled", 40)
        if await self._change(self._history.delete_chat, here.chat_id, said=f"Deleted “{title}”; {undo} undoes it."):
            self._deleted.append(here.chat_id)

    async def action_undo(self) -> None:
        """Brings the last deleted chat back."""
        if not self._deleted:
            self._say("There is nothing to undo.")
            return
        chat_id = self._deleted.pop()
        await self._change(self._history.restore_chat, chat_id, said="Restored.", keep=chat_id)

    async def _change(self, function: object, *arguments: object, said: str, keep: int | None = None) -> bool:
        try:
            await self._history.in_thread(function, *arguments)  # type: ignore[arg-type]
        except HistoryError as error:
            self._say(error.message)
            return False
        await self._list(keep)
        self._say(said)
        return True

    def action_export(self) -> None:
        """Asks for a file; its ending says whether Markdown or JSON."""
        here = self._here()
        if here is None:
            return
        chat = self._chats[here.chat_id]
        name = re.sub(r"[^\w]+", "-", " ".join((chat.title or "chat").split()[:6]).lower()).strip("-") or "chat"

        def named(answer: str | None) -> None:
            if answer and answer.strip():
                self.run_worker(self._export(chat, typed_path(answer)))

        self.app.push_screen(
            TextDialog("Export", ".md exports the shown branch as Markdown, .json everything, for importing later.",
                       f"{name}.md", paths=True),
            named,
        )  # fmt: skip

    async def _export(self, chat: Chat, path: Path) -> None:
        from flashmoe.history.exchange import to_json_text, to_markdown

        history = self._history
        try:
            if path.suffix.lower() == ".json":
                text = await history.in_thread(to_json_text, history, [chat.id])
            else:
                text = await history.in_thread(to_markdown, history, chat.id)
            await asyncio.to_thread(_write_new, path, text)
        except HistoryError as error:
            self._say(error.message)
        except OSError as error:
            self._say(f"{paths.display(path)} was not written: {error.strerror or error}.")
        else:
            self._say(f"Exported to {paths.display(path)}.")

    def action_import_file(self) -> None:
        """Asks for a JSON export, or a list of messages with role and content."""

        def named(answer: str | None) -> None:
            if answer and answer.strip():
                self.run_worker(self._import(typed_path(answer)))

        self.app.push_screen(
            TextDialog("Import", "Imports the chats of a JSON export; those you already have stay as they are.",
                       placeholder="path of a .json file", paths=True),
            named,
        )  # fmt: skip

    async def _import(self, path: Path) -> None:
        from flashmoe.history.exchange import MAX_IMPORT_BYTES, import_json

        history = self._history
        try:
            data = await asyncio.to_thread(_read, path, MAX_IMPORT_BYTES)
            added = await history.in_thread(import_json, history, data)
        except HistoryError as error:
            self._say(error.message)
        except OSError as error:
            self._say(f"{paths.display(path)} can't be read: {error.strerror or error}.")
        else:
            self.query_one(Input).value = ""
            await self._list(added[0].id if added else None)
            n = len(added)
            self._say(f"{n} chat{'s' if n > 1 else ''} imported." if n else "You already have these chats.")


def _read(path: Path, limit: int) -> bytes:
    """A file's bytes, one more than `limit` where it is larger: the import then says so."""
    with path.open("rb") as file:
        return file.read(limit + 1)


def _write_new(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
