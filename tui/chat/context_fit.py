"""Makes the prompt fit into the context: the user chooses what goes, never silently."""

from __future__ import annotations

import asyncio
import time
import uuid

from backends.interface import Delta, EngineError, Event, GenerateRequest, LoadRequest, PrefillProgress, Sampling
from tui.chat.conversation import Turn
from tui.chat.given import Given
from tui.chat.view import FlowView, FullContext
from tui.engine.controller import EngineController

_SUMMARISE = (
    "Summarise our conversation so far in at most 150 words, for somebody who goes on with it and can't see it. "
    "Keep names, numbers, decisions and open points. Answer with the summary only."
)
_SHOW_S = 0.25
ESTIMATE = 1.3
"""How far a turn's tokens, taken from its share of the characters, may be off."""


class ContextFitter:
    """Asks what goes of a prompt that the engine refused because it doesn't fit."""

    def __init__(self, view: FlowView, controller: EngineController, given: Given) -> None:
        self._view = view
        self._controller = controller
        self._given = given
        self._stopped = False
        self._running: asyncio.Task[str] | None = None
        self._shown_at = 0.0

    def request(self, going_on: Turn | None) -> GenerateRequest:
        """The request for an answer to the end of the path. Its prompt must leave room for one, or the engine refuses
        it."""
        given, model = self._given, self._controller.model
        self._stopped = False
        return GenerateRequest(
            id=uuid.uuid4().hex,
            messages=given.conversation.messages(going_on, system_prompt=given.system_prompt()),
            sampling=given.sampling(),
            session=given.conversation.uid,
            enable_thinking=given.thinking(),
            effort=given.effort(),
            continue_final=going_on is not None,
            room=max(8, min(256, model.n_ctx // 8)) if model is not None and model.n_ctx else 1,
        )

    async def make_room(self, refused: GenerateRequest, count: int | None, going_on: Turn | None) -> bool:
        """Asks what goes of a prompt that was refused for its `count` tokens (None: too many to be counted); False
        where the user chose not to ask.

        Raises `EngineError` where the larger context that was chosen can't be had, ``cancelled`` where a summary was.
        """
        given, conversation, model = self._given, self._given.conversation, self._controller.model
        if count is None:
            count = await self._controller.estimate_tokens(refused)
        if model is None or count is None:
            raise EngineError("prompt_too_long", "The question doesn't fit into the context", "start a new chat.")
        oldest = conversation.oldest(model.n_ctx // 2, count)
        kept = len(conversation.turns) - len(conversation.dropped)
        larger = min(model.n_ctx_train, max(model.n_ctx * 2, count + 2 * refused.room))
        alone = conversation.question_tokens(count)
        grow = larger if larger > max(model.n_ctx, alone) else 0
        if alone <= model.n_ctx * ESTIMATE:
            alone = 0
        else:  # neither leaving out nor a summary of what came before would help
            oldest = []
        kv_bytes = model.kv_bytes * (grow - model.n_ctx) // model.n_ctx if grow and model.kv_bytes else None
        full = FullContext(count, model.n_ctx, len(oldest), kept, grow, kv_bytes, alone)
        choice = await self._view.choose_context(full)
        if choice == "cancel":
            edit = self._view.key("chat.edit")
            self._view.say(
                f"Not sent: {count:,} tokens don't fit into the context of {model.n_ctx:,}; {edit} edits the question."
            )
            return False
        if choice == "grow":
            old = self._controller.request or LoadRequest(path=model.path)
            await self._controller.reload(n_ctx=grow, like=old)
            await given.remember_context(grow, old.path)
            return True
        summary = await self._summarise(oldest) if choice == "summarise" else ""
        if self._stopped:
            return False
        await given.leave_out(oldest, summary, going_on)
        return True

    async def stop(self) -> None:
        """Ends what is under way; a summary that is being written is stopped."""
        self._stopped = True
        if self._running is not None:
            self._running.cancel()

    async def _summarise(self, turns: list[Turn]) -> str:
        """Has the model summarise what is to be left out; empty where it can't, and that is said."""
        given, model = self._given, self._controller.model
        n_ctx = model.n_ctx if model is not None else 4096
        longest = min(300, n_ctx // 6)
        while True:
            request = GenerateRequest(
                id=uuid.uuid4().hex,
                messages=given.conversation.to_summarise(turns, _SUMMARISE, system_prompt=given.system_prompt()),
                sampling=Sampling(temperature=0.0, max_tokens=longest),
                session=given.conversation.uid,
                enable_thinking=False,
            )
            count = await self._controller.count_tokens(request)
            if count is None or count + longest < n_ctx:
                break
            if len(turns) == 1:
                text = turns[0].prompt_text
                if len(text) < 200:
                    break
                turns = [Turn(turns[0].role, text[len(text) // 2 :])]
            else:  # more than a context holds: the oldest of them can't be read any more
                turns = turns[len(turns) // 4 or 1 :]
        n_turns, tokens, started = len(turns), 0, time.monotonic()
        self._view.summarising(n_turns, None, 0)

        def follow(event: Event) -> None:
            nonlocal tokens
            if isinstance(event, Delta):
                tokens += event.n_tokens
            now = time.monotonic()
            if now - max(self._shown_at, started) >= _SHOW_S:
                self._shown_at = now
                self._view.summarising(n_turns, event if isinstance(event, PrefillProgress) else None, tokens)

        self._running = asyncio.create_task(self._controller.complete(request, follow))
        try:
            summary = await self._running
            if not summary:
                self._view.say(f"{n_turns} messages were left out without a summary: the model wrote none.", "warning")
            return summary
        except asyncio.CancelledError:  # by `stop`: the task's, not this coroutine's own
            raise EngineError("cancelled", "The summary was stopped.") from None
        except EngineError as error:
            self._view.say(f"{n_turns} messages were left out without a summary: {error.message}", "warning")
            return ""
        finally:
            self._running = None
