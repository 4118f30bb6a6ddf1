"""What happens between the composer, the engine and the history: ask, stop, continue, regenerate, edit, branch.

The flow owns the conversation and decides; the screen (`FlowView`) shows. It runs on the event loop; anything that
touches the disk goes through the history's own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from backends.interface import EngineError, GenerateRequest
from flashmoe.config.schema import Config
from flashmoe.history.records import Attachment, Figures, HistoryError
from tui.chat.context_fit import ContextFitter
from tui.chat.conversation import Conversation, Turn
from tui.chat.given import FlowContext
from tui.chat.view import FlowView
from tui.engine.answer import Answer, Taken
from tui.engine.controller import EngineController

if TYPE_CHECKING:
    from flashmoe.history import AnswerWriter


class ChatFlow(FlowContext):
    """One conversation at a time."""

    def __init__(self, view: FlowView, controller: EngineController, config: Config) -> None:
        super().__init__(view, controller, config)
        self.turn: Turn | None = None
        """The answer that is being written."""
        self.answer_id: str | None = None
        self._writer: AnswerWriter | None = None
        self._preparing = False
        self.cancelled = False
        """Whether the user stopped what is being prepared."""
        self._thinking_since: float | None = None
        self._thinking_s: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._fitter = ContextFitter(view, controller)

    # ---- state ----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether an answer is being prepared or written."""
        return self._preparing or self.answer_id is not None

    # ---- chats ----------------------------------------------------------------------------------------------------

    async def new_chat(self) -> None:
        """Starts an empty chat; it is kept with its first question."""
        await self._leave_for(None)
        self.conversation = self._fresh()
        self.ctx_used = 0
        await self._view.show_turns([])

    async def open_chat(self, chat_id: int, message_id: int | None = None) -> str:
        """Opens a chat of the history (at a message, where a search found one); returns its draft."""
        history = await self._view.history()
        chat = await history.in_thread(history.chat, chat_id)
        if message_id is not None:
            messages = await history.in_thread(history.show, message_id)
        else:
            messages = await history.in_thread(history.path, chat_id)
        await self._leave_for(chat.uid)
        self.conversation = Conversation(chat.id, chat.uid, chat.title, chat.settings)
        await self._take_path(messages)
        self.ctx_used = next(
            (
                (turn.figures.prompt_tokens or 0) + (turn.figures.completion_tokens or 0)
                for turn in reversed(self.conversation.turns)
                if turn.figures is not None
            ),
            0,
        )
        self._keeper.opened(chat.uid, self.ctx_used)
        await self._view.show_turns(self.conversation.turns)
        self._keeper.start(self._ready_to_go_on())
        return chat.draft

    async def _ready_to_go_on(self) -> None:
        """A chat was opened: the engine gets the context that it had."""
        try:
            await self.use_chosen_context()
        except EngineError:
            return  # stopped, which was told
        await self.bring_context()

    async def leave(self) -> None:
        """Stops what runs and keeps what is worth keeping of the chat that is shown."""
        await self.stop_and_wait()
        await self._keeper.settled()
        await self.keep_context()

    async def _leave_for(self, uid: str | None) -> None:
        """As `leave`, but the next chat is shown while the context of this one is still being written."""
        await self.stop_and_wait()
        if self.conversation.id is not None and uid != self.conversation.uid:
            self._keeper.save_soon(self.conversation.uid, self.ctx_used)

    async def keep_draft(self, text: str) -> None:
        """Keeps what stands in the composer with its chat."""
        if self.conversation.id is None:
            return
        history = await self._view.history()
        try:
            await history.in_thread(history.set_draft, self.conversation.id, text)
        except HistoryError as error:
            self._view.say(error.message, "error")

    # ---- asking ---------------------------------------------------------------------------------------------------

    def may_ask(self) -> str | None:
        """None if a question can be sent now, else a sentence that says why not."""
        if self.busy:
            return f"An answer is being written; {self._view.key('chat.stop')} stops it."
        if self._controller.state == "none":
            return f"No model is loaded; {self._view.key('chat.models')} chooses one."
        return None

    async def send(self, text: str, attachments: tuple[Attachment, ...] = (), editing: Turn | None = None) -> bool:
        """Keeps a question (with `editing` as a new branch in place of an earlier one); `answer` is to follow.

        False where it wasn't accepted: then it is said why, and nothing has changed.
        """
        refusal = self.may_ask()
        if refusal is not None:
            self._view.say(refusal, "warning")
            return False
        history = await self._view.history()
        conversation = self.conversation
        try:
            if conversation.id is None:
                model = self._controller.model
                chat = await history.in_thread(
                    history.create_chat, model=model.name if model else "", settings=conversation.settings
                )
                conversation.id, conversation.uid = chat.id, chat.uid
                conversation.title = " ".join(text.split())[:60]
            if editing is not None:
                parent = editing.parent_id
            else:
                parent = conversation.turns[-1].id if conversation.turns else None
            message = await history.in_thread(
                history.add_message, conversation.id, "user", text, parent_id=parent, attachments=attachments
            )
        except HistoryError as error:
            self._view.say(error.message, "error")
            return False
        self._preparing = True
        if editing is not None:
            await self._take_path(await history.in_thread(history.path, conversation.id))
            await self._view.show_turns(conversation.turns)
        else:
            turn = Turn.of(message)
            turn.ending = ""
            conversation.turns.append(turn)
            await self._view.add_turn(turn)
        self._changed()
        return True

    async def regenerate(self, turn: Turn | None = None) -> None:
        """Answers a question again: the question of `turn`, else the last one. The old answer stays as a branch."""
        refusal = self.may_ask()
        target = turn or (self.conversation.turns[-1] if self.conversation.turns else None)
        if refusal is not None or target is None:
            self._view.say(refusal or "There is nothing to answer again yet.", "warning")
            return
        question = self.conversation.question_of(target)
        if question is None:
            return
        history = await self._view.history()
        assert self.conversation.id is not None
        if question is not self.conversation.turns[-1]:
            await self._take_path(await history.in_thread(history.rewind, question.id, self.conversation.id))
            await self._view.show_turns(self.conversation.turns)
        question.error = ""
        await self.answer()

    async def continue_answer(self) -> None:
        """Goes on with the last answer, in place."""
        refusal = self.may_ask()
        last = self.conversation.turns[-1] if self.conversation.turns else None
        if refusal is None and (last is None or last.role != "assistant"):
            refusal = "There is no answer to go on with."
        if refusal is not None or last is None:
            self._view.say(refusal or "", "warning")
            return
        await self.answer(going_on=last)

    async def answer(self, going_on: Turn | None = None) -> None:
        """Prepares and starts the answer to the end of the path; its text comes as `AnswerNews`."""
        self._preparing, self.cancelled = True, False
        self._changed()
        try:
            await self._controller.ensure_loaded()
            await self.use_chosen_context()
            await self.bring_context()
            request = await self._fitter.fit(self, going_on)
            if request is not None and not self.cancelled:
                await self._start(request, going_on)
            elif self.cancelled:
                self._view.say(f"Not asked; {self._view.key('chat.regenerate')} asks again.")
        except EngineError as error:
            await self._not_asked(error)
        except HistoryError as error:
            self._view.say(error.message, "error")
        finally:
            self._preparing = False
            self._changed()
        if self.cancelled and self.answer_id is not None:  # stopped while it began
            await self._controller.stop(self.answer_id)

    async def _start(self, request: GenerateRequest, going_on: Turn | None) -> None:
        history = await self._view.history()
        conversation = self.conversation
        assert conversation.id is not None
        model = self._controller.model
        if going_on is not None:
            self._writer = await history.in_thread(history.continue_answer, going_on.id)
            turn = going_on
            turn.ending = turn.error = ""
            await self._view.reopen_turn(turn)
        else:
            parent = conversation.turns[-1]
            self._writer = await history.in_thread(
                history.start_answer, conversation.id, parent_id=parent.id, model=model.name if model else ""
            )
            message = await history.in_thread(history.message, self._writer.message_id)
            turn = Turn.of(message)
            conversation.turns.append(turn)
            await self._view.add_turn(turn)
        self.turn, self.answer_id = turn, request.id
        self._thinking_since = self._thinking_s = None
        self._controller.ask(request)

    async def _not_asked(self, error: EngineError) -> None:
        if error.code == "cancelled":
            self._view.say(f"Not asked; {self._view.key('chat.regenerate')} asks again.")
            return
        question = self.conversation.last_of("user")
        self._view.say(f"{error.message} {self._view.key('chat.regenerate')} asks again.", "error")
        if question is not None:
            self._view.turn_changed(question)

    # ---- while it answers -----------------------------------------------------------------------------------------

    def take(self, answer_id: str) -> Taken | None:
        """What has come of the answer since the last call, noted in the turn and on its way to the disk."""
        taken = self._controller.take(answer_id)
        if taken is None or answer_id != self.answer_id or self.turn is None:
            return None
        answer = taken.answer
        for kind, text in taken.parts:
            thinking = kind == "thinking"
            if thinking:
                self.turn.thinking += text
                self._thinking_since = self._thinking_since or time.monotonic()
            else:
                self.turn.content += text
                self._end_thinking()
            if self._writer is not None:
                self._writer.add(text, thinking=thinking)
        if answer.prefill is not None:
            self.ctx_used = answer.prefill.total + answer.n_tokens
        return taken

    def _end_thinking(self) -> None:
        if self._thinking_since is not None:
            self._thinking_s = time.monotonic() - self._thinking_since
            self._thinking_since = None

    async def finish(self, answer: Answer) -> None:
        """The answer ended: figures, the rest of the text to disk, and one sentence where something is to be said."""
        turn, writer = self.turn, self._writer
        self.turn = self.answer_id = self._writer = None
        self._end_thinking()
        if turn is None:
            return
        figures: Figures | None = None
        if answer.finished is not None:
            model = self._controller.model
            usage = answer.finished.usage
            turn.ending = answer.finished.reason
            figures = Figures.from_usage(
                usage, backend=model.backend if model is not None else None, thinking_s=self._thinking_s
            )
            self.ctx_used = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
        else:
            error = answer.error or EngineError("internal", "The answer ended without a reason.")
            turn.ending = {"engine_died": "died", "cancelled": "cancelled"}.get(error.code, "error")
            turn.error = "" if error.code == "cancelled" else error.message
        turn.figures = figures
        if writer is not None:
            history = await self._view.history()
            try:
                message = await history.in_thread(writer.finish, turn.ending, figures)
                turn.figures = message.figures
            except HistoryError as problem:
                self._view.say(problem.message, "error")
        if turn.ending == "context":
            self._view.say(f"The context is full; {self._view.key('chat.continue')} goes on and asks what may go.")
        self._changed()

    def _changed(self) -> None:
        if self.busy:
            self._idle.clear()
        else:
            self._idle.set()
        self._view.busy_changed()

    # ---- stopping -------------------------------------------------------------------------------------------------

    async def stop(self) -> bool:
        """Stops what runs; False where nothing does."""
        if self.answer_id is not None:
            await self._controller.stop(self.answer_id)
            return True
        if self._preparing:
            self.cancelled = True
            await self._fitter.stop()
            await self._controller.cancel_load()
            return True
        return False

    async def stop_and_wait(self, seconds: float = 5.0) -> None:
        """Stops and waits until the end was noted (its news is handled by the screen)."""
        if await self.stop():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), seconds)

    # ---- branches -------------------------------------------------------------------------------------------------

    async def walk(self, step: int, turn: Turn | None = None) -> None:
        """Shows the branch `step` away, at `turn` or where the path last has alternatives."""
        target = turn if turn is not None and turn.variants > 1 else None
        target = target or self.conversation.nearest_branching()
        if self.busy or target is None or self.conversation.id is None:
            self._view.say(
                f"An answer is being written; {self._view.key('chat.stop')} stops it." if self.busy else
                f"There is one branch only; {self._view.key('chat.regenerate')} answers again, "
                f"{self._view.key('chat.edit')} edits the question.",
                "warning",
            )  # fmt: skip
            return
        if not 1 <= target.variant + step <= target.variants:
            self._view.say(f"This is the {'first' if step < 0 else 'last'} of {target.variants} branches.")
            return
        history = await self._view.history()
        await self._take_path(await history.in_thread(history.step_variant, target.id, step))
        await self._view.show_turns(self.conversation.turns)
