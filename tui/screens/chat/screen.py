"""The main screen: title, chat, composer, monitor. It shows; `ChatFlow` decides, `EngineController` computes."""

from __future__ import annotations

import asyncio
import gc
import time
from functools import partial
from typing import TYPE_CHECKING

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from backends.interface import PrefillProgress
from flashmoe import figures
from flashmoe.history.records import Attachment as KeptAttachment
from tui.chat.conversation import Turn
from tui.chat.flow import ChatFlow
from tui.chat.view import ContextChoice, FullContext
from tui.engine import messages
from tui.engine.answer import Answer
from tui.keymap import bindings
from tui.monitor.monitoring import SampleTaken
from tui.screens.chat.engine_news import IDLE_KEYS, ChatEngine, cause
from tui.terminal.repaint import SparingCompositor
from tui.widgets.activity_line import ActivityLine
from tui.widgets.composer import Attachment, AttachmentBar, Composer
from tui.widgets.key_bar import KeyBar
from tui.widgets.title_bar import TitleBar
from tui.widgets.transcript.message_view import AnswerView, QuestionView
from tui.widgets.transcript.transcript import Transcript
from tui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from flashmoe.history import History
    from tui.app import FlashmoeApp
    from tui.screens.dialogs import Choice


class ChatScreen(ChatEngine):
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
        self._compositor = SparingCompositor()
        self.main = app
        self.flow = ChatFlow(self, app.controller, app.config)
        self._history: asyncio.Task[History] | None = None
        self._sending = self._resumed = False
        self._figures_at = 0.0
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
        yield KeyBar(self.main.keymap, IDLE_KEYS)

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
        # A long chat is a hundred thousand objects: looked through now rather than in the middle of typing.
        self.set_timer(0.3, partial(gc.collect, 1))

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

    async def choose_context(self, full: FullContext) -> ContextChoice:
        """Asks what goes when the context is full."""
        from tui.screens.dialogs import ChoiceDialog

        said = f"The prompt has {full.tokens:,} tokens, the context {full.n_ctx:,}.\n"
        said += f"The question alone has about {full.alone:,}." if full.alone else "What may go?"
        answer = await self.main.ask_screen(
            ChoiceDialog(
                "The context is full",
                said,
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
            self.say(f"{cause(turn.error)} The next question starts it again; {again} goes on here.", "error")
        elif turn.ending == "error":
            self.say(turn.error, "error")
        elif turn.ending == "length":
            self.say(f"Cut at the length limit; {self.key('chat.continue')} goes on.")
        elif turn.ending != "context":
            self.activity.done()

    # ---- the monitor ----------------------------------------------------------------------------------------------

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
        detail = f"Loads the model again{memory}; kept for this chat"
        choices.append(Choice("grow", f"A context of {full.grow:,} tokens", detail))
    choices.append(Choice("cancel", "Don't ask", "Back to the chat; the question is kept"))
    return choices
