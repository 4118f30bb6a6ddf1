"""Themes from YAML files: the project's in ``themes/``, the user's in ``<config>/themes``.

A file gives a name, whether it is dark, and colours; it is checked into a `textual.theme.Theme`. A user's file with the
name of a built-in theme takes its place. A broken file never stops the app: it is reported in one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from textual.color import Color, ColorParseError
from textual.theme import BUILTIN_THEMES, Theme

from backends.errors import ReportedError
from tui.theme_fit import fit

DEFAULT_THEME = "ember"
DEFAULT_LIGHT_THEME = "paper"

_COLOURS = (
    "primary",
    "secondary",
    "accent",
    "warning",
    "error",
    "success",
    "foreground",
    "background",
    "surface",
    "panel",
    "boost",
)
_REQUIRED = ("primary", "foreground", "background")
_FLAGS = ("dark", "ansi")
_MAX_BYTES = 64 * 1024

_LINE = re.compile(r'( {2})?([a-z][a-z-]*):(?: (?:"([ !#-[\]-~]*)"|([A-Za-z][A-Za-z0-9 ,;\'()-]*)))?')
_OTHER_WORDS = frozenset({"yes", "no", "on", "off", "true", "false", "null"})
"""Not texts in YAML."""


class ThemeError(ReportedError):
    """A theme file that can't be used: names it."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__("theme", what, advice)


class Fitted(Mapping[str, Theme]):
    """Themes by name, each made readable in the terminal's colours when it is first asked for: the start needs one."""

    def __init__(self, colours: str = "truecolor") -> None:
        """`colours` is what the terminal has (see `tui.terminal.facts.colours`)."""
        self.as_written: dict[str, Theme] = {}
        """As their files say."""
        self._colours = colours
        self._fitted: dict[str, Theme] = {}

    def __getitem__(self, name: str) -> Theme:
        theme = self.as_written[name]
        if name not in self._fitted:
            self._fitted[name] = fit(theme, self._colours)
        return self._fitted[name]

    def __contains__(self, name: object) -> bool:
        return name in self.as_written

    def __iter__(self) -> Iterator[str]:
        return iter(self.as_written)

    def __len__(self) -> int:
        return len(self.as_written)


@dataclass
class ThemeSet:
    """All usable themes by name, their descriptions, and a sentence for each broken file."""

    themes: Fitted = field(default_factory=Fitted)
    descriptions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def load_themes(*folders: Path, colours: str = "truecolor") -> ThemeSet:
    """Reads ``*.yaml`` and ``*.yml`` of the folders in order; later ones win where names are equal.

    `colours` is what the terminal has (see `tui.terminal.facts.colours`); themes are made readable in them.
    """
    found = ThemeSet(Fitted(colours))
    for folder in folders:
        try:
            files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
        except OSError:
            continue
        for path in files:
            try:
                theme, description = read_theme(path)
            except ThemeError as error:
                found.problems.append(str(error))
                continue
            found.themes.as_written[theme.name] = theme
            found.descriptions[theme.name] = description
    return found


def read_theme(path: Path) -> tuple[Theme, str]:
    """One theme file as a Theme and its description; raises `ThemeError`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ThemeError(f"Theme {path.name} can't be read: {error.strerror}.") from None
    if len(data) > _MAX_BYTES:
        raise ThemeError(f"Theme {path.name} is larger than {_MAX_BYTES // 1024} KiB: that is not a theme.")
    document = plain_document(data)
    return _build(path, document if document is not None else _document(path, data))


def plain_document(data: bytes) -> dict[str, object] | None:
    """What YAML makes of a theme that is written as plainly as the project's own: ``name: text``, ``name: "text"``,
    ``true`` and ``false``, and ``variables``. None for whatever else: that is left to YAML.

    All themes are read before the first paint, and to import YAML takes as long as to read them a hundred times.
    """
    document: dict[str, object] = {}
    inner: dict[str, object] | None = None
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        return None
    for line in lines:
        if not line or line.startswith("#"):
            if not line.isprintable():
                return None
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            return None
        indented, key, quoted, word = found.groups()
        into = inner if indented else document
        if into is None or key in _OTHER_WORDS:
            return None
        if not indented:
            inner = None
        if quoted is None and word is None:
            if indented or key != "variables":
                return None
            document[key] = inner = {}
        elif word in ("true", "false"):
            into[key] = word == "true"
        elif quoted is None and word.strip().lower() in _OTHER_WORDS:
            return None
        else:
            into[key] = quoted if quoted is not None else word.strip()
    return document if document and document.get("variables") != {} else None


def _document(path: Path, data: bytes) -> object:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is about ten times faster
    try:
        return yaml.load(data, Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ThemeError(f"Theme {path.name} is not valid YAML{where}.") from None


def _build(path: Path, document: object) -> tuple[Theme, str]:
    def fail(what: str) -> ThemeError:
        return ThemeError(f"Theme {path.name}: {what}.")

    if not isinstance(document, dict):
        raise fail("it must be a mapping of names to colours")
    known = {"name", "description", "variables", *_FLAGS, *_COLOURS}
    for key in document:
        if key not in known:
            raise fail(f"'{key}' is not a theme field; the fields are {', '.join(sorted(known))}")
    name = document.get("name", path.stem)
    if not isinstance(name, str) or not name.strip() or len(name) > 40 or not name.isprintable():
        raise fail("'name' must be a short text")
    flags: dict[str, bool] = {}
    for key in _FLAGS:
        value = document.get(key, key == "dark")
        if not isinstance(value, bool):
            raise fail(f"'{key}' must be true or false")
        flags[key] = value
    colours: dict[str, str] = {}
    for key in _COLOURS:
        value = document.get(key)
        if value is None:
            if key in _REQUIRED:
                raise fail(f"the colour '{key}' is missing")
            continue
        colours[key] = _colour(value, key, fail)
    variables = document.get("variables") or {}
    if not isinstance(variables, dict) or not all(isinstance(key, str) for key in variables):
        raise fail("'variables' must be a mapping")
    checked = {key: _variable(value, key, fail) for key, value in variables.items()}
    if flags["ansi"]:  # Textual's own sheets need these variables of every 16-colour theme
        checked = {**BUILTIN_THEMES["ansi-dark" if flags["dark"] else "ansi-light"].variables, **checked}
    description = document.get("description", "")
    if not isinstance(description, str):
        raise fail("'description' must be a text")
    theme = Theme(
        name=name.strip(),
        primary=colours.pop("primary"),
        dark=flags["dark"],
        ansi=flags["ansi"],
        variables=checked,
        **cast(Any, colours),
    )
    return theme, description.strip()


def _colour(value: object, key: str, fail: Any) -> str:
    if not isinstance(value, str):
        raise fail(f"'{key}' must be a colour in quotes, such as \"#d08770\"")
    try:
        Color.parse(value)
    except ColorParseError:
        raise fail(f"'{value}' for '{key}' is not a colour; write it like \"#d08770\" or ansi_blue") from None
    return value


def _variable(value: object, key: str, fail: Any) -> str:
    """A CSS variable: a colour (perhaps with an opacity) or a text style."""
    if not isinstance(value, str) or not value.strip() or any(char in value for char in ";{}\n"):
        raise fail(f"'variables.{key}' must be a colour or a text style")
    colour, _, opacity = value.partition(" ")
    if value.endswith("%") and opacity:
        _colour(colour, f"variables.{key}", fail)
    elif not all(word in _STYLES for word in value.split()):
        _colour(value, f"variables.{key}", fail)
    return value


_STYLES = frozenset({"none", "bold", "italic", "underline", "reverse", "dim", "strike", "b", "i", "u", "not"})
