"""Themes from YAML files: the project's in ``themes/``, the user's in ``<config>/themes``.

A file gives a name, whether it is dark, and colours; it is checked into a `textual.theme.Theme`. A user's file with the
name of a built-in theme takes its place. A broken file never stops the app: it is reported in one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
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

# libyaml's loader is about ten times faster, and eight files are read before the first screen.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class ThemeError(ReportedError):
    """A theme file that can't be used: names it."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__("theme", what, advice)


@dataclass
class ThemeSet:
    """All usable themes by name, their descriptions, and a sentence for each broken file."""

    themes: dict[str, Theme] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def load_themes(*folders: Path, colours: str = "truecolor") -> ThemeSet:
    """Reads ``*.yaml`` and ``*.yml`` of the folders in order; later ones win where names are equal.

    `colours` is what the terminal has (see `tui.terminal.facts.colours`); themes are made readable in them.
    """
    found = ThemeSet()
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
            found.themes[theme.name] = fit(theme, colours)
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
    try:
        document = yaml.load(data, Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ThemeError(f"Theme {path.name} is not valid YAML{where}.") from None
    return _build(path, document)


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
