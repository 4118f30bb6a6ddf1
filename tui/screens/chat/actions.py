"""The main screen's keys: what each of them does. `ChatScreen` has the rest."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import SuspendNotSupported
from textual.screen import Screen

from backends.interface import ChatMessage, GenerateRequest
from flashmoe import paths
from flashmoe.history.records import HistoryError
from flashmoe.text_safety import encodable, visible_line
from tui.chat.conversation import Turn
from tui.terminal import facts as terminal
from tui.texts import code_blocks, last_command, read_text_file, typed_path, write_new
from tui.widgets.composer import Attachment, AttachmentBar

if TYPE_CHECKING:
    from flashmoe.history import History
    from tui.app import FlashmoeApp
    from tui.chat.flow import ChatFlow
    from tui.widgets.activity_line import ActivityLine
    from tui.widgets.composer import Composer
    from tui.widgets.transcript.transcript import Transcript


class ChatActions(Screen[None]):
    """Actions by the names in `tui.keymap`. `ChatScreen` gives the parts that they work on."""

    main: FlashmoeApp
    flow: ChatFlow
    _editing: Turn | None = None
    _kept_draft: str = ""
    _copied_block: tuple[Turn, int] | None = None

    @property
    def composer(self) -> Composer:
        """Where the user types."""
        raise NotImplementedError

    @property
    def transcript(self) -> Transcript:
        """The chat."""
        raise NotImplementedError

    @property
    def activity(self) -> ActivityLine:
        """The line over the composer."""
        raise NotImplementedError

    async def history(self) -> History:
        """The history."""
        raise NotImplementedError

    def say(self, sentence: str, level: str = "info") -> None:
        """One sentence over the composer."""
        self.activity.say(sentence, level)

    def key(self, binding_id: str) -> str:
        """The key in force for an action."""
        return self.main.keymap.display(binding_id)

    # ---- flow -----------------------------------------------------------------------------------------------------

    def _run(self, coroutine: Any) -> None:
        self.run_worker(self._guarded(coroutine), group="flow")

    async def _guarded(self, coroutine: Any) -> None:
        try:
            await coroutine
        except HistoryError as error:
            self.say(error.message, "error")

    async def action_stop(self) -> None:
        """Stops an answer or a load; else ends whatever is half done: editing, the open monitor, the focus."""
        if await self.flow.stop():
            return
        if self.main.controller.state == "loading":
            await self.main.controller.cancel_load()
        elif self._editing is not None:
            self._end_editing(restore=True)
            self.say("The question stays as it was.")
        elif self.has_class("-opened"):
            self.remove_class("-opened")
        elif not self.composer.has_focus:
            self.composer.focus()
        else:
            self.activity.clear()

    def action_new_chat(self) -> None:
        """An empty chat; what was typed and not sent stays with the old one."""
        self._run(self._new_chat())

    async def _new_chat(self) -> None:
        kept = self.flow.conversation.id is not None
        self._end_editing(restore=True)
        await self.flow.keep_draft(self.composer.text)
        await self.flow.new_chat()
        if kept:  # what was typed in a chat that isn't kept yet stays in the composer
            self.composer.clear_text()
        self.composer.focus()

    def action_continue_answer(self) -> None:
        """Goes on with the last answer."""
        self._run(self.flow.continue_answer())

    def action_regenerate(self) -> None:
        """Answers the last question again, or the marked one."""
        self._run(self.flow.regenerate(self.transcript.marked))

    def action_branch(self, step: int) -> None:
        """Shows the branch before or after."""
        self._run(self.flow.walk(step, self.transcript.marked))

    def action_edit_question(self) -> None:
        """Puts an earlier question into the composer; sending it makes a branch."""
        marked = self.transcript.marked
        turn = self.flow.conversation.question_of(marked) if marked is not None else None
        turn = turn or self.flow.conversation.last_of("user")
        if turn is None:
            self.say("There is no question to edit yet.", "warning")
            return
        if self._editing is None:
            self._kept_draft = self.composer.text
        self._editing = turn
        self.composer.set_text(turn.content)
        self.composer.border_title = f"editing a question · {self.key('chat.stop')} leaves it as it was"
        bar = self.query_one(AttachmentBar)
        bar.items = [Attachment(item.name, item.text) for item in turn.attachments]
        bar.changed()
        self.composer.focus()

    def _end_editing(self, *, restore: bool) -> None:
        if self._editing is None:
            return
        self._editing = None
        self.composer.border_title = ""
        bar = self.query_one(AttachmentBar)
        bar.items.clear()
        bar.changed()
        if restore:
            self.composer.set_text(self._kept_draft)
        self._kept_draft = ""

    def action_show_all(self) -> None:
        """Shows the model again what was left out of the context last."""
        self._run(self.flow.show_all())

    # ---- other screens --------------------------------------------------------------------------------------------

    def action_models(self) -> None:
        """The models."""
        self._run(self.main.choose_model())

    def action_downloads(self) -> None:
        """The downloads."""
        self._run(self.main.choose_model(downloads=True))

    def action_experts(self) -> None:
        """The full-screen expert map."""
        self.main.open_experts()

    async def action_monitor(self) -> None:
        """Folds the monitor away, or opens it; where there is no room beside the chat it takes the whole width."""
        if self.has_class("-wide") or self.has_class("-huge"):
            self.toggle_class("-folded")
        else:
            self.toggle_class("-opened")
        await self.main.monitoring.layout_changed()

    def action_monitor_span(self) -> None:
        """The monitor's curves over the next stretch of time."""
        self.main.monitoring.cycle_span()

    def action_chats(self) -> None:
        """The list of chats."""
        self._run(self._choose_chat(""))

    def action_search_chats(self) -> None:
        """The list of chats, to search."""
        self._run(self._choose_chat("search"))

    async def _choose_chat(self, mode: str) -> None:
        from tui.screens.chats import ChatsScreen, Opened

        await self.flow.keep_draft(self.composer.text)
        history = await self.history()
        current = self.flow.conversation.id
        screen: Screen[Opened | None] = ChatsScreen(history, current, search=mode == "search")
        opened: Opened | None = await self.main.ask_screen(screen)
        if current is not None and await history.in_thread(_is_deleted, history, current):
            await self.flow.new_chat()
            self.composer.clear_text()
        if opened is None or (opened.chat_id == current and opened.message_id is None):
            return
        self._end_editing(restore=False)
        draft = await self.flow.open_chat(opened.chat_id, opened.message_id)
        self.composer.set_text(draft)
        if opened.message_id is not None:
            await self.transcript.reveal(opened.message_id)

    def action_settings(self) -> None:
        """System prompt, sampling, preset, thinking of this chat."""
        self._run(self._change_settings())

    async def _change_settings(self) -> None:
        from tui.screens.settings import SettingsScreen

        model = self.main.controller.model
        changed = await self.main.ask_screen(
            SettingsScreen(
                self.flow.conversation.settings,
                self.flow.presets,
                model.name if model is not None else "",
                can_think=model is None or model.can_think,
            )
        )
        if changed is not None:
            self.flow.conversation.settings = changed
            await self.flow.settings_changed()
            self.say("The next answer uses these settings.")

    # ---- reading --------------------------------------------------------------------------------------------------

    def action_scroll_page(self, direction: int) -> None:
        """A page up or down, with two lines kept."""
        height = max(1, self.transcript.size.height - 2)
        self.transcript.scroll_relative(y=direction * height, animate=False)

    async def action_scroll_edge(self, direction: int) -> None:
        """The start or the end of the chat."""
        await self.transcript.to_edge(direction)

    async def action_thinking(self) -> None:
        """Shows or folds what the model thought."""
        await self.transcript.action_toggle_thinking()

    def action_focus_composer(self) -> None:
        """Back to typing."""
        self.composer.focus()

    # ---- copy and save --------------------------------------------------------------------------------------------

    def _wanted(self) -> Turn | None:
        return self.transcript.marked or self.flow.conversation.last_of("assistant")

    def action_copy_answer(self) -> None:
        """Copies the marked message, else the last answer."""
        turn = self._wanted()
        self._copy(turn.content if turn is not None else None, "answer" if turn and turn.role != "user" else "question")

    def action_copy_code(self) -> None:
        """Copies the last code block; once more, the one before it."""
        turn = self._wanted()
        blocks = code_blocks(turn.content) if turn is not None else []
        if turn is None or not blocks:
            self._copy(None, "code block")
            return
        before = self._copied_block
        index = (before[1] - 1) % len(blocks) if before is not None and before[0] is turn else len(blocks) - 1
        self._copied_block = (turn, index)
        self._copy(blocks[index][1], f"code block {index + 1} of {len(blocks)}" if len(blocks) > 1 else "code block")

    def action_copy_command(self) -> None:
        """Copies the last shell command."""
        turn = self._wanted()
        self._copy(last_command(turn.content) if turn is not None else None, "command")

    def _copy(self, text: str | None, what: str) -> None:
        if not text:
            self.say(f"There is no {what} to copy.", "warning")
            return
        sequence = terminal.osc52(text)
        if sequence is None:
            self.say(
                f"The {what} is too large for the terminal's clipboard ({len(text) // 1000:,} kB); "
                f"{self.key('chat.save')} saves it to a file.",
                "warning",
            )
            return
        self.main.write_terminal(sequence)
        self.say(f"The {what} ({len(text):,} characters) was sent to the terminal's clipboard.")

    def action_save_answer(self) -> None:
        """Saves the marked message, else the last answer, to a file."""
        self._run(self._save_answer())

    async def _save_answer(self) -> None:
        from tui.screens.dialogs import TextDialog

        turn = self._wanted()
        if turn is None or not turn.content:
            self.say("There is no answer to save.", "warning")
            return
        words = re.sub(r"[^\w]+", "-", " ".join(self.flow.conversation.title.split()[:6]).lower()).strip("-")
        default = f"{words or 'answer'}-{time.strftime('%Y%m%d-%H%M')}.md"
        name = await self.main.ask_screen(
            TextDialog(
                "Save to a file", "The answer as Markdown. A file that exists is not overwritten.", default, paths=True
            )
        )
        if name is None or not name.strip():
            return
        path = typed_path(name)
        try:
            await asyncio.to_thread(write_new, path, turn.content)
        except OSError as error:
            self.say(f"{paths.display(path)} was not written: {error.strerror or error}.", "error")
            return
        self.say(f"Saved to {paths.display(path.absolute())}.")

    # ---- attachments and the editor -------------------------------------------------------------------------------

    def action_attach(self) -> None:
        """Attaches a text file to the next question."""
        self._run(self._attach_file())

    async def _attach_file(self) -> None:
        from tui.screens.dialogs import TextDialog

        name = await self.main.ask_screen(
            TextDialog(
                "Attach a text file",
                "It goes with the next question, whole.",
                placeholder="path of a file",
                paths=True,
            )
        )
        if not name or not name.strip():
            return
        path = typed_path(name)
        try:
            text = await asyncio.to_thread(read_text_file, path)
        except ValueError as error:
            self.say(str(error), "error")
            return
        self.attach_text(Attachment(path.name, text))

    def attach_text(self, item: Attachment) -> None:
        """Adds an attachment and counts its tokens in the background."""
        bar = self.query_one(AttachmentBar)
        bar.items.append(item)
        bar.changed()
        self._run(self._count(item))

    async def _count(self, item: Attachment) -> None:
        request = GenerateRequest(id=f"count-{id(item)}", messages=(ChatMessage("user", item.text),))
        item.tokens = await self.main.controller.count_tokens(request)
        bar = self.query_one(AttachmentBar)
        bar.changed()
        model = self.main.controller.model
        if item.tokens is not None and model is not None and item.tokens > model.n_ctx:
            self.say(
                f"{visible_line(item.name, 40)} has {item.tokens:,} tokens and the context {model.n_ctx:,}: "
                "it can't be sent whole.",
                "warning",
            )

    def open_editor(self) -> None:
        """Edits the composer's text in $VISUAL or $EDITOR."""
        command = terminal.editor_command()
        if command is None:
            self.say("No editor was found; set EDITOR to one.", "warning")
            return
        with tempfile.TemporaryDirectory(prefix="flashmoe-") as folder:
            path = Path(folder) / "question.md"
            path.write_text(self.composer.text, encoding="utf-8")
            try:
                with self.app.suspend():
                    done = subprocess.run([*command, str(path)], check=False)
                text = path.read_text(encoding="utf-8", errors="replace")
            except (OSError, SuspendNotSupported) as error:
                self.say(f"The editor {shlex.join(command)} did not run: {error}.", "error")
                return
        if done.returncode != 0:
            self.say(f"{command[0]} ended with code {done.returncode}; the text stays as it was.", "warning")
            return
        self.composer.set_text(encodable(text.rstrip("\n")))
        self.composer.focus()


def _is_deleted(history: History, chat_id: int) -> bool:
    with contextlib.suppress(HistoryError):
        return history.chat(chat_id).deleted is not None
    return True
