"""Constraints on an answer: JSON schema, GBNF and Lark, compiled for llguidance.

`compile_constraint` is the one way in: it says what of a schema or grammar can't be held, before anything is computed.
It needs no model, so that it can run wherever its cost is bounded. `Matcher` then follows one answer token by token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from decimal import Decimal
from typing import Any, Literal

import msgspec
import numpy as np

from backends.interface import EngineError

MAX_SCHEMA_BYTES = 256 << 10
MAX_GRAMMAR_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_RULES = 2000
MAX_REPETITIONS = 100_000
Kind = Literal["json_schema", "gbnf", "lark"]

_FUEL: dict[str, Any] = {
    "initial_lexer_fuel": 2_000_000,
    "step_lexer_fuel": 400_000,
    "step_max_items": 100_000,
    "max_lexer_states": 100_000,
    "max_grammar_size": 400_000,
}
"""llguidance's own bounds on what a grammar may cost, in its units (a few hundred milliseconds each)."""
JSON_OPTIONS = {"whitespace_pattern": r"( |\n[ \t]{0,20})?"}
_STANDARD_FORMATS = frozenset({
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
    "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex",
})  # fmt: skip
"""What JSON Schema defines. Any other format is a note for people, as the standard has it."""
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_NESTED = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)


class Constraint(msgspec.Struct, frozen=True):
    """A compiled constraint."""

    grammar: str
    """llguidance's form of it."""
    schema: str | None = None
    """The JSON schema that a whole answer is checked against once more."""


def compile_constraint(kind: Kind, text: str) -> Constraint:
    """Compiles a schema or grammar. Raises `EngineError` ``bad_request`` that names what can't be held."""
    import llguidance

    if kind == "json_schema":
        schema = _schema(text)
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                json.dumps(plain_schema(schema)), overrides=JSON_OPTIONS  # type: ignore[arg-type]
            )  # fmt: skip
        except ValueError as error:
            raise _refused("JSON schema", str(error)) from None
        constraint = Constraint(grammar, text)
    else:
        if len(text.encode("utf-8", "replace")) > MAX_GRAMMAR_BYTES:
            raise EngineError("bad_request", "The grammar is larger than 1 MiB.")
        constraint = Constraint(llguidance.LLMatcher.grammar_from_lark(_lark(text) if kind == "gbnf" else text))
    failed, problems = llguidance.LLMatcher.validate_grammar_with_warnings(constraint.grammar, limits=_limits())
    if failed:
        what = "JSON schema" if kind == "json_schema" else "grammar"
        raise _refused(what, problems[0] if problems else "")
    return constraint


def _limits() -> Any:
    import llguidance

    return llguidance.LLParserLimits(**_FUEL)


def _refused(what: str, problem: str) -> EngineError:
    said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", problem).split())[:300].rstrip(".")
    return EngineError("bad_request", f"The {what} can't be followed: {said or 'it is not valid'}.")


# ---- schemas -------------------------------------------------------------------------------------------------------


def _schema(text: str) -> dict[str, Any]:
    if len(text.encode("utf-8", "replace")) > MAX_SCHEMA_BYTES:
        raise EngineError("bad_request", "The JSON schema is larger than 256 KiB.")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineError("bad_request", f"The JSON schema is not valid JSON ({error}).") from None
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise EngineError("bad_request", 'The JSON schema must be an object, such as {"type": "object"}.')
    _check(schema, 0)
    return schema


def _check(node: Any, depth: int) -> None:
    """Bounds the depth and the repetitions, and refuses references that lead out of the schema."""
    if depth > MAX_DEPTH:
        raise EngineError("bad_request", f"The JSON schema is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(node, list):
        for item in node:
            _check(item, depth + 1)
    if not isinstance(node, dict):
        return
    for key in _COUNTS:
        value = node.get(key)
        if isinstance(value, int | float) and not 0 <= value <= MAX_REPETITIONS:
            raise EngineError(
                "bad_request", f"The JSON schema asks for {key} {value:g}; at most {MAX_REPETITIONS} work."
            )
    pattern = node.get("pattern")
    if isinstance(pattern, str) and any(int(n) > MAX_REPETITIONS for n in re.findall(r"(?<=[{,])\d+", pattern)):
        raise EngineError("bad_request", f"A pattern of the JSON schema repeats more than {MAX_REPETITIONS} times.")
    ref = node.get("$ref")
    if isinstance(ref, str) and not ref.startswith("#"):
        raise EngineError(
            "bad_request", f"The JSON schema refers to {ref[:100]!r}; only references within it (#/…) are followed."
        )
    for value in node.values():
        _check(value, depth + 1)


def plain_schema(node: Any, *, names: bool = False) -> Any:
    """The schema without what says nothing about values: formats that JSON Schema doesn't define, and the guide's own
    options, which a request mustn't set."""
    if isinstance(node, list):
        return [plain_schema(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    plain = {}
    for key, value in node.items():
        if not names:
            if key == "x-guidance" or (key == "format" and value not in _STANDARD_FORMATS):
                continue
            if key in ("enum", "const", "default", "examples", "example"):
                if key in ("enum", "const"):
                    plain[key] = value
                continue
        if not names and key in _COUNTS and isinstance(value, float) and value.is_integer():
            value = int(value)  # 2.0 is as good as 2
        plain[key] = plain_schema(value, names=not names and key in _NESTED)
    return plain


def check_answer(constraint: Constraint, answer: str) -> str | None:
    """What is wrong with a whole answer; None: it holds."""
    if constraint.schema is None:
        return None
    import jsonschema

    try:
        value = json.loads(answer, parse_float=Decimal)  # 0.6 is a multiple of 0.0001, but not as binary fractions
    except (ValueError, RecursionError):
        return "it isn't complete JSON"
    schema = json.loads(constraint.schema, parse_float=Decimal)
    try:
        validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        problem = jsonschema.exceptions.best_match(validator(schema).iter_errors(value))
    except Exception:  # a schema that the checker doesn't understand was held by the guide all the same
        return None
    return None if problem is None else f"{problem.json_path}: {problem.message}"[:200]


# ---- grammars ------------------------------------------------------------------------------------------------------


_UNICODE = re.compile(r"\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})|\\.", re.DOTALL)


def _character(found: re.Match[str]) -> str:
    """A character in place of its number, which the converter writes in a form that the guide can't read."""
    code = int(found[1] or found[2] or "0", 16)
    if not code or code > 0x10FFFF or 0xD800 <= code < 0xE000:
        return found[0]
    return chr(code) if code > 0x7F else f"\\x{code:02x}"


def grammar_kind(text: str) -> Kind:
    """Which kind of grammar a text is: Lark begins at ``start:``, GBNF at ``root ::=``."""
    return "lark" if re.search(r"^\s*\??start\s*:(?!:)", text, re.MULTILINE) else "gbnf"


def _lark(gbnf: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    bare = _QUOTED.sub("", gbnf)
    depth = 0
    for bracket in re.findall(r"[()]", bare):
        depth += 1 if bracket == "(" else -1
        if depth > MAX_DEPTH:
            raise EngineError("bad_request", f"The grammar nests groups more than {MAX_DEPTH} levels deep.")
    if bare.count("::=") > MAX_RULES:
        raise EngineError("bad_request", f"The grammar has more than {MAX_RULES} rules.")
    if not re.search(r"(?:^|\n)\s*root\s*::=", gbnf):
        raise EngineError("bad_request", "The grammar is not valid GBNF, or it has no rule named root.")
    try:
        return gbnf_to_lark(_UNICODE.sub(_character, gbnf))
    except Exception as error:  # it raises bare ones, too
        said = " ".join(str(error).split())[:200]
        raise EngineError("bad_request", f"The grammar is not valid GBNF: {said}.") from None


# ---- one answer ----------------------------------------------------------------------------------------------------

_workers = ThreadPoolExecutor(2, thread_name_prefix="masks")


def _ids(matcher: Any) -> Any:
    """The ids of a mask."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.int32)


class Matcher:
    """Follows one answer under a constraint. The next mask is made in a thread while the model computes."""

    def __init__(self, tokenizer: Any, constraint: Constraint) -> None:
        """`tokenizer`: an ``llguidance.LLTokenizer``. Raises `EngineError` ``bad_request``."""
        import llguidance

        self._matcher = llguidance.LLMatcher(tokenizer, constraint.grammar, log_level=0, limits=_limits())
        self.constraint = constraint
        self._raise_if_broken()
        self.over = bool(self._matcher.is_stopped())
        """Whether nothing but the end can follow."""
        if self.over:
            raise EngineError("bad_request", "The schema or grammar allows no answer at all.")
        self._mask: Future[Any] = Future()
        self._mask.set_result(_ids(self._matcher))
        self.accepting = False
        """Whether what was taken is a whole answer."""
        if self._matcher.is_error():  # rules that never come to an end
            raise EngineError("bad_request", "The schema or grammar allows no answer at all.")

    def _raise_if_broken(self) -> None:
        if self._matcher.is_error():
            raise _refused("constraint", self._matcher.get_error())

    def allowed(self) -> Any:
        """The ids that may come next, ascending, as an int32 array. Raises `EngineError` where there is none."""
        ids = self._mask.result()
        self._raise_if_broken()
        if not len(ids):
            raise EngineError("bad_request", "The model has no token that continues the answer within the constraint.")
        return ids

    @property
    def broken(self) -> bool:
        """Whether it cost more than the bounds allow, and can't be followed any more."""
        return bool(self._matcher.is_error())

    def accept(self, token: int) -> None:
        """Goes on by a token. Raises `EngineError` ``bad_request`` where it isn't allowed."""
        self._mask.result()
        if not self._matcher.consume_token(token):
            self._raise_if_broken()
        self._follow()

    def _follow(self) -> None:
        self.over = bool(self._matcher.is_stopped())
        self.accepting = bool(self._matcher.is_accepting())
        if not self.over:
            self._mask = _workers.submit(_ids, self._matcher)

    def copy(self) -> Matcher:
        """Another one at the same place."""
        self._mask.result()
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        return other

    def take(self, tokens: list[int]) -> bool:
        """Goes on by tokens that were drawn without it; False: they don't fit, and it can't be used any more."""
        self._mask.result()
        if self._matcher.try_consume_tokens(tokens) < len(tokens) or self._matcher.is_error():
            return False
        self._follow()
        return not self.over or self.accepting
