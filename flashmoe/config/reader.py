"""Reads the configuration: YAML with line numbers, field by field, so that one wrong field spoils nothing else."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import yaml
from msgspec import Struct

from flashmoe import paths
from flashmoe.config.schema import Config, LoadedConfig, Problem

PREFIX = "FLASHMOE_"
MAX_BYTES = 1 << 20
"""A configuration larger than this is a mistake, such as a model's path."""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Reader:
    """Collects values and problems from one file and the environment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}
        self.values: dict[str, dict[str, Any]] = {}

    def problem(self, where: str, name: str, message: str) -> None:
        self.problems.append(Problem(where, name, message))

    def at(self, node: yaml.Node) -> str:
        return f"{paths.display(self.path)}:{node.start_mark.line + 1}"

    # ---- the file

    def root(self) -> tuple[bool, yaml.MappingNode | None]:
        """Whether there is a file, and its top mapping where it can be read."""
        name = paths.display(self.path)
        try:
            with open(self.path, "rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return False, None
        except OSError as error:
            self.problem(name, "", f"can't be read ({error.strerror}); the defaults are used.")
            return True, None
        if len(raw) > MAX_BYTES:
            self.problem(name, "", "is larger than 1 MiB, which no configuration is; the defaults are used.")
            return True, None
        try:
            root = yaml.compose(raw.decode("utf-8-sig"), Loader)
        except UnicodeDecodeError as error:
            self.problem(name, "", f"is not UTF-8 text (byte {error.start}); the defaults are used.")
            return True, None
        except (yaml.YAMLError, RecursionError) as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{name}:{mark.line + 1}" if mark else name
            reason = getattr(error, "problem", None) or "it is nested too deeply"
            self.problem(place, "", f"is not valid YAML ({reason}); the defaults are used.")
            return True, None
        if root is not None and not isinstance(root, yaml.MappingNode):
            self.problem(self.at(root), "", "must be a mapping of names, as the defaults show; the defaults are used.")
            root = None
        return True, root

    def file(self) -> bool:
        """Reads the configuration file; whether there is one."""
        exists, root = self.root()
        sections = fields_of(Config)
        if root is not None:
            for key, node in self.pairs(root, "", sections):
                self.section(key, node, sections[key])
        return exists

    def pairs(self, node: yaml.MappingNode, section: str, known: Mapping[str, Any]) -> Iterable[tuple[str, yaml.Node]]:
        """The known keys of a mapping with their nodes; others and repeated ones become problems."""
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
            name = f"{section}.{key}" if section else key
            if key not in known:
                self.problem(self.at(key_node), "", _unknown(key, section, known))
            elif key in seen:
                self.problem(self.at(key_node), name, f"is set on line {seen[key]} already; that one counts.")
            else:
                seen[key] = self.lines[name] = key_node.start_mark.line + 1
                yield key, value

    def section(self, name: str, node: yaml.Node, kind: Any) -> None:
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
            return  # "ui:" with every field commented out
        fields = fields_of(kind)
        if not isinstance(node, yaml.MappingNode):
            self.problem(self.at(node), name, f"must hold fields such as {_join(fields)}.")
            return
        for key, value_node in self.pairs(node, name, fields):
            dotted = f"{name}.{key}"
            try:
                value = _construct(value_node)
            except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
                reason = getattr(error, "problem", None) or str(error)
                self.problem(self.at(value_node), dotted, f"can't be read ({reason}); the default is used.")
                continue
            if isinstance(value_node, yaml.MappingNode):
                for sub_key, _ in value_node.value:
                    self.lines[f"{dotted}.{sub_key.value}"] = sub_key.start_mark.line + 1
            self.put(name, key, value, fields[key], self.at(value_node))

    # ---- the environment

    def environment(self, environ: Mapping[str, str]) -> None:
        sections = fields_of(Config)
        for variable, text in sorted(environ.items()):
            if not variable.startswith(PREFIX) or "__" not in variable:
                continue
            section, _, key = variable[len(PREFIX) :].lower().partition("__")
            if section not in sections:
                hint = _suggest(section.upper(), [s.upper() for s in sections])
                self.problem(variable, "", f"names no section{hint or ' (' + _join(sections) + ')'}.")
                continue
            fields = fields_of(sections[section])
            name, _, sub_key = key.partition("__")
            if name not in fields:
                self.problem(variable, "", _unknown(name, section, fields))
                continue
            try:
                value = text if fields[name] is str else _construct(yaml.compose(text, Loader)) if text else ""
            except (yaml.YAMLError, ValueError, RecursionError, TypeError):
                value = text
            if sub_key:  # one entry of a mapping: FLASHMOE_UI__KEYS__CHAT.STOP
                merged = dict(self.values.get(section, {}).get(name) or {})
                value = {**merged, sub_key: text}
            elif get_origin(fields[name]) is tuple and isinstance(value, str):
                value = [part for part in value.split(":") if part]  # folders, as in PATH
            self.put(section, name, value, fields[name], variable)

    # ---- both

    def put(self, section: str, key: str, value: Any, kind: Any, where: str) -> None:
        dotted = f"{section}.{key}"
        if value is None and kind is str:
            value = ""
        if isinstance(value, bool) and _literals(kind) >= {"on", "off"}:
            value = "on" if value else "off"  # YAML 1.1 reads a bare on as true
        if isinstance(value, bool) and kind is not bool:
            self.problem(where, dotted, f"is {_show(value)}, but must be {describe_type(kind)}.")
            return
        try:
            converted = msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError:
            choices = sorted(_literals(kind))
            hint = _suggest(str(value), choices) if isinstance(value, str) else ""
            self.problem(where, dotted, f"is {_show(value)}, but must be {describe_type(kind)}{hint}.")
            return
        self.values.setdefault(section, {})[key] = converted


def read(path: Path, environ: Mapping[str, str]) -> LoadedConfig:
    """The configuration of `path` with the overrides in `environ`."""
    reader = Reader(path)
    exists = reader.file()
    reader.environment(environ)
    kinds = fields_of(Config)
    sections = {name: kinds[name](**values) for name, values in reader.values.items()}
    return LoadedConfig(Config(**sections), path, exists, tuple(reader.problems), reader.lines)


def _construct(node: yaml.Node | None) -> Any:
    """The plain value of a node, with YAML's safe types only."""
    if node is None:
        return None
    loader = Loader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def fields_of(kind: type[Struct]) -> dict[str, Any]:
    """A struct's fields and their types."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}


def _alternatives(kind: Any) -> list[Any]:
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def _literals(kind: Any) -> set[str]:
    """The words that a type allows."""
    return {word for part in _alternatives(kind) if get_origin(part) is Literal for word in get_args(part)}


def describe_type(kind: Any) -> str:
    """A type in words: "a whole number from 1 to 16 or auto"."""
    words = []
    for part in _alternatives(kind):
        base = get_args(part)[0] if get_origin(part) is Annotated else part
        meta = next((m for m in get_args(part)[1:] if isinstance(m, msgspec.Meta)), None)
        if get_origin(part) is Literal:
            words += [str(word) for word in get_args(part)]
        elif base in (int, float):
            text = "a whole number" if base is int else "a number"
            if meta is not None:
                low, high = meta.ge if meta.ge is not None else meta.gt, meta.le
                text += f" above {low:g}" if meta.gt is not None else f" from {low:g}"
                text += f" {'up to' if meta.gt is not None else 'to'} {high}"
            words.append(text)
        elif base is bool:
            words.append("true or false")
        elif get_origin(base) is dict:
            words.append("a mapping of names to text")
        elif get_origin(base) is tuple:
            words.append("a list of text")
        else:
            words.append("text")
    return " or ".join(words)


def _unknown(key: str, section: str, known: Iterable[str]) -> str:
    names = list(known)
    what = f"field {key!r} in section {section}" if section else f"section {key!r}"
    hint = _suggest(key, names)
    if not hint and not section:
        # A field written without its section is the commonest mistake.
        for name, kind in fields_of(Config).items():
            if key in fields_of(kind):
                hint = f"; it belongs below {name}:"
    return f"There is no {what}{hint or '; there are ' + _join(names)}."


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?"[:-1] if close else ""


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)


def _show(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
