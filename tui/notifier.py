"""Who can show a toast: the app, as the objects that belong to it see it."""

from __future__ import annotations

from typing import Protocol

from textual.notifications import SeverityLevel


class Notifier(Protocol):
    """Shows a short message above everything else, for a while."""

    def notify(
        self,
        message: str,
        *,
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """A toast."""
        ...
