"""How many tokens of each active answer go into the next batch."""

from __future__ import annotations

from collections.abc import Sequence

from backends.llamacpp.answer import Answer

Plan = list[tuple[Answer, int]]
WORTH_A_PASS = 2
"""Prompts are prefilled by themselves where that takes so many times the tokens that a step of all answers has, or half
of what a batch holds: a pass over the experts costs about the same reads for either. Until then a prompt goes on by one
token a step."""


def mixed_plan(active: Sequence[Answer], n_batch: int, *, recurrent: bool) -> Plan:
    """For a cache that all share: those that decode first, then as much of the prompts as fits beside them."""
    left, plan = n_batch, []
    for answer in sorted(active, key=lambda a: a.todo > 1):
        n = min(answer.todo, left)
        if recurrent:  # a state can be saved or shared only where a batch ended
            n = min([n, *(stop - answer.done for stop in answer.marks if stop > answer.done)])
        if n:
            plan.append((answer, n))
            left -= n
    return plan


def even_plan(active: Sequence[Answer], n_batch: int) -> Plan:
    """For caches of their own, whose sequences are numbered without gaps: what llama.cpp computes in one pass, an equal
    number of tokens of sequences that follow each other. That is one of each, prompts too, or a block of prompts; with
    an `n_batch` of 0 no block."""
    ordered = sorted(active, key=_number)
    heights = [a.todo if a.todo > 1 else 0 for a in ordered] if n_batch else []
    start, count, each = largest_block(heights, n_batch)
    if count and count * each >= min(WORTH_A_PASS * len(ordered), n_batch // 2):
        return [(answer, each) for answer in ordered[start : start + count]]
    return [(answer, 1) for answer in ordered]


def _number(answer: Answer) -> int:
    assert answer.sequence is not None
    return answer.sequence.seq_id


def largest_block(heights: Sequence[int], most: int) -> tuple[int, int, int]:
    """The largest rectangle under a histogram, cut to an area of at most `most`: start, width, height (0: none)."""
    best, open_bars = (0, 0, 0), list[tuple[int, int]]()
    for i, height in enumerate([*heights, 0]):
        start = i
        while open_bars and open_bars[-1][1] >= height:
            start, tall = open_bars.pop()
            if not tall:
                continue
            width = min(i - start, max(1, most // tall))
            each = min(tall, most // width)
            if width * each > best[1] * best[2]:
                best = (start, width, each)
        open_bars.append((start, height))
    return best
