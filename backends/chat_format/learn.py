"""Learns from a chat template how its model writes: renders probes and compares what comes out.

Each probe differs from another one in one thing (an answer is opened or not; there is thinking or not; one call or two,
one argument or two), and holds words that occur nowhere else. Where they come out, and what stands around them, are the
markers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from backends.chat_format import families
from backends.chat_format.format import KNOWN_TAGS, ChatFormat, Thinking, control_like, distinctive, split_pieces
from backends.chat_format.learn_calls import learn_calls, learn_history
from backends.chat_format.probe import ANSWER, SYSTEM, TALK, THOUGHT, Probe, common, common_end
from backends.chat_format.told_tools import CALLS_IN_TEXT
from backends.chat_format.variables import switch_names

_TAG = re.compile(r"</?[\w:.-]+>")
Render = Callable[[dict[str, Any]], str]


def learn(source: str, render: Render) -> ChatFormat:
    """What a template shows of its model's format. `render` renders it with some variables and raises where it can't;
    never raises itself."""
    probe = Probe(render)
    base = probe.render([TALK])
    if base is None:
        return families.apply(ChatFormat(), source)
    opened = probe.render([TALK], opens=True) or base
    generation = opened[len(common(base, opened)) :]
    fmt = ChatFormat(learnt="template", opener=split_pieces(generation))
    fmt = replace(fmt, **_text_around(probe, generation))
    thinking = _thinking(probe, source, generation, fmt)
    tags = {thinking.start, thinking.end, *thinking.start.split()} if thinking else set()
    fmt = replace(
        fmt,
        thinking=thinking,
        ends=tuple(p for p in fmt.ends if p not in tags and p not in fmt.opener),
        wrapper=tuple(p for p in fmt.wrapper if p not in tags),
    )
    switch, effort = switch_names(source)
    developer = "developer" in source and _arrives(probe, "developer")
    system: Literal["yes", "merge"] = "yes" if _arrives(probe, "system") else "merge"
    fmt = replace(fmt, switch=switch, effort=effort, system=system, developer=developer)
    if "tools" in source or "tool_calls" in source:
        calls = learn_calls(probe, generation, fmt)
        fmt = replace(fmt, calls=calls)
    fmt = families.apply(fmt, source)
    history = learn_history(probe, fmt)
    if fmt.calls.kind == "none" and history["tools_in_text"]:
        fmt = replace(fmt, calls=CALLS_IN_TEXT, calls_in_text=True)
    else:
        fmt = replace(fmt, **history)
    return replace(fmt, opener=_opener(fmt))


def _opener(fmt: ChatFormat) -> tuple[str, ...]:
    """What opens an answer, without the tags of thinking."""
    tags = {*split_pieces(fmt.thinking.start), fmt.thinking.start, fmt.thinking.end} if fmt.thinking else set()
    return tuple(p for p in fmt.opener if p not in tags)


def _arrives(probe: Probe, role: str) -> bool:
    """Whether a template has a place for a message that comes first."""
    return SYSTEM in (probe.render([{"role": role, "content": SYSTEM}, TALK]) or "")


def _text_around(probe: Probe, generation: str) -> dict[str, Any]:
    """What stands before and after an answer's text."""
    one = probe.answer({"content": ANSWER})
    more = probe.answer({"content": ANSWER}, {"role": "user", "content": TALK["content"] + "2"})
    if one is None or ANSWER not in one:
        return {}
    before, _, after = one.partition(ANSWER)
    head, end = before, ""
    before = before[len(common(before, generation)) :]
    ends = split_pieces(after)
    if more and ANSWER in more:
        between = more.partition(ANSWER)[2].partition(TALK["content"])[0]
        question = (probe.render([TALK]) or "").partition(TALK["content"])[0]
        end = between[: len(between) - len(common_end(between, question))]
        ends += split_pieces(end)
    wrapper = tuple(p for p in split_pieces(before) if distinctive(p))
    return {
        "ends": tuple(dict.fromkeys(p for p in ends if len(p) > 2 and (control_like(p) or _TAG.fullmatch(p)))),
        "wrapper": wrapper,
        "answer_head": head,
        "answer_end": end,
    }


# -- thinking ----------------------------------------------------------------------------------------------------------


def _thinking(probe: Probe, source: str, generation: str, fmt: ChatFormat) -> Thinking | None:
    """The tags around thinking: from a rendered answer with thinking, else from what opens an answer, else the known
    ones that the template holds."""
    for message in (
        {"content": ANSWER, "reasoning_content": THOUGHT, "thinking": THOUGHT, "reasoning": THOUGHT},
        {"content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}]},
        {"content": {"parts": [{"type": "response", "text": ANSWER}], "blocks": [
            {"type": "thoughts", "text": THOUGHT}, {"type": "response", "text": ANSWER}]}},
    ):  # fmt: skip
        for extra in ({}, {"enable_thinking": True, "thinking": True}):
            text = probe.answer(message, **extra)
            found = _around_thought(text, generation, fmt) if text else None
            if found:
                return found
    on = probe.opener(enable_thinking=True, thinking=True, reasoning_effort="high")
    for text in (on, generation, probe.opener(enable_thinking=False, thinking=False)):
        found = _in_opener(text or "", source)
        if found:
            return found
    return next((_tags(s, e) for s, e in KNOWN_TAGS if s in source and e in source), None)


def _tags(start: str, end: str, after: tuple[str, ...] = ()) -> Thinking:
    return Thinking(start, end, after, control=control_like(start) and start != "<think>")


def _around_thought(text: str, generation: str, fmt: ChatFormat) -> Thinking | None:
    at = text.find(THOUGHT)
    answer = text.find(ANSWER, at)
    if at < 0 or answer < 0:
        return None
    before = text[:at]
    between = list(split_pieces(text[at + len(THOUGHT) : answer]))
    last = split_pieces(before)[-1:]
    if between and last and _letters(last[0]) == _letters(between[0]) != "":  # a pair, whatever opens an answer
        return _tags(last[0], between[0], tuple(between[1:])) if distinctive(between[0]) else None
    before = before[len(common(before, generation)) :] or generation
    starts = [p for p in split_pieces(before) if p not in fmt.opener or "think" in p.lower()]
    if not between:
        return None
    end, after = between[0], tuple(between[1:])
    start = starts[-1] if starts else ""
    if start.startswith("</") or start == end:  # an answer's thinking is left out, but what opens one isn't
        opened = _in_opener(generation, text + end)
        return replace(opened, after=after) if opened and opened.end == end else None
    if " " in before.strip() and not control_like(start):  # a sentence that opens thinking
        start = before.strip().splitlines()[-1]
    if end.startswith("[") and not end.endswith("]"):
        end, after = text[at + len(THOUGHT) : answer].strip(), ()
    return _tags(start, end, after) if start and distinctive(end) else None


def _letters(tag: str) -> str:
    return "".join(filter(str.isalnum, tag))


def _in_opener(text: str, source: str) -> Thinking | None:
    """A tag that opens an answer and whose close stands in the template."""
    for piece in reversed(split_pieces(text)):
        for start, end in KNOWN_TAGS:
            if piece == start:
                return _tags(start, end)
        found = re.fullmatch(r"<([\w:|]*think[\w:|]*)>", piece)
        if found and f"</{found[1]}>" in source:
            return _tags(piece, f"</{found[1]}>")
    return None


def describe(fmt: ChatFormat) -> str:
    """A few words for people."""
    parts = []
    if fmt.learnt.startswith("family:"):
        parts.append(fmt.learnt.removeprefix("family:"))
    if fmt.thinking:
        parts.append(f"thinking in {fmt.thinking.start}…{fmt.thinking.end}")
    if fmt.calls_in_text:
        parts.append("no tool calls of its own")
    else:
        parts.append(f"tool calls: {fmt.calls.kind}" if fmt.calls.kind != "none" else "no tool calls")
    return "; ".join(parts)
