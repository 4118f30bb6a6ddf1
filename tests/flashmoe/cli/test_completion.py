"""Completion scripts in the real shells: each is read by its shell, and asked what a user asks with the Tab key."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from flashmoe.cli.main import main
from flashmoe.cli.table import COMMANDS

CHECK = {"bash": ["bash", "-n"], "zsh": ["zsh", "-f", "-n"], "fish": ["fish", "--no-config", "--no-execute"]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")


def bash(path: Path, line: str, folder: Path) -> set[str]:
    """What bash would offer at the end of the line."""
    code = (
        f"source {path}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; read -ra COMP_WORDS <<< \"$COMP_LINE\"; "
        "[[ $COMP_LINE == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
        '_shtab_flashmoe_tui flashmoe-tui "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"; '
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, cwd=folder, timeout=300)
    return {word.strip() for word in done.stdout.splitlines() if word.strip()}


def fish(path: Path, line: str, folder: Path) -> set[str]:
    """What fish would offer at the end of the line, without the descriptions."""
    code = f"source {path}; complete -C '{line}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", code], capture_output=True, text=True, cwd=folder, timeout=300
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return {word.split("\t")[0] for word in done.stdout.splitlines()}


def zsh(path: Path, line: str, folder: Path) -> set[str]:
    """What zsh lists after the Tab key, typed into an interactive shell on a terminal of its own."""
    places = folder / "fpath"
    places.mkdir(exist_ok=True)
    shutil.copy(path, places / "_flashmoe-tui")
    pid, fd = pty.fork()
    if pid == 0:  # pragma: no cover - the child
        os.chdir(folder)
        os.environ.update(TERM="dumb", COLUMNS="200", LINES="200", PS1="READY> ")
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        said = read_until(fd, b"READY> ")
        setup = (
            f"fpath=({places} $fpath); autoload -Uz compinit; compinit -u -D; LISTMAX=0; setopt no_beep; "
            "unsetopt automenu; function flashmoe-tui { : }; print SET''UP"
        )
        os.write(fd, setup.encode() + b"\n")
        read_until(fd, b"SETUP")
        read_until(fd, None, quiet_s=0.3)  # the prompt after it
        os.write(fd, line.encode() + b"\t\t")
        said = read_until(fd, None, quiet_s=1.0)
    finally:
        os.close(fd)
        os.waitpid(pid, 0)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.decode("utf-8", "replace"))
    return set(re.split(r"\s+", text.replace("\r", "\n")))


def read_until(fd: int, end: bytes | None, quiet_s: float = 20.0) -> bytes:
    """What comes until `end` does, or until nothing came for a while."""
    said, limit = b"", time.monotonic() + 300
    while time.monotonic() < limit:
        if not select.select([fd], [], [], quiet_s)[0]:
            break
        try:
            said += os.read(fd, 65536)
        except OSError:
            break
        if end is not None and end in said:
            return said
    assert end is None, said
    return said


ASK = {"bash": bash, "zsh": zsh, "fish": fish}


@pytest.mark.parametrize("shell", list(CHECK))
def test_the_shell_reads_the_script(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    for name in COMMANDS:
        assert name in text
    needs(shell)
    path = tmp_path / "script"
    path.write_text(text)
    done = subprocess.run([*CHECK[shell], str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", list(CHECK))
def test_the_tab_key(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs(shell)
    path = tmp_path / "script"
    path.write_text(script(shell, capsys))
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "small.gguf").write_text("")

    def offered(line: str) -> set[str]:
        return ASK[shell](path, f"flashmoe-tui {line}", folder)

    assert {"batch", "bench"} <= offered("b")
    assert {"--temperature", "--theme"} <= offered("demo --te") | offered("demo --th")
    assert {"--price-kwh", "--parallel"} <= offered("batch --p")
    assert {"stream", "mmap", "auto"} <= offered("run demo --backend ")
    assert {"precise", "creative"} <= offered("run demo --preset ")
    assert "small.gguf" in offered("plan sm") | offered("plan ")
    assert {"--calm", "--chat", "--ctx"} <= offered("--c")
    assert "pool" in offered("bench small.gguf --store ")


def test_names_from_a_users_file_cannot_run_in_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flashmoe import paths

    file = paths.all_paths()["presets"]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('"$(touch pwned)": {temperature: 1.0}\n"`id`": {temperature: 1.0}\nmine: {temperature: 1.0}\n')
    for shell in CHECK:
        text = script(shell, capsys)
        assert "mine" in text
        assert "pwned" not in text
        assert "`id`" not in text
