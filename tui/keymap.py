"""Every key of the app: stable ids, defaults, the user's remapping and its conflicts.

One table serves the bindings of all screens, the key bar, F1 and the documentation, so that they can't disagree. Keys
are remapped in the config by id (``keys: {chat.stop: ctrl+c}``); a remapping that collides with another key of the same
screen, or that names an unknown id, is reported in one sentence and left out. ``keys: {set: classic}`` takes another
set to begin with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from textual.binding import Binding, BindingType

from tui.key_table import KEYS, SETS, TOGETHER

_MODIFIERS = frozenset({"ctrl", "alt", "shift", "super", "meta", "hyper"})
_KEY = re.compile(r"(?:[a-z]+\+)*(?:[a-z_0-9]+|\S)\Z", re.IGNORECASE)


def bindings(scope: str) -> list[BindingType]:
    """Textual bindings of one scope, with their ids, for a screen's or widget's ``BINDINGS``."""
    return [
        Binding(spec.keys, spec.action, spec.description, show=bool(spec.label), priority=spec.priority, id=spec.id)
        for spec in KEYS
        if spec.scope == scope
    ]


class Keymap(NamedTuple):
    """The keys in force: by id, the problems found, and what to hand to `App.set_keymap`."""

    keys: dict[str, str]
    problems: tuple[str, ...]
    overrides: dict[str, str]
    set: str = "standard"
    """The named set that they are made from."""

    @property
    def leaders(self) -> frozenset[str]:
        """Keys that others follow, as ``ctrl+x`` in ``ctrl+x n``."""
        return frozenset(key.partition(" ")[0] for keys in self.keys.values() for key in keys.split(",") if " " in key)

    def display(self, binding_id: str) -> str:
        """The first key of an action as people write it: ``^O``, ``Esc``, ``F1``; empty where there is none."""
        keys = self.keys.get(binding_id, "")
        return display_key(keys.split(",")[0]) if keys else ""

    def display_all(self, binding_id: str) -> str:
        """All keys of an action, joined with commas."""
        return ", ".join(display_key(key) for key in self.keys.get(binding_id, "").split(",") if key)


_NAMES = {
    "escape": "Esc",
    "enter": "Enter",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "delete": "Del",
    "space": "Space",
    "minus": "-",
    "plus": "+",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
    "home": "Home",
    "end": "End",
    "tab": "Tab",
    "backspace": "Bksp",
    "slash": "/",
    "equals_sign": "=",
}


def display_key(key: str) -> str:
    """``ctrl+o`` as ``^O``, ``alt+left`` as ``Alt+←``, ``ctrl+x n`` as ``^X n``."""
    if " " in key:
        return " ".join(display_key(part) for part in key.split())
    *modifiers, name = key.split("+") if key != "+" else ["+"]
    shown = _NAMES.get(name, name.upper() if len(name) <= 3 and name[:1] == "f" and name[1:].isdigit() else name)
    if modifiers == ["ctrl"] and len(name) == 1:
        return f"^{name.upper()}"
    return "+".join([*(modifier.capitalize() for modifier in modifiers), shown])


def valid_key(key: str) -> bool:
    """Whether `key` is in Textual's notation; its existence on the user's keyboard can't be known."""
    if " " in key:
        first, *others = key.split()
        return len(others) == 1 and "+" in first and valid_key(first) and valid_key(others[0])
    if not _KEY.match(key):
        return False
    *modifiers, name = key.split("+")
    return all(modifier in _MODIFIERS for modifier in modifiers) and (
        len(name) == 1 or re.fullmatch(r"f\d{1,2}|[a-z_]+", name) is not None
    )


def resolve(user: Mapping[str, str | Iterable[str]], chosen_set: str = "standard") -> Keymap:
    """The keys in force for the config's ``keys`` section. Bad entries are named and their defaults kept.

    `chosen_set` is the named set where the configuration names none.
    """
    problems: list[str] = []
    named = user.get("set", chosen_set)
    if not isinstance(named, str) or named not in SETS:
        if "set" in user:  # else one that was chosen in another version
            problems.append(f"keys.set: '{named}' is not a set of keys; there are {' and '.join(SETS)}.")
        named = "standard"
    specs = {spec.id: spec for spec in KEYS}
    keys = {spec.id: spec.keys for spec in KEYS} | SETS[named]
    wanted: dict[str, str] = {}
    for binding_id, value in user.items():
        if binding_id == "set":
            continue
        if binding_id not in specs:
            problems.append(f"keys.{binding_id}: there is no such action{_suggest(binding_id, specs)}.")
            continue
        listed = value.split(",") if isinstance(value, str) else list(value)
        listed = [" ".join(key.split()) for key in listed if key.strip()]
        bad = [key for key in listed if not valid_key(key)]
        if bad or not listed:
            what = f"'{bad[0]}' is not a key" if bad else "no key is given"
            problems.append(f"keys.{binding_id}: {what}; write it like ctrl+k, f4, alt+left or ctrl+x n.")
            continue
        wanted[binding_id] = ",".join(listed)
    accepted = dict(wanted)
    while True:  # a refused remapping falls back to its default, which may collide with another: until it is stable
        final = {**keys, **accepted}
        clash = _first_clash(final, accepted) if accepted else None  # among the defaults there is none
        if clash is None:
            break
        loser, other, key = clash
        problems.append(
            f"keys.{loser}: {display_key(key)} is already '{specs[other].description.split(':')[0]}' ({other}); "
            f"{display_key(keys[loser].split(',')[0])} stays."
        )
        del accepted[loser]
    return Keymap({**keys, **accepted}, tuple(problems), {**SETS[named], **accepted}, named)


def _first_clash(final: Mapping[str, str], accepted: Mapping[str, str]) -> tuple[str, str, str] | None:
    for together in TOGETHER:
        owner: dict[str, str] = {}
        for spec in KEYS:
            if spec.scope not in together:
                continue
            for key in final[spec.id].split(","):
                leads = next((known for known in owner if known.startswith(f"{key} ")), key)  # a leader has no action
                other = owner.setdefault(leads, spec.id)
                if other == spec.id:
                    continue
                if spec.id in accepted:
                    return spec.id, other, key
                if other in accepted:
                    return other, spec.id, key
    return None


def _suggest(word: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}" if close else ""
