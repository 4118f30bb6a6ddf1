"""Makes the prompt fit into the context: the user chooses what goes, never silently."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from backends.interface import ChatMessage, EngineError, GenerateRequest, LoadRequest, Sampling
from tui.conversation import Turn
from tui.engine_controller import EngineController
from tui.flow_view import FlowView

if TYPE_CHECKING:
    from tui.chat_flow import ChatFlow

_SUMMARISE = "Summarise this conversation in at most 150 words. Keep names, numbers, decisions and open points."


class ContextFitter:
    """Counts the prompt's tokens before it is sent and asks what goes where they are too many."""

    def __init__(self, view: FlowView, controller: EngineController) -> None:
        self._view = view
        self._controller = controller

    async def fit(self, flow: ChatFlow, going_on: Turn | None) -> GenerateRequest | None:
        """The request, once its prompt leaves room for an answer; None where the user chose not to ask.

        Raises `EngineError` where the larger context that was chosen can't be had.
        """
        conversation = flow.conversation
        for _ in range(6):
            request = _request(flow, going_on)
            model = self._controller.model
            count = await self._controller.count_tokens(request)
            if model is None or count is None:
                return request
            room = max(8, min(256, model.n_ctx // 8))
            if count + room <= model.n_ctx:
                flow.ctx_used = count
                return request
            kept = [turn for turn in conversation.turns if not turn.dropped]
            can_drop = bool(kept) and kept[0] is not conversation.last_of("user")
            can_grow = model.n_ctx < model.n_ctx_train
            choice = await self._view.choose_context(count, model.n_ctx, can_grow, can_drop)
            if choice == "cancel":
                edit = self._view.key("chat.edit")
                self._view.say(
                    f"Not asked: {count:,} tokens don't fit into the context of {model.n_ctx:,}; "
                    f"{edit} edits the question."
                )
                return None
            if choice == "grow":
                old = self._controller.request or LoadRequest(path=model.path)
                n_ctx = min(model.n_ctx_train, max(model.n_ctx * 2, count + 2 * room))
                await self._controller.reload(n_ctx=n_ctx, like=old)
                continue
            dropped = conversation.drop_oldest(model.n_ctx // 2, count)
            for turn in dropped:
                self._view.turn_changed(turn)
            if choice == "summarise":
                await self._summarise(flow, dropped)
        return None

    async def _summarise(self, flow: ChatFlow, turns: list[Turn]) -> None:
        """Has the model summarise what was left out; where that fails it is left out without, and that is said."""
        model = self._controller.model
        n_ctx = model.n_ctx if model is not None else 4096
        text = "\n\n".join(f"{turn.role}: {turn.prompt_text}" for turn in turns)
        if flow.conversation.summary:
            text = f"earlier: {flow.conversation.summary}\n\n{text}"
        self._view.say(f"Summarising {len(turns)} messages…")
        longest = min(300, n_ctx // 6)
        limit = n_ctx * 2  # characters: at least two a token in nearly every language
        while True:
            request = GenerateRequest(
                id=uuid.uuid4().hex,
                messages=(ChatMessage("user", f"{_SUMMARISE}\n\n{text[-limit:]}"),),
                sampling=Sampling(temperature=0.0, max_tokens=longest),
                enable_thinking=False,
            )
            count = await self._controller.count_tokens(request)
            if count is None or count + longest < n_ctx or limit < 200:
                break
            limit //= 2
        try:
            flow.conversation.summary = await self._controller.complete(request)
            self._view.say(f"{len(turns)} messages are summarised in the context; they stay in the chat.")
        except EngineError as error:
            self._view.say(f"{len(turns)} messages were left out without a summary: {error.message}", "warning")


def _request(flow: ChatFlow, going_on: Turn | None) -> GenerateRequest:
    return GenerateRequest(
        id=uuid.uuid4().hex,
        messages=flow.conversation.messages(going_on, system_prompt=flow.system_prompt()),
        sampling=flow.sampling(),
        session=flow.conversation.uid,
        enable_thinking=flow.thinking(),
        continue_final=going_on is not None,
    )
