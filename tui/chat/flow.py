"""What happens between the composer, the engine and the history: ask, stop, continue, regenerate, edit, branch.

The flow owns the conversation and decides; the screen (`FlowView`) shows. It runs on the event loop; anything that
touches the disk goes through the history's own thread.
"""

from __future__ import annotations

import asyncio
import contextlib

from backends.interface import EngineError
from flashmoe.config.schema import Config
from flashmoe.history.records import Attachment, HistoryError
from flashmoe.text_safety import visible_line
from tui.chat.context_fit import ContextFitter
from tui.chat.conversation import Conversation, Turn
from tui.chat.given import Given
from tui.chat.keeping import keep_answer, keep_draft, keep_question, show_branch, show_up_to, show_whole_chat
from tui.chat.queue import QuestionQueue
from tui.chat.view import FlowView
from tui.chat.writing import Writing
from tui.engine.answer import Answer, Taken
from tui.engine.controller import EngineController

_TRIES = 6
"""So often one question is made to fit."""


class ChatFlow:
    """One conversation at a time."""

    def __init__(self, view: FlowView, controller: EngineController, config: Config) -> None:
        self._view = view
        self._controller = controller
        self.given = Given(view, controller, config)
        """What the model gets of the shown chat: settings, cut, computed context."""
        self._fitter = ContextFitter(view, controller, self.given)
        self._writing: Writing | None = None
        self.queue = QuestionQueue(view.queue_changed)
        """The questions that wait for the end of an answer."""
        self._leaving = 0
        """How many are waiting for the end of all that runs: nothing is begun then."""
        self._preparing = False
        self._cancelled = False
        """Whether the user stopped what is being prepared."""
        self._beginning: str | None = None
        """The request that the engine was asked and has neither taken nor refused yet."""
        self._idle = asyncio.Event()
        self._idle.set()

    # ---- state ----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether an answer is being prepared or written."""
        return self._preparing or self._writing is not None

    @property
    def free(self) -> bool:
        """Whether a question that waits may be asked now."""
        return not self.busy and not self._leaving

    @property
    def conversation(self) -> Conversation:
        """The chat that is shown."""
        return self.given.conversation

    @property
    def ctx_used(self) -> int:
        """Tokens that the chat takes in the context."""
        return self.given.ctx_used

    @property
    def turn(self) -> Turn | None:
        """The answer that is being written."""
        return self._writing.turn if self._writing is not None else None

    @property
    def answer_id(self) -> str | None:
        """The engine's name for it."""
        return self._writing.id if self._writing is not None else None

    @property
    def writing_chat(self) -> Conversation | None:
        """The chat in which an answer is being written; it needn't be the one that is shown."""
        return self._writing.conversation if self._writing is not None else None

    @property
    def writes_here(self) -> bool:
        """Whether an answer is being prepared or written in the shown chat."""
        return self._preparing or self.writing_chat is self.conversation

    # ---- what the model is given ----------------------------------------------------------------------------------

    async def show_all(self) -> None:
        """Takes back what was left out last on this branch: the model is shown it again."""
        if self.busy:
            self._view.say(self._is_busy(), "warning")
        else:
            await show_whole_chat(self._view, self.given)

    @property
    def _model_name(self) -> str:
        return self._controller.model.name if self._controller.model is not None else ""

    def _is_busy(self) -> str:
        stop = self._view.key("chat.stop")
        chat = self.writing_chat
        if chat is None or chat is self.conversation:
            return f"An answer is being written; {stop} stops it."
        return f"An answer is being written in “{visible_line(chat.title or 'Untitled', 40)}”; {stop} stops it."

    # ---- chats ----------------------------------------------------------------------------------------------------

    async def new_chat(self) -> None:
        """Starts an empty chat; it is kept with its first question."""
        await self._leave_for_another()
        self.given.begin()
        await self._view.show_turns([])
        self._view.queue_changed()

    async def open_chat(self, chat_id: int, message_id: int | None = None) -> str:
        """Opens a chat of the history (at a message, where a search found one); returns its draft."""
        history = await self._view.history()
        chat = await history.in_thread(history.chat, chat_id)
        writing = self.writing_chat
        if writing is not None and writing.id == chat_id:  # what is on the disk is older than what is being written
            self.given.show(writing, self._writing.tokens if self._writing is not None else 0)
            await self._view.show_turns(writing.turns)
            self._view.queue_changed()
            return chat.draft
        if message_id is not None:
            messages = await history.in_thread(history.show, message_id)
        else:
            messages = await history.in_thread(history.path, chat_id)
        await self._leave_for_another()
        await self.given.open(chat, messages)
        await self._view.show_turns(self.conversation.turns)
        self._view.queue_changed()
        if self._writing is None:  # else the engine is at another chat; the next question here sees to it
            self.given.start(self._ready_to_go_on())
        return chat.draft

    async def _ready_to_go_on(self) -> None:
        """A chat was opened: the engine gets a context of the size that it had."""
        with contextlib.suppress(EngineError):  # stopped, which was told
            await self.given.use_chosen_context()

    async def leave(self) -> None:
        """Stops what runs in the chat that is shown."""
        self._leaving += 1
        try:
            await self.stop_and_wait()
            await self.given.settled()
        finally:
            self._leaving -= 1

    async def _leave_for_another(self) -> None:
        """The next chat is shown while an answer goes on in this one."""
        if self._writing is None:
            await self.stop_and_wait()

    async def keep_draft(self, text: str) -> bool:
        """Keeps what stands in the composer with its chat; False where that failed, which was said."""
        return await keep_draft(self._view, self.conversation, text)

    # ---- asking ---------------------------------------------------------------------------------------------------

    def may_ask(self) -> str | None:
        """None if a question can be sent now, else a sentence that says why not."""
        if self.busy:
            return self._is_busy()
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
            message = await keep_question(history, conversation, self._model_name, text, attachments, editing)
        except HistoryError as error:
            self._view.say(error.message, "error")
            return False
        self._preparing = True
        if editing is not None:
            await self.given.take_path(await history.in_thread(history.path, message.chat_id))
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
            self._view.say(refusal or "There is no answer to regenerate yet.", "warning")
            return
        question = self.conversation.question_of(target)
        if question is None:
            return
        await show_up_to(self._view, self.given, question)
        question.error = ""
        await self.answer()

    async def continue_answer(self) -> None:
        """Goes on with the last answer, in place."""
        refusal = self.may_ask()
        last = self.conversation.turns[-1] if self.conversation.turns else None
        if refusal is None and (last is None or last.role != "assistant"):
            refusal = "There is no answer to continue."
        if refusal is not None or last is None:
            self._view.say(refusal or "", "warning")
            return
        await self.answer(going_on=last)

    async def answer(self, going_on: Turn | None = None) -> None:
        """Prepares and starts the answer to the end of the path; its text comes as `AnswerNews`."""
        self._preparing, self._cancelled = True, False
        self._changed()
        try:
            await self._controller.ensure_loaded()
            await self.given.use_chosen_context()
            answer = None if self._cancelled else await self._begin(going_on)
            if answer is not None:
                await self._start(answer, going_on)
            elif self._cancelled:
                self._view.say(f"Not sent; {self._view.key('chat.regenerate')} sends it.")
        except EngineError as error:
            await self._not_asked(error)
        except HistoryError as error:
            self._view.say(error.message, "error")
        finally:
            self._preparing = False
            self._changed()
        if self._cancelled and self.answer_id is not None:  # stopped while it began
            await self._controller.stop(self.answer_id)

    async def _begin(self, going_on: Turn | None) -> Answer | None:
        """The answer that the engine has begun; None where the prompt doesn't fit and the user chose not to ask. Raises
        `EngineError`."""
        for _ in range(_TRIES):
            request = self._fitter.request(going_on)
            try:
                self._beginning = request.id
                answer = await self._controller.begin(request)
            except EngineError as error:
                if error.code != "prompt_too_long" or error.limit is None:
                    raise
                if self._cancelled or not await self._fitter.make_room(request, error.tokens, going_on):
                    return None
            else:
                if answer.prefill is not None:
                    self.given.ctx_used = answer.prefill.total
                return answer
            finally:
                self._beginning = None
        return None

    async def _start(self, begun: Answer, going_on: Turn | None) -> None:
        history = await self._view.history()
        conversation = self.conversation
        turn, writer = await keep_answer(history, conversation, self._model_name, going_on)
        await (self._view.reopen_turn(turn) if going_on is not None else self._view.add_turn(turn))
        self._writing = Writing(begun.id, conversation, turn, writer)
        self._controller.show(begun)

    async def _not_asked(self, error: EngineError) -> None:
        if error.code == "cancelled":
            self._view.say(f"Not sent; {self._view.key('chat.regenerate')} sends it.")
            return
        question = self.conversation.last_of("user")
        self._view.say(f"{error.full} {self._view.key('chat.regenerate')} tries again.", "error")
        if question is not None:
            self._view.turn_changed(question)

    # ---- while it answers -----------------------------------------------------------------------------------------

    def take(self, answer_id: str) -> Taken | None:
        """What has come of the answer since the last call, noted in the turn and on its way to the disk."""
        taken = self._controller.take(answer_id)
        if taken is None or self._writing is None or answer_id != self._writing.id:
            return None
        self._writing.add(taken.parts)
        answer = taken.answer
        if answer.prefill is not None:
            self._writing.tokens = answer.prefill.total + answer.n_tokens
            if self.writes_here and answer.prefill.total:  # a server doesn't tell
                self.given.ctx_used = self._writing.tokens
        return taken

    async def finish(self, answer: Answer) -> None:
        """The answer ended: figures, the rest of the text to disk, and one sentence where something is to be said."""
        writing, shown = self._writing, self.writes_here
        self._writing = None
        if writing is None:
            return
        if answer.finished is not None:
            usage = answer.finished.usage
            tokens = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)
            if shown and usage.prompt_tokens is not None:
                self.given.ctx_used = tokens
        await writing.finish(answer, self._controller.model, self._view)
        if writing.turn.ending == "context" and shown:
            key = self._view.key("chat.continue")
            self._view.say(f"The context is full; {key} continues and asks what to leave out.")
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
            self._cancelled = True
            await self._fitter.stop()
            if self._beginning is not None:
                await self._controller.stop(self._beginning)
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
        if self.busy:
            self._view.say(self._is_busy(), "warning")
        else:
            await show_branch(self._view, self.given, step, turn)
