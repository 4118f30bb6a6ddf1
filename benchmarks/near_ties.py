#!/usr/bin/env python3
"""How far another batch width moves logits, and which of an agent's forced calls hang on less than that.

    python benchmarks/near_ties.py demo --widths 2,4,8,16

The soak's questions (serve_soak.py) with their forced call, straight through llama.cpp: each answer's tokens are
computed alone, beside neighbours, and in one batch with their prompt; then again at the same widths after what `serve`
does with kept prompts (a copied sequence, a state that was written and read, a batch that was stopped). Told are the
differences of logits, and for each place where the two likeliest tokens that the constraint allows are within --margin
of each other, by how much the first of them leads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from serve_soak import QUESTIONS, TOOL

from backends.interface import ChatMessage, GenerateRequest, LoadRequest, Sampling, ToolSpec
from backends.llamacpp.backend import MmapBackend
from backends.llamacpp.context import Batch, LlamaContext
from backends.llamacpp.model import LlamaModel
from flashmoe.cli.models import demo_model

HEAD = 24
"""Tokens of a prompt that are shared, in the set-ups that share some."""


class Text(NamedTuple):
    """A question's prompt, its forced call, and the tokens that could come at each of the call's places."""

    question: str
    prompt: list[int]
    answer: list[int]
    allowed: list[Any]


def text_of(model: LlamaModel, question: str) -> Text:
    function = TOOL["function"]
    tool = ToolSpec(name=function["name"], description=function["description"], parameters=function["parameters"])
    request = GenerateRequest(
        id=question, messages=(ChatMessage("user", question),), tools=(tool,), tool_choice="required",
        forced_tool=tool.name, sampling=Sampling(temperature=0.0, max_tokens=200),
    )  # fmt: skip
    answer = model.prepare(request)
    model.submit_prepared(answer)
    while model.busy():
        model.step()
    matcher = model._guide.matcher(request, model._template.format)
    assert matcher is not None
    allowed = []
    for token in answer.generated:
        allowed.append(matcher.allowed())
        matcher.accept(token)
    return Text(question, answer.prompt.tolist(), answer.generated, allowed)


class Lanes:
    """Sequences of one context, computed by hand."""

    def __init__(self, context: LlamaContext) -> None:
        self.context = context
        self.lengths: dict[int, int] = {}

    def clear(self) -> None:
        self.context.clear()
        self.lengths.clear()

    def feed(self, parts: dict[int, list[int]], wanted: int = 0) -> Any:
        """Computes tokens of several sequences in one batch. The logits at the last `wanted` ones of sequence 0."""
        batch, at = Batch(), []
        for seq, tokens in parts.items():
            start = self.lengths.get(seq, 0)
            for i, token in enumerate(tokens):
                output = seq == 0 and i >= len(tokens) - wanted
                index = batch.add(token, start + i, seq, output)
                at += [index] if output else []
            self.lengths[seq] = start + len(tokens)
        assert self.context.decode(batch).status == "ok"
        return [np.ctypeslib.as_array(self.context.logits(i), (self.context.n_vocab,)).copy() for i in at]


def stepwise(lanes: Lanes, text: Text, others: list[Text], prefill: Callable[[Lanes, list[int]], None]) -> Any:
    """The logits at each place of the answer, a token a step, beside `others`."""
    lanes.clear()
    prefill(lanes, text.prompt[:-1])
    for seq, other in enumerate(others, 1):
        lanes.feed({seq: other.prompt})
    told = []
    for i, token in enumerate([text.prompt[-1], *text.answer[:-1]]):
        beside = {seq: [other.answer[i % len(other.answer)]] for seq, other in enumerate(others, 1)}
        told += lanes.feed({0: [token], **beside}, 1)
    return np.array(told)


def at_once(lanes: Lanes, text: Text) -> Any:
    lanes.clear()
    return np.array(lanes.feed({0: [*text.prompt, *text.answer[:-1]]}, len(text.answer)))


def whole(lanes: Lanes, tokens: list[int]) -> None:
    lanes.feed({0: tokens})


def in_two(lanes: Lanes, tokens: list[int]) -> None:
    lanes.feed({0: tokens[:HEAD]})
    lanes.feed({0: tokens[HEAD:]})


def copied(lanes: Lanes, tokens: list[int]) -> None:
    """The beginning is another sequence's, which is gone then."""
    last = lanes.context.n_seqs - 1
    lanes.feed({last: tokens[:HEAD]})
    assert lanes.context.copy(last, 0, HEAD)
    assert lanes.context.remove(last, 0)
    del lanes.lengths[last]
    lanes.lengths[0] = HEAD
    lanes.feed({0: tokens[HEAD:]})


def restored(lanes: Lanes, tokens: list[int]) -> None:
    """The beginning's state was written, and is read into an empty cache."""
    lanes.feed({0: tokens[:HEAD]})
    state = lanes.context.get_whole_state(0)
    assert state is not None
    lanes.context.clear()
    assert lanes.context.set_whole_state(0, bytearray(state))
    lanes.feed({0: tokens[HEAD:]})


def stopped(lanes: Lanes, tokens: list[int]) -> None:
    """The batch of the rest was stopped once, as a client's leaving does."""
    lanes.feed({0: tokens[:HEAD]})
    batch = Batch()
    for i, token in enumerate(tokens[HEAD:], HEAD):
        batch.add(token, i, 0, False)
    lanes.context.abort.set()
    assert lanes.context.decode(batch).status == "cancelled"
    lanes.context.abort.clear()
    lanes.feed({0: tokens[HEAD:]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--widths", default="2,4,8,16")
    parser.add_argument("--margin", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--questions", default="", help="only those that hold one of these words, with commas")
    args = parser.parse_args()
    path = demo_model() if args.model == "demo" else Path(args.model)
    widths = [int(w) for w in args.widths.split(",")]
    request = LoadRequest(
        path=str(path), n_seq_max=max(widths) + 1, kv_budget_bytes=0, n_threads=args.threads, n_ctx=8192
    )
    model = MmapBackend().load(request, lambda _: True)
    assert isinstance(model, LlamaModel)
    texts = [text_of(model, question) for question in QUESTIONS]
    lanes = Lanes(model.context)
    moved: dict[str, list[Any]] = {}
    ties: list[str] = []
    words = args.questions.split(",")
    for text in [t for t in texts if any(word in t.question for word in words)]:
        others = [t for t in texts if t is not text]
        setups: dict[str, Any] = {"alone": stepwise(lanes, text, [], whole)}
        for w in widths:
            beside = (others * w)[: w - 1]
            setups[f"{w} sequences"] = stepwise(lanes, text, beside, whole)
        setups["prompt and answer at once"] = at_once(lanes, text)
        setups["prompt in two batches"] = stepwise(lanes, text, [], in_two)
        for name, told in setups.items():
            note(moved, f"{name}, against alone", told, setups["alone"])
        for beside, width in (([], 1), (others[: widths[0] - 1], widths[0])):
            base = stepwise(lanes, text, beside, in_two)
            for prefill in (in_two, copied, restored, stopped):
                what = f"{prefill.__name__}, {width} sequences, against in_two at that width"
                note(moved, what, stepwise(lanes, text, beside, prefill), base)
        ties += near(model, text, setups, args.margin)
    print("| how it was computed | a logit's difference: median | 99th percentile | largest |\n|---|---|---|---|")
    for name, parts in moved.items():
        every = np.concatenate(parts)
        print(f"| {name} | {np.median(every):.2g} | {np.percentile(every, 99):.2g} | {every.max():.2g} |")
    print("\n".join(ties) or f"no two tokens that are allowed are within {args.margin:g} of each other")
    model.close()
    return 0


def note(moved: dict[str, list[Any]], name: str, told: Any, base: Any) -> None:
    moved.setdefault(name, []).append(np.abs(told - base).ravel())


def near(model: LlamaModel, text: Text, setups: dict[str, Any], margin: float) -> list[str]:
    """A line for each place of an answer where two tokens are near each other."""
    lines = []
    for i, allowed in enumerate(text.allowed):
        ids = allowed[allowed < model.context.n_vocab]
        logits = setups["alone"][i][ids]
        if len(ids) < 2:
            continue
        first, second = (int(ids[k]) for k in np.argsort(-logits)[:2])
        if setups["alone"][i][first] - setups["alone"][i][second] > margin:
            continue
        names = [model.detokenize((token,)) for token in (first, second)]
        gaps = ", ".join(f"{name} {told[i][first] - told[i][second]:+.5f}" for name, told in setups.items())
        lines.append(f"- {text.question!r}, token {i}: {names[0]!r} before {names[1]!r} by: {gaps}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
