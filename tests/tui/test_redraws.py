"""When the monitor's panes are drawn: once a second at work, at once when something begins or ends, seldom else."""

from __future__ import annotations

from tui.monitor.redraws import Redraws


def drawn(samples: list[tuple[float, str]]) -> list[float]:
    redraws = Redraws()
    return [t for t, state in samples if redraws.due(t, state, busy=state == "decode")]


def test_a_change_is_drawn_at_once_and_work_once_a_second() -> None:
    samples = [(n / 2, "idle" if n < 3 else "decode") for n in range(12)]
    assert drawn(samples) == [0.0, 1.5, 2.5, 3.5, 4.5, 5.5]


def test_what_comes_last_is_drawn_before_it_is_quiet() -> None:
    samples = [(n / 2, "decode" if n < 4 else "idle") for n in range(40)]
    assert drawn(samples) == [0.0, 1.0, 2.0, 3.0, 4.0, 9.0, 14.0, 19.0]


def test_a_clock_that_falls_is_drawn() -> None:
    assert drawn([(100.0, "idle"), (3.0, "idle")]) == [100.0, 3.0]
