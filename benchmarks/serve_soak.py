#!/usr/bin/env python3
"""Many clients at once against `serve`: some leave in the middle. Looks for leaks, stuck places and wrong answers.

    python benchmarks/serve_soak.py demo --clients 32 --minutes 5
    python benchmarks/serve_soak.py demo --requests 100000 --tokens 1    # a day of short requests in fast motion
    python benchmarks/serve_soak.py demo --clients 16 --minutes 10 --tools 0.7    # agents: call, result, answer

Each client asks, streams the answer, and with the given probability hangs up early. Questions are asked at
temperature 0; an answer that finished must equal the one that the same question got alone, up to the point where
llama.cpp's own rounding at another batch width may turn a near tie (counted apart, and printed). With --tools a share
of the questions are an agent's: the answer is a call that is asked for, whose result is sent back for the last word.
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
from pathlib import Path
from typing import Any

import httpx2
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))
from served import served

QUESTIONS = [
    "What is an expert?", "How do I stop an answer?", "What does the router do?", "What is a KV cache?",
    "Which key opens the models?", "Why is it slow?", "What is mmap?", "Who are you?", "What is prefill?",
    "How do I download a model?", "What does hit rate mean?", "Is my text private?",
]  # fmt: skip


TOOL = {
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
CALL = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look_up"}}}
NO_CALL = {"tools": [TOOL], "tool_choice": "none"}


def work(client: httpx2.Client, question: str, leave_after: int | None, tokens: int, *, tools: bool) -> str | None:
    """What a question comes to: the answer, and the call before it where it is an agent's; None: the client left."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    if not tools:
        return ask(client, messages, leave_after, tokens)
    call = ask(client, messages, leave_after, 200, **CALL)
    if call is None:
        return None
    given = json.loads(call)
    if set(given) != {"word", "pages"} or not 1 <= given["pages"] <= 9:
        raise ValueError(f"a call that its schema doesn't allow: {call}")
    function = {"name": "look_up", "arguments": call}
    messages.append({"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]})
    messages.append({"role": "tool", "tool_call_id": "a", "content": f"{given['word']}: see page {given['pages']}."})
    answer = ask(client, messages, leave_after, tokens, **NO_CALL)
    return None if answer is None else f"{call} {answer}"


def ask(
    client: httpx2.Client, messages: list[dict[str, Any]], leave_after: int | None, tokens: int, **more: Any
) -> str | None:
    """The streamed answer or the arguments of the streamed call, or None where the client left."""
    body = {"messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True, **more}
    text, events = [], 0
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.read() if response.status_code != 200 else None
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            for choice in json.loads(line[6:]).get("choices", []):
                text.append(choice["delta"].get("content") or "")
                text += [c["function"].get("arguments") or "" for c in choice["delta"].get("tool_calls") or ()]
            events += 1
            if leave_after is not None and events >= leave_after:
                return None
    return "".join(text)


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
    args = parser.parse_args()
    # A home of its own: an earlier run kept what it read of these very questions.
    with (
        tempfile.TemporaryDirectory() as folder,
        served(args.model, ["--parallel", str(args.parallel)], {"FLASHMOE_HOME": folder}) as (server, url),
    ):
        return soak(args, server, url)


def soak(args: argparse.Namespace, server: int, url: str) -> int:
    """Asks, counts and prints; 1 where an answer failed or one is stuck."""
    with httpx2.Client(base_url=url, timeout=120) as client:
        alone = {
            (q, t): work(client, q, None, args.tokens, tools=t) for q in QUESTIONS for t in {False, args.tools > 0}
        }
    counts = {"finished": 0, "same": 0, "differ": 0, "left": 0, "failed": 0}
    differing: dict[Any, str] = {}
    lock, end, tickets = threading.Lock(), time.monotonic() + args.minutes * 60, itertools.count(1)
    began = time.monotonic()

    def clientele(number: int) -> None:
        rng = random.Random(args.seed * 1000 + number)
        with httpx2.Client(base_url=url, timeout=120) as client:
            while time.monotonic() < end if args.requests is None else next(tickets) <= args.requests:
                question = rng.choice(QUESTIONS)
                leave = rng.randint(1, 12) if rng.random() < args.leave else None
                tools = rng.random() < args.tools
                try:
                    text = work(client, question, leave, args.tokens, tools=tools)
                except (httpx2.HTTPError, ValueError) as e:
                    with lock:
                        counts["failed"] += 1
                        differing[f"{type(e).__name__}"] = str(e)
                    continue
                with lock:
                    if text is None:
                        counts["left"] += 1
                        continue
                    counts["finished"] += 1
                    counts["same" if text == alone[question, tools] else "differ"] += 1
                    if text != alone[question, tools]:
                        differing.setdefault((question, tools), text)

    def memory() -> dict[str, float]:
        """MiB of the server and of its engine: resident, and without the pages of files (code, the mapped model)."""
        process = psutil.Process(server)
        found: dict[str, float] = {}
        for name, members in (("server", [process]), ("engine", process.children(recursive=True))):
            infos = [member.memory_info() for member in members]
            found[f"{name}, RSS"] = sum(i.rss for i in infos) / 2**20
            found[f"{name}, its own"] = sum(i.rss - getattr(i, "shared", 0) for i in infos) / 2**20
        return found

    threads = [threading.Thread(target=clientele, args=(i,)) for i in range(args.clients)]
    for thread in threads:
        thread.start()
    samples: list[dict[str, float]] = []
    while any(t.is_alive() for t in threads):
        time.sleep(min(5.0, max(0.1, args.minutes * 6)))
        samples.append(memory())
    for thread in threads:
        thread.join()
    time.sleep(2)
    metrics = httpx2.get(url + "/metrics").text
    in_flight = next(x for x in metrics.splitlines() if x.startswith("flashmoe_requests_in_flight ")).split()[1]
    minutes = (time.monotonic() - began) / 60
    print(f"{args.clients} clients, {minutes:.1f} min, {os.cpu_count()} cores: {counts}")
    print(f"requests in flight at the end: {in_flight}")
    third = max(len(samples) // 3, 1)
    print("| MiB | first third | second | last | last to first |\n|---|---|---|---|---|")
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        thirds = [sum(part) / len(part) for part in (values[:third], values[third:-third] or values, values[-third:])]
        print(f"| {name} | " + " | ".join(f"{x:.1f}" for x in thirds) + f" | {thirds[2] / thirds[0] - 1:+.1%} |")
    for question, text in differing.items():
        print(f"  differs or failed: {question!r}: {text[:100]!r} (alone: {str(alone.get(question))[:100]!r})")
    return 1 if counts["failed"] or in_flight != "0.0" else 0


if __name__ == "__main__":
    sys.exit(main())
