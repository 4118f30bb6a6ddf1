#!/usr/bin/env python3
"""Many clients at once against `serve`: some leave in the middle. Looks for leaks, stuck places and wrong answers.

    python benchmarks/serve_soak.py demo --clients 32 --minutes 5
    python benchmarks/serve_soak.py demo --requests 100000 --tokens 1    # a day of short requests in fast motion
    python benchmarks/serve_soak.py demo --clients 16 --minutes 10 --tools 0.7    # agents: call, result, answer

Each client asks, streams the answer, and with the given probability hangs up early. Questions are asked at
temperature 0; afterwards a server of its own, which computes every prompt anew and nothing beside it, says what each
request gets alone. What came must be that, as far as the client stayed; where llama.cpp's rounding at another batch
width turned a near tie (two tokens within --margin of each other, alone: see alone.py) it is counted apart. With
--tools a share of the questions are an agent's: the answer is a call that is asked for, whose result is sent back for
the last word.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))
from alone import REFERENCE, Alone, Answer, ask
from served import served

QUESTIONS = [
    "What is an expert?", "How do I stop an answer?", "What does the router do?", "What is a KV cache?",
    "Which key opens the models?", "Why is it slow?", "What is mmap?", "Who are you?", "What is prefill?",
    "How do I download a model?", "What does hit rate mean?", "Is my text private?",
]  # fmt: skip


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word of the manual up.",
        "parameters": {
            "type": "object",
            "properties": {
                "word": {"type": "string", "enum": ["expert", "router", "cache", "key", "model"]},
                "pages": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["word", "pages"],
            "additionalProperties": False,
        },
    },
}
PERCENTILES = {"median": 50, "90th percentile": 90, "99th": 99, "largest": 100}
CALL = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}}
NO_CALL = {"tools": [TOOL], "tool_choice": "none"}


class Record:
    """Every answer that came, by its request; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answers: dict[str, list[Answer]] = {}
        """By the request's JSON, in the order in which they were first asked: a call comes before its result."""
        self.failed: dict[str, int] = {}

    def ask(self, client: httpx2.Client, body: dict[str, Any], leave_after: int | None) -> Answer:
        answer = ask(client, body, leave_after)
        with self._lock:
            self.answers.setdefault(json.dumps(body), []).append(answer)
        return answer

    def note_failure(self, what: str) -> None:
        with self._lock:
            self.failed[what] = self.failed.get(what, 0) + 1


def work(record: Record, client: httpx2.Client, question: str, leave: int | None, tokens: int, *, tools: bool) -> None:
    """Asks a question; an agent's call with its result, too."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    if not tools:
        record.ask(client, {"messages": messages, "max_tokens": tokens}, leave)
        return
    called = record.ask(client, {"messages": messages, "max_tokens": 200, **CALL}, leave)
    if called.left:
        return
    given = json.loads(called.call)
    if set(given) != {"word", "pages"} or not 1 <= given["pages"] <= 9:
        raise ValueError(f"a call that its schema doesn't allow: {called.call}")
    function = {"name": "look_up", "arguments": called.call}
    messages.append({"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]})
    messages.append({"role": "tool", "tool_call_id": "a", "content": f"{given['word']}: see page {given['pages']}."})
    record.ask(client, {"messages": messages, "max_tokens": tokens, **NO_CALL}, leave)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--leave", type=float, default=0.3, help="share of answers that their client leaves")
    parser.add_argument("--tools", type=float, default=0.0, help="share of questions that are an agent's, with a call")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, help="end after so many requests instead of after --minutes")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer at most")
    parser.add_argument("--margin", type=float, default=0.25, help="a near tie: so far apart at most, in logits")
    args = parser.parse_args()
    record = Record()
    # A home of its own: an earlier run kept what it read of these very questions.
    with (
        tempfile.TemporaryDirectory() as folder,
        served(args.model, ["--parallel", str(args.parallel)], {"FLASHMOE_HOME": folder}) as (server, url),
    ):
        in_flight = soak(args, record, server, url)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(args.model, REFERENCE, {"FLASHMOE_HOME": folder}) as (_, url),
        httpx2.Client(base_url=url, timeout=120) as client,
    ):
        wrong = compare(record, Alone(client, args.margin), args.margin)
    for what, n in record.failed.items():
        print(f"  failed, {n} times: {what[:200]}")
    return 1 if record.failed or in_flight or wrong else 0


def soak(args: argparse.Namespace, record: Record, server: int, url: str) -> float:
    """Asks from many clients at once, and prints what became of the memory; returns the requests that are stuck."""
    with httpx2.Client(base_url=url, timeout=120) as client:  # each once, so that the memory is what it stays at
        for question in QUESTIONS:
            for tools in {False, args.tools > 0}:
                work(record, client, question, None, args.tokens, tools=tools)
    end, tickets = time.monotonic() + args.minutes * 60, itertools.count(1)
    began = time.monotonic()

    def clientele(number: int) -> None:
        rng = random.Random(args.seed * 1000 + number)
        with httpx2.Client(base_url=url, timeout=120) as client:
            while time.monotonic() < end if args.requests is None else next(tickets) <= args.requests:
                question = rng.choice(QUESTIONS)
                leave = rng.randint(1, 12) if rng.random() < args.leave else None
                try:
                    work(record, client, question, leave, args.tokens, tools=rng.random() < args.tools)
                except (httpx2.HTTPError, ValueError) as e:
                    record.note_failure(f"{type(e).__name__}: {e}")

    threads = [threading.Thread(target=clientele, args=(i,)) for i in range(args.clients)]
    for thread in threads:
        thread.start()
    samples: list[dict[str, float]] = []
    while any(t.is_alive() for t in threads):
        time.sleep(min(5.0, max(0.1, args.minutes * 6)))
        samples.append(memory(server))
    for thread in threads:
        thread.join()
    time.sleep(2)
    metrics = httpx2.get(url + "/metrics").text
    in_flight = next(x for x in metrics.splitlines() if x.startswith("flashmoe_requests_in_flight ")).split()[1]
    minutes = (time.monotonic() - began) / 60
    print(f"{args.clients} clients, {minutes:.1f} min, {os.cpu_count()} cores; in flight at the end: {in_flight}")
    print_memory(samples)
    return float(in_flight)


def memory(server: int) -> dict[str, float]:
    """MiB of the server and of its engine: resident, and without the pages of files (code, the mapped model)."""
    process = psutil.Process(server)
    found: dict[str, float] = {}
    for name, members in (("server", [process]), ("engine", process.children(recursive=True))):
        infos = [member.memory_info() for member in members]
        found[f"{name}, RSS"] = sum(i.rss for i in infos) / 2**20
        found[f"{name}, its own"] = sum(i.rss - getattr(i, "shared", 0) for i in infos) / 2**20
    return found


def print_memory(samples: list[dict[str, float]]) -> None:
    third = max(len(samples) // 3, 1)
    print("| MiB | first third | second | last | last to first |\n|---|---|---|---|---|")
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        thirds = [sum(part) / len(part) for part in (values[:third], values[third:-third] or values, values[-third:])]
        print(f"| {name} | " + " | ".join(f"{x:.1f}" for x in thirds) + f" | {thirds[2] / thirds[0] - 1:+.1%} |")


def compare(record: Record, judge: Alone, margin: float) -> int:
    """Prints how many answers are those that their requests get alone; returns how many are wrong."""
    counts: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    off: list[float] = []
    for body, answers in record.answers.items():
        for given in answers:
            verdict = judge.judge(json.loads(body), given)
            counts["left" if given.left else "finished"] += 1
            kind = "wrong" if verdict.ties is None else "tie" if verdict.ties else "same"
            counts[kind] += 1
            if verdict.ties is not None:
                pairs = zip(given.logprobs, verdict.alone.logprobs, strict=False)
                off += [abs(a - b) for a, b in pairs]
            if kind != "same":
                gap = "" if verdict.gap is None else f" (alone {verdict.gap:.4f} behind)"
                said = f"{kind}: {json.loads(body)['messages'][0]['content']!r}: {given.call or given.text[:80]!r}{gap}"
                shown[said] += 1
    print(f"{counts['finished']} answers finished, {counts['left']} were left; as alone {counts['same']}, but for near "
          f"ties of {margin:g} {counts['tie']}, wrong {counts['wrong']}")  # fmt: skip
    off.sort()
    if off:
        at = {name: off[min(len(off) * share // 100, len(off) - 1)] for name, share in PERCENTILES.items()}
        told = ", ".join(f"{name} {value:.5f}" for name, value in at.items())
        print(f"log-probabilities of {len(off)} tokens, how far off those alone: {told}")
    for said, n in shown.items():
        print(f"  {n} times {said}")
    return counts["wrong"]


if __name__ == "__main__":
    sys.exit(main())
