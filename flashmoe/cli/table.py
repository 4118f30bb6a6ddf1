"""The commands: their modules, what each does in a line, and the headings they are listed under."""

from __future__ import annotations

from typing import NamedTuple

PROGRAM = "flashmoe-tui"


class Command(NamedTuple):
    """A command: its module under `flashmoe.cli`, what it does in a line, and the heading it is listed under."""

    module: str
    help: str
    group: str


COMMANDS: dict[str, Command] = {
    "demo": Command("demo", "chat with the bundled demo model: no download, no network", "chat"),
    "run": Command("run", "one answer on stdout, streamed", "chat"),
    "chats": Command("chats", "list, search, export and import the chats", "chat"),
    "search": Command("search", "models on the hub, and the files of one repository", "models"),
    "pull": Command("pull", "download a model; resumes after anything", "models"),
    "ls": Command("ls", "the models on this machine", "models"),
    "rm": Command("rm", "delete a model", "models"),
    "verify": Command("verify", "verify models against the hub's hashes", "models"),
    "plan": Command("plan", "will it run here, what goes where, and how fast", "speed"),
    "bench": Command("bench", "measure tokens per second, and how close to the hardware's limit", "speed"),
    "batch": Command("batch", "many prompts, sharing each expert read", "work"),
    "serve": Command("serve", "an OpenAI-compatible endpoint on this machine", "work"),
    "parse": Command("parse", "read a model's raw output, or print a prompt, by its chat template", "work"),
    "doctor": Command("doctor", "what this machine has and what is wrong with it, fit for a bug report", "setup"),
    "top": Command("top", "watch an engine that runs in another terminal", "speed"),
    "replay": Command("replay", "play or evaluate a recording of the monitor", "speed"),
    "paths": Command("paths", "where config, models, chats, logs and themes are", "setup"),
    "config": Command("config", "check the configuration, print its defaults or its schema", "setup"),
    "completion": Command("completion", "shell completion for bash, zsh or fish", "setup"),
}

GROUPS = {
    "chat": "Chat",
    "models": "Models",
    "speed": "Memory and speed",
    "work": "Without the app",
    "setup": "This machine",
}

EXIT_TEXT = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 worth trying again (network, a lock), 130 interrupted."
