"""What the first paint waits for: nothing that only an answer, a search or another screen needs."""

from __future__ import annotations

import subprocess
import sys

LATER = ("markdown_it", "pygments", "llama_cpp", "numpy", "huggingface_hub", "httpx", "jinja2", "llguidance")
"""Each takes 20 to 500 ms to import."""


def test_the_app_is_there_without_what_comes_later() -> None:
    code = f"import sys, tui.app, tui.screens.chat.screen; print([n for n in {LATER!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
