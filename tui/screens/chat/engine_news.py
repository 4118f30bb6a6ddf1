"""What the engine does, as the main screen shows it: loading, ready, failed, gone."""

from __future__ import annotations

import time

from flashmoe.text_safety import visible_line
from tui.engine import messages
from tui.screens.chat.parts import ChatParts
from tui.screens.chat.welcoming import short_name, show_welcome

IDLE_KEYS = ["chat.models", "chat.new", "chat.chats", "chat.experts", "app.palette", "app.help"]
BUSY_KEYS = ["chat.stop", *IDLE_KEYS]
MARKED_KEYS = [
    "transcript.back",
    "transcript.up",
    "transcript.copy",
    "transcript.edit",
    "transcript.fold",
    "chat.regenerate",
    "app.palette",
    "app.help",
]
READY_S = 10.0
"""How long it is said that a model is ready: from then on the title says it."""
_LOAD_LINE_S = 0.125


class EngineNews:
    """Takes the engine's messages, all on the screen's own message queue."""

    def __init__(self, parts: ChatParts) -> None:
        self._parts = parts
        self._last_load_line = 0.0

    def take(self, news: messages.EngineMessage) -> None:
        """Shows one message."""
        match news:
            case messages.LoadStarted():
                self._load_started(news)
            case messages.LoadProgressed():
                self._load_progressed(news)
            case messages.ModelLoaded():
                self._model_loaded(news)
            case messages.LoadFailed():
                self._load_failed(news)
            case messages.EngineDied():
                self._engine_died(news)
            case messages.EngineNotice():
                self._notice(news)

    def busy_changed(self) -> None:
        """An answer began or ended: other keys help now."""
        parts, bar = self._parts, self._parts.key_bar
        if bar is None:
            return
        self.show_keys()
        if parts.flow.busy and parts.flow.answer_id is not None:
            parts.activity.show_waiting("Sent; waiting for the engine…")

    def show_keys(self) -> None:
        """The keys that help now."""
        parts, bar = self._parts, self._parts.key_bar
        if bar is not None:
            marked = parts.transcript.has_focus
            bar.show(MARKED_KEYS if marked else BUSY_KEYS if parts.flow.busy else IDLE_KEYS)

    def _welcome(self) -> None:
        show_welcome(self._parts.welcome, self._parts.host.controller, self._parts.host.keymap)

    def _load_started(self, news: messages.LoadStarted) -> None:
        name = short_name(news.request.path)
        self._parts.title_bar.show_model(None, f"loading {name}")
        self._parts.activity.show_loading(name, None, self._parts.key("chat.stop"))
        if self._parts.key_bar is not None:
            self._parts.key_bar.show(BUSY_KEYS)
        self._welcome()

    def _load_progressed(self, news: messages.LoadProgressed) -> None:
        """The bar moves, at most eight times a second."""
        now, request = time.monotonic(), self._parts.host.controller.request
        if now - self._last_load_line >= _LOAD_LINE_S and request is not None:
            self._last_load_line = now
            self._parts.activity.show_loading(short_name(request.path), news.progress, self._parts.key("chat.stop"))

    def _model_loaded(self, news: messages.ModelLoaded) -> None:
        """Ready to answer."""
        parts, info = self._parts, news.info
        parts.title_bar.show_model(info)
        parts.title_bar.show_context(parts.flow.ctx_used)
        self.busy_changed()
        after = f" after {info.load_s:.1f} s" if info.backend != "remote" else ""
        said = [f"{visible_line(info.name, 40)} is ready{after}."]
        if info.lossy:
            said.append(info.lossy)
        elif info.backend == "remote":
            said.append(f"{info.backend_reason}.")
        elif not info.n_experts:
            said.append("It is a dense model: it has no experts, so nothing streams.")
        parts.activity.say(" ".join(said), "warning" if info.lossy else "info", seconds=None if info.lossy else READY_S)
        self._welcome()
        parts.host.monitoring.model_loaded(info)

    def _load_failed(self, news: messages.LoadFailed) -> None:
        """One sentence; the model that was loaded before is gone or stays, as the engine says."""
        self._parts.title_bar.show_model(self._parts.host.controller.model)
        self.busy_changed()
        cancelled = news.code == "cancelled"
        self._parts.say("Loading was cancelled." if cancelled else news.sentence, "info" if cancelled else "error")
        self._welcome()

    def _engine_died(self, news: messages.EngineDied) -> None:
        """The engine is gone between answers (in an answer its end says so too)."""
        self._parts.title_bar.show_model(None, "engine stopped")
        self._parts.host.monitoring.engine_gone()
        if not self._parts.flow.busy:
            self._parts.say(f"{news.sentence} The next question starts it again.", "error")

    def _notice(self, news: messages.EngineNotice) -> None:
        """Something to know, though nothing failed."""
        self._parts.host.notify(
            visible_line(news.sentence, 300),
            severity="warning" if news.level == "warning" else "information",
            timeout=10,
            markup=False,
        )
