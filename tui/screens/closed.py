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
    nodes: list[object] = [active_message_pump.get(None)]
    with contextlib.suppress(NoActiveWorker):  # a screen that a worker opened runs in that worker's context, too
        nodes.append(get_current_worker().node)
    screens = [node if isinstance(node, Screen) else node.screen for node in nodes if isinstance(node, Widget)]
    return any(screen not in app.screen_stack for screen in screens)
