"""What the first paint waits for: nothing that only an answer, a search or another screen needs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flashmoe import paths
from tui.themes import plain_document

LATER = ("markdown_it", "pygments", "llama_cpp", "numpy", "huggingface_hub", "httpx", "jinja2", "llguidance", "yaml")
"""Each takes 20 to 500 ms to import."""
OWN_LATER = (
    "flashmoe.failures", "flashmoe.history.store", "flashmoe.history.kept_prompts", "tui.terminal.ascii",
    "tui.screens.closed", "tui.screens.palette", "tui.screens.dialogs", "tui.screens.chat.copying",
    "tui.screens.chat.finding", "tui.screens.chat.full_context", "tui.screens.chat.opening", "tui.widgets.leader_hints",
)  # fmt: skip
"""About a millisecond each; there is one for everything that the app can do."""

_CODE = f"""
import asyncio, sys
from tui.app import AppOptions, FlashmoeApp

async def late(app):
    print([name for name in {LATER + OWN_LATER!r} if name in sys.modules], list(app.theme_set.themes._fitted))
    app.exit()

FlashmoeApp._start_late = late
FlashmoeApp(AppOptions(measure=False)).run(headless=True, size=(120, 36))
"""


def test_the_app_is_there_without_what_comes_later(tmp_path: Path) -> None:
    environ = {**os.environ, "FLASHMOE_HOME": str(tmp_path), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    done = subprocess.run([sys.executable, "-P", "-c", _CODE], check=True, capture_output=True, text=True, env=environ)
    assert done.stdout.splitlines()[-1] == "[] ['ember']"


@pytest.mark.parametrize("path", sorted(paths.builtin_themes_dir().glob("*.yaml")), ids=lambda path: path.stem)
def test_the_projects_own_themes_are_read_as_yaml_reads_them(path: Path) -> None:
    data = path.read_bytes()
    assert plain_document(data) == yaml.safe_load(data)


PLAIN = (
    "name: ember", "description: Dark, and (a) light; it's", "dark: true", "ansi: false", "primary: \"#123456\"",
    "variables:", "  border: \"#123456 30%\"", "  style: none", "# a comment: so", "", "name: a ", "name: y",
)  # fmt: skip
ODD = (
    "name: yes", "name: Off", "name: null", "name: a: b", "name: a #b", "name: 'a'", "name: \"a\\n\"", "name: ~",
    "name: \"a\" # b", "name:", "   border: none", "  more words", "dark: True", "on: \"#123456\"", "- a", "---",
    "  # a", " ", "name: a\t", "name: a\r", "name: \u00e9", "name: 1", "name: [a]", "\x07", "#\x07", "variables: {}",
    "variables: \"a\"", "name : a", "name:a", "name:  a", "...", "  ", "variables: a", "<<: a", "name: \"a",
    "dark: true ",
)  # fmt: skip


def test_what_is_read_without_yaml_is_what_yaml_reads() -> None:
    rng = random.Random(4)
    n_plain = 0
    for number in range(2000):
        pieces = rng.choices(PLAIN, k=rng.randint(1, 5))
        if number % 2:
            pieces.insert(rng.randint(0, len(pieces)), rng.choice(ODD))
        text = "\n".join(pieces)
        document = plain_document(text.encode())
        if document is not None:
            n_plain += 1
            assert document == yaml.safe_load(text), text
    assert n_plain > 100
