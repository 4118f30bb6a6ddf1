"""Strings that stand raw between markers, as expressions for a terminal in Lark: what a tool's schema says of a string
(pattern, length, format, enum) holds there as it does within JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from backends.chat_format.values import resolved
from backends.interface import EngineError

ANY = "/(?s:.*)/"
_MAX_DEPTH = 16
_DAY = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
_WORD = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_H = r"[0-9a-fA-F]{1,4}"
_V6 = "|".join([
    rf"(?:{_H}:){{7}}{_H}", rf"{_H}(?::{_H}){{6}}::", rf"::{_H}(?::{_H}){{0,6}}", "::",
    *(rf"{_H}(?::{_H}){{0,{n - 1}}}::(?:{_H}(?::{_H}){{0,{6 - n}}})?" for n in range(1, 7)),
])  # fmt: skip
_URI = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})"
FORMATS = {
    "date": _DAY,
    "time": _CLOCK,
    "date-time": rf"{_DAY}[tT]{_CLOCK}",
    "duration": (
        r"P(?:[0-9]+W|(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"
        r"(?:T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))?"
        r"|T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S))"
    ),
    "email": rf"{_WORD}(?:\.{_WORD})*@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": f"(?:{_V6})",
    "uuid": r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": rf"[A-Za-z][A-Za-z0-9+.-]*:{_URI}*(?:\?(?:{_URI}|\?)*)?(?:#(?:{_URI}|\?)*)?",
}
"""The formats that the guide holds within JSON, too. Any other one that JSON Schema defines is refused by it."""
_CONSTRAINTS = frozenset({
    "type", "enum", "const", "pattern", "format", "minLength", "maxLength", "anyOf", "oneOf", "allOf", "$ref", "not",
    "if", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "items", "prefixItems",
    "minItems", "maxItems", "properties", "required", "additionalProperties", "patternProperties",
})  # fmt: skip


def says_nothing(schema: Mapping[str, Any]) -> bool:
    """Whether a schema allows every value."""
    return not _CONSTRAINTS & schema.keys()


def regex(pattern: str) -> str:
    """A regular expression as a part of a terminal."""
    one_line = pattern.replace("\n", "\\n")
    return "/" + re.sub(r"\\.|/", lambda m: "\\/" if m[0] == "/" else m[0], one_line) + "/"


def literals(texts: Sequence[str]) -> str:
    """One of some texts."""
    return "(" + " | ".join(json.dumps(t, ensure_ascii=False) for t in texts) + ")"


def without(expression: str, *patterns: str) -> str:
    """The texts of an expression that match none of some regular expressions."""
    return " & ".join([f"({expression})", *(f"~{regex(p)}" for p in patterns)])


def holding(text: str) -> str:
    """A regular expression for texts in which `text` occurs."""
    return f"(?s:.*){escaped(text)}(?s:.*)"


def escaped(text: str) -> str:
    """A text as a regular expression."""
    return re.escape(text).replace("\\\n", "\\n")


def text_of(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int = 0) -> str | None:
    """The strings that a schema allows; None: it allows none. Raises `EngineError` ``bad_request`` that names what
    can't be held."""
    if depth > _MAX_DEPTH:
        raise cant("a string whose schema refers to itself")
    said = schema.get("type")
    if said is not None and "string" not in ([said] if isinstance(said, str) else said):
        return None
    values = values_of(schema, root)
    if values is not None:
        texts = [v for v in values if isinstance(v, str)]
        return literals(texts) if texts else None
    parts = _own(schema)
    if "$ref" in schema:
        target = resolved(schema, root)
        within = None if target is schema else text_of(target, root, depth + 1)
        if within is None:
            return None
        parts.append(f"({within})")
    for key in ("anyOf", "oneOf", "allOf"):
        if not isinstance(schema.get(key), list):
            continue
        found = [_branch(s, root, depth) for s in schema[key]]
        fitting = [f"({f})" for f in found if f is not None]
        if not fitting or (key == "allOf" and len(fitting) < len(found)):
            return None
        parts.append(f"({(' & ' if key == 'allOf' else ' | ').join(fitting)})")
    return " & ".join(parts) or ANY


def _branch(schema: Any, root: Mapping[str, Any], depth: int) -> str | None:
    if isinstance(schema, Mapping):
        return text_of(schema, root, depth + 1)
    return None if schema is False else ANY


def _own(schema: Mapping[str, Any]) -> list[str]:
    """What a schema itself says of strings."""
    parts = []
    low, high = schema.get("minLength"), schema.get("maxLength")
    if low or high is not None:
        parts.append(regex(f"(?s:.{{{int(low or 0)},{'' if high is None else int(high)}}})"))
    if isinstance(schema.get("pattern"), str):
        parts.append(regex(_found_in(schema["pattern"])))
    if schema.get("format") in FORMATS:
        parts.append(regex(FORMATS[schema["format"]]))
    return parts


def values_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Any] | None:
    """The values of a schema that counts them, those that are valid; None: it doesn't."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return [v for v in values if valid(v, schema, root)] if isinstance(values, list) else None


def valid(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any]) -> bool:
    """Whether a value is one of a schema's."""
    import jsonschema

    whole = {**schema, **{k: root[k] for k in ("$defs", "definitions") if k in root and k not in schema}}
    try:
        return bool(jsonschema.Draft202012Validator(whole).is_valid(value))
    except Exception:  # a reference that can't be followed, a pattern that Python doesn't know
        return True


# ---- patterns --------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\\(?:u\{[0-9a-fA-F]+\}|.)|\[\^?\]?|.", re.DOTALL)
_DIGIT, _LETTER = "0-9", "A-Za-z0-9_"


def _found_in(pattern: str) -> str:
    """A regular expression for whole texts in which `pattern`, as JSON Schema has it, is found."""
    branches = _branches(pattern)
    return "|".join(_anchored(b) for b in branches)


def _anchored(branch: list[str]) -> str:
    before = after = "(?s:.*)"
    while branch[:1] == ["^"]:
        branch, before = branch[1:], ""
    while branch[-1:] == ["$"]:
        branch, after = branch[:-1], ""
    if "^" not in branch and "$" not in branch:
        return f"{before}(?:{''.join(branch)}){after}"
    if before and after and branch[:1] == ["("] and branch[-1:] == [")"] and _one_group(branch):
        inner = "".join(branch[1:-1]).removeprefix("?:")
        if not inner.startswith("?"):
            return _found_in(inner)
    raise cant("a pattern with ^ or $ in the middle")


def _one_group(branch: list[str]) -> bool:
    """Whether the first bracket closes with the last one."""
    depth = 0
    for place, token in enumerate(branch):
        depth += (token == "(") - (token == ")")
        if not depth:
            return place == len(branch) - 1
    return False


def _branches(pattern: str) -> list[list[str]]:
    """The alternatives of a pattern, each as tokens: with classes whole, and \\d and \\w as JavaScript means them."""
    branches: list[list[str]] = [[]]
    depth = at = 0
    while at < len(pattern):
        found = _TOKEN.match(pattern, at)
        assert found
        token, at = found[0], found.end()
        if token[0] == "[":
            end = at
            while end < len(pattern) and pattern[end] != "]":
                end += 2 if pattern[end] == "\\" else 1
            token, at = token + _class(pattern[at:end]) + "]", end + 1
        elif token in ("\\d", "\\w"):
            token = "[" + (_DIGIT if token == "\\d" else _LETTER) + "]"
        depth += (token == "(") - (token == ")")
        if token == "|" and depth == 0:
            branches.append([])
        else:
            branches[-1].append(token)
    return branches


def _class(inside: str) -> str:
    """What stands within the brackets of a class."""
    plain = re.sub(r"\\(.)", lambda m: {"d": _DIGIT, "w": _LETTER}.get(m[1], m[0]), inside, flags=re.S)
    return re.sub(r"\\.|\[", lambda m: "\\[" if m[0] == "[" else m[0], plain, flags=re.S)


def cant(what: str) -> EngineError:
    """What a format has no way to hold."""
    return EngineError("bad_request", f"{what[:1].upper()}{what[1:]} can't be held in this model's format.")
