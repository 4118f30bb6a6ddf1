"""What the engine does, as the main screen shows it: loading, ready, failed, gone; and what an empty chat says."""

from __future__ import annotations

import time

from backends.interface import LoadProgress, ModelInfo
from flashmoe import paths
from flashmoe.text_safety import visible_line
from tui.engine import messages
from tui.screens.chat.actions import ChatActions
from tui.widgets.key_bar import KeyBar
from tui.widgets.title_bar import TitleBar
from tui.widgets.welcome import Welcome

IDLE_KEYS = ["chat.models", "chat.new", "chat.chats", "chat.experts", "app.palette", "app.help"]
_BUSY_KEYS = ["chat.stop", *IDLE_KEYS]


class ChatEngine(ChatActions):
    """The handlers of the engine's messages. `ChatScreen` has the chat itself."""

    _last_load_line = 0.0

    def busy_changed(self) -> None:
        """An answer began or ended."""
        if not self.is_mounted or not self.query(KeyBar):  # the app is ending
            return
        if self.flow.busy:
            self.query_one(KeyBar).show(_BUSY_KEYS)
            if self.flow.answer_id is not None:
                self.activity.show_waiting("Asked; waiting for the engine…")
        else:
            self.query_one(KeyBar).show(IDLE_KEYS)

    def on_load_started(self, event: messages.LoadStarted) -> None:
        """A model is being loaded."""
        name = self._name_of(event.request.path)
        self.query_one(TitleBar).show_model(None, f"loading {name}")
        self.activity.show_loading(name, None, self.key("chat.stop"))
        self.query_one(KeyBar).show(_BUSY_KEYS)
        self._welcome()

    def on_load_progressed(self, event: messages.LoadProgressed) -> None:
        """The bar moves, at most eight times a second."""
        now = time.monotonic()
        if now - self._last_load_line >= 0.125 and self.main.controller.request is not None:
            self._last_load_line = now
            progress: LoadProgress = event.progress
            self.activity.show_loading(
                self._name_of(self.main.controller.request.path), progress, self.key("chat.stop")
            )

    def on_model_loaded(self, event: messages.ModelLoaded) -> None:
        """Ready to answer."""
        info: ModelInfo = event.info
        title = self.query_one(TitleBar)
        title.show_model(info)
        title.show_context(self.flow.ctx_used)
        self.busy_changed()
        parts = [f"{visible_line(info.name, 40)} is ready after {info.load_s:.1f} s."]
        if info.lossy:
            parts.append(info.lossy)
        elif not info.n_experts:
            parts.append("It is a dense model: it has no experts, so nothing streams.")
        self.say(" ".join(parts), "warning" if info.lossy else "info")
        self._welcome()
        self.main.monitoring.model_loaded(info, self.main.controller.pid)
        if not self.flow.busy:  # else the answer that is waiting for this load does it first
            self.run_worker(self.flow.bring_context(), group="context")

    def on_load_failed(self, event: messages.LoadFailed) -> None:
        """One sentence; the model that was loaded before is gone or stays, as the engine says."""
        model = self.main.controller.model
        self.query_one(TitleBar).show_model(model)
        self.busy_changed()
        cancelled = event.code == "cancelled"
        self.say("Loading was cancelled." if cancelled else event.sentence, "info" if cancelled else "error")
        self._welcome()

    def on_engine_died(self, event: messages.EngineDied) -> None:
        """The engine is gone between answers (in an answer its end says so too)."""
        self.query_one(TitleBar).show_model(None, "engine stopped")
        self.main.monitoring.engine_gone()
        if not self.flow.busy:
            self.say(f"{cause(event.sentence)} The next question starts it again.", "error")

    def on_engine_notice(self, event: messages.EngineNotice) -> None:
        """Something to know, though nothing failed."""
        self.notify(
            visible_line(event.sentence, 300),
            severity="warning" if event.level == "warning" else "information",
            timeout=10,
            markup=False,
        )

    # ---- the empty chat -------------------------------------------------------------------------------------------

    def _name_of(self, path: str) -> str:
        return "the guide" if path == str(paths.guide_model()) else visible_line(path.rsplit("/", 1)[-1], 50)

    def _welcome(self) -> None:
        welcome = self.query_one(Welcome)
        controller = self.main.controller
        request = controller.request
        guide = request is not None and request.path == str(paths.guide_model())
        if request is None:
            welcome.say(
                "Chat with Mixture-of-Experts models larger than your memory.\n"
                f"{self.key('chat.models')} chooses a model to begin with.",
                f"{self.key('app.palette')} all commands   {self.key('app.help')} help",
                guide=False,
            )
        elif guide:
            welcome.say(
                "This is the guide, a small model that knows this program.\nAsk it something:",
                f"Tab and Enter choose one, or type your own   {self.key('chat.models')} other models",
                guide=True,
            )
        else:
            name = controller.model.name if controller.model is not None else self._name_of(request.path)
            welcome.say(
                f"{visible_line(name, 50)}\nWrite below; {self.key('composer.send')} sends.",
                f"{self.key('chat.settings')} system prompt and sampling   {self.key('chat.attach')} attach a file   "
                f"{self.key('chat.chats')} earlier chats",
                guide=False,
            )


def cause(sentence: str) -> str:
    """Why the engine died, without the advice to load again: here that happens by itself."""
    return sentence.replace("; load the model again", "")
