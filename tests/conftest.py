"""Fixtures that several files use, and how the threads of a llama.cpp in the tests' own process wait."""

import os

import pytest

from backends.engine.launch import let_threads_sleep

# As the engine's child does. Beside other programs a test that answers questions takes 20 times as long otherwise.
let_threads_sleep(os.environ)

pytest_plugins = ["tests.hub_place"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compare a picture are marked: `make test-processors` runs them again with other kernels of numpy."""
    for item in items:
        if isinstance(item, pytest.Function) and "snap_compare" in item.fixturenames:
            item.add_marker(pytest.mark.picture)


_OTHERS = (
    "NO_COLOR", "FORCE_COLOR", "SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY", "TMUX", "STY", "LC_ALL", "LC_CTYPE", "LANG",
)  # fmt: skip


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests from wherever, the app finds the same terminal: at the desk, in 24-bit colours."""
    for name in _OTHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
