"""What the keys do with question and answer: send, stop, go on, answer again, walk between branches."""

from __future__ import annotations

from collections.abc import Callable

from tui.chat.queue import Queued
from tui.screens.chat.drafting import Drafting
from tui.screens.chat.parts import ChatParts


class Asking:
    """Hands the user's wishes to the flow."""

    def __init__(self, parts: ChatParts, drafting: Drafting, fold_monitor: Callable[[], bool]) -> None:
        """`fold_monitor` folds a monitor that covers the chat away; False where there is none."""
        self._parts = parts
        self._drafting = drafting
        self._fold_monitor = fold_monitor
        self._sending = False
        self._meanwhile: list[str] = []
        """What stood in the composer when Enter was pressed again before the question was kept: it begins with that."""

    def send(self, text: str, *, from_composer: bool = True) -> None:
        """Asks `text`; the composer is emptied once the question is kept."""
        if not (text.strip() or self._parts.attachments.items):
            return
        if self._sending:
            if from_composer:
                self._meanwhile.append(text)
            return
        if self._parts.flow.busy:
            flow, draft = self._parts.flow, self._drafting
            flow.queue.add(Queued(flow.conversation, text, draft.attachments, draft.editing))
            self._drafting.sent(text, from_composer=from_composer)
            return
        self._sending = True
        self._meanwhile.clear()
        self._parts.start(self._send(text, from_composer, self._parts.host.hold_keys()))

    async def _send(self, text: str, from_composer: bool, taken: Callable[[], None]) -> None:
        try:
            accepted = await self._parts.flow.send(text, self._drafting.attachments, self._drafting.editing)
            if accepted:
                self._drafting.sent(text, from_composer=from_composer)
        finally:
            self._sending = False
            taken()  # what was typed since goes into a composer that is empty
        if accepted:
            if from_composer:
                self._send_rest(text)
            await self._parts.flow.answer()

    def _send_rest(self, sent: str) -> None:
        """Enter was pressed behind what was typed since, too: it is queued."""
        for text in self._meanwhile:
            if text.startswith(sent):
                self.send(text[len(sent) :])
                sent = text

    def send_queued(self) -> None:
        """Asks the question that waits in the shown chat, if it may be asked now."""
        flow = self._parts.flow
        item = flow.queue.take(flow.conversation) if flow.free and not self._sending else None
        if item is not None:
            self._sending = True
            self._parts.start(self._send_queued(item))

    async def _send_queued(self, item: Queued) -> None:
        flow = self._parts.flow
        try:
            accepted = await flow.send(item.text, item.attachments, item.editing)
        finally:
            self._sending = False
        if accepted:
            await flow.answer()
        else:
            self._drafting.take_back(item)

    def edit_queued(self) -> None:
        """Puts the question that was queued last back into the composer."""
        item = self._parts.flow.queue.take(self._parts.flow.conversation, last=True)
        if item is not None:
            self._drafting.take_back(item)

    async def interrupt(self) -> bool:
        """Stops an answer or a load; False where there is none."""
        if await self._parts.flow.stop():
            return True
        if self._parts.host.controller.state == "loading":
            await self._parts.host.controller.cancel_load()
            return True
        return False

    async def stop(self) -> None:
        """Stops an answer or a load; else ends whatever is half done: editing, the open monitor, the focus."""
        parts = self._parts
        if await self.interrupt():
            pass
        elif self._drafting.editing is not None:
            self._drafting.end_edit(restore=True)
            parts.say("The question is unchanged.")
        elif self._fold_monitor():
            pass
        elif not parts.composer.has_focus:
            parts.composer.focus()
        else:
            parts.activity.clear()

    def continue_answer(self) -> None:
        """Goes on with the last answer."""
        self._parts.start(self._parts.flow.continue_answer())

    def regenerate(self) -> None:
        """Answers the last question again, or the marked one."""
        self._parts.start(self._parts.flow.regenerate(self._parts.transcript.marked))

    def branch(self, step: int) -> None:
        """Shows the branch before or after."""
        self._parts.start(self._parts.flow.walk(step, self._parts.transcript.marked))

    def show_all(self) -> None:
        """Shows the model again what was left out of the context last."""
        self._parts.start(self._parts.flow.show_all())
