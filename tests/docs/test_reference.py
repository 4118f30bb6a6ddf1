"""docs/reference.md is what the code says, and the variables that the code reads are all in it."""

from __future__ import annotations

import re
import subprocess
import sys

from flashmoe.environment import VARIABLES
from tests.places import ROOT


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs/make_reference.py"), "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run python docs/make_reference.py"


def test_every_variable_of_ours_is_in_it() -> None:
    known = {name for variable in VARIABLES for name in variable.name.split(", ")}
    read: set[str] = set()
    for package in ("backends", "flashmoe", "tui"):
        for path in (ROOT / package).rglob("*.py"):
            read |= set(re.findall(r"\"(FLASHMOE_[A-Z]+)\"", path.read_text(encoding="utf-8")))
    assert read <= known
