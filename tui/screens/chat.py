"""The main screen: title, chat, composer, monitor. It shows; `ChatFlow` decides, `EngineController` computes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from backends.interface import LoadProgress, ModelInfo, PrefillProgress
from flashmoe import paths
from flashmoe.history.records import Attachment as KeptAttachment
from flashmoe.text_safety import visible_line
from tui import figures, messages
from tui.answer import Answer
from tui.chat_flow import ChatFlow
from tui.conversation import Turn
from tui.flow_view import ContextChoice, FullContext
from tui.keymap import bindings
from tui.monitoring import SampleTaken
from tui.screens.chat_actions import ChatActions
from tui.widgets.activity_line import ActivityLine
from tui.widgets.composer import Attachment, AttachmentBar, Composer
from tui.widgets.key_bar import KeyBar
from tui.widgets.message_view import AnswerView, QuestionView
from tui.widgets.title_bar import TitleBar
from tui.widgets.transcript import Transcript
from tui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from flashmoe.history import History
    from tui.app import FlashmoeApp
    from tui.screens.dialogs import Choice

_IDLE_KEYS = ["chat.models", "chat.new", "chat.chats", "chat.experts", "app.palette", "app.help"]
_BUSY_KEYS = ["chat.stop", *_IDLE_KEYS]


class ChatScreen(ChatActions):
    """One chat with one engine."""

    BINDINGS = bindings("chat")
    AUTO_FOCUS = "#composer"
    HORIZONTAL_BREAKPOINTS = [
        (0, "-slim"),
        (80, "-narrow"),
        (100, "-wide"),
        (160, "-huge"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (24, "-tall")]

    def __init__(self, app: FlashmoeApp) -> None:
        super().__init__(id="chat")
        self.main = app
        self.flow = ChatFlow(self, app.controller, app.config)
        self._history: asyncio.Task[History] | None = None
        self._sending = self._resumed = False
        self._last_load_line = self._figures_at = 0.0
        self._figures_of = ""
        self._told_problem: str | None = None

    def compose(self) -> ComposeResult:
        """Everything that the first paint needs; the monitor comes a moment later."""
        width, height = self.app.size  # known already: else every style is worked out again with the first resize
        self.add_class(
            *self._get_breakpoint_classes(width, self.HORIZONTAL_BREAKPOINTS),
            *self._get_breakpoint_classes(height, self.VERTICAL_BREAKPOINTS),
            update=False,
        )
        yield TitleBar()
        yield Vertical(id="strip")
        with Horizontal(id="body"):
            with Vertical(id="chat-column"):
                yield Welcome()
                transcript = Transcript(markdown=self.main.config.ui.markdown)
                transcript.display = False
                yield transcript
                yield ActivityLine()
                yield AttachmentBar()
                yield Composer(blink=False)
            yield Vertical(id="monitor")
        yield KeyBar(self.main.keymap, _IDLE_KEYS)

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        """At the start every style was worked out a moment ago, when the widgets were mounted."""
        if not self._resumed:
            self._resumed, event.refresh_styles = True, False

    def on_mount(self) -> None:
        """First the screen, then everything that takes time."""
        self._welcome()
        self.set_class(self.main.config.ui.monitor == "hidden", "-folded")

    # ---- parts ----------------------------------------------------------------------------------------------------

    @property
    def composer(self) -> Composer:
        """Where the user types."""
        return self.query_one(Composer)

    @property
    def transcript(self) -> Transcript:
        """The chat."""
        return self.query_one(Transcript)

    @property
    def activity(self) -> ActivityLine:
        """The line over the composer."""
        return self.query_one(ActivityLine)

    # ---- FlowView -------------------------------------------------------------------------------------------------

    async def history(self) -> History:
        """The history, opened once, in a thread: a large one takes a moment."""
        if self._history is None:
            self._history = asyncio.create_task(asyncio.to_thread(_open_history))
        return await asyncio.shield(self._history)

    async def show_turns(self, turns: list[Turn]) -> None:
        """Shows another path."""
        self._show_transcript(bool(turns))
        await self.transcript.show(turns, self.flow.conversation.cut)
        self.query_one(TitleBar).show_context(self.flow.ctx_used)

    async def add_turn(self, turn: Turn) -> None:
        """Shows one more turn at the end."""
        self._show_transcript(True)
        await self.transcript.add(turn)
        if turn.role == "user":
            self.transcript.follow()

    def _show_transcript(self, some: bool) -> None:
        self.transcript.display = some
        self.query_one(Welcome).display = not some
        if not some:
            self._welcome()

    def turn_changed(self, turn: Turn) -> None:
        """Shows a turn's figures, ending, error or branches anew."""
        view = self.transcript.view(turn)
        if isinstance(view, QuestionView | AnswerView):
            view.refresh_turn()

    async def reopen_turn(self, turn: Turn) -> None:
        """An answer goes on after it had ended."""
        self.turn_changed(turn)
        self.transcript.follow()

    def busy_changed(self) -> None:
        """An answer began or ended."""
        if not self.is_mounted or not self.query(KeyBar):  # the app is ending
            return
        if self.flow.busy:
            self.query_one(KeyBar).show(_BUSY_KEYS)
            if self.flow.answer_id is not None:
                self.activity.show_waiting("Asked; waiting for the engine…")
        else:
            self.query_one(KeyBar).show(_IDLE_KEYS)

    async def choose_context(self, full: FullContext) -> ContextChoice:
        """Asks what goes when the context is full."""
        from tui.screens.dialogs import ChoiceDialog

        answer = await self.main.ask_screen(
            ChoiceDialog(
                "The context is full",
                f"The prompt has {full.tokens:,} tokens, the context {full.n_ctx:,}.\nWhat may go?",
                _context_choices(full, self.key("chat.show_all")),
            )
        )
        return answer if answer in ("drop", "summarise", "grow") else "cancel"  # type: ignore[return-value]

    async def cut_changed(self) -> None:
        """The model is shown more or less of the chat than before."""
        await self.transcript.show_cut(self.flow.conversation.cut)

    def summarising(self, n_turns: int, prefill: PrefillProgress | None, tokens: int) -> None:
        """A summary is being made."""
        self.activity.show_summarising(n_turns, prefill, tokens, self.key("chat.stop"))

    # ---- sending --------------------------------------------------------------------------------------------------

    def on_composer_sent(self, event: Composer.Sent) -> None:
        """Asks what was typed; the composer is emptied once the question is kept."""
        self._send(event.text)

    def on_welcome_asked(self, event: Welcome.Asked) -> None:
        """Asks one of the offered questions."""
        self.composer.focus()
        self._send(event.question, from_composer=False)

    def _send(self, text: str, *, from_composer: bool = True) -> None:
        bar = self.query_one(AttachmentBar)
        if self._sending or not (text.strip() or bar.items):
            return
        self._sending = True
        self.run_worker(self._send_now(text, from_composer), group="send")

    async def _send_now(self, text: str, from_composer: bool) -> None:
        bar = self.query_one(AttachmentBar)
        kept = tuple(KeptAttachment(item.name, item.text) for item in bar.items)
        try:
            accepted = await self.flow.send(text, kept, self._editing)
        finally:
            self._sending = False
        if not accepted:
            return
        if from_composer:
            self.composer.accepted(text)
        bar.items.clear()
        bar.changed()
        if self._editing is not None:
            self._end_editing(restore=True)
        await self.flow.answer()

    def on_composer_large_paste(self, event: Composer.LargePaste) -> None:
        """A paste that is too large to edit goes along as an attachment."""
        lines = event.text.count("\n") + 1
        self.attach_text(Attachment(f"pasted text, {lines:,} lines" if lines > 1 else "pasted text", event.text))

    def on_composer_drop_attachment(self) -> None:
        """Takes the last attachment away."""
        bar = self.query_one(AttachmentBar)
        if bar.items:
            bar.items.pop()
            bar.changed()

    def on_composer_editor_wanted(self) -> None:
        """Opens $EDITOR."""
        self.open_editor()

    # ---- the answer comes -----------------------------------------------------------------------------------------

    async def on_answer_news(self, event: messages.AnswerNews) -> None:
        """Takes what has come and shows it; the next news comes when this is on the screen."""
        taken = self.flow.take(event.answer_id)
        if taken is None:
            return
        answer, parts, last = taken
        turn = self.flow.turn
        view = self.transcript.view(turn) if turn is not None else None
        if parts and isinstance(view, AnswerView):
            await view.feed(parts)
        self._show_progress(answer)
        if last:  # not `answer.ended`: it may have ended while these parts were drawn, with more text to take
            await self.flow.finish(answer)
            if isinstance(view, AnswerView):
                await view.end()
            self._show_end(answer, turn)
            return
        self.call_after_refresh(self.main.controller.taken, answer)

    def _show_progress(self, answer: Answer) -> None:
        now, stop = time.monotonic(), self.key("chat.stop")
        if answer.first_token is None:
            if answer.prefill is not None:
                self.activity.show_prefill(answer.prefill, now, stop)
            return
        if self._figures_of == answer.id and now - self._figures_at < 1.0:
            return  # figures that change with every token can't be read, and cost a repaint each
        self._figures_of, self._figures_at = answer.id, now
        self._tell_problem()
        title = self.query_one(TitleBar)
        title.show_context(self.flow.ctx_used)
        title.show_rate(answer.rate())
        thinking = bool(self.flow.turn is not None and self.flow.turn.thinking and not self.flow.turn.content)
        self.activity.show_answering(answer.n_tokens, now - answer.first_token, stop, thinking)

    def _tell_problem(self) -> None:
        """Says once that the answer can't be written to the disk, while it can't."""
        history = self._history.result() if self._history is not None and self._history.done() else None
        problem = history.problem if history is not None and history.persistent else None
        if problem and problem != self._told_problem:
            self.notify(f"{problem} Until then the answer is only in memory.", severity="warning", markup=False)
        self._told_problem = problem

    def _show_end(self, answer: Answer, turn: Turn | None) -> None:
        title = self.query_one(TitleBar)
        title.show_context(self.flow.ctx_used)
        title.show_rate(turn.figures.tok_s if turn is not None and turn.figures is not None else None)
        if turn is None:
            return
        self.turn_changed(turn)
        if turn.ending == "cancelled":
            self.say(f"Stopped. {self.key('chat.continue')} goes on, {self.key('chat.regenerate')} answers again.")
        elif turn.ending == "died":
            again = self.key("chat.continue") if turn.content else self.key("chat.regenerate")
            self.say(f"{_cause(turn.error)} The next question starts it again; {again} goes on here.", "error")
        elif turn.ending == "error":
            self.say(turn.error, "error")
        elif turn.ending == "length":
            self.say(f"Cut at the length limit; {self.key('chat.continue')} goes on.")
        elif turn.ending != "context":
            self.activity.clear()

    # ---- the engine -----------------------------------------------------------------------------------------------

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
            self.say(f"{_cause(event.sentence)} The next question starts it again.", "error")

    def on_engine_notice(self, event: messages.EngineNotice) -> None:
        """Something to know, though nothing failed."""
        self.notify(
            visible_line(event.sentence, 300),
            severity="warning" if event.level == "warning" else "information",
            timeout=10,
            markup=False,
        )

    def on_telemetry_arrived(self, event: messages.TelemetryArrived) -> None:
        """Counters for the monitor."""
        self.main.monitoring.telemetry(event.telemetry)

    def on_expert_map_arrived(self, event: messages.ExpertMapArrived) -> None:
        """The expert map for the monitor."""
        self.main.monitoring.expert_map(event.expert_map)

    async def on_sample_taken(self, event: SampleTaken) -> None:
        """A look at the machine for the monitor."""
        await self.main.monitoring.push(event.sample)

    async def on_resize(self) -> None:
        """The monitor may have come into sight, or left it."""
        await self.main.monitoring.layout_changed()

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


def _open_history() -> History:
    from flashmoe.history import History

    return History()


def _context_choices(full: FullContext, undo_key: str) -> list[Choice]:
    """What can be done about a full context."""
    from tui.screens.dialogs import Choice

    choices: list[Choice] = []
    if full.oldest:
        which = f"the oldest {full.oldest} of {full.shown} messages" if full.oldest > 1 else "the oldest message"
        undo = f"; {undo_key} undoes it" if undo_key else ""
        choices += [
            Choice("drop", f"Leave out {which}", f"Still in the chat, not shown to the model{undo}"),
            Choice("summarise", f"Summarise {which}", f"The model writes one to stand in for them{undo}"),
        ]
    if full.grow:
        memory = f", with {figures.size(full.grow_bytes)} more memory" if full.grow_bytes else ""
        choices.append(Choice("grow", f"A context of {full.grow:,} tokens", f"Loads the model again{memory}"))
    choices.append(Choice("cancel", "Don't ask", "Back to the chat; the question is kept"))
    return choices


def _cause(sentence: str) -> str:
    """Why the engine died, without the advice to load again: here that happens by itself."""
    return sentence.replace("; load the model again", "")
