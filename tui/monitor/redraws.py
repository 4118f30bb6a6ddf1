"""When the monitor's panes are drawn again: seldom, since painting takes time from the threads that compute."""

from __future__ import annotations

BUSY_S = 1.0
IDLE_S = 5.0
"""Seconds between repaints while the engine does nothing: every one is some hundred bytes over the wire."""
_SETTLE_S = 3.0
"""After the last token: the last figures and the last map come when the engine is idle already."""
_EARLY_S = 0.1
"""Samples come when they come: one that is so much early counts as due."""


class Redraws:
    """Decides per sample. Figures are over seconds, so a second is soon enough; a change of what the engine does isn't
    waited for."""

    def __init__(self) -> None:
        self._t = -1e9
        self._state: object = None
        self._settled_t = -1e9

    def due(self, t: float, state: object, *, busy: bool) -> bool:
        """Whether to draw the sample of time `t`, in seconds; `state`: what must show at once when it changes."""
        waited = t - self._t
        if busy:
            self._settled_t = t + _SETTLE_S
        often = busy or t < self._settled_t
        if state == self._state and 0 <= waited < (BUSY_S if often else IDLE_S) - _EARLY_S:
            return False
        self._t, self._state = t, state
        return True
