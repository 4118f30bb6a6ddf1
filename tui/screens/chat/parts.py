"""What the objects that make up the main screen ask of it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from tui.chat.archive import Archive
from tui.chat.flow import ChatFlow
from tui.host import Host
from tui.widgets.activity_line import ActivityLine
from tui.widgets.composer import AttachmentBar, Composer
from tui.widgets.find_bar import FindBar
from tui.widgets.key_bar import KeyBar
from tui.widgets.queue_bar import QueueBar
from tui.widgets.title_bar import TitleBar
from tui.widgets.transcript.transcript import Transcript
from tui.widgets.welcome import Welcome


class ChatParts(Protocol):
    """The main screen, as its own objects see it: its widgets, the app behind it, and where to say something."""

    @property
    def host(self) -> Host:
        """The app."""
        ...

    @property
    def flow(self) -> ChatFlow:
        """What happens between composer, engine and history."""
        ...

    @property
    def archive(self) -> Archive:
        """The history."""
        ...

    @property
    def is_mounted(self) -> bool:
        """Whether there are widgets."""
        ...

    @property
    def composer(self) -> Composer:
        """Where the user types."""
        ...

    @property
    def attachments(self) -> AttachmentBar:
        """What goes along with the next question."""
        ...

    @property
    def queue(self) -> QueueBar:
        """The questions that wait."""
        ...

    @property
    def find_bar(self) -> FindBar:
        """Finds text in the chat."""
        ...

    @property
    def transcript(self) -> Transcript:
        """The chat."""
        ...

    @property
    def activity(self) -> ActivityLine:
        """The line over the composer."""
        ...

    @property
    def title_bar(self) -> TitleBar:
        """Model, context and speed."""
        ...

    @property
    def key_bar(self) -> KeyBar | None:
        """The keys that help now; None while the app ends."""
        ...

    @property
    def welcome(self) -> Welcome:
        """What an empty chat says."""
        ...

    def say(self, sentence: str, level: str = "info") -> None:
        """One sentence over the composer."""
        ...

    def key(self, binding_id: str) -> str:
        """The key in force for an action."""
        ...

    def start(self, work: Coroutine[Any, Any, object], *, opens: bool = False) -> None:
        """Runs a coroutine apart from message handlers; what the history refuses is said. `opens`: what is typed
        meanwhile is for the screen that it will open."""
        ...

    def call_after_refresh(self, callback: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Calls back once what has changed is on the screen."""
        ...
