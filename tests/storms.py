"""Storms of random requests on one context, and the check that each answer is the one that its request gets alone."""

from __future__ import annotations

import random
from itertools import groupby

import numpy as np

from backends.interface import Failed, Finished, GenerateRequest, Sampling
from backends.llamacpp.context import Batch
from backends.llamacpp.model import LlamaModel

TIE = 0.15
"""Of logits that are some 10 apart between tokens at random: rounding may swap an expert, a wrong cache changes all."""


def tokens(seed: int, n: int) -> tuple[int, ...]:
    return tuple(int(t) for t in np.random.default_rng(seed).integers(0, 500, n))


def make_requests(rng: random.Random, n: int) -> list[GenerateRequest]:
    """Chats that grow, prompts that share their beginning, and prompts of their own."""
    heads = [tokens(100 + i, rng.randrange(20, 160)) for i in range(3)]
    requests = []
    for i in range(n):
        prompt = rng.choice([*heads, ()]) + tokens(rng.randrange(20), rng.randrange(1, 120))
        sampling = Sampling(temperature=0.0, max_tokens=rng.choice([1, 7, 30, 60]))
        session = rng.choice([None, None, "a", "b", "c"])
        requests.append(GenerateRequest(id=f"r{i}", tokens=prompt, sampling=sampling, session=session))
    return requests


def check(model: LlamaModel, request: GenerateRequest, answer: list[int]) -> None:
    """Every token of an answer is the best one after those before it, as a context of its own computes them."""
    prompt = request.tokens or ()
    text = [*prompt, *answer]
    model.forget()
    for start in range(0, len(text), model.context.n_batch):
        part = text[start : start + model.context.n_batch]
        batch = Batch()
        for i, token in enumerate(part, start):
            batch.add(token, i, 0, True)
        assert model.context.decode(batch).status == "ok"
        for i in range(max(start, len(prompt) - 1), min(start + len(part), len(text) - 1)):
            logits = np.ctypeslib.as_array(model.context.logits(i - start), (model.context.n_vocab,))
            assert logits[text[i + 1]] >= logits.max() - TIE, (request.id, i)
    model.forget()


def check_all(model: LlamaModel, asked: list[tuple[str, tuple[int, ...], list[int]]]) -> None:
    """`check` for many answers, each with a name and its prompt: a beginning that some of them share is computed once,
    and forked (llama.cpp's own copy of a sequence) where they part. The model keeps nothing and needs 8 sequences."""
    model.forget()
    texts = sorted(([*prompt, *answer], len(prompt), name) for name, prompt, answer in asked)
    _walk(model, texts, 0, 0)
    model.forget()


def _walk(model: LlamaModel, texts: list[tuple[list[int], int, str]], seq: int, done: int) -> None:
    """Checks texts, sorted, whose first `done` tokens are the same and computed in sequence `seq`."""
    while texts:
        first, last = texts[0][0], texts[-1][0]
        end = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
        for start in range(done, end, model.context.n_batch):
            part = range(start, min(start + model.context.n_batch, end))
            said = {i: [t for t in texts if t[1] - 1 <= i < len(t[0]) - 1] for i in part}
            batch = Batch()
            for i in part:
                batch.add(first[i], i, seq, bool(said[i]))
            assert model.context.decode(batch).status == "ok"
            for i in part:
                if said[i]:
                    logits = np.ctypeslib.as_array(model.context.logits(i - start), (model.context.n_vocab,))
                    for text, _, name in said[i]:
                        assert logits[text[i + 1]] >= logits.max() - TIE, (name, i)
        done = end
        parts = [list(part) for _, part in groupby((t for t in texts if len(t[0]) > end), key=lambda t: t[0][end])]
        parts.sort(key=len)
        for part_of in parts[:-1]:  # the largest goes on where it is, so few sequences are enough
            assert model.context.copy(seq, seq + 1, end)
            _walk(model, part_of, seq + 1, end)
            assert model.context.remove(seq + 1, 0)
        texts = parts[-1] if parts else []


def storm(
    model: LlamaModel, requests: list[GenerateRequest], rng: random.Random, cancels: float = 0.06
) -> tuple[dict[str, list[int]], set[str]]:
    """Answers' tokens by id, and the ids whose answers were cancelled."""
    answers: dict[str, list[int]] = {}
    waiting, cancelled, ended = list(requests), set(), set()
    while waiting or model.busy():
        while waiting and rng.random() < 0.4:
            model.submit(waiting.pop())
        if rng.random() < cancels:
            model.cancel(rng.choice(requests).id)
        queued = [*model._scheduler.waiting, *model._scheduler.active]
        answers |= {answer.id: answer.generated for answer in queued}
        for event in model.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished):
                assert event.id not in ended
                ended.add(event.id)
                if event.reason == "cancelled":
                    cancelled.add(event.id)
    assert ended == set(answers) == {r.id for r in requests}
    return answers, cancelled
