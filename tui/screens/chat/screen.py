"""The main screen: title, chat, composer, monitor. It is the frame; what happens in it is done by objects beside it,
which know it as `ChatParts`: `ChatFlow` decides, `EngineController` computes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any

from textual import events, on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.screen import Screen

from flashmoe.config.chosen import choose, read_chosen
from flashmoe.history.records import HistoryError
from tui.chat.archive import Archive
from tui.chat.flow import ChatFlow
from tui.engine import messages
from tui.host import Host
from tui.keymap import bindings
from tui.screens.chat.answering import Answering
from tui.screens.chat.asking import Asking
from tui.screens.chat.chat_view import ChatView
from tui.screens.chat.commands import SlashCommands
from tui.screens.chat.drafting import Drafting
from tui.screens.chat.engine_news import IDLE_KEYS, EngineNews
from tui.screens.chat.welcoming import show_welcome
from tui.terminal.repaint import SparingCompositor
from tui.widgets.activity_line import ActivityLine
from tui.widgets.composer import AttachmentBar, Composer
from tui.widgets.find_bar import FindBar
from tui.widgets.key_bar import KeyBar
from tui.widgets.offers import OfferList
from tui.widgets.queue_bar import QueueBar
from tui.widgets.title_bar import TitleBar
from tui.widgets.transcript.transcript import Transcript
from tui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from flashmoe.history import History
    from tui.screens.chat.copying import Copying
    from tui.screens.chat.finding import Finding
    from tui.screens.chat.opening import Opening


class Act:
    """An action that one of the screen's objects carries out: ``action_stop = Act(lambda screen: screen.asking.stop)``.

    Textual looks an action up as an attribute of the screen; here it finds the object's own method."""

    def __init__(self, of: Callable[[ChatScreen], Callable[..., object]]) -> None:
        self._of = of

    def __get__(self, screen: ChatScreen | None, _: type[ChatScreen]) -> Any:
        return self if screen is None else self._of(screen)


class ChatScreen(Screen[None]):
    """One chat with one engine."""

    BINDINGS = bindings("chat")
    AUTO_FOCUS = "#composer"
    HORIZONTAL_BREAKPOINTS = [
        (0, "-slim"),
        (80, "-narrow"),
        (100, "-wide"),
        (160, "-huge"),
        (180, "-vast"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (22, "-medium"), (30, "-tall")]  # 80x24 less the line of tmux

    host: Host
    drafting: Drafting
    asking: Asking

    def __init__(self, host: Host) -> None:
        super().__init__(id="chat")
        self._compositor = SparingCompositor()
        self._resumed = False
        self.host = host
        self.archive = Archive()
        self.engine_news = EngineNews(self)
        self.view = ChatView(self, self._busy_changed)
        self.flow = ChatFlow(self.view, host.controller, host.config)
        self.answering = Answering(self)
        self.drafting = Drafting(self)
        self.asking = Asking(self, self.drafting, self._fold_monitor)
        self.commands = SlashCommands(self, self.drafting, self.run_action)

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
                transcript = Transcript(self.host.keymap, markdown=self.host.config.ui.markdown)
                transcript.display = False
                yield transcript
                yield ActivityLine()
                yield FindBar()
                yield QueueBar()
                yield AttachmentBar()
                yield OfferList()
                composer = Composer(blink=False)
                composer.completer = self.commands.offers
                yield composer
            yield Vertical(id="monitor")
        yield KeyBar(self.host.keymap, IDLE_KEYS)

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        """At the start every style was worked out a moment ago, when the widgets were mounted."""
        if not self._resumed:
            self._resumed, event.refresh_styles = True, False

    def on_mount(self) -> None:
        """First the screen, then everything that takes time."""
        show_welcome(self.welcome, self.host.controller, self.host.keymap)
        hidden = self.host.config.ui.monitor == "hidden"
        if not hidden and not self.host.configured("ui.monitor"):
            hidden = read_chosen().monitor is False
        self.set_class(hidden, "-folded")

    # ---- objects that no start waits for ---------------------------------------------------------------------------

    @cached_property
    def opening(self) -> Opening:
        """Opens chats, settings, models."""
        from tui.screens.chat.opening import Opening

        return Opening(self, self.drafting)

    @cached_property
    def copying(self) -> Copying:
        """Copies and saves what answers say."""
        from tui.screens.chat.copying import Copying

        return Copying(self)

    @cached_property
    def finding(self) -> Finding:
        """Finds text in the chat."""
        from tui.screens.chat.finding import Finding

        return Finding(self)

    # ---- parts ----------------------------------------------------------------------------------------------------

    @property
    def composer(self) -> Composer:
        """Where the user types."""
        return self.query_one(Composer)

    @property
    def attachments(self) -> AttachmentBar:
        """What goes along with the next question."""
        return self.query_one(AttachmentBar)

    @property
    def queue(self) -> QueueBar:
        """The questions that wait."""
        return self.query_one(QueueBar)

    @property
    def find_bar(self) -> FindBar:
        """Finds text in the chat."""
        return self.query_one(FindBar)

    @property
    def transcript(self) -> Transcript:
        """The chat."""
        return self.query_one(Transcript)

    @property
    def activity(self) -> ActivityLine:
        """The line over the composer."""
        return self.query_one(ActivityLine)

    @property
    def title_bar(self) -> TitleBar:
        """Model, context and speed."""
        return self.query_one(TitleBar)

    @property
    def key_bar(self) -> KeyBar | None:
        """The keys that help now; None while the app ends."""
        return next(iter(self.query(KeyBar)), None) if self.is_mounted else None

    @property
    def welcome(self) -> Welcome:
        """What an empty chat says."""
        return self.query_one(Welcome)

    def say(self, sentence: str, level: str = "info") -> None:
        """One sentence over the composer."""
        self.activity.say(sentence, level)

    def key(self, binding_id: str) -> str:
        """The key in force for an action."""
        return self.host.keymap.display(binding_id)

    async def history(self) -> History:
        """The history, opened when it is first asked for."""
        return await self.archive.history()

    def start(self, work: Coroutine[Any, Any, object], *, opens: bool = False) -> None:
        """Runs a coroutine apart from message handlers; what the history refuses is said. `opens`: what is typed
        meanwhile is for the screen that it will open."""
        self.run_worker(self._guarded(work, self.host.hold_keys() if opens else None), group="flow")

    async def _guarded(self, work: Coroutine[Any, Any, object], done: Callable[[], None] | None) -> None:
        try:
            await work
        except HistoryError as error:
            self.say(error.message, "error")
        finally:
            if done is not None:
                done()

    # ---- what the keys do (`tui.keymap`) --------------------------------------------------------------------------

    action_stop = Act(lambda screen: screen.asking.stop)
    action_continue_answer = Act(lambda screen: screen.asking.continue_answer)
    action_regenerate = Act(lambda screen: screen.asking.regenerate)
    action_branch = Act(lambda screen: screen.asking.branch)
    action_show_all = Act(lambda screen: screen.asking.show_all)
    action_edit_question = Act(lambda screen: screen.drafting.edit_question)
    action_attach = Act(lambda screen: screen.drafting.attach_file)
    action_new_chat = Act(lambda screen: screen.opening.new_chat)
    action_chats = Act(lambda screen: screen.opening.chats)
    action_search_chats = Act(lambda screen: screen.opening.search_chats)
    action_find = Act(lambda screen: screen.finding.open)
    action_settings = Act(lambda screen: screen.opening.settings)
    action_models = Act(lambda screen: screen.opening.models)
    action_downloads = Act(lambda screen: screen.opening.downloads)
    action_experts = Act(lambda screen: screen.host.open_experts)
    action_monitor_span = Act(lambda screen: screen.host.monitoring.cycle_span)
    action_copy_answer = Act(lambda screen: screen.copying.copy_answer)
    action_copy_code = Act(lambda screen: screen.copying.copy_code)
    action_save_answer = Act(lambda screen: screen.copying.save_answer)
    action_scroll_page = Act(lambda screen: screen.transcript.scroll_page)
    action_scroll_edge = Act(lambda screen: screen.transcript.to_edge)
    action_thinking = Act(lambda screen: screen.transcript.action_toggle_thinking)
    action_focus_composer = Act(lambda screen: screen.composer.focus)

    async def action_monitor(self) -> None:
        """Folds the monitor away, or opens it; where there is no room beside the chat it takes the whole width."""
        if any(map(self.has_class, ("-wide", "-huge", "-vast"))):
            self.toggle_class("-folded")
            choose(monitor=not self.has_class("-folded"))
        else:
            self.toggle_class("-opened")
        await self.host.monitoring.layout_changed()

    def _busy_changed(self) -> None:
        self.engine_news.busy_changed()
        if self.is_mounted:
            self.call_later(self.asking.send_queued)

    def _fold_monitor(self) -> bool:
        """Folds a monitor away that covers the chat; False where there is none."""
        opened = self.has_class("-opened")
        self.remove_class("-opened")
        return opened

    # ---- what the widgets say -------------------------------------------------------------------------------------

    def on_composer_sent(self, event: Composer.Sent) -> None:
        """Runs a / command, or asks what was typed."""
        if not self.commands.run(event.text):
            self.asking.send(event.text)

    def on_composer_offers_changed(self, event: Composer.OffersChanged) -> None:
        """What could complete a / command."""
        self.query_one(OfferList).show(event.offers, event.marked)

    def on_welcome_asked(self, event: Welcome.Asked) -> None:
        """Asks one of the offered questions."""
        self.composer.focus()
        self.asking.send(event.question, from_composer=False)

    async def on_find_bar_sought(self, event: FindBar.Sought) -> None:
        """Another text is looked for in the chat."""
        if self.find_bar.has_class("-open"):
            await self.finding.seek(event.text)

    async def on_find_bar_stepped(self, event: FindBar.Stepped) -> None:
        """Another match."""
        await self.finding.step(event.step)

    def on_find_bar_closed(self) -> None:
        """No more."""
        self.finding.close()

    def on_text_selected(self) -> None:
        """The mouse marked text. What is typed next is for the composer, though the chat was clicked at."""
        text = self.get_selected_text() or ""
        self.copying.copy_selection(text)
        if text.strip():
            self.composer.focus()

    def on_transcript_marked(self) -> None:
        """A message is marked: other keys help."""
        self.engine_news.show_keys()

    def on_composer_take_back(self) -> None:
        """The question that was queued last is to be edited."""
        self.asking.edit_queued()

    def on_composer_large_paste(self, event: Composer.LargePaste) -> None:
        """A paste that is too large to edit goes along as an attachment."""
        self.drafting.attach_paste(event.text)

    def on_composer_drop_attachment(self) -> None:
        """Takes the last attachment away."""
        self.drafting.drop_attachment()

    def on_composer_editor_wanted(self) -> None:
        """Opens $EDITOR."""
        self.drafting.open_editor()

    # ---- what the engine and the monitor say ----------------------------------------------------------------------

    async def on_answer_news(self, event: messages.AnswerNews) -> None:
        """More of an answer."""
        await self.answering.take(event)

    @on(messages.EngineMessage)
    def engine_did(self, event: messages.EngineMessage) -> None:
        """A load, a death, a notice."""
        self.engine_news.take(event)

    @on(messages.MonitorMessage)
    async def monitor_saw(self, event: messages.MonitorMessage) -> None:
        """Counters, a map, a look at the machine."""
        await self.host.monitoring.take(event)

    async def on_resize(self) -> None:
        """The monitor may have come into sight, or left it."""
        await self.host.monitoring.layout_changed()
