"""What the shown chat's model is given: settings, a context of its size, and the part of the path that it is shown."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from backends.interface import EngineError, LoadRequest, Sampling
from flashmoe.config.schema import Config
from flashmoe.history.records import Chat, ContextCut, HistoryError, Message
from tui.chat.conversation import Conversation, Turn
from tui.chat.view import FlowView
from tui.engine.controller import EngineController

if TYPE_CHECKING:
    from flashmoe.presets import Presets


class Given:
    """What the model gets of the shown chat. `ChatFlow` owns one and decides when it changes."""

    def __init__(self, view: FlowView, controller: EngineController, config: Config) -> None:
        self._view = view
        self._controller = controller
        self._config = config
        self._presets: Presets | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._growing = asyncio.Lock()
        self._refused: LoadRequest | None = None
        """A larger context that couldn't be had, or whose load was stopped: not tried again."""
        self.conversation = self._fresh()
        self.ctx_used = 0
        """Tokens that the chat takes in the context, as its last answer left them."""

    # ---- chats ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """An empty chat; it is kept with its first question."""
        self.conversation, self.ctx_used = self._fresh(), 0

    async def open(self, chat: Chat, messages: list[Message]) -> None:
        """A chat of the history, with the path that is shown of it."""
        self.conversation = Conversation(chat.id, chat.uid, chat.title, chat.settings)
        await self.take_path(messages)
        self.ctx_used = next(
            (
                (turn.figures.prompt_tokens or 0) + (turn.figures.completion_tokens or 0)
                for turn in reversed(self.conversation.turns)
                if turn.figures is not None
            ),
            0,
        )

    def show(self, conversation: Conversation, tokens: int) -> None:
        """A chat that is still in memory, since an answer is being written in it; `tokens` of the context are its."""
        self.conversation, self.ctx_used = conversation, tokens

    def _fresh(self) -> Conversation:
        conversation = Conversation()
        conversation.settings = type(conversation.settings)(preset=self._config.chat.preset)
        return conversation

    # ---- settings -------------------------------------------------------------------------------------------------

    @property
    def presets(self) -> Presets:
        """The presets in force, read when they are first needed."""
        return self._presets or self.read_presets()

    def read_presets(self) -> Presets:
        """Reads them; callable from a thread."""
        from flashmoe.presets import load_presets

        self._presets = load_presets()
        return self._presets

    def sampling(self) -> Sampling:
        """The sampler settings in force for this chat."""
        settings = self.conversation.settings
        if settings.sampling is not None:
            return settings.sampling
        name = self._controller.model.name if self._controller.model is not None else ""
        try:
            return self.presets.pick(settings.preset, name).sampling
        except KeyError:
            return self.presets.pick("auto", name).sampling

    def thinking(self) -> bool | None:
        """Whether the template's thinking is switched on or off; None leaves it."""
        if self.conversation.settings.thinking is not None:
            return self.conversation.settings.thinking
        said = self._config.chat.thinking
        return None if said == "auto" else said != "off"

    def effort(self) -> Literal["low", "medium", "high"] | None:
        """How much to think, as configured; None where nothing is said, or the chat says that it doesn't."""
        if self.thinking() is False:
            return None
        said = self._config.chat.thinking
        return said if said in ("low", "medium", "high") else None

    def system_prompt(self) -> str:
        """The chat's own system prompt, else the configured one."""
        return self.conversation.settings.system_prompt or self._config.chat.system_prompt

    # ---- a larger context of the chat's own -----------------------------------------------------------------------

    def with_chosen_context(self, request: LoadRequest) -> LoadRequest:
        """`request` with the larger context that was chosen in the shown chat for this model, where one was."""
        settings = self.conversation.settings
        n_ctx = settings.n_ctx or 0
        if n_ctx <= (request.n_ctx or 0) or settings.n_ctx_model != PurePath(request.path).name:
            return request
        return msgspec.structs.replace(request, n_ctx=n_ctx)

    async def use_chosen_context(self) -> None:
        """Loads the model with the larger context that was chosen in the shown chat, unless it has that already.

        Raises `EngineError` ``cancelled`` where the user stopped it; what else fails is told, and the old one stays.
        """
        async with self._growing:
            controller = self._controller
            request, model = controller.request, controller.model
            if request is None:
                return
            wanted = self.with_chosen_context(request)
            has = model is not None and model.n_ctx >= (wanted.n_ctx or 0)
            if wanted is request or wanted == self._refused or (has and controller.state == "ready"):
                return
            if controller.state == "dead":
                controller.request = wanted  # for when it is loaded
                return
            try:
                await controller.reload(n_ctx=wanted.n_ctx or 0, like=request)
            except EngineError as error:
                self._refused = wanted
                if error.code == "cancelled":
                    raise
                size = f"{wanted.n_ctx:,} tokens"
                self._view.say(f"This chat's context of {size} isn't possible: {error.message}", "warning")

    async def remember_context(self, n_ctx: int, path: str) -> None:
        """From now on the shown chat is loaded with so large a context, on this model."""
        self.conversation.settings = msgspec.structs.replace(
            self.conversation.settings, n_ctx=n_ctx, n_ctx_model=PurePath(path).name
        )
        await self.settings_changed()

    async def settings_changed(self) -> None:
        """Keeps the chat's settings."""
        if self.conversation.id is not None:
            history = await self._view.history()
            try:
                await history.in_thread(history.set_settings, self.conversation.id, self.conversation.settings)
            except HistoryError as error:
                self._view.say(error.message, "error")

    # ---- what runs apart ------------------------------------------------------------------------------------------

    def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Runs a coroutine apart from the caller; `settled` waits for it."""
        task: asyncio.Task[object] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Waits for what `start` began."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # ---- what the model is shown ----------------------------------------------------------------------------------

    async def take_path(self, messages: list[Message]) -> None:
        """Another path of the shown chat, with what the model is shown of it."""
        history = await self._view.history()
        cut = await history.in_thread(history.context_cut, messages[-1].id if messages else None)
        self.conversation.replace_path(messages)
        self.conversation.take_cut(cut)

    async def leave_out(self, turns: list[Turn], summary: str, going_on: Turn | None) -> None:
        """From now on the model isn't shown `turns` (the oldest ones) on this branch; kept in the history."""
        place = self.conversation.cut_place(going_on)
        if place is None or not turns:
            return
        history, model = await self._view.history(), self._controller.model
        upto, name = turns[-1].id, model.name if model is not None and summary else ""
        try:
            cut = await history.in_thread(history.cut_context, place.id, upto, summary=summary, model=name)
        except HistoryError as error:  # it holds while the chat is open
            cut = ContextCut(0, place.id, upto, summary, name)
            self._view.say(error.message, "error")
        self.conversation.take_cut(cut)
        await self._view.cut_changed()

    async def show_all(self) -> int:
        """Takes back what was left out last on this branch: the model is shown it again. Returns how many messages."""
        cut, conversation = self.conversation.cut, self.conversation
        if cut is None:
            return 0
        before = len(conversation.dropped)
        history = await self._view.history()
        await history.in_thread(history.undo_cut, cut.id)
        conversation.take_cut(await history.in_thread(history.context_cut, conversation.turns[-1].id))
        await self._view.cut_changed()
        return before - len(conversation.dropped)
