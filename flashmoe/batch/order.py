"""The order in which a batch's prompts are admitted: equal beginnings side by side, and like subjects near each other.

Sequences that are decoded together share each read of an expert, and prompts that share words choose more of the same
experts. So among the prompts that come next the one most like those just admitted goes first. The likeness is of words
(weighted by how rare they are in this batch): no model is asked, and prompts with nothing in common keep their order.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from flashmoe.batch.lines import Item

LOOK_AHEAD = 512
"""Prompts that are compared. None is admitted more than this many places later than the input has it."""
RECENT = 16
"""Prompts admitted last that the next one should be like: about what is decoded together."""
_BUCKETS = 1 << 16
_DIMENSIONS = 512
_LEAST = 0.12
"""Cosine below which two prompts have nothing in common: words that fall together by chance give 0.04."""
_MOST_CHARACTERS = 2_000
"""Of a text: what it is about shows there, and a hundred thousand long ones must not keep a batch from starting."""
_WORD = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af]|[^\W_]+")
"""A word, or one character where words aren't set apart."""

_Words = npt.NDArray[np.int64]


def admission_order(items: Iterable[Item]) -> list[Item]:
    """All items in the order that a batch takes them."""
    out: list[Item] = []
    for _, run in itertools.groupby(by_prefix(items), key=lambda item: _messages(item)[:-1]):
        members = list(run)
        out += [members[i] for i in by_subject([_words_of(item) for item in members])]
    return out


def by_prefix(items: Iterable[Item]) -> list[Item]:
    """Items in an order that puts equal beginnings side by side, so that each is prefilled once."""
    items = list(items)
    first_seen: dict[tuple[str, str], int] = {}
    for item in items:  # groups keep the input's order, so that results come roughly as they were asked
        first_seen.setdefault(_messages(item)[0], item.line)
    return sorted(items, key=lambda item: (first_seen[_messages(item)[0]], _messages(item)))


def by_subject(prompts: Sequence[_Words], look_ahead: int = LOOK_AHEAD) -> list[int]:
    """Indices of `prompts` (the words of each, as numbers) in an order where like ones are near each other."""
    rarity = np.zeros(_BUCKETS, np.float32)
    for words in prompts:
        rarity[words] += 1
    # a word that one prompt alone has can't be shared, it could only fall together with another's
    rarity = np.where(rarity > 1, np.log(max(len(prompts), 1) / np.maximum(rarity, 1)), 0).astype(np.float32)
    places = (np.arange(_BUCKETS, dtype=np.uint32) * np.uint32(2654435761)) >> 8  # one word's bits look like chance
    bucket, sign = places % _DIMENSIONS, np.where(places >> 15 & 1, np.float32(1), np.float32(-1))
    n, room = len(prompts), min(look_ahead, len(prompts))
    vectors = np.zeros((room, _DIMENSIONS), np.float32)
    member = np.full(room, n, np.int64)
    """Which prompt is in each row of `vectors`; `n`: none."""

    def put(row: int, i: int) -> None:
        member[row], vectors[row] = i, 0
        if i < n:
            weights = rarity[prompts[i]] * sign[prompts[i]]
            v = np.bincount(bucket[prompts[i]], weights, _DIMENSIONS).astype(np.float32)
            vectors[row] = v / max(float(np.linalg.norm(v)), 1e-6)

    for i in range(room):
        put(i, i)
    recent = np.zeros(_DIMENSIONS, np.float32)
    out: list[int] = []
    while len(out) < n:
        first = int(member.argmin())
        scores = vectors @ recent
        row = int(scores.argmax())
        if scores[row] <= _LEAST * float(np.linalg.norm(recent)) or len(out) - member[first] >= look_ahead:
            row = first
        out.append(int(member[row]))
        recent = recent * np.float32(1 - 1 / RECENT) + vectors[row]
        put(row, min(len(out) + room - 1, n))
    return out


def _messages(item: Item) -> tuple[tuple[str, str], ...]:
    if item.request.messages is not None:
        return tuple((m.role, m.content) for m in item.request.messages)
    return (("", item.request.prompt or ""),)


def _words_of(item: Item) -> _Words:
    """The distinct words of what is asked (the last message, or the prompt's token ids), as numbers."""
    if item.request.tokens is not None:
        return np.unique(np.asarray(item.request.tokens, np.int64) % _BUCKETS)
    return words(_messages(item)[-1][1])


def words(text: str) -> _Words:
    """The distinct words of a text (of its first 2,000 characters), as numbers below 65,536."""
    found = set(_WORD.findall(text[:_MOST_CHARACTERS].casefold()))
    return np.unique(np.fromiter((zlib.crc32(w.encode("utf-8", "replace")) % _BUCKETS for w in found), np.int64))
