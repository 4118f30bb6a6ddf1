"""No code takes a sentence apart or searches it: errors carry a code, what happened and what to do apart."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.places import ROOT

SENTENCES = {"message", "what", "advice", "gist", "sentence"}
TAKEN_APART = {"split", "rsplit", "partition", "rpartition", "find", "index", "startswith", "endswith", "removesuffix"}


def is_sentence(node: ast.expr) -> bool:
    """`error.message`, `str(error)` and the like."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "lower":
        return is_sentence(node.func.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "str" and node.args:
        return isinstance(node.args[0], ast.Name) and node.args[0].id in {"e", "error", "exc", "problem", "failure"}
    return isinstance(node, ast.Attribute) and node.attr in SENTENCES and not isinstance(node.value, ast.Call)


def offences(source: str) -> list[int]:
    """Lines that search a sentence or take one apart."""
    found = []
    for node in ast.walk(ast.parse(source)):
        call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        folds = call and not node.args  # `.split()` without arguments only folds white space
        if call and node.func.attr in TAKEN_APART and not folds and is_sentence(node.func.value):
            found.append(node.lineno)
        searches = isinstance(node, ast.Compare) and any(isinstance(op, ast.In | ast.NotIn) for op in node.ops)
        if searches and any(is_sentence(c) for c in node.comparators):
            found.append(node.lineno)
    return found


def test_the_check_sees_what_it_should() -> None:
    assert offences("x = error.message.split(';')[0]") == [1]
    assert offences("if 'context' in str(error).lower(): pass") == [1]
    assert offences("if 'x' in said.message: pass") == [1]
    assert offences("x = error.code.split('_'); y = error.gist") == []


def test_no_code_searches_a_sentence() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("backends", "flashmoe", "tui")
        for path in sorted(Path(ROOT / package).rglob("*.py"))
        for line in offences(path.read_text(encoding="utf-8"))
    ]
    assert found == []
