"""Fields of requests that several APIs share: their bounds, and the sentence that says which one is wrong."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from backends.errors import ReportedError
from backends.interface import Sampling

MAX_MESSAGES = 4096
MAX_TOOLS = 256
MAX_STOPS = 16
MAX_SCHEMA_BYTES = 256 * 1024
MAX_ARGUMENTS = 1024 * 1024
"""Characters of the arguments of one call in a conversation."""
MAX_N = 16

Stop = Annotated[str, Meta(min_length=1, max_length=512)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.:-]+$")]
Description = Annotated[str, Meta(max_length=64 * 1024)]
CallId = Annotated[str, Meta(max_length=16 * 1024)]
"""Some clients put what a model must see again into its calls' ids."""
Temperature = Annotated[float, Meta(ge=0.0, le=5.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
RepeatPenalty = Annotated[float, Meta(gt=0.0, le=10.0)]
TopK = Annotated[int, Meta(ge=-1, le=1_000_000)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
MaxTokens = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
"""-1 is what some clients send for "as many as there is room for"."""
Count = Annotated[int, Meta(ge=1, le=MAX_N)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]

DEFAULTS = Sampling(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)
"""What clients of such APIs expect where they set nothing."""

T = TypeVar("T")
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.{1,80})`")
_MISSING = re.compile(r"^Object missing required field `(.{1,80})`")


class BadRequestError(ReportedError):
    """A request that can't be run; `param` names the field, `api_code` is what an API's clients look for."""

    def __init__(self, what: str, param: str | None = None, api_code: str | None = None, *, advice: str = "") -> None:
        super().__init__("bad_request", what, advice)
        self.param = param
        self.api_code = api_code


def read(body: Any, kind: type[T]) -> T:
    """A request of the struct `kind`, from JSON that was parsed. Raises `BadRequestError`."""
    if not isinstance(body, dict):
        raise BadRequestError("the request body must be a JSON object")
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        raise _explained(str(error), kind) from None


def _explained(said: str, kind: type[Any]) -> BadRequestError:
    """What msgspec said, in the words of somebody who reads an API's error."""
    at = _AT.search(said)
    path = at[1] if at else ""
    what = said[: at.start()] if at else said
    field = re.split(r"[.\[]", path, maxsplit=1)[0]
    if unknown := _UNKNOWN.match(what):
        if not path:
            return BadRequestError(f"unrecognized request argument: {unknown[1]}", unknown[1])
        return BadRequestError(f"{path}: unrecognized field {unknown[1]}", field)
    if missing := _MISSING.match(what):
        name = f"{path}.{missing[1]}" if path else missing[1]
        return BadRequestError(f"{name} is missing", field or missing[1])
    if path and path == field and (wanted := _numbers(kind, field)):
        return BadRequestError(f"{field} must be {wanted}", field)
    if path and path == field and _only_nothing(kind, field):
        return BadRequestError(f"{field} is not supported here; leave it out", field, "unsupported_parameter")
    plain = what.replace("`", "").replace("Expected", "expected", 1)
    return BadRequestError(f"{path or 'the request'}: {plain}"[:400], field or None)


_fields: dict[str, Any] = {}
"""Of request types: to ask msgspec for them takes longer than the rest of a refusal."""


def _types(kind: type[Any], name: str) -> tuple[Any, ...]:
    """What a field may be, as msgspec describes types."""
    key = f"{kind.__module__}.{kind.__qualname__}"
    if key not in _fields:
        _fields[key] = msgspec.inspect.type_info(kind).fields  # type: ignore[attr-defined]
    for info in _fields[key]:
        if info.encode_name == name:
            return info.type.types if isinstance(info.type, msgspec.inspect.UnionType) else (info.type,)
    return ()


def _only_nothing(kind: type[Any], name: str) -> bool:
    """Whether all that a field may be is nothing, an empty list, or the one value that clients send for nothing."""
    types = _types(kind, name)
    return bool(types) and all(
        isinstance(t, msgspec.inspect.NoneType)
        or (isinstance(t, msgspec.inspect.LiteralType) and len(t.values) == 1)
        or (isinstance(t, msgspec.inspect.ListType) and t.max_length == 0)
        for t in types
    )


def _numbers(kind: type[Any], name: str) -> str | None:
    """``a number from 0 to 5`` where a field is one with bounds."""
    for member in _types(kind, name):
        if isinstance(member, msgspec.inspect.IntType | msgspec.inspect.FloatType):
            noun = "a whole number" if isinstance(member, msgspec.inspect.IntType) else "a number"
            low = member.ge if member.ge is not None else member.gt
            if low is not None and member.le is not None:
                return (
                    f"{noun} from {low:g} to {member.le:g}"
                    if noun == "a number"
                    else (f"{noun} from {low} to {member.le}")
                )
            return noun
    return None


def stops_of(value: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings, given as one or as several."""
    if value is None or value == "":
        return ()
    stops = [value] if isinstance(value, str) else value
    if len(stops) > MAX_STOPS:
        raise BadRequestError(f"stop must be a string or a list of at most {MAX_STOPS} strings", "stop")
    return tuple(stops)


def schema_text(schema: dict[str, Any] | bool, param: str) -> str:
    """A JSON schema as text, bounded."""
    text = msgspec.json.encode(schema)
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadRequestError(f"the JSON schema is larger than {MAX_SCHEMA_BYTES // 1024} KiB", param)
    return text.decode()


def tokens_of(value: int | None, param: str = "max_tokens") -> int | None:
    """A limit of tokens; None: until the model ends or the context is full."""
    if value == 0:
        raise BadRequestError(f"{param} must be at least 1", param)
    return None if value is None or value < 0 else value


def seed_of(value: int | None) -> int | None:
    """A seed; -1 and None draw one."""
    return None if value is None or value == -1 else value
