"""Grammars for tool calls in a model's own format, in Lark for llguidance: that make it call a tool, and that hold a
call which it began by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backends.chat_format.constraint import JSON_OPTIONS, plain_schema
from backends.chat_format.format import Calls, ChatFormat, distinctive
from backends.chat_format.values import is_text, resolved, types_of
from backends.interface import EngineError, ToolSpec

Ids = Callable[[str], Sequence[tuple[str, int | None]]]
"""A marker's parts: text and None, or the text and id of a special token."""


def forced_calls(fmt: ChatFormat, tools: Sequence[ToolSpec], ids: Ids, *, parallel: bool) -> str:
    """Lark for an answer that is one call of `tools`, or several. Raises `EngineError` ``unsupported`` for formats in
    which a call can't be forced."""
    writer = _Writer(fmt.calls, ids)
    if fmt.protocol == "harmony":
        calls = [writer.harmony(tool) for tool in tools]
        writer.rules.append("thought: /(?s:.*)/")
        head = writer.marker("<|channel|>analysis<|message|>")
        close = writer.marker("<|end|><|start|>assistant")
        writer.rules.append(f"analysis: {head} thought {close}")
        return writer.text(f"analysis? ({' | '.join(calls)})")
    if fmt.protocol != "tags":
        raise _cant(fmt.protocol)
    match fmt.calls.kind:
        case "json":
            return writer.json(tools, parallel=parallel)
        case "named":
            calls = [writer.named(tool) for tool in tools]
        case "tagged":
            calls = [writer.tagged(tool) for tool in tools]
        case kind:
            raise _cant("none" if kind == "none" else kind)
    one = f"({' | '.join(calls)})"
    section = writer.pieces(fmt.calls.section)
    close_section = writer.pieces(tuple(p for p in fmt.calls.end if fmt.calls.section and _closes(fmt.calls, p)))
    return writer.text(f"{section} {one}{f' (ws {one})*' if parallel else ''} {close_section}")


def begun_calls(fmt: ChatFormat, tools: Sequence[ToolSpec], ids: Ids) -> dict[str, str]:
    """Lark that holds a call from where it began (`reading.CallStart`), by the name that was given before that: under
    '' for formats in which the name is a part of the call, else one for each tool. {} for formats in which calls can't
    be held."""
    if fmt.protocol in ("harmony", "functionary"):
        found = {}
        for tool in tools:
            writer = _Writer(fmt.calls, ids, free_space=True)
            found[tool.name] = writer.text(f"ws {writer.schema(_parameters(tool))}")
        return found
    writer = _Writer(fmt.calls, ids, free_space=True)
    match fmt.calls.kind if fmt.protocol in ("tags", "recipients") else "none":
        case "json":
            body = writer.begun_json(tools)
        case "named":
            body = " | ".join(f"({writer.after_start_named(tool)})" for tool in tools)
        case "tagged":
            body = " | ".join(f"({writer.after_start_tagged(tool)})" for tool in tools)
        case _:
            return {}
    return {"": writer.text(f"{writer.lead()} ({body})")}


def calls_or_answer(calls: str, schema: str) -> str:
    """Lark for an answer that is calls (`forced_calls`), or JSON by a schema."""
    answer = {**plain_schema(json.loads(schema)), "x-guidance": dict(JSON_OPTIONS)}
    return f"{calls.replace('start:', 'calls:', 1)}start: calls | answer\nanswer: %json {json.dumps(answer)}\n"


def arguments_alone(tool: ToolSpec) -> str:
    """Lark for a tool's arguments: whether its schema can be held."""
    writer = _Writer(Calls(), lambda text: [(text, None)], free_space=True)
    return writer.text(writer.schema(_parameters(tool)))


def _closes(calls: Calls, piece: str) -> bool:
    """Whether a piece after a call closes the section of calls instead of the call."""
    return bool(calls.end) and piece == calls.end[-1] and len(calls.end) > 1


def _cant(kind: str) -> EngineError:
    what = (
        "This model's chat template shows no tool calls"
        if kind == "none"
        else f"A tool call can't be forced in this model's way of writing calls ({kind})"
    )
    return EngineError("unsupported", what, "use tool_choice auto.")


class _Writer:
    """Writes rules."""

    def __init__(self, calls: Calls, ids: Ids, *, free_space: bool = False) -> None:
        """`free_space`: white space in JSON is as the model likes it, else as most templates write it."""
        self.calls, self._ids = calls, ids
        self._written: dict[str, Any] = (
            dict(JSON_OPTIONS)
            if free_space
            else {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        )
        self.rules: list[str] = ["ws: /[ \\n]{0,2}/"]
        self._n = 0

    def text(self, start: str) -> str:
        """The whole grammar."""
        return "%llguidance {}\nstart: " + start + "\n" + "\n".join(self.rules) + "\n"

    def marker(self, text: str) -> str:
        """A marker: literals, and special tokens by their ids."""
        return " ".join(
            json.dumps(part, ensure_ascii=False) if token is None else f"<[{token}]>" for part, token in self._ids(text)
        )

    def pieces(self, pieces: Sequence[str]) -> str:
        return " ws ".join(self.marker(p) for p in pieces)

    def schema(self, schema: Mapping[str, Any]) -> str:
        """JSON by a schema."""
        self._n += 1
        name = f"value{self._n}"
        self.rules.append(f"{name}: %json {json.dumps({**plain_schema(schema), 'x-guidance': self._written})}")
        return name

    def lead(self) -> str:
        """What a call begins with: a model may leave out a section's beginning, and the first of a call's pieces."""
        section, start = self.calls.section, self.calls.start
        leads = [(*section, *start)] if section else []
        leads += [start[n:] for n in range(len(start)) if not n or distinctive(start[n])]
        written = [self.pieces(lead) for lead in leads]
        return f"({' | '.join(written)}) ws" if written else ""

    def end(self) -> str:
        """What a call ends with, without the end of a section of calls."""
        calls = self.calls
        return self.pieces(tuple(p for p in calls.end if not (calls.section and _closes(calls, p))))

    # -- forms -------------------------------------------------------------------------------------------------------

    def json(self, tools: Sequence[ToolSpec], *, parallel: bool) -> str:
        calls = self.calls
        names = [self.schema(_object(calls, tool)) for tool in tools]
        one = f"({' | '.join(names)})"
        start = self.pieces(calls.start)
        end = self.pieces(calls.end)
        if calls.in_list:
            more = f' ("," ws {one})*' if parallel else ""
            return self.text(f'{start} ws "[" {one}{more} "]" ws {end}')
        call = f"{start} ws {one} ws {end}"
        return self.text(f"{call} (ws {call})*" if parallel and calls.start else call)

    def begun_json(self, tools: Sequence[ToolSpec]) -> str:
        """What follows the start of a call in JSON: a list of calls is one."""
        one = f"({' | '.join(self.schema(_object(self.calls, tool)) for tool in tools)})"
        end = f" ws {self.end()}" if self.calls.end else ""
        return f'"[" ws {one} (ws "," ws {one})* ws "]"{end}' if self.calls.in_list else one + end

    def named(self, tool: ToolSpec) -> str:
        start = self.pieces(self.calls.start)
        return f"({start} {self.after_start_named(tool)})"

    def after_start_named(self, tool: ToolSpec) -> str:
        """Name and arguments, and what ends the call."""
        calls = self.calls
        parts = []
        if calls.name_start:
            parts += ["/[a-zA-Z0-9_]{1,32}/", self.pieces(calls.name_start)]
        if calls.id_is_name:
            parts.append(f"{json.dumps('functions.' + tool.name + ':')} /[0-9]{{1,3}}/")
        else:
            parts.append(json.dumps(tool.name))
        if calls.id_start:
            parts += [self.pieces(calls.id_start), "/[a-zA-Z0-9]{9}/"]
        parts += [self.pieces(calls.name_end), "ws", self.schema(_parameters(tool))]
        end = self.end()
        parts += ["ws", end] if end else []
        return " ".join(p for p in parts if p)

    def harmony(self, tool: ToolSpec) -> str:
        head = self.marker(f"<|channel|>commentary to=functions.{tool.name} <|constrain|>json<|message|>")
        return f"({head} {self.schema(_parameters(tool))})"

    def tagged(self, tool: ToolSpec) -> str:
        return f"({self.pieces(self.calls.start)} {self.after_start_tagged(tool)})"

    def after_start_tagged(self, tool: ToolSpec) -> str:
        """Name and arguments, and what ends the call."""
        calls, root = self.calls, _parameters(tool)
        properties = root.get("properties")
        required = root.get("required")
        parts = [json.dumps(tool.name), self.pieces(calls.name_end)]
        for key, schema in (properties if isinstance(properties, Mapping) else {}).items():
            schema = resolved(schema, root) if isinstance(schema, Mapping) else {}
            argument = " ".join(
                p
                for p in (
                    "ws", self.pieces(calls.key_start), json.dumps(key), self.pieces(calls.key_end),
                    json.dumps(calls.value_lead) if calls.value_lead else "", self._value(schema, root),
                )
                if p
            )  # fmt: skip
            parts.append(argument if isinstance(required, list) and key in required else f"({argument})?")
        parts += ["ws", self.end()]
        return " ".join(p for p in parts if p)

    def _value(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        end = self.calls.value_end[0]
        trail = json.dumps(self.calls.value_trail) + " " if self.calls.value_trail else ""
        values = schema.get("enum")
        if isinstance(values, list) and values and all(isinstance(v, str) for v in values):
            return f"({' | '.join(json.dumps(v, ensure_ascii=False) for v in values)}) {trail}{self.marker(end)}"
        if not is_text(types_of(schema)):
            whole = {**schema, **{k: root[k] for k in ("$defs", "definitions") if k in root}}
            return f"{self.schema(whole)} {trail}{self.marker(end)}"
        self._n += 1
        name = f"text{self._n}"
        if any(token is not None for _, token in self._ids(end)):
            self.rules.append(f"{name}: /(?s:.*)/")
            return f"{name} {self.marker(end)}"
        self.rules.append(f"{name}[suffix={json.dumps(end)}]: /(?s:.*)/")
        return name


_OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref")


def _parameters(tool: ToolSpec) -> dict[str, Any]:
    """The schema of a tool's arguments. A function takes no others than those that are named, unless its schema says
    so: libraries leave that out, and a model that may add some doesn't come to an end."""
    parameters = dict(tool.parameters) or {"properties": {}}
    parameters.setdefault("type", "object")
    if "properties" in parameters and not any(word in parameters for word in _OPEN):
        parameters["additionalProperties"] = False
    return parameters


def _object(calls: Calls, tool: ToolSpec) -> dict[str, Any]:
    """The schema of a whole call in JSON."""
    key = tool.name if calls.name_is_key else calls.arguments_key
    arguments = _moved(_parameters(tool), f"#/properties/{key.replace('~', '~0').replace('/', '~1')}")
    properties: dict[str, Any] = {} if calls.name_is_key else {calls.name_key: {"const": tool.name}}
    properties[key] = arguments
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(node: Any, place: str) -> Any:
    """A schema whose references into itself are right where it stands within another one."""
    if isinstance(node, list):
        return [_moved(item, place) for item in node]
    if not isinstance(node, Mapping):
        return node
    return {
        k: place + v[1:] if k == "$ref" and isinstance(v, str) and v.startswith("#") else _moved(v, place)
        for k, v in node.items()
    }
