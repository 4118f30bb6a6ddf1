"""How a template's model writes tool calls: read off rendered calls whose names, keys and values are known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from backends.chat_format.format import Calls, ChatFormat, distinctive, split_pieces
from backends.chat_format.probe import KEYS, NAMES, PROBE_TOOLS, TALK, VALUES, Probe, common

_ID_STYLES = ("", "nine", "named")
_IDS = {"": ("call_qzidqz1", "call_qzidqz2"), "nine": ("qzidqzid1", "qzidqzid2"),
        "named": tuple(f"functions.{n}:{i}" for i, n in enumerate(NAMES))}  # fmt: skip


def learn_calls(probe: Probe, generation: str, fmt: ChatFormat) -> Calls:
    """The format of tool calls; kind ``none`` where the template shows none."""
    best = Calls()
    for style in _ID_STYLES:
        for as_text in (False, True):
            found = _learn(probe, generation, fmt, style, as_text)
            if found is not None:
                return replace(found, id_style=style)
            if not as_text and _takes_mapping(probe, generation, style):
                break  # it writes arguments in a way of its own: as text they would come out in another one
    return best


def learn_history(probe: Probe, fmt: ChatFormat) -> dict[str, Any]:
    """What a template does with calls in the history: fields of `ChatFormat`."""
    told = NAMES[0] in (probe.render([TALK], tools=PROBE_TOOLS) or NAMES[0])
    if fmt.calls.kind == "none":
        return {"tools_in_text": not told and fmt.protocol == "tags"}
    one, other = (_exchange(fmt, n) for n in range(2))
    shown = _shows(probe, one, NAMES[0])
    null = not shown and _shows(probe, [{**one[0], "content": None}, *one[1:]], NAMES[0])
    both = [{**one[0], "tool_calls": [*one[0]["tool_calls"], *other[0]["tool_calls"]]}, *one[1:], *other[1:]]
    if null:
        one, other, both = ([{**m[0], "content": None}, *m[1:]] for m in (one, other, both))
    return {
        "tools_in_text": not told,
        "null_content": null,
        "calls_left_out": not shown and not null and fmt.calls.kind in ("json", "python"),
        "single_calls": not _shows(probe, both, NAMES[1]) and _shows(probe, [*one, *other], NAMES[1]),
    }


def _exchange(fmt: ChatFormat, which: int) -> list[dict[str, Any]]:
    """A call and its result."""
    call = _call(which, 1, fmt.calls.id_style, fmt.calls.arguments_as_text)
    result = {"role": "tool", "tool_call_id": call["id"], "name": NAMES[which], "content": f"QzResult{which}Qz"}
    return [{"role": "assistant", "content": "", "tool_calls": [call]}, result]


def _shows(probe: Probe, messages: list[dict[str, Any]], name: str) -> bool:
    """Whether a call of this name is in what messages add."""
    head, whole = probe.render([TALK], tools=PROBE_TOOLS), probe.render([TALK, *messages], tools=PROBE_TOOLS)
    if whole is None:
        return False
    return name in whole[len(common(head or "", whole)) :]


def _takes_mapping(probe: Probe, generation: str, style: str) -> bool:
    """Whether a template writes out a mapping of arguments, and not just Python's own form of it."""
    text = _rendered(probe, generation, [_call(0, 2, style, False)])
    return text is not None and VALUES[0] in text and VALUES[1] in text and f"{{'{KEYS[0]}'" not in text


def _call(which: int, n_keys: int, style: str, as_text: bool) -> dict[str, Any]:
    arguments: Any = dict(zip(KEYS[:n_keys], VALUES[:n_keys], strict=True))
    return {
        "id": _IDS[style][which],
        "type": "function",
        "function": {"name": NAMES[which], "arguments": json.dumps(arguments) if as_text else arguments},
    }


def _rendered(probe: Probe, generation: str, calls: list[dict[str, Any]]) -> str | None:
    """What a message with calls and nothing else adds after what opens an answer."""
    for content in ("", None):
        message = {"role": "assistant", "content": content, "tool_calls": calls}
        for after in (
            [],
            [{"role": "tool", "tool_call_id": calls[0]["id"], "name": NAMES[0], "content": "QzResultQz"}],
        ):
            head = probe.render([TALK], tools=PROBE_TOOLS)
            whole = probe.render([TALK, message, *after], tools=PROBE_TOOLS)
            if head is None or whole is None or NAMES[0] not in whole[len(common(head, whole)) :]:
                continue
            text = whole[len(common(head, whole)) :]
            if after:
                text = text.partition("QzResultQz")[0]
            return text[len(common(text, generation)) :]
    return None


def _learn(probe: Probe, generation: str, fmt: ChatFormat, style: str, as_text: bool) -> Calls | None:
    one = _rendered(probe, generation, [_call(0, 2, style, as_text)])
    if one is None or VALUES[0] not in one or VALUES[1] not in one:
        return None
    two = _rendered(probe, generation, [_call(0, 1, style, as_text), _call(1, 1, style, as_text)]) or ""
    if NAMES[1] not in two:
        two = ""
    skip = _skipped(fmt)
    found = _json(one, skip) or _python(one, skip) or _named(one, two, skip, style) or _tagged(one, two, skip)
    return replace(found, arguments_as_text=as_text) if found is not None else None


def _skipped(fmt: ChatFormat) -> set[str]:
    skip = set(fmt.ends) | set(fmt.opener) | set(fmt.wrapper)
    if fmt.thinking:
        skip |= {fmt.thinking.start, fmt.thinking.end, *fmt.thinking.after}
    return skip


def _pieces(text: str, skip: set[str]) -> tuple[str, ...]:
    return tuple(p for p in split_pieces(text) if p not in skip)


def _ending(text: str, skip: set[str]) -> tuple[str, ...]:
    """Pieces after a call: those up to the first that ends the turn."""
    found: list[str] = []
    for piece in split_pieces(text):
        if piece in skip:
            break
        if piece not in ("]", "}", ",", '"'):
            found.append(piece)
    return tuple(found[:4])


# -- forms -------------------------------------------------------------------------------------------------------------


def _enclosing(text: str, start: int) -> tuple[int, int, Any] | None:
    """The largest JSON value that holds the place `start` and both keys: begin, end and the value."""
    decoder = json.JSONDecoder()
    for at in range(start + 1):
        if text[at] in "[{":
            try:
                value, end = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                continue
            if end > start:
                return at, end, value
    return None


def _json(one: str, skip: set[str]) -> Calls | None:
    """The whole call is JSON."""
    at = one.find(f'"{NAMES[0]}"')
    found = _enclosing(one, at) if at >= 0 else None
    if found is None:
        return None
    begin, end, value = found
    if KEYS[1] not in json.dumps(value):
        return None
    call = value[0] if isinstance(value, list) and value else value
    calls = Calls(
        "json", in_list=isinstance(value, list), start=_pieces(one[:begin], skip), end=_ending(one[end:], skip)
    )
    for layer in (call, call.get("function") if isinstance(call, dict) else None):
        if not isinstance(layer, dict):
            continue
        if NAMES[0] in layer:
            return replace(calls, name_is_key=True)
        name = next((k for k, v in layer.items() if v == NAMES[0]), None)
        arguments = next((k for k, v in layer.items() if KEYS[0] in str(v)), None)
        identity = next((k for k, v in call.items() if isinstance(v, str) and "qzid" in v), "id")
        if name and arguments:
            return replace(calls, name_key=name, arguments_key=arguments, id_key=identity)
    return None


def _python(one: str, skip: set[str]) -> Calls | None:
    found = re.search(rf"\[\s*{NAMES[0]}\({KEYS[0]}\s*=", one)
    if not found:
        return None
    close = one.rfind(")")
    end = one[close + 1 :].lstrip().removeprefix("]")
    return Calls("python", start=_pieces(one[: found.start()], skip), end=_ending(end, skip))


def _arguments_json(text: str, after: int) -> tuple[int, int] | None:
    at = text.find("{", after)
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        return (at, end) if isinstance(value, dict) and KEYS[0] in value else None
    return None


def _named(one: str, two: str, skip: set[str], style: str) -> Calls | None:
    """The name, then the arguments as JSON."""
    found = _arguments_json(one, one.find(NAMES[0]))
    if found is None:
        return None
    begin, end = found
    at = one.rfind(NAMES[0], 0, begin)
    name_end = one[at + len(NAMES[0]) : begin]
    id_text = _IDS[style][0]
    calls = Calls("named")
    prefix = one[:at]
    if style == "named" and one[at - len("functions.") : at + len(NAMES[0]) + 2] == id_text:
        calls = replace(calls, id_is_name=True)
        prefix, name_end = one[: at - len("functions.")], name_end[2:]
    elif id_text in prefix:
        prefix, _, between = prefix.partition(id_text)
        calls = replace(calls, name_start=split_pieces(between))
    elif id_text in name_end:
        id_start, _, name_end = name_end.partition(id_text)
        calls = replace(calls, id_start=split_pieces(id_start))
    section, start, ending = _frame(prefix, one[end:], two, skip)
    last = _arguments_json(two, two.find(NAMES[1])) if two else None
    if last is not None:  # some close a section only after several calls
        more = _ending(two[last[1] :], skip)
        ending = more if more[: len(ending)] == ending else ending
    return replace(calls, section=section, start=start, name_end=split_pieces(name_end), end=ending)


def _frame(
    prefix: str, after: str, two: str, skip: set[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What opens a section of calls, what opens each call, and what may follow one."""
    start, ending = _pieces(prefix, skip), _ending(after, skip)
    if not two:
        return (), start, ending
    first, second = two.find(NAMES[0]), two.find(NAMES[1])
    if two[second - len("functions.") : second] == "functions.":
        second -= len("functions.")
    between = _pieces(two[first + len(NAMES[0]) : second], skip)
    n = 0
    while n < min(len(start), len(between)) and start[-1 - n] == between[-1 - n]:
        n += 1
    if n == 0:
        return (), start, ending
    return start[: len(start) - n], start[len(start) - n :], ending


def _tagged(one: str, two: str, skip: set[str]) -> Calls | None:
    """The name, then each argument between markers."""
    name, key1, value1 = (one.find(x) for x in (NAMES[0], KEYS[0], VALUES[0]))
    key2, value2 = one.find(KEYS[1]), one.find(VALUES[1])
    if not 0 <= name < key1 < value1 < key2 < value2:
        return None
    first = split_pieces(one[name + len(NAMES[0]) : key1])
    middle_text = one[value1 + len(VALUES[0]) : key2]
    middle = split_pieces(middle_text)
    n = 0
    while n < min(len(first), len(middle)) and first[-1 - n] == middle[-1 - n]:
        n += 1
    if not n or n == len(middle):
        return None
    key_start, name_end, value_end = first[len(first) - n :], first[: len(first) - n], middle[: len(middle) - n]
    key_text = one[key1 + len(KEYS[0]) : value1]
    rest = one[value2 + len(VALUES[1]) :]
    closing = split_pieces(rest)
    closing = closing[len(value_end) :] if closing[: len(value_end)] == value_end else closing
    ending = _ending(" ".join(closing), skip)
    start = _pieces(one[:name], skip)
    section: tuple[str, ...] = ()
    if two:
        section, start, _ = _frame(one[:name], rest, two, skip)
    if not (start and any(map(distinctive, start))):
        return None
    return Calls(
        "tagged",
        section=section,
        start=start,
        name_end=name_end,
        key_start=key_start,
        key_end=split_pieces(key_text),
        value_end=value_end[:1],
        value_lead=key_text[len(key_text.rstrip()) :],
        value_trail=middle_text[: len(middle_text) - len(middle_text.lstrip())],
        end=ending,
    )
