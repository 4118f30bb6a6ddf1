"""Probes: messages whose words occur nowhere else, rendered by a template under examination."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

TALK = {"role": "user", "content": "QzUserWordQz"}
ANSWER = "QzAnswerWordQz"
THOUGHT = "QzThoughtWordQz"
SYSTEM = "QzSystemWordQz"
NAMES = ("qzfirsttoolqz", "qzsecondtoolqz")
KEYS = ("qzfirstkeyqz", "qzsecondkeyqz")
VALUES = ("qzfirstvalueqz", "qzsecondvalueqz")
PROBE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {k: {"type": "string", "description": "A value."} for k in KEYS},
                "required": list(KEYS),
            },
        },
    }
    for name in NAMES
]


class Probe:
    """Renders messages with one template; None where it refuses them."""

    def __init__(self, render: Callable[[dict[str, Any]], str]) -> None:
        self._render = render
        self._seen: dict[str, str | None] = {}

    def render(self, messages: list[dict[str, Any]], *, opens: bool = False, **more: Any) -> str | None:
        """The text of some messages."""
        variables = {"messages": messages, "add_generation_prompt": opens, **more}
        key = repr(variables)
        if key not in self._seen:
            try:
                self._seen[key] = self._render(variables)
            except Exception:  # whatever a template may do
                self._seen[key] = None
        return self._seen[key]

    def answer(self, message: dict[str, Any], *after: dict[str, Any], **more: Any) -> str | None:
        """What an assistant's message adds to a question, as rendered."""
        head = self.render([TALK], **more)
        whole = self.render([TALK, {"role": "assistant", **message}, *after], **more)
        if head is None or whole is None:
            return None
        return whole[len(common(head, whole)) :]

    def opener(self, **more: Any) -> str | None:
        """What opens an answer."""
        head, whole = self.render([TALK], **more), self.render([TALK], opens=True, **more)
        if head is None or whole is None:
            return None
        return whole[len(common(head, whole)) :]


_OPEN_TAG = re.compile(r"[<\[][^<>\[\]\s]*\Z")


def _agree(a: str, b: str) -> str:
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]


def common(a: str, b: str) -> str:
    """What two texts begin with, whole tags only: <a> and <ab> have nothing in common."""
    found = _agree(a, b)
    if len(found) < max(len(a), len(b)):
        cut = _OPEN_TAG.search(found)
        if cut and not (a[len(found) :] == "" or b[len(found) :] == ""):
            return found[: cut.start()]
    return found


def common_end(a: str, b: str) -> str:
    """What two texts end with, whole tags only."""
    found = _agree(a[::-1], b[::-1])[::-1]
    if len(found) < max(len(a), len(b)) and re.match(r"[^<>\[\]\s]*[>\]]", found):
        return found[found.index(">" if ">" in found else "]") + 1 :]
    return found
