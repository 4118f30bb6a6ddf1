"""Getting text out of the chat: to the terminal's clipboard and to files."""

from __future__ import annotations

import asyncio
import re
import time

from flashmoe import figures, paths
from tui.chat.conversation import Turn
from tui.screens.chat.parts import ChatParts
from tui.terminal import facts
from tui.texts import code_blocks, last_command, typed_path, write_new


class Copying:
    """Copies and saves the marked message, else the last answer."""

    def __init__(self, parts: ChatParts) -> None:
        self._parts = parts
        self._copied_block: tuple[Turn, int] | None = None

    def _wanted(self) -> Turn | None:
        return self._parts.transcript.marked or self._parts.flow.conversation.last_of("assistant")

    def copy_answer(self) -> None:
        """Copies the marked message, else the last answer."""
        turn = self._wanted()
        self._copy(turn.content if turn is not None else None, "answer" if turn and turn.role != "user" else "question")

    def copy_code(self) -> None:
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

    def copy_command(self) -> None:
        """Copies the last shell command."""
        turn = self._wanted()
        self._copy(last_command(turn.content) if turn is not None else None, "command")

    def _copy(self, text: str | None, what: str) -> None:
        parts = self._parts
        if not text:
            parts.say(f"There is no {what} to copy.", "warning")
            return
        if facts.in_tmux():
            parts.start(self._copy_by_tmux(text, what))
            return
        self._copy_by_terminal(text, what)

    async def _copy_by_tmux(self, text: str, what: str) -> None:
        """tmux takes it with its defaults, and hands it on to the terminal around it."""
        if await asyncio.to_thread(facts.tmux_copy, text):
            self._parts.say(
                f"{_the(what)} ({len(text):,} characters) is in tmux's buffer and was sent to the terminal."
            )
        else:
            self._copy_by_terminal(text, what)

    def copy_selection(self, text: str) -> None:
        """Copies what the mouse marked."""
        if text.strip():
            self._copy(text, "selection")

    def _copy_by_terminal(self, text: str, what: str) -> None:
        parts = self._parts
        sequence = facts.osc52(text)
        if sequence is None:
            large = figures.size(len(text.encode("utf-8", "replace")))
            parts.say(
                f"{_the(what)} is too large for the terminal's clipboard ({large}); "
                f"{parts.key('chat.save')} saves it to a file.",
                "warning",
            )
            return
        parts.host.write_terminal(sequence)
        parts.say(f"{_the(what)} ({len(text):,} characters) was sent to the terminal's clipboard.")

    def save_answer(self) -> None:
        """Saves the marked message, else the last answer, to a file."""
        self._parts.start(self._save_answer(), opens=True)

    async def _save_answer(self) -> None:
        from tui.screens.dialogs import TextDialog

        parts, turn = self._parts, self._wanted()
        if turn is None or not turn.content:
            parts.say("There is no answer to save.", "warning")
            return
        words = re.sub(r"[^\w]+", "-", " ".join(parts.flow.conversation.title.split()[:6]).lower()).strip("-")
        default = f"{words or 'answer'}-{time.strftime('%Y%m%d-%H%M')}.md"
        name = await parts.host.ask_screen(
            TextDialog("Save to a file", "Saves the answer as Markdown; never overwrites a file.", default, paths=True)
        )
        if name is None or not name.strip():
            return
        path = typed_path(name)
        try:
            await asyncio.to_thread(write_new, path, turn.content)
        except OSError as error:
            parts.say(f"{paths.display(path)} was not written: {error.strerror or error}.", "error")
            return
        parts.say(f"Saved to {paths.display(path.absolute())}.")


def _the(what: str) -> str:
    """It at the beginning of a sentence: ``The answer``, ``Code block 2 of 3``."""
    return f"{what[:1].upper()}{what[1:]}" if what[-1:].isdigit() else f"The {what}"
