#!/usr/bin/env python3
"""A whole round of tools with real agents: the model calls, the agent runs it, sends the result, and shows the answer.

    PATH=…:$PATH python benchmarks/agents_round.py claude-code codex opencode aider

Each is started as a user would: ``flashmoe-tui serve MODEL --for NAME --launch -- …``. The model is one that says what
it is meant to (tests/scripted_gguf.py): a call of the agent's own shell tool while there is no result, then a sentence;
for aider, which has no tools, the text of a file. Everything else is real. What shows that it worked: the file that
the command writes holds the word that only the folder knows, and the agent's output has the answer, which the model
gives only to a prompt with a result in it.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flashmoe.serve.clients import CLIENTS
from tests.scripted_gguf import ANSWER, call_text, called, make_scripted

COMMAND = "cat riddle.txt > seen.txt"
FILE = "seen.txt\n```\nwhat was asked for\n```\n"
SAYS = [
    (called("Bash"), call_text("Bash", {"command": COMMAND, "description": "Reads it"})),
    (called("exec_command"), call_text("exec_command", {"cmd": COMMAND})),
    (called("bash"), call_text("bash", {"command": COMMAND})),
    ("not tools and 'file listing' in messages[0].content", FILE),
]
TASK = "Read the riddle."
ARGUMENTS = {
    "claude-code": ["-p", TASK, "--allowedTools", "Bash"],
    "codex": ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", TASK],
    "opencode": ["run", TASK],
    "aider": ["--no-git", "--yes-always", "--no-check-update", "--analytics-disable", "--no-show-model-warnings",
              "--message", TASK, "seen.txt"],
}  # fmt: skip


def version(name: str) -> str:
    told = subprocess.run([CLIENTS[name].command, "--version"], capture_output=True, text=True, check=False)
    return (told.stdout.strip() or told.stderr.strip()).splitlines()[-1]


def one_round(name: str, model: Path, folder: Path, seconds: float) -> bool:
    """Runs an agent in a folder and says what it did."""
    word = secrets.token_hex(8)
    work, home = folder / "work", folder / "home"
    work.mkdir(parents=True)
    home.mkdir()
    (work / "riddle.txt").write_text(word)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI", "ANTHROPIC", "CLAUDE"))}
    env |= {"HOME": str(home), "FLASHMOE_HOME": str(folder / "flashmoe"), "TERM": "dumb", "PWD": str(work)}
    command = [
        sys.executable, "-m", "flashmoe.cli.main", "serve", str(model), "--port", "0", "--ctx", "65536",
        "--parallel", "2", "--kv-dir", "none",
        "--for", name, "--launch", "--", *ARGUMENTS[name],
    ]  # fmt: skip
    began = time.monotonic()
    with (folder / "said").open("w") as said:
        code = subprocess.run(
            command, cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, check=False,
            timeout=seconds,
        ).returncode  # fmt: skip
    took = time.monotonic() - began
    shown = (folder / "said").read_text(errors="replace")
    seen = (work / "seen.txt").read_text().strip() if (work / "seen.txt").exists() else None
    ran = seen == ("what was asked for" if name == "aider" else word)
    answered = name == "aider" or ANSWER in shown
    print(f"| {name} {version(name)} | {'ran' if ran else 'DID NOT RUN'} | {'shown' if answered else 'NOT SHOWN'} | "
          f"{code} | {took:.0f} s |", flush=True)  # fmt: skip
    if not (ran and answered):
        print(shown[-3000:])
    return ran and answered


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", choices=sorted(CLIENTS))
    parser.add_argument("--seconds", type=float, default=900.0, help="at most for each")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = make_scripted(Path(folder) / "scripted.gguf", SAYS, n_ctx_train=131072)
        print("| agent | the call | the answer | exit code | took |\n|---|---|---|---|---|")
        good = [one_round(name, model, Path(folder) / name, args.seconds) for name in args.agents]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
