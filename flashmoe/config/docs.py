"""The configuration documents itself: the commented default file and the JSON schema, from the structs' docstrings."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from flashmoe.config import schema as config_module
from flashmoe.config.reader import describe_type, fields_of
from flashmoe.config.schema import Config


def field_docs(kind: type[Struct]) -> dict[str, str]:
    """The docstring below each field of a struct."""
    return _all_docs()[kind.__name__]


def _all_docs() -> dict[str, dict[str, str]]:
    """Class name -> field -> docstring, read from the module's source."""
    docs: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(config_module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = docs.setdefault(node.name, {})
        for statement, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                fields[statement.target.id] = inspect.cleandoc(str(after.value.value))
    return docs


def default_yaml() -> str:
    """A configuration file with every field at its default, commented out, below its documentation."""
    lines = [
        "# The configuration of flashmoe-tui. Copy what you want to change, without the leading '# '.",
        "# The program reads this file and never writes it. Every field can be overridden by the environment:",
        "# FLASHMOE_<SECTION>__<FIELD>, for instance FLASHMOE_BACKEND__RAM=6.",
        "# flashmoe-tui config --check names what is wrong in it.",
    ]
    defaults = Config()
    for section, kind in fields_of(Config).items():
        about = textwrap.wrap(inspect.cleandoc(kind.__doc__ or ""), 118)
        lines += ["", *(f"# {line}" for line in about), f"{section}:"]
        docs, fields = field_docs(kind), fields_of(kind)
        for name, value in msgspec.to_builtins(getattr(defaults, section)).items():
            lines += [f"  # {line}" for line in textwrap.wrap(docs[name], 110)]
            if fields[name] not in (str, bool) and not isinstance(value, dict | list | tuple):
                lines.append(f"  # Values: {describe_type(fields[name])}.")
            lines += [f"  # {name}: {_scalar(value)}", ""]
        lines.pop()
    return "\n".join(lines) + "\n"


def current_yaml(config: Config) -> str:
    """The configuration in force, as YAML without comments."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False, allow_unicode=True)


def _scalar(value: Any) -> str:
    if value is True or value is False:
        return str(value).lower()
    if isinstance(value, str) and value.isalpha():
        return value
    return json.dumps(value)


def json_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of the file, with the documentation of every field as its description."""
    schema = msgspec.json.schema(Config)
    docs = _all_docs()
    for name, definition in schema["$defs"].items():
        definition["additionalProperties"] = False
        for key, entry in definition.get("properties", {}).items():
            text = docs.get(name, {}).get(key)
            if text:
                if "$ref" in entry:  # siblings of $ref are allowed since 2019-09
                    entry["description"] = text
                else:
                    definition["properties"][key] = {"description": text, **entry}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "flashmoe-tui configuration", **schema}
