"""Grammars for tool calls in a model's own format, in Lark for llguidance: that make it call a tool, and that hold a
call which it began by itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backends.chat_format.arguments import KimiThree, Pythonic, Tagged
from backends.chat_format.constraint import JSON_OPTIONS, plain_schema
from backends.chat_format.format import Calls, ChatFormat, distinctive
from backends.chat_format.grammar import Ids, Rules, either, in_order, moved, parameters_of
from backends.chat_format.nested_arguments import gemma_call, minimax_call
from backends.interface import EngineError, ToolSpec


def forced_calls(fmt: ChatFormat, tools: Sequence[ToolSpec], ids: Ids, *, parallel: bool) -> str:
    """Lark for an answer that is one call of `tools`, or several. Raises `EngineError` ``unsupported`` for formats in
    which a call can't be forced, ``bad_request`` for a tool whose schema can't be held."""
    writer = _Writer(fmt.calls, ids, tools)
    rules = writer.rules
    if fmt.protocol == "harmony":
        return writer.harmony(tools)
    if fmt.protocol == "kimi3":
        return writer.kimi3(tools, parallel=parallel)
    if fmt.protocol == "functionary":
        calls = [in_order([json.dumps(f"{t.name}\n"), rules.schema(parameters_of(t))]) for t in tools]
        return rules.text(either(calls))
    if fmt.protocol != "tags":
        raise _cant(fmt.protocol)
    if fmt.calls.kind == "json":
        return writer.json(tools, parallel=parallel)
    if fmt.calls.kind == "none":
        raise _cant("none")
    start = rules.pieces(fmt.calls.start)
    if fmt.calls.kind == "python":
        more = " " + f'("," ws {either(writer.python(tools))})*' if parallel else ""
        return rules.text(in_order([start, 'ws "["', either(writer.python(tools)) + more, '"]" ws', writer.end()]))
    one = either([f"({start} {call})" for call in writer.after_start(tools)])
    section, close_section = rules.pieces(fmt.calls.section), rules.pieces(writer.section_end())
    space = "" if fmt.calls.kind == "minimax" else "ws"
    more = f" ({space} {one})*" if parallel else ""
    return rules.text(in_order([section, space, one + more, space, close_section]))


def begun_calls(fmt: ChatFormat, tools: Sequence[ToolSpec], ids: Ids) -> dict[str, str]:
    """Lark that holds a call from where it began (`reading.CallStart`), by the name that was given before that: under
    '' for formats in which the name is a part of the call, else one for each tool. {} where the template shows no
    calls. Raises `EngineError` ``bad_request`` for a tool whose schema can't be held."""
    if fmt.protocol in ("harmony", "functionary"):
        found = {}
        for tool in tools:
            rules = Rules(ids, free_space=True)
            found[tool.name] = rules.text(f"ws {rules.schema(parameters_of(tool))}")
        return found
    writer = _Writer(fmt.calls, ids, tools, free_space=True)
    rules = writer.rules
    if fmt.protocol == "kimi3":
        return {"": rules.text(either([KimiThree(rules).call(tool) for tool in tools]))}
    match fmt.calls.kind:
        case "none":
            return {}
        case "json":
            body = writer.begun_json(tools)
        case "python":
            one = either(writer.python(tools))
            body = in_order(['"["', f'{one} ("," ws {one})*', '"]"', writer.end(before="ws")])
        case _:
            body = either([f"({call})" for call in writer.after_start(tools)])
    return {"": rules.text(f"{writer.lead()} ({body})")}


def calls_or_answer(calls: str, schema: str) -> str:
    """Lark for an answer that is calls (`forced_calls`), or JSON by a schema."""
    answer = {**plain_schema(json.loads(schema)), "x-guidance": dict(JSON_OPTIONS)}
    return f"{calls.replace('start:', 'calls:', 1)}start: calls | answer\nanswer: %json {json.dumps(answer)}\n"


def alone(fmt: ChatFormat, tool: ToolSpec) -> list[str]:
    """Lark for a tool's arguments, as JSON and in a format of its own: whether its schema can be held. Raises
    `EngineError` ``bad_request`` where that shows before it is compiled."""
    rules = Rules(_as_text, free_space=True)
    found = [rules.text(rules.schema(parameters_of(tool)))]
    return [*found, *begun_calls(fmt, [tool], _as_text).values()]


def loosened(tool: ToolSpec) -> list[dict[str, Any]]:
    """Parameters of a tool whose schema can't be held, in parts: each alone, with what it may refer to."""
    properties = tool.parameters.get("properties")
    shared: dict[str, Any] = {k: tool.parameters[k] for k in ("$defs", "definitions") if k in tool.parameters}
    if not isinstance(properties, Mapping):
        return []
    return [{**shared, "type": "object", "properties": {key: value}} for key, value in properties.items()]


def _as_text(marker: str) -> list[tuple[str, int | None]]:
    return [(marker, None)]


def _closes(calls: Calls, piece: str) -> bool:
    """Whether a piece after a call closes the section of calls instead of the call."""
    return bool(calls.end) and piece == calls.end[-1] and (len(calls.end) > 1 or calls.kind == "minimax")


def _cant(kind: str) -> EngineError:
    what = (
        "This model's chat template shows no tool calls"
        if kind == "none"
        else f"A tool call can't be forced in this model's way of writing calls ({kind})"
    )
    return EngineError("unsupported", what, "use tool_choice auto.")


class _Writer:
    """Writes whole calls: markers, names, and what ends them."""

    def __init__(self, calls: Calls, ids: Ids, tools: Sequence[ToolSpec], *, free_space: bool = False) -> None:
        self.calls, self.rules = calls, Rules(ids, free_space=free_space)
        self._tools = tools

    def lead(self) -> str:
        """What a call begins with: a model may leave out a section's beginning, and the first of a call's pieces."""
        section, start = self.calls.section, self.calls.start
        leads = [(*section, *start)] if section else []
        leads += [start[n:] for n in range(len(start)) if not n or distinctive(start[n])]
        written = [self.rules.pieces(lead) for lead in leads]
        space = "" if self.calls.kind in ("gemma", "minimax") else "ws"
        return f"({' | '.join(written)}) {space}" if written else ""

    def end(self, before: str = "") -> str:
        """What a call ends with, without the end of a section of calls; `before` stands before it."""
        calls = self.calls
        end = self.rules.pieces(tuple(p for p in calls.end if not (calls.section and _closes(calls, p))))
        return in_order([before, end]) if end else ""

    def section_end(self) -> tuple[str, ...]:
        """What ends a section of calls."""
        return tuple(p for p in self.calls.end if self.calls.section and _closes(self.calls, p))

    # -- forms -------------------------------------------------------------------------------------------------------

    def after_start(self, tools: Sequence[ToolSpec]) -> list[str]:
        """Each tool's name and arguments, and what ends the call: where the name is no part of the arguments."""
        match self.calls.kind:
            case "tagged":
                tagged = Tagged(self.rules, self.calls, self._tools)
                return [tagged.call(tool, self.end()) for tool in tools]
            case "gemma":
                return [gemma_call(self.rules, tool, self.end()) for tool in tools]
            case "minimax":
                return [minimax_call(self.rules, tool, self.calls.key_start[0]) for tool in tools]
            case _:
                return [self._named(tool) for tool in tools]

    def python(self, tools: Sequence[ToolSpec]) -> list[str]:
        return [self.rules.rule(Pythonic(self.rules).call(tool)) for tool in tools]

    def json(self, tools: Sequence[ToolSpec], *, parallel: bool) -> str:
        calls, rules = self.calls, self.rules
        one = either([rules.schema(_object(calls, tool)) for tool in tools])
        start, end = rules.pieces(calls.start), rules.pieces(calls.end)
        if calls.in_list:
            more = f' ("," ws {one})*' if parallel else ""
            return rules.text(f'{start} ws "[" {one}{more} "]" ws {end}')
        call = f"{start} ws {one} ws {end}"
        return rules.text(f"{call} (ws {call})*" if parallel and calls.start else call)

    def begun_json(self, tools: Sequence[ToolSpec]) -> str:
        """What follows the start of a call in JSON: a list of calls is one."""
        one = either([self.rules.schema(_object(self.calls, tool)) for tool in tools])
        end = f" ws {self.end()}" if self.calls.end else ""
        return f'"[" ws {one} (ws "," ws {one})* ws "]"{end}' if self.calls.in_list else one + end

    def _named(self, tool: ToolSpec) -> str:
        calls, rules = self.calls, self.rules
        parts = []
        if calls.name_start:
            parts += ["/[a-zA-Z0-9_]{1,32}/", rules.pieces(calls.name_start)]
        if calls.id_is_name:
            parts.append(f"{json.dumps('functions.' + tool.name + ':')} /[0-9]{{1,3}}/")
        else:
            parts.append(json.dumps(tool.name))
        if calls.id_start:
            parts += [rules.pieces(calls.id_start), "/[a-zA-Z0-9]{9}/"]
        parts += [rules.pieces(calls.name_end), "ws", rules.schema(parameters_of(tool)), self.end(before="ws")]
        return in_order(parts)

    def harmony(self, tools: Sequence[ToolSpec]) -> str:
        """Perhaps a thought, then a call."""
        rules, calls = self.rules, []
        for tool in tools:
            head = rules.marker(f"<|channel|>commentary to=functions.{tool.name} <|constrain|>json<|message|>")
            calls.append(f"({head} {rules.schema(parameters_of(tool))})")
        head, close = rules.marker("<|channel|>analysis<|message|>"), rules.marker("<|end|><|start|>assistant")
        thought = rules.rule(f"{head} {rules.rule('/(?s:.*)/')} {close}")
        return rules.text(f"{thought}? {either(calls)}")

    def kimi3(self, tools: Sequence[ToolSpec], *, parallel: bool) -> str:
        """An empty response, or the rest of it, then calls."""
        rules = self.rules
        one = either([f"({KimiThree(rules).call(tool)})" for tool in tools])
        head = f"({rules.marker('<|open|>response<|sep|>')})? {rules.marker('<|close|>response<|sep|>')}"
        start, end = rules.marker("<|open|>tools<|sep|>"), rules.marker("<|close|>tools<|sep|>")
        return rules.text(in_order([f"({head})?", start, f"{one}{'+' if parallel else ''}", end]))


def _object(calls: Calls, tool: ToolSpec) -> dict[str, Any]:
    """The schema of a whole call in JSON."""
    key = tool.name if calls.name_is_key else calls.arguments_key
    arguments = moved(parameters_of(tool), f"#/properties/{key.replace('~', '~0').replace('/', '~1')}")
    properties: dict[str, Any] = {} if calls.name_is_key else {calls.name_key: {"const": tool.name}}
    properties[key] = arguments
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
