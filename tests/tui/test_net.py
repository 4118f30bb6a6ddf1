"""An exception that no worker foresaw is told, kept in a log, and never ends the app."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe import paths
from flashmoe.plans import measurements
from tests.flashmoe.hub.test_hostile_library import odd_name, without_dimensions
from tests.gguf_factory import make_gguf
from tests.tui.test_models_screen import HERE
from tests.tui_support import home, new_app, running, screen_is, shown, until
from tui.screens.models.finder import ModelFinder

__all__ = ["home"]


def said(app: object) -> str:
    return " ".join(str(each.message) for each in app._notifications)  # type: ignore[attr-defined]


async def test_a_worker_that_fails_is_told_and_the_app_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_: ModelFinder) -> None:
        raise ZeroDivisionError("a [red]hostile\x1b[2J text")

    monkeypatch.setattr(ModelFinder, "scan", broken)
    app = new_app()
    async with running(app) as pilot:
        await pilot.press("ctrl+o")
        await until(pilot, lambda: app.caught)
        assert "unexpected error (ZeroDivisionError: a [red]hostile␛[2J text)." in said(app)
        assert paths.display(paths.log_dir()) in said(app)
        assert "ZeroDivisionError" in (paths.log_dir() / "errors.log").read_text()
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.chat_screen)
        app.caught.clear()


async def test_hostile_files_are_rows_among_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(measurements, "machine", lambda *a, **k: HERE)
    folder = paths.models_dir()
    folder.mkdir(parents=True)
    good = make_gguf(folder / "good.gguf")
    without_dimensions(folder / "scalar.gguf")
    odd_name(folder, good)
    good.with_name("a\x1b[2J\u202ename.gguf").write_bytes(good.read_bytes())
    app = new_app()
    async with running(app, (120, 40)) as pilot:
        await pilot.press("ctrl+o")
        await screen_is(pilot, "ModelsScreen")
        await until(
            pilot, lambda: all(name in shown(app) for name in ("good", "scalar", r"bad\xff", "a␛[2J<U+202E>name"))
        )
        for _ in range(8):  # the details of each
            await pilot.press("down")
            await pilot.pause(0.4)
