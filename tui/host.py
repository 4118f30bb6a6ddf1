"""What screens, and the objects that belong to the app, may ask of it. They know this, never the app."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from textual.screen import Screen

from flashmoe.config.schema import Config
from tui.downloading import Downloading
from tui.engine.controller import EngineController
from tui.keymap import Keymap
from tui.monitor.monitoring import Monitoring
from tui.notifier import Notifier

T = TypeVar("T")


class Host(Notifier, Protocol):
    """The app, as its screens see it."""

    @property
    def keymap(self) -> Keymap:
        """The keys in force."""
        ...

    @property
    def config(self) -> Config:
        """The configuration, as it was read at the start."""
        ...

    @property
    def controller(self) -> EngineController:
        """The engine."""
        ...

    @property
    def monitoring(self) -> Monitoring:
        """What feeds the panes of the monitor."""
        ...

    @property
    def downloading(self) -> Downloading:
        """The downloads."""
        ...

    async def ask_screen(self, screen: Screen[T]) -> T | None:
        """Shows a screen and waits for its answer; for coroutines that run apart from message handlers."""
        ...

    def configured(self, name: str) -> bool:
        """Whether the configuration file sets this field (``ui.monitor``): it wins over what was chosen in the app."""
        ...

    def hold_keys(self) -> Callable[[], None]:
        """Keys wait until what is returned is called, a screen asks, or some seconds have passed: for what will open a
        screen, or empty the composer, once it has waited for something."""
        ...

    async def choose_model(self, *, downloads: bool = False) -> None:
        """Lets the user choose a model and loads it; `downloads` puts the cursor on what is being downloaded."""
        ...

    async def load_model(self, path: str) -> None:
        """Loads another model."""
        ...

    @property
    def theme_names(self) -> list[str]:
        """The themes that can be chosen."""
        ...

    def choose_theme(self, name: str) -> bool:
        """Takes a theme and keeps the choice; False where there is none of that name."""
        ...

    def choose_key_set(self, name: str) -> None:
        """Takes a named set of keys and keeps the choice."""
        ...

    def open_experts(self) -> None:
        """The full-screen expert map, where the loaded model has experts."""
        ...

    def write_terminal(self, sequence: str) -> None:
        """Writes an escape sequence of the program's own making (never a model's) to the terminal."""
        ...

    def suspend(self) -> Any:
        """A context in which another program has the terminal. Raises `SuspendNotSupported`."""
        ...
