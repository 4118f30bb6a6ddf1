"""The order of a batch's prompts: like ones near each other, nobody left behind, nothing lost."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmoe.batch.lines import Item, read_items
from flashmoe.batch.order import admission_order, by_subject, words

SUBJECTS = {
    "bread": ["flour", "yeast", "dough", "oven", "crust", "loaf", "knead", "bake", "rye", "sourdough"],
    "stars": ["orbit", "planet", "comet", "telescope", "galaxy", "nebula", "lunar", "eclipse", "dwarf", "meteor"],
    "chess": ["bishop", "rook", "pawn", "castle", "gambit", "opening", "endgame", "checkmate", "knight", "tempo"],
    "ships": ["anchor", "mast", "harbour", "sail", "keel", "rudder", "cargo", "deck", "captain", "tide"],
}


def prompts(n: int, seed: int) -> list[tuple[str, str]]:
    """(subject, text) in random order: six words of the subject among ten that any text may have."""
    rng = random.Random(seed)
    filler = [*"abcdefghijklmno", "please"]
    out = []
    for i in range(n):
        subject = list(SUBJECTS)[i % len(SUBJECTS)]
        chosen = rng.sample(SUBJECTS[subject], 6) + rng.sample(filler, 10)
        rng.shuffle(chosen)
        out.append((subject, " ".join(chosen)))
    rng.shuffle(out)
    return out


def changes(subjects: list[str]) -> int:
    return sum(a != b for a, b in itertools.pairwise(subjects))


def test_prompts_on_one_subject_come_together() -> None:
    rows = prompts(120, seed=3)
    order = by_subject([words(text) for _, text in rows])
    assert changes([s for s, _ in rows]) > 70
    assert changes([rows[i][0] for i in order]) <= 2 * len(SUBJECTS)


def test_what_has_nothing_in_common_keeps_its_order() -> None:
    texts = [f"word{i} other{i} third{i}" for i in range(300)]
    assert by_subject([words(t) for t in texts]) == list(range(300))
    assert by_subject([words("")] * 20) == list(range(20))
    assert by_subject([words("the same text")] * 20) == list(range(20))
    assert by_subject([]) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=12), max_size=60),
    st.integers(1, 20),
)
def test_every_prompt_comes_once_and_none_waits_longer_than_the_window(texts: list[list[int]], window: int) -> None:
    order = by_subject([np.unique(np.array(t, np.int64)) for t in texts], look_ahead=window)
    assert sorted(order) == list(range(len(texts)))
    for place, i in enumerate(order):
        assert place - i <= window  # never later than that
        assert i - place < window  # and nobody is taken from beyond the window


def test_texts_without_spaces_have_words_too() -> None:
    one, two = words("专家在固态硬盘上"), words("专家在内存里")
    assert len(np.intersect1d(one, two)) >= 2
    assert len(words("Straße STRASSE strasse")) == 1


@pytest.mark.parametrize("with_system", [False, True])
def test_equal_beginnings_stay_together_and_are_ordered_within(tmp_path: Path, with_system: bool) -> None:
    rows = prompts(80, seed=5)
    lines = []
    for i, (_, text) in enumerate(rows):
        messages = [{"role": "user", "content": text}]
        if with_system:
            messages.insert(0, {"role": "system", "content": f"rules {i % 2}"})
        lines.append(json.dumps({"id": str(i), "messages": messages}))
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))
    ordered = admission_order(i for i in read_items(source) if isinstance(i, Item))
    assert sorted(int(i.id) for i in ordered) == list(range(80))
    groups = [int(i.id) % 2 for i in ordered] if with_system else [0] * 80
    assert changes([str(g) for g in groups]) == int(with_system)
    assert changes([rows[int(i.id)][0] for i in ordered]) <= 2 * len(SUBJECTS) * (1 + with_system)


def test_token_prompts_are_ordered_by_their_ids(tmp_path: Path) -> None:
    rng = random.Random(1)
    lines = []
    for i in range(60):
        ids = [1000 * (i % 3) + rng.randrange(40) for _ in range(20)]
        lines.append(json.dumps({"id": str(i), "prompt": ids}))
    rng.shuffle(lines)
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))
    ordered = admission_order(i for i in read_items(source) if isinstance(i, Item))
    assert changes([str(int(i.id) % 3) for i in ordered]) <= 6
