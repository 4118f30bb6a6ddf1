"""No command executes what lies in the folder that it is started in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backends.system.python import ROOT, start_python
from flashmoe.cli.table import COMMANDS
from flashmoe.paths import guide_model
from tests.gguf_factory import make_gguf

SCRIPT = Path(sys.executable).with_name("flashmoe-tui")
SHADOWS = (
    "json", "re", "typing", "asyncio", "jinja2", "msgspec", "numpy", "llama_cpp", "textual", "yaml", "psutil", "httpx2",
    "starlette", "uvicorn", "huggingface_hub", "llguidance", "backends", "flashmoe", "tui",
    "sitecustomize", "usercustomize",
)  # fmt: skip
RUNS: dict[str, list[str]] = {
    "demo": ["demo", "--text", "hello"],
    "run": ["run", "tiny.gguf", "hello", "--max-tokens", "2"],
    "chats": ["chats"],
    "search": ["search", "anything"],
    "pull": ["pull", "no/such"],
    "ls": ["ls"],
    "rm": ["rm", "nosuch"],
    "verify": ["verify", "tiny.gguf"],
    "plan": ["plan", "tiny.gguf"],
    "bench": ["bench", "tiny.gguf", "--prompt-tokens", "2", "--tokens", "2"],
    "batch": ["batch", "tiny.gguf", "in.jsonl", "-o", "out.jsonl"],
    "doctor": ["doctor"],
    "top": ["top", "--list"],
    "replay": ["replay", "nosuch.fmrec"],
    "paths": ["paths"],
    "config": ["config"],
    "completion": ["completion", "bash"],
    "parse": ["parse", "tiny.gguf", "--json"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a folder")
    make_gguf(folder / "tiny.gguf")
    (folder / "in.jsonl").write_text('{"prompt": "hello", "max_tokens": 2}\n')
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'executed')!r}, 'a').write({name!r})\nraise SystemExit(99)\n"
        )
    return folder


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return {**env, "FLASHMOE_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}


def test_each_command_is_tried() -> None:
    assert set(RUNS) | {"serve"} == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_shadowing_modules_are_not_imported(name: str, folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        [SCRIPT, *RUNS[name]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )
    assert not (folder / "executed").exists(), (folder / "executed").read_text()
    assert done.returncode in (0, 1, 2, 3), done.stderr
    assert "Traceback" not in done.stderr
    if name in ("demo", "run", "batch", "bench", "plan"):
        assert done.returncode == 0, done.stderr


def test_serve_neither(folder: Path, env: dict[str, str]) -> None:
    server = subprocess.Popen(
        [SCRIPT, "serve", "tiny.gguf", "--port", "0"], cwd=folder, env=env, stderr=subprocess.PIPE, text=True
    )
    timer = threading.Timer(100, server.kill)
    timer.start()
    assert server.stderr is not None
    said = next((line for line in server.stderr if "http://" in line), "")
    server.send_signal(signal.SIGTERM)
    server.stderr.read()
    server.wait()
    timer.cancel()
    assert said
    assert not (folder / "executed").exists(), (folder / "executed").read_text()


def test_what_a_child_is_started_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONSTARTUP", "evil.py")
    monkeypatch.setenv("PYTHONPATH", "relative")
    monkeypatch.setenv("FLASHMOE_HOME", "home")
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    start = start_python("backends.inspection", env={"EXTRA": "1"})
    assert start.folder == str(ROOT)
    assert "PYTHONSTARTUP" not in start.env
    assert "PYTHONPATH" not in start.env
    assert start.env["FLASHMOE_HOME"] == str(tmp_path / "home")
    assert start.env["EXTRA"] == "1"
    assert str(tmp_path) not in start.command[-1].split(os.pathsep)
    assert "-P" in start.command
    assert guide_model().is_file()
