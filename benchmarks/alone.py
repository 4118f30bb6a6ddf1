"""Whether an answer at temperature 0 is the one that its request gets alone.

llama.cpp sums in another order when a batch has another width, so where two tokens are all but equally likely either
may come. What tells such a near tie from a fault: alone, with `margin` added to the logits of the tokens that the
answer took instead, the same request gives the whole answer. Each of its tokens is then, alone, at most `margin` behind
the likeliest that could come (that the constraint allows, where there is one). Everything else is wrong.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import httpx2

REFERENCE = ["--parallel", "1", "--kv-budget", "0", "--kv-dir", "none"]
"""Flags of a server that computes every prompt anew, one at a time."""
MOST_TIES = 8


class Answer(NamedTuple):
    """What came of a request: the tokens, how likely each was, and what they say."""

    tokens: tuple[bytes, ...]
    logprobs: tuple[float, ...]
    text: str
    call: str
    """The arguments of the call in it; empty where there is none."""
    left: bool = False
    """Its client left before the end."""


class Verdict(NamedTuple):
    """`ties`: tokens that near ties turned; None: the answer is wrong. `alone`: what the request gets alone; of a wrong
    answer, what comes nearest. `gap`: how far the first of them lay behind the likeliest, in logits; None where none
    did, or the answer ended there."""

    ties: int | None
    alone: Answer
    gap: float | None = None


def ask(client: httpx2.Client, body: dict[str, Any], leave_after: int | None = None) -> Answer:
    """Asks for an answer as a stream, and leaves after so many events."""
    text, call, told, events = [], [], list[tuple[bytes, float]](), 0
    asked = {**body, "temperature": 0, "stream": True, "logprobs": True}
    left = False
    with client.stream("POST", "/v1/chat/completions", json=asked) as response:
        response.read() if response.status_code != 200 else None
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise ValueError(f"the stream failed: {event['error']}")
            for choice in event["choices"]:
                text.append(choice["delta"].get("content") or "")
                call += [c["function"].get("arguments") or "" for c in choice["delta"].get("tool_calls") or ()]
                told += [(bytes(t["bytes"]), t["logprob"]) for t in (choice["logprobs"] or {}).get("content") or ()]
            events += 1
            if leave_after is not None and events >= leave_after:
                left = True
                break
    return Answer(tuple(t for t, _ in told), tuple(p for _, p in told), "".join(text), "".join(call), left)


def parted(given: Answer, alone: Answer) -> int | None:
    """The place of the first token in which they differ; None where there is none, as far as the client stayed."""
    n = min(len(given.tokens), len(alone.tokens))
    for i in range(n):
        if given.tokens[i] != alone.tokens[i]:
            return i
    if len(given.tokens) == len(alone.tokens) or (given.left and len(given.tokens) < len(alone.tokens)):
        return None
    return n


class Alone:
    """Judges answers by a server that was started with `REFERENCE` and answers nobody else."""

    def __init__(self, client: httpx2.Client, margin: float) -> None:
        """`margin`: in logits."""
        self._client = client
        self._margin = margin
        self._answers: dict[tuple[str, frozenset[int]], Answer] = {}
        self._end = self._ids(client.get("/tokenizer_info").json()["eos_token"])

    def judge(self, body: dict[str, Any], given: Answer) -> Verdict:
        """Whether `given` is what `body` gets alone."""
        biased: set[int] = set()
        first: tuple[int, Answer] | None = None
        while True:
            alone = self._answer(body, biased)
            at = parted(given, alone)
            if at is None:
                gap = None
                if first is not None and first[0] < min(len(given.tokens), len(first[1].tokens)):
                    gap = first[1].logprobs[first[0]] - alone.logprobs[first[0]]
                return Verdict(len(biased), alone, gap)
            first = first or (at, alone)
            ids = self._ids(given.tokens[at].decode("utf-8", "replace")) if at < len(given.tokens) else self._end
            if len(ids) != 1 or ids[0] in biased or len(biased) == MOST_TIES:
                return Verdict(None, alone)
            biased.add(ids[0])

    def _answer(self, body: dict[str, Any], biased: set[int]) -> Answer:
        key = json.dumps(body, sort_keys=True), frozenset(biased)
        if key not in self._answers:
            biases = {"logit_bias": {str(token): self._margin for token in biased}} if biased else {}
            self._answers[key] = ask(self._client, {**body, **biases})
        return self._answers[key]

    def _ids(self, text: str) -> list[int]:
        asked = self._client.post("/tokenize", json={"content": text, "add_special": False})
        asked.raise_for_status()
        ids: list[int] = asked.json()["tokens"]
        return ids
