"""What is copied, to where; paths as terminals type them; the key bar under the mouse; one toast at a time."""

from __future__ import annotations

import os
import pty
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
from textual.widgets._toast import Toast

from flashmoe import paths
from flashmoe.history import History
from tests.tui_support import home, new_app, ready, running, screen_is, settle, shown, tiny, until
from tui.app import AppOptions, FlashmoeApp
from tui.terminal import facts
from tui.texts import code_blocks, last_command, path_in, typed_path
from tui.widgets.fields import LineField
from tui.widgets.key_bar import KeyBar

__all__ = ["home", "tiny"]


def test_code_is_copied_as_it_is_drawn_in_lists_and_while_it_is_open() -> None:
    text = "1. Do this:\n\n   ```sh\n   $ make\n   ```\n\n> ~~~python\n> x = 1\n> ~~~\n\n````\n```\nnested\n```\n````\n"
    assert code_blocks(text) == [("sh", "$ make"), ("python", "x = 1"), ("", "```\nnested\n```")]
    assert code_blocks("So:\n```c++ title=x\nint a;\nint b") == [("c++", "int a;\nint b")]
    assert last_command(text) == "make"


@pytest.mark.parametrize(
    "typed", ["{}", "'{}'", '"{}"', "file://{url}", "file://localhost{url}", "{escaped}", "  {}  "]
)
def test_paths_are_taken_as_terminals_type_them(tmp_path: Path, typed: str) -> None:
    path = tmp_path / "my notes ü.txt"
    path.write_text("x")
    url = str(path).replace(" ", "%20").replace("ü", "%C3%BC")
    assert typed_path(typed.format(path, url=url, escaped=str(path).replace(" ", "\\ "))) == path
    odd = tmp_path / "it's \\ odd"
    odd.write_text("x")
    assert typed_path(str(odd)) == odd
    assert path_in(typed.format(path, url=url, escaped=str(path).replace(" ", "\\ "))) == path
    assert typed_path(f"file://{socket.gethostname()}{url}#1") == Path(f"{path}#1")
    assert path_in("Qwen3-30B") is None


@pytest.mark.parametrize("where", ["filter", "command"])
async def test_a_model_is_loaded_by_a_path_as_a_terminal_drops_it(tiny: Path, tmp_path: Path, where: str) -> None:
    path = tmp_path / "my model ü.gguf"
    path.symlink_to(tiny)
    app = new_app()
    async with running(app) as pilot:
        if where == "filter":
            await pilot.press("ctrl+o")
            await screen_is(pilot, "ModelsScreen")
            app.screen.query_one(LineField).paste(f"'{path}' ")
        else:
            app.chat_screen.composer.set_text(f"/model 'file://{path}'".replace("'", "").replace(" ü", "%20ü"))
        await pilot.press("enter")
        await ready(pilot)
        assert app.controller.request is not None
        assert app.controller.request.path == str(path)


@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
@pytest.mark.parametrize("utf8", [True, False])
def test_inside_a_tmux_without_utf8_lines_are_ascii(tmp_path: Path, utf8: bool) -> None:
    socket = str(tmp_path / "tmux")
    pid, fd = pty.fork()
    if pid == 0:
        flags = ["-u"] if utf8 else []
        environ = {"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C"}
        os.execvpe("tmux", ["tmux", *flags, "-S", socket, "-f", "/dev/null", "new-session", "sleep 60"], environ)
    try:
        end = time.monotonic() + 280
        while not os.path.exists(socket) and time.monotonic() < end:  # noqa: PTH110
            time.sleep(0.05)
        environ = {"PATH": os.environ["PATH"], "TERM": "screen", "TMUX": f"{socket},1,0"}
        while facts.without_drawing(environ) is utf8 and time.monotonic() < end:
            time.sleep(0.1)
        assert facts.without_drawing(environ) is not utf8
        assert not facts.without_drawing({**environ, "LANG": "C.UTF-8"})  # the user says so
    finally:
        subprocess.run(["tmux", "-S", socket, "kill-server"], check=False)
        os.close(fd)
        os.waitpid(pid, 0)


async def test_a_click_on_the_key_bar_does_what_the_key_does() -> None:
    app = new_app()
    async with running(app, (120, 36)) as pilot:
        await settle(pilot)
        bar = app.chat_screen.query_one(KeyBar)
        at = bar.render().plain.index("help")
        await pilot.click(KeyBar, offset=(at + 1, 0))
        await screen_is(pilot, "HelpScreen")


@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
def test_tmux_takes_a_copy_with_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = str(tmp_path / "tmux")
    subprocess.run(["tmux", "-S", socket, "-f", "/dev/null", "new-session", "-d", "sleep 60"], check=True)
    try:
        monkeypatch.setenv("TMUX", f"{socket},1,0")
        assert facts.in_tmux()
        assert facts.tmux_copy("two\nlines ü")
        shown = subprocess.run(["tmux", "-S", socket, "show-buffer"], check=True, capture_output=True).stdout
        assert shown.decode() == "two\nlines ü"
    finally:
        subprocess.run(["tmux", "-S", socket, "kill-server"], check=False)
    assert not facts.tmux_copy("nobody is there")


async def test_there_is_one_toast_away_from_the_composer() -> None:
    app = new_app()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settle(pilot)
        app.notify("first")
        app.notify("second")
        await until(pilot, lambda: len(app.screen.query(Toast)) == 1)
        toast = app.screen.query_one(Toast)
        await until(pilot, lambda: toast.region.height > 0)
        assert not toast.region.overlaps(app.chat_screen.composer.region)
        assert "first\nsecond" in str(next(iter(app._notifications)).message)
        await app.controller.close()
        (await app.chat_screen.history()).close()


async def test_what_is_typed_after_a_selection_is_for_the_composer() -> None:
    """The click that began it gave the chat the focus, where letters are keys."""
    paths.ensure_dir(paths.data_dir())
    with History() as history:
        chat = history.create_chat(title="Selected")
        history.add_message(chat.id, "user", "some words to be marked")
    app = FlashmoeApp(AppOptions(measure=False, chat=chat.id))
    async with running(app, (100, 30)) as pilot:
        await until(pilot, lambda: "some words to be marked" in shown(app))
        lines = shown(app).split("\n")
        y = next(index for index, line in enumerate(lines) if "some words" in line)
        x = lines[y].index("some words")
        await pilot.mouse_down(offset=(x, y))
        await pilot.hover(offset=(x + 10, y))
        await pilot.mouse_up(offset=(x + 10, y))
        await until(pilot, lambda: "selection" in app.chat_screen.activity.text)
        await until(pilot, lambda: app.focused is app.chat_screen.composer)
        await pilot.press("y", "e", "s")
        assert app.chat_screen.composer.text == "yes"
