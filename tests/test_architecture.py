"""The house's own rules, counted with `ast`: no circles of imports, no file, class or chapter too large, no stubs.

`lint-imports` (pyproject.toml) holds the directions between packages; what it can't see is counted here: imports under
TYPE_CHECKING and inside functions count as much as those at the top, since a reader has to follow them all the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("backends", "flashmoe", "tui")
MOST_LINES = 420
MOST_CLASS_LINES = 350
MOST_METHODS = 40


def _sources() -> dict[str, Path]:
    """Every module of the program by its dotted name."""
    found: dict[str, Path] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = _sources()
TREES = {name: ast.parse(path.read_bytes()) for name, path in SOURCES.items()}


def imports_of(tree: ast.AST, modules: dict[str, Path], own: str = "") -> set[str]:
    """The modules of the program that `tree` imports, wherever in the file, without itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from tui.engine import messages` is an import of the module; `from tui.app import App` of tui.app
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in inner}
    return {name for name in found if name in modules and name != own}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other (strongly connected components of more than one), Tarjan's way."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_no_module_imports_in_a_circle() -> None:
    graph = {name: imports_of(tree, SOURCES, name) for name, tree in TREES.items()}
    told = [
        "\n  ".join([f"{a} -> {b}" for a in group for b in sorted(graph[a] & set(group))]) for group in circles(graph)
    ]
    assert not told, f"{len(told)} circles of imports:\n  " + "\n\n  ".join(told)


def test_the_count_of_circles_sees_every_kind_of_import() -> None:
    modules = {name: Path() for name in ("a", "b", "c", "d")}
    sources = {
        "a": "from __future__ import annotations\nif TYPE_CHECKING:\n    from b import B",
        "b": "def f():\n    import c",
        "c": "from a import A",
        "d": "import a",
    }
    graph = {name: imports_of(ast.parse(text), modules, name) for name, text in sources.items()}
    assert circles(graph) == [["a", "b", "c"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_too_long(package: str) -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_bytes().splitlines()) for path in SOURCES.values()}
    assert not {name: n for name, n in lines.items() if name.startswith(f"{package}/") and n > MOST_LINES}


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                yield f"{module}.{node.name}", node


def test_no_class_is_too_large() -> None:
    large: dict[str, str] = {}
    for name, node in _classes():
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        methods = sum(isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) for child in node.body)
        if lines > MOST_CLASS_LINES or methods > MOST_METHODS:
            large[name] = f"{lines} lines, {methods} methods"
    assert not large


def test_no_class_is_the_half_of_another() -> None:
    """A class that leaves methods to whoever inherits it (stubs under TYPE_CHECKING, NotImplementedError) was cut by
    length: what an object needs of its owner is a protocol."""
    stubs: list[str] = []
    for name, node in _classes():
        for child in ast.walk(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                stubs.append(f"{name}: a stub for type checkers, line {child.lineno}")
            elif isinstance(child, ast.Raise) and child.exc is not None:
                raised = ast.unparse(child.exc)
                if raised.startswith("NotImplementedError"):
                    stubs.append(f"{name}: NotImplementedError, line {child.lineno}")
    assert not stubs
