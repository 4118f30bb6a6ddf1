"""What the objects of the model screen ask of it."""

from __future__ import annotations

from typing import Protocol

from flashmoe.plans.model_list import Row
from tui.host import Host


class ModelsView(Protocol):
    """The model screen, as what finds models and what acts on them see it."""

    @property
    def host(self) -> Host:
        """The app."""
        ...

    @property
    def here(self) -> Row | None:
        """The row under the cursor."""
        ...

    def set_rows(self, section: str, rows: list[Row], note: str = "") -> None:
        """Replaces one section (``here``, ``catalogue``, ``hub``)."""
        ...

    def note(self, section: str, note: str) -> None:
        """A few words beside a section's heading."""
        ...

    def describe(self) -> None:
        """Draws what is known about the row under the cursor."""
        ...

    def say(self, sentence: str, *, error: bool = False) -> None:
        """What happened, above the keys."""
        ...

    def forget_download(self, id: str) -> None:
        """Takes a download off the pane."""
        ...

    def finish(self, path: str) -> None:
        """Closes the screen: this model is to be loaded."""
        ...
