"""``serve --for NAME --launch``: the agent (a stand-in on PATH) finds the server, and both end together."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flashmoe.cli.main import main
from flashmoe.serve.clients import CLIENTS, Place, environment_for
from tests.gguf_factory import make_gguf

KEY = "sesame-öffne-dich"
AGENT = """
import json, os, re, signal, sys, time, urllib.request
folder = {folder!r}
found = dict(arguments=sys.argv[1:], environment=dict(os.environ), signals=[])
def heard(number, frame):
    found["signals"].append(number)
    if number == signal.SIGTERM:
        end()
def ask():
    root = re.search(r'base_url="([^"]+)"', " ".join(sys.argv))[1]
    key = os.environ["FLASHMOE_API_KEY"].encode()
    request = urllib.request.Request(root + "/models", headers={{"Authorization": b"Bearer " + key}})
    found["models"] = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(request))
def end():
    with open(folder + "/found.json", "w") as file:
        json.dump(found, file)
    sys.exit(7)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, heard)
ask()
open(folder + "/running", "w").close()
if "wait" in sys.argv:
    while not found["signals"]:
        time.sleep(0.05)
    time.sleep(0.5)
    ask()
end()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the stand-in for codex is, and what it found."""
    agent = tmp_path / "codex"
    script = tmp_path / "agent.py"
    script.write_text(AGENT.format(folder=str(tmp_path)), encoding="utf-8")
    # Not Python's own path behind #!: no blank may be in it.
    started = f'exec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"'
    agent.write_text(f"#!/bin/sh\n{started}\n", encoding="utf-8")
    agent.chmod(0o700)
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    model = make_gguf(folder / "tiny.gguf")
    env = {
        **os.environ, "FLASHMOE_HOME": str(folder / "home"), "FLASHMOE_API_KEY": KEY, "PYTHONUTF8": "1",
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "there",
    }  # fmt: skip
    command = [sys.executable, "-m", "flashmoe.cli.main", "serve", str(model), "--port", "0", "--for", "codex"]
    return subprocess.Popen(
        [*command, "--launch", "--", *arguments], env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        encoding="utf-8",
    )  # fmt: skip


def ended(server: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """What the stand-in found, once the server has ended."""
    try:
        server.said = "".join(server.communicate(timeout=300))  # type: ignore[attr-defined]
    finally:
        server.kill()
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def wait_for(path: Path) -> None:
    end = time.monotonic() + 300
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


def test_the_agent_finds_the_server_and_ends_it(folder: Path) -> None:
    server = start(folder, "exec", "--json", "a b")
    found = ended(server, folder)
    assert server.returncode == 7
    assert found["models"]["data"][0]["id"] == "tiny qwen3moe"
    assert found["arguments"][-3:] == ["exec", "--json", "a b"]
    assert found["environment"]["NO_PROXY"] == "there,127.0.0.1"
    assert found["environment"]["FLASHMOE_API_KEY"] == KEY
    assert KEY not in " ".join(found["arguments"])
    assert KEY not in server.said  # type: ignore[attr-defined]


def test_an_interrupt_is_the_agents_own(folder: Path) -> None:
    server = start(folder, "wait")
    wait_for(folder / "running")
    below = _below(server.pid)
    server.send_signal(signal.SIGINT)  # as a terminal sends it to both
    (agent,) = [pid for pid, command in below.items() if command.endswith("wait\0")]
    os.kill(agent, signal.SIGINT)
    # what tries schemas was started with the server: the first of them needn't wait for it
    assert [command for command in below.values() if "backends.chat_format.trial" in command]
    found = ended(server, folder)
    assert found["signals"] == [signal.SIGINT]
    assert found["models"]["data"]  # asked for once more after it
    assert server.returncode == 7


def test_a_server_that_is_ended_ends_the_agent(folder: Path) -> None:
    server = start(folder, "wait")
    wait_for(folder / "running")
    server.terminate()
    found = ended(server, folder)
    assert found["signals"] == [signal.SIGTERM]
    assert server.returncode == 0


def _below(pid: int) -> dict[int, str]:
    """The processes that one has started, and those that they have, with their commands."""
    found: dict[int, str] = {}
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(folder.name)] = (folder / "cmdline").read_bytes().decode("utf-8", "replace")
    below = {pid}
    while more := {p for p, parent in parents.items() if parent in below} - below:
        below |= more
    return {p: command for p, command in found.items() if p in below and p != pid}


def test_an_agent_that_cant_run_is_said(folder: Path) -> None:
    (folder / "codex").write_bytes(b"\x7fELF, but no program")
    server = start(folder)
    _, said = server.communicate(timeout=300)
    assert server.returncode == 1
    assert "codex can't be started" in said
    assert "Traceback" not in said


def test_what_isnt_there_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, client in CLIENTS.items():
        assert main(["serve", "demo", "--for", name, "--launch"]) == 1
        said = capsys.readouterr().err
        assert client.command in said
        assert client.install in said
    assert main(["serve", "demo", "--launch"]) == 2
    assert main(["serve", "demo", "--for", "codex", "--", "exec"]) == 2
    assert "--launch" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_the_users_own_keys_and_addresses_stay_away(name: str) -> None:
    place = Place("http://127.0.0.1:8080", "some model", 4096, KEY)
    client = CLIENTS[name]
    base = {"ANTHROPIC_API_KEY": "theirs", "OPENAI_BASE_URL": "https://elsewhere.example", "HOME": "/home"}
    base |= dict.fromkeys(client.foreign, "theirs")
    env = environment_for(client, place, base)
    assert env["HOME"] == "/home"
    assert not [v for v in client.foreign if v in env]
    assert KEY in env.values()
    assert KEY not in " ".join(client.arguments(place))
    told = " ".join([*client.arguments(place), *env.values()])
    assert "http://127.0.0.1:8080" in told
    assert "some model" in told
    if name == "claude-code":  # else it takes the model for one with a million tokens
        assert env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "4096"
        assert {env[f"ANTHROPIC_DEFAULT_{size}_MODEL"] for size in ("HAIKU", "SONNET", "OPUS")} == {"some model"}
    if name == "opencode":  # a folder's own opencode.json stays as it is, and doesn't win
        config = json.loads(env["OPENCODE_CONFIG_CONTENT"])
        assert config["model"] == config["small_model"] == "flashmoe/some model"  # no title is asked for elsewhere
        assert config["provider"]["flashmoe"]["options"]["baseURL"] == "http://127.0.0.1:8080/v1"
        assert KEY not in env["OPENCODE_CONFIG_CONTENT"]
