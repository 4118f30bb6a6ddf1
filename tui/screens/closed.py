"""Screens that were closed while something of theirs was still to come."""

from __future__ import annotations

import contextlib
from typing import Any

from textual._context import active_message_pump
from textual.app import App
from textual.screen import Screen
from textual.widget import Widget
from textual.worker import NoActiveWorker, get_current_worker


def is_of_a_closed_screen(app: App[Any]) -> bool:
    """Whether what runs now, a worker or a timer, belongs to a screen that is shown no more: its widgets are gone."""
    node = active_message_pump.get(None)
    with contextlib.suppress(NoActiveWorker):
        node = get_current_worker().node
    screen = node if isinstance(node, Screen) else node.screen if isinstance(node, Widget) else None
    return screen is not None and screen not in app.screen_stack
