"""Numbers as people read them: one style for the app and every command, and nobody who has a style of their own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe import figures

ROOT = Path(figures.__file__).resolve().parent.parent
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (None, "-"), (0, "0 B"), (512, "512 B"), (24_000, "23 KiB"), (24 * KIB, "24 KiB"), (1000 * KIB, "1.0 MiB"),
        (1.5 * MIB, "1.5 MiB"), (24 * MIB, "24 MiB"), (950 * MIB, "950 MiB"), (1000 * MIB, "1.0 GiB"),
        (17.28 * GIB, "17.3 GiB"), (120 * GIB, "120 GiB"), (3 * 1024 * GIB, "3.0 TiB"),
    ],
)  # fmt: skip
def test_sizes(n: float | None, text: str) -> None:
    assert figures.size(n) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [(None, "-"), (0, "0 B/s"), (412e3, "412 kB/s"), (4.81e6, "4.8 MB/s"), (48e6, "48 MB/s"), (1.213e9, "1.21 GB/s")],
)
def test_rates_of_lines_and_disks(n: float | None, text: str) -> None:
    assert figures.rate(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (float("inf"), "-"), (float("nan"), "-"), (0, "0 s"), (4e-5, "40 µs"), (0.0042, "4.2 ms"),
        (0.42, "420 ms"), (3.42, "3.4 s"), (9.97, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert figures.duration(seconds) == text


def test_what_is_unknown_is_never_zero() -> None:
    assert figures.speed(None) == figures.number(None) == figures.roughly(None) == figures.UNKNOWN
    assert figures.percent(None).strip() == "- %"


def test_nobody_else_writes_a_size_or_a_rate() -> None:
    """A value before GiB, MiB/s or kB in an f-string is one that `figures` didn't make; what is typed after a number
    that the user gives in that unit (an option's limit) is a constant."""
    unit = re.compile(r"^ ?([KMGT]i?B|kB)\b")
    found: list[str] = []
    for package in ("flashmoe", "tui"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name == "figures.py":
                continue
            for node in ast.walk(ast.parse(path.read_bytes())):
                if not isinstance(node, ast.JoinedStr):
                    continue
                for value, after in zip(node.values, node.values[1:], strict=False):
                    follows = isinstance(after, ast.Constant) and unit.match(str(after.value))
                    if follows and isinstance(value, ast.FormattedValue) and not _constant(value.value):
                        found.append(f"{path.relative_to(ROOT)}:{value.lineno}: {ast.unparse(node)}")
    assert not found, "\n".join(found)


def _constant(node: ast.expr) -> bool:
    """Whether a value is made of constants only: limits of the program itself (``MAX_BODY // 2**20``)."""
    names = [each.attr if isinstance(each, ast.Attribute) else each.id for each in _names(node)]
    return all(name.strip("_").isupper() for name in names)


def _names(node: ast.AST) -> Iterator[ast.Name | ast.Attribute]:
    if isinstance(node, ast.Name | ast.Attribute):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from _names(child)
