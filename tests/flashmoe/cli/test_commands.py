"""The commands that need no model: help, paths, config, chats, completion, doctor, and what is said about mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashmoe import paths
from flashmoe.cli.main import main
from flashmoe.cli.table import COMMANDS
from flashmoe.history import History


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    for name in ("FLASHMOE_CONFIG", "FLASHMOE_MODELS", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def run(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flashmoe.cli.main", *argv], input=stdin, capture_output=True, text=True, timeout=300
    )


# ---- help


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from flashmoe.cli.main import main; code = main(['--help']); "
        "print(code, sorted({m.partition('.')[0] for m in sys.modules} "
        "& {'textual', 'llama_cpp', 'numpy', 'yaml', 'msgspec', 'asyncio', 'httpx2', 'psutil'}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "0 []"
    for name, command in COMMANDS.items():
        assert name in done.stdout
        assert command.help in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: flashmoe-tui {name}")
    assert len(text) > 300
    assert main(["help", name]) == 0
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_knows_every_command(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    for name in COMMANDS:
        assert name in done.stdout
    assert "--temperature" in done.stdout or "temperature" in done.stdout
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("flashmoe-tui ")


# ---- mistakes


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["run"], ("MODEL",)),
        (["nosuch"], ("nosuch", "GGUF")),
        (["serach"], ("did you mean search",)),
        (["run", "/nowhere/x.gguf", "hi"], ("/nowhere/x.gguf does not exist",)),
        (["run", "m", "a", "b"], ("is an extra argument",)),
        (["run", "m", "--temprature", "1"], ("did you mean --temperature",)),
        (["run", "m", "--temperature", "99"], ("from 0 to 10",)),
        (["run", "m", "--ram", "lots"], ("GiB",)),
        (["run", "m", "--max-tokens", "0"], ("the minimum is 1",)),
        (["run", "m", "--preset", "presice", "hi"], ()),
        (["--ram", "6", "run"], ("command and comes first",)),
        (["chats", "export", "one"], ("number",)),
        (["config", "--file", "/nowhere"], ("/nowhere does not exist",)),
        (["paths", "nosuch"], ("nosuch",)),
        (["completion", "powershell"], ("powershell",)),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    argv: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("flashmoe-tui: ")
    for word in words:
        assert word in captured.err


def test_a_command_wins_over_a_file_of_its_name_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paths").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "flashmoe.cli.main", "paths", "models"], capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0
    assert "./paths" in done.stderr


def test_the_app_needs_a_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = run()
    assert done.returncode == 2
    assert "needs a terminal" in done.stderr


def test_an_unforeseen_failure_is_a_sentence_and_a_log(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flashmoe.cli.paths.main", lambda args: 1 / 0)
    assert main(["paths"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err
    assert "Traceback" in (home / "state/log/errors.log").read_text()


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "flashmoe.cli.main", "config", "--defaults"], stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


# ---- paths and config


def test_paths(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paths", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chats"] == str(home / "data/chats.db")
    assert main(["paths", "logs"]) == 0
    assert capsys.readouterr().out == f"{home}/state/log\n"


def test_config_check(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--check"]) == 0
    capsys.readouterr()
    file = home / "config/config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("backend:\n  rum: 6\nchat:\n  preset: creativ\n")
    assert main(["config", "--check"]) == 1
    captured = capsys.readouterr()
    assert f"{file}:2" in captured.err
    assert "did you mean ram" in captured.err
    assert "did you mean creative" in captured.err
    before = file.read_bytes()
    for flag in ("--defaults", "--schema", "--presets", "--json"):
        assert main(["config", flag]) == 0
    assert file.read_bytes() == before


def test_schema_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--schema"]) == 0
    assert "$schema" in json.loads(capsys.readouterr().out)


# ---- chats


def test_chats_from_listing_to_import(home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with History() as history:
        chat = history.create_chat(model="qwen").id
        history.add_message(chat, "user", "Why do experts stream?")
        writer = history.start_answer(chat)
        writer.add("Because \x1b[2J memory is small.")
        writer.finish("stop")
    assert main(["chats"]) == 0
    assert "Why do experts stream?" in capsys.readouterr().out
    assert main(["chats", "memo"]) == 0
    assert "memory is small" in capsys.readouterr().out
    assert main(["chats", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["title"] == "Why do experts stream?"
    assert main(["chats", "export", "1"]) == 0
    assert "## You" in capsys.readouterr().out
    export = tmp_path / "all.json"
    assert main(["chats", "export", "all", "--json", "-o", str(export)]) == 0
    assert main(["chats", "delete", "1"]) == 0
    assert main(["chats", "list", "--deleted"]) == 0
    assert main(["chats", "restore", "1"]) == 0
    paths.chats_db().unlink()
    capsys.readouterr()
    assert main(["chats", "import", str(export)]) == 0
    assert "Added 1 chat" in capsys.readouterr().err
    assert main(["chats", "export", "99"]) == 1
    assert "no chat 99" in capsys.readouterr().err


# ---- doctor


def test_doctor_says_what_is_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pass@proxy.example")
    file = home / "config/config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("nope: 1\n")
    done = run("doctor", "--json")
    report = json.loads(done.stdout)
    assert report["llama_cpp"]["backends"]["mmap"] is None
    assert report["llama_cpp"]["devices"]
    assert report["memory"]["total_bytes"] > 1 << 30
    assert report["versions"]["textual"]
    assert report["disk"]["bandwidth_bytes_s"] is None or report["disk"]["bandwidth_bytes_s"] > 0
    assert report["environment"]["HF_TOKEN"] == "set"
    for secret in ("verysecret", "pass@", "proxy.example"):
        assert secret not in done.stdout
    assert any("nope" in finding["message"] for finding in report["findings"])
    problems = [finding for finding in report["findings"] if finding["level"] == "problem"]
    assert done.returncode == (1 if problems else 0)
    assert not list((home / "data").glob("**/.flashmoe-probe*")) if (home / "data").exists() else True


def test_doctor_names_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "file"))
    done = run("doctor", "--no-probe")
    assert done.returncode == 1
    assert "is not writable" in done.stdout
    assert "FLASHMOE_HOME" in done.stdout
    assert "Traceback" not in done.stderr
