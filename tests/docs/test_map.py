"""docs/architecture.md names only files, folders and names that there are: a map that sends somebody to what was moved
is worse than none."""

from __future__ import annotations

import re

from tests.places import ROOT

NO_NAMES = {"make lint", "pull", "/metrics", "/"}


def missing(text: str) -> list[str]:
    """What stands between backticks and is neither a file or folder nor a name in the code."""
    files = [
        path
        for package in ("backends", "flashmoe", "tui", "tests", "docs")
        for path in (ROOT / package).rglob("*")
        if "__pycache__" not in path.parts
    ]
    places = {f"/{path.relative_to(ROOT).as_posix()}/" for path in files}
    words: set[str] = set()
    for path in files:
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests":
            words |= set(re.findall(r"\w+", path.read_text(encoding="utf-8")))
    absent = []
    for said in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if said in NO_NAMES or (ROOT / said).exists():
            continue
        if "/" in said or said.endswith((".py", ".md", ".toml")):
            found = any(f"/{said.strip('/')}/" in place for place in places)
        else:
            found = set(re.findall(r"\w+", said)) <= words
        if not found:
            absent.append(said)
    return absent


def test_the_check_sees_what_it_should() -> None:
    assert missing("`tui/app.py`, `flow.py`, `hub/downloads/`, `Child._submit`") == []
    gone = ["tui/nowhere.py", "gone_away.py", "NoSuchClassAnywhere"]
    assert missing(" ".join(f"`{name}`" for name in gone)) == gone


def test_the_map_names_what_there_is() -> None:
    assert missing((ROOT / "docs/architecture.md").read_text(encoding="utf-8")) == []
