"""The app: options, themes, keys, screens, signals. Everything else has a module of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import sys
import termios
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from textual import events
from textual.app import SystemCommand
from textual.css.query import NoMatches
from textual.screen import Screen
from textual.worker import WorkerFailed

from backends.interface import LoadRequest
from flashmoe import paths
from flashmoe.config.chosen import read_chosen
from flashmoe.config.load import load_config
from flashmoe.config.loading import is_server, kept_prompts, load_request
from flashmoe.config.schema import LoadedConfig
from flashmoe.history.records import HistoryError
from tui import keymap as keys
from tui.downloading import Downloading
from tui.engine.controller import EngineController
from tui.engine.messages import DownloadNews
from tui.monitor.monitoring import Monitoring
from tui.screens.app_keys import TOLD_S, AppKeys
from tui.screens.app_looks import AppLooks
from tui.screens.chat.screen import ChatScreen
from tui.terminal import facts as terminal
from tui.terminal.repaint import SparingApp
from tui.terminal.too_small import SMALL_CSS, SmallTerminal

T = TypeVar("T")


@dataclass(frozen=True)
class AppOptions:
    """How the app was started; None leaves a choice to the configuration."""

    request: LoadRequest | None = None
    """The model to load at once."""
    defaults: LoadRequest | None = None
    """Load flags for whatever is loaded in the app (its path is not used)."""
    demo: bool = False
    """Load the guide at once."""
    calm: bool | None = None
    record: Path | None = None
    """Record the monitor's samples to this file."""
    theme: str | None = None
    chat: int | None = None
    """Open this chat of the history."""
    measure: bool = True
    """Sample the machine for the monitor."""


class FlashmoeApp(SparingApp, AppLooks, AppKeys):
    """One window on one engine."""

    TITLE = "flashmoe-tui"
    BINDINGS = keys.bindings("app")
    ENABLE_COMMAND_PALETTE = True
    CSS_PATH = "screens/chat/chat.tcss"  # here, since the default screen's own sheet is not loaded
    CSS = (
        SMALL_CSS
        + """
    ToastRack { dock: top; align: right top; margin: 1 0 0 0; }
    Toast { padding: 0 1; margin: 0 0 1 0; max-width: 60%; }
    OptionList { scrollbar-size-vertical: 1; }
    OptionList > .option-list--option-highlighted,
    OptionList:focus > .option-list--option-highlighted {
        background: $selected; color: $foreground; text-style: none;
    }
    OptionList:ansi > .option-list--option-highlighted, OptionList:nocolor > .option-list--option-highlighted {
        background: ansi_default; color: ansi_default; text-style: reverse;
    }
    Screen:nocolor > .screen--selection { text-style: reverse; }
    CommandPalette > Vertical { width: 84; max-width: 96%; }
    CommandPalette #--input { border: round $primary; }
    """
    )

    def __init__(self, options: AppOptions, loaded: LoadedConfig | None = None, **extra: Any) -> None:
        self.loaded = loaded if loaded is not None else load_config()
        super().__init__(**extra)
        self.options = options
        self.config = self.loaded.config
        calm = options.calm if options.calm is not None else {"on": True, "off": False}.get(self.config.ui.calm)
        self.calm = terminal.over_ssh() if calm is None else calm
        self.animation_level = "none"
        self.use_keys(keys.resolve(self.config.ui.keys, read_chosen().keys or "standard"))
        self.theme = self.first_theme(options.theme)
        self._painted = False
        self._first_colours = self.get_css_variables()
        self.stylesheet.set_variables(self._first_colours)
        self.controller = EngineController(self._to_chat, log_path=paths.log_file("engine.log"), calm=self.calm)
        # Known before it is loaded: a question that is asked at once waits for it.
        if options.demo:
            self.controller.request = self.with_defaults(str(paths.guide_model()))
        elif options.request is not None:
            self.controller.request = self._kept(options.request)
        self.monitoring = Monitoring(self)
        self.downloading = Downloading(self)
        self.chat_screen = ChatScreen(self)
        self._small = SmallTerminal(self)
        self._ending = False
        self._terminal_gone = False
        # What is typed while the chat is read belongs to it.
        self._chat_is_there = self.hold_keys() if options.chat is not None else None
        self.caught: list[BaseException] = []
        """What workers didn't foresee; each was told."""

    # ---- start ----------------------------------------------------------------------------------------------------

    def refresh_css(self, animate: bool = True) -> None:
        """Not once more before the first paint: the sheets were parsed with this theme's colours to begin with."""
        if self._painted or self.get_css_variables() != self._first_colours:
            super().refresh_css(animate)

    def configured(self, name: str) -> bool:
        """Whether the configuration file sets this field: it wins over what was chosen in the app."""
        return name in self.loaded.lines

    def get_default_screen(self) -> Screen[Any]:
        """The main screen is there from the start."""
        return self.chat_screen

    def on_mount(self) -> None:
        """Signals now; the engine, the history and the monitor after the first paint."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGHUP, signal.SIGTERM):
            with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread (tests)
                loop.add_signal_handler(number, self._on_signal, number)
        if not self.is_headless:
            self.set_interval(2.0, self._check_terminal)
        self.screen_change_signal.subscribe(self, self._small.screen_changed)
        self._small.resized(self.size)
        # A full collection walks every widget: tens of milliseconds in which no key shows. What is there at the start
        # stays; what comes later is looked at in small portions (20,000 objects took 12 ms and more).
        gc.freeze()
        gc.set_threshold(3_000, 50, 100)
        gc.enable()  # the command switched it off
        self.chat_screen.call_after_refresh(self._start_late)

    def on_resize(self, event: events.Resize) -> None:
        """Too small for any screen, or large enough again."""
        self._small.resized(event.size)

    async def _start_late(self) -> None:
        self._painted = True
        if self.controller.request is not None and self.controller.state == "dead":  # else a question came first
            self.controller.load(self.controller.request)
        problems = [problem.sentence for problem in self.loaded.problems]
        problems += [
            f"{self.loaded.place('ui.keys')}: {problem}" if self.loaded.exists else problem
            for problem in self.keymap.problems
        ]
        for problem in [*problems, *self.theme_set.problems]:
            self.notify(problem, severity="warning", timeout=15, markup=False)
        self.chat_screen.run_worker(self._open_history_or_say())
        self.chat_screen.run_worker(self.downloading.start())
        self.chat_screen.run_worker(_warm_up, thread=True, group="warm-up")
        await self.monitoring.start(
            self.chat_screen.query_one("#monitor"),
            self.chat_screen.query_one("#strip"),
            measure=self.options.measure,
            record=self.options.record,
        )

    async def _open_history_or_say(self) -> None:
        try:
            await self._open_history()
        except HistoryError as error:
            if not self._ending and self.chat_screen.is_mounted:  # an app that ends at once has closed it already
                self.chat_screen.say(error.message, "error")
        except NoMatches:
            pass  # the screen went meanwhile
        finally:
            if self._chat_is_there is not None:
                self._chat_is_there()

    async def _open_history(self) -> None:
        from flashmoe.history.kept_prompts import forget_prompts

        history = await self.chat_screen.history()
        if history.problem:
            self.notify(history.problem, severity="warning", timeout=15, markup=False)
        for problem in (await asyncio.to_thread(self.chat_screen.flow.given.read_presets)).problems:
            self.notify(problem.sentence, severity="warning", timeout=15, markup=False)
        prompts = await history.in_thread(history.recent_prompts)
        self.chat_screen.composer.prompts.remember_all(list(reversed(prompts)))
        if self.options.chat is not None:
            await self.chat_screen.opening.show_chat(self.options.chat)
        section = self.config.history
        gone = await history.in_thread(history.housekeep, keep_days=section.keep_days, trash_days=section.trash_days)
        await asyncio.to_thread(forget_prompts, gone)

    def _handle_exception(self, error: Exception) -> None:
        """One net under every worker: what one of them didn't foresee is told and noted, and the app goes on."""
        from flashmoe import failures
        from tui.screens.closed import is_of_a_closed_screen

        cause = error.error if isinstance(error, WorkerFailed) else error
        if isinstance(cause, NoMatches) and is_of_a_closed_screen(self):
            return  # a timer or a worker of it came too late
        if not isinstance(error, WorkerFailed):
            super()._handle_exception(error)
            return
        self.caught.append(error.error)
        sentence = f"{failures.told(error.error)} {failures.kept(error.error)}"
        self.notify(sentence, title="Something went wrong", severity="error", timeout=15, markup=False)

    def _to_chat(self, message: Any) -> None:
        if not self._ending:
            self.chat_screen.post_message(message)

    # ---- models ---------------------------------------------------------------------------------------------------

    def with_defaults(self, path: str) -> LoadRequest:
        """A request for `path` with the command line's load flags, else the configuration's."""
        defaults = self.options.defaults
        if defaults is not None:
            backend = "auto" if is_server(path) else defaults.backend  # what was asked for is for files
            return self._kept(msgspec.structs.replace(defaults, path=path, backend=backend))
        return self._kept(load_request(path, self.config.backend))

    def _kept(self, request: LoadRequest) -> LoadRequest:
        """`request` so that what is read of chats is kept for the next start, as configured."""
        return msgspec.structs.replace(request, **kept_prompts(self.config.kv_cache))

    async def choose_model(self, *, downloads: bool = False) -> None:
        """Lets the user choose a model and loads it; `downloads` puts the cursor on what is being downloaded."""
        from tui.screens.models.screen import ModelsScreen

        path = await self.ask_screen(ModelsScreen(self, downloads=downloads))
        if path is not None:
            await self.load_model(path)

    async def load_model(self, path: str) -> None:
        """Loads another model; asks first where that ends an answer."""
        if self.chat_screen.flow.busy and not await self._may_end_answer():
            return
        await self.chat_screen.flow.leave()
        self.controller.load(self.chat_screen.flow.given.with_chosen_context(self.with_defaults(path)))

    async def _may_end_answer(self) -> bool:
        from tui.screens.dialogs import Choice, ChoiceDialog

        said = "Loading another model stops it. What is written so far is kept."
        stop = Choice("stop", "Stop the answer and load the model")
        wait = Choice("wait", "Let it finish", "The model isn't loaded")
        return await self.ask_screen(ChoiceDialog("An answer is being written", said, [wait, stop])) == "stop"

    def on_download_news(self, news: DownloadNews) -> None:
        """A download moved: the model screen shows it, elsewhere its end is told."""
        from tui.screens.models.screen import ModelsScreen

        shown = next((screen for screen in self.screen_stack if isinstance(screen, ModelsScreen)), None)
        if shown is not None and shown.is_mounted:
            shown.download_news(news.view)
        self.downloading.announce(news.view, quiet=shown is not None)

    def open_experts(self) -> None:
        """The full-screen expert map, where the loaded model has experts."""
        feed = self.monitoring.feed
        model = self.controller.model
        if feed is None or model is None or not model.n_experts:
            remote = model is not None and model.backend == "remote"
            why = "This model is dense: it has no experts."
            if remote:
                why = "This model runs on a server: its experts can't be seen from here."
            self.chat_screen.say(why if model is not None else "No model is loaded.", "warning")
            return
        from tui.screens.experts import ExpertsScreen

        self.monitoring.experts_open = True
        self.push_screen(ExpertsScreen(feed), self._experts_closed)
        self.chat_screen.run_worker(self.monitoring.layout_changed())

    async def _experts_closed(self, _: None) -> None:
        self.monitoring.experts_open = False
        await self.monitoring.layout_changed()

    # ---- screens --------------------------------------------------------------------------------------------------

    async def ask_screen(self, screen: Screen[T]) -> T | None:
        """Shows a screen and waits for its answer; for coroutines that run apart from message handlers."""
        answer: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()

        def done(value: T | None) -> None:
            if not answer.done():
                answer.set_result(value)

        await self.push_screen(screen, done)
        self.release_keys()
        return await answer

    def action_help(self) -> None:
        """F1."""
        from tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.keymap))

    def action_redraw(self) -> None:
        """Sends the whole screen again."""
        self.redraw()

    async def stop_what_runs(self) -> bool:
        """Stops an answer or a load; False where there is none."""
        return await self.chat_screen.asking.interrupt()

    def tell(self, sentence: str) -> None:
        """On the main screen over the composer, elsewhere in a toast."""
        if self.screen is self.chat_screen:
            self.chat_screen.activity.say(sentence, seconds=TOLD_S)
        else:
            super().tell(sentence)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette: every action of the screen, by what it does, with its key."""
        from tui.screens.palette import palette_commands

        on_chat = screen is self.chat_screen
        yield from palette_commands(self.keymap, frozenset({"app", "chat"} if on_chat else {"app"}), self._runner)
        if on_chat:
            copy, edit = self.chat_screen.copying.copy_command, self.chat_screen.drafting.open_editor
            yield SystemCommand("Copy the last command", "The last shell command of the answer", copy)
            yield SystemCommand("Write in your editor", "Opens the composer's text in $VISUAL or $EDITOR", edit)

    def _runner(self, action: str) -> Any:
        async def run() -> None:
            await self.run_action(action, default_namespace=self.chat_screen)

        return run

    # ---- the terminal ---------------------------------------------------------------------------------------------

    @property
    def engine_pid(self) -> int | None:
        """The engine's process, to be stopped with the app."""
        return self.controller.pid

    def write_terminal(self, sequence: str) -> None:
        """Writes an escape sequence of the app's own making (never a model's) to the terminal."""
        if self._driver is not None:
            self._driver.write(sequence)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self.terminal_lost()
        else:
            self._end(128 + number)

    def terminal_lost(self) -> None:
        """The terminal is gone: end as on SIGHUP, once. It is looked at every 2 s, and an end that takes longer, as
        where a question waits in a dialog, would be begun anew each time."""
        if not self._terminal_gone:
            self._terminal_gone = True
            self._end(128 + signal.SIGHUP)

    def _check_terminal(self) -> None:
        try:
            termios.tcgetattr(sys.__stdin__.fileno())  # type: ignore[union-attr]
        except (termios.error, OSError, ValueError, AttributeError):
            self.terminal_lost()

    def _end(self, code: int) -> None:
        if not self._ending:
            self.run_worker(self._shut_down(code), exclusive=True, group="end")

    async def action_quit(self) -> None:
        """Saves and ends."""
        self._end(0)

    async def _shut_down(self, code: int) -> None:
        """Chats saved, the engine stopped; then the screen goes."""
        screen = self.chat_screen
        with contextlib.suppress(Exception):  # whatever fails here must not keep the rest from being saved
            await asyncio.wait_for(screen.flow.keep_draft(screen.composer.text), 5)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(screen.flow.leave(), 5)
        self._ending = True
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.downloading.close(), 8)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.monitoring.stop(), 5)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.controller.close(), 10)
        with contextlib.suppress(Exception):
            (await screen.history()).close()
        self.exit(code, return_code=code)


def _warm_up() -> None:
    """What the first answer will need and the first paint didn't."""
    import tui.widgets.transcript.safe_markdown  # noqa: F401


def run_app(options: AppOptions, loaded: LoadedConfig) -> int:
    """Runs the app in this terminal; returns the exit code."""
    from tui.terminal.driver import AppDriver

    app = FlashmoeApp(options, loaded, driver_class=AppDriver)
    try:
        app.run()
    finally:
        app.controller.kill()  # only where the app ended without shutting down
    return app.return_code or 0


__all__ = ["AppOptions", "FlashmoeApp", "run_app"]
