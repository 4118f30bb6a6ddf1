"""The question that is being written: its text, what goes along with it, and which earlier one it is to replace."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from textual.app import SuspendNotSupported

from backends.interface import ChatMessage, GenerateRequest
from flashmoe.history.records import Attachment as KeptAttachment
from flashmoe.text_safety import encodable, visible_line
from tui.chat.conversation import Turn
from tui.chat.queue import Queued
from tui.screens.chat.parts import ChatParts
from tui.terminal import facts
from tui.texts import read_text_file, typed_path
from tui.widgets.composer import Attachment


class Drafting:
    """Owns what isn't sent yet."""

    def __init__(self, parts: ChatParts) -> None:
        self._parts = parts
        self._kept = ""
        """What stood in the composer before an earlier question was put there."""
        self._forget: Callable[[], None] | None = None
        """Takes away what was said about an attachment."""
        self.editing: Turn | None = None
        """The earlier question that is being edited; sending makes a branch."""

    def sent(self, text: str, *, from_composer: bool) -> None:
        """The draft was sent and kept: the composer is free for the next."""
        composer = self._parts.composer
        if from_composer:
            composer.accepted(text)
        self._show_attachments([])
        since = composer.text if self.editing is not None else ""
        self.end_edit(restore=True)
        if since:
            composer.set_text(composer.text + since)

    # ---- an earlier question --------------------------------------------------------------------------------------

    def edit_question(self) -> None:
        """Puts an earlier question into the composer; sending it makes a branch."""
        parts = self._parts
        marked, conversation = parts.transcript.marked, parts.flow.conversation
        turn = conversation.question_of(marked) if marked is not None else None
        turn = turn or conversation.last_of("user")
        if turn is None:
            parts.say("There is no question to edit yet.", "warning")
            return
        if self.editing is None:
            self._kept = parts.composer.text
        self.editing = turn
        parts.composer.set_text(turn.content)
        parts.composer.border_title = f"editing a question · {parts.key('chat.stop')} leaves it unchanged"
        self._show_attachments([Attachment(item.name, item.text) for item in turn.attachments])
        parts.composer.focus()

    def take_back(self, item: Queued) -> None:
        """A question that was queued stands in the composer again, before what was typed since."""
        typed = self._parts.composer.text
        if item.editing is not None and self.editing is None:
            self._kept, self.editing = typed, item.editing
            self._parts.composer.set_text(item.text)
        else:
            self._parts.composer.set_text("\n\n".join(text for text in (item.text, typed) if text))
        self._show_attachments([Attachment(kept.name, kept.text) for kept in item.attachments])

    def end_edit(self, *, restore: bool) -> None:
        """Ends it, if there is one; `restore` puts back what stood in the composer before."""
        if self.editing is None:
            return
        self.editing = None
        self._parts.composer.border_title = ""
        self._show_attachments([])
        if restore:
            self._parts.composer.set_text(self._kept)
        self._kept = ""

    # ---- attachments ----------------------------------------------------------------------------------------------

    @property
    def attachments(self) -> tuple[KeptAttachment, ...]:
        """What goes along, as it is kept."""
        return tuple(KeptAttachment(item.name, item.text) for item in self._parts.attachments.items)

    def _show_attachments(self, items: list[Attachment]) -> None:
        if self._forget is not None:
            self._forget()
        bar = self._parts.attachments
        bar.items[:] = items
        bar.changed()

    def attach_file(self) -> None:
        """Asks for a text file and attaches it."""
        self._parts.start(self._attach_file(), opens=True)

    async def _attach_file(self) -> None:
        from tui.screens.dialogs import TextDialog

        name = await self._parts.host.ask_screen(
            TextDialog(
                "Attach a text file",
                "It is sent whole with the next question.",
                placeholder="path of a file",
                paths=True,
            )
        )
        if not name or not name.strip():
            return
        await self.attach_path(typed_path(name))

    async def attach_path(self, path: Path) -> None:
        """Attaches a text file."""
        try:
            text = await asyncio.to_thread(read_text_file, path)
        except ValueError as error:
            self._parts.say(str(error), "error")
            return
        self.attach(Attachment(path.name, text))

    def attach_paste(self, text: str) -> None:
        """A paste that is too large to edit goes along as an attachment."""
        lines = text.count("\n") + 1
        self.attach(Attachment(f"pasted text, {lines:,} lines" if lines > 1 else "pasted text", text))

    def attach(self, item: Attachment) -> None:
        """Adds an attachment and counts its tokens in the background."""
        self._show_attachments([*self._parts.attachments.items, item])
        self._parts.start(self._count(item))

    def drop_attachment(self) -> None:
        """Takes the last attachment away."""
        if self._parts.attachments.items:
            self._show_attachments(self._parts.attachments.items[:-1])

    async def _count(self, item: Attachment) -> None:
        controller = self._parts.host.controller
        request = GenerateRequest(id=f"count-{id(item)}", messages=(ChatMessage("user", item.text),))
        item.tokens = await controller.count_tokens(request)
        self._parts.attachments.changed()
        model = controller.model
        if item.tokens is not None and model is not None and item.tokens > model.n_ctx:
            self._forget = self._parts.activity.say(
                f"“{visible_line(item.name, 40)}” has {item.tokens:,} tokens, but the context holds {model.n_ctx:,}: "
                "it can't be sent whole.",
                "warning",
            )

    # ---- an editor ------------------------------------------------------------------------------------------------

    def open_editor(self) -> None:
        """Edits the composer's text in $VISUAL or $EDITOR."""
        parts, command = self._parts, facts.editor_command()
        if command is None:
            parts.say("No editor was found; set EDITOR to one.", "warning")
            return
        with tempfile.TemporaryDirectory(prefix="flashmoe-") as folder:
            path = Path(folder) / "question.md"
            path.write_text(parts.composer.text, encoding="utf-8")
            try:
                with parts.host.suspend():
                    done = subprocess.run([*command, str(path)], check=False)
                text = path.read_text(encoding="utf-8", errors="replace")
            except (OSError, SuspendNotSupported) as error:
                parts.say(f"The editor {shlex.join(command)} did not run: {error}.", "error")
                return
        if done.returncode != 0:
            parts.say(f"{command[0]} ended with code {done.returncode}; the text is unchanged.", "warning")
            return
        parts.composer.set_text(encodable(text.rstrip("\n")))
        parts.composer.focus()
