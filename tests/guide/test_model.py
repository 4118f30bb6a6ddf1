"""The guide's file as it ships: size, shape, template, and right answers through llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from guide import devset
from guide.evaluate import EVAL, MODEL, Asker, run


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    asker = Asker(MODEL)
    yield asker
    asker.llama.close()


def test_the_file_is_a_small_real_moe() -> None:
    assert MODEL.stat().st_size <= 16 * 2**20
    reader = gguf.GGUFReader(MODEL)
    value = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.ggml")}
    assert value["general.architecture"] == "qwen3moe"
    assert 16 <= value["qwen3moe.expert_count"] <= 32
    assert 2 <= value["qwen3moe.expert_used_count"] <= 4
    assert value["qwen3moe.context_length"] >= 1024
    assert "<|im_start|>" in value["tokenizer.chat_template"]


@pytest.mark.parametrize(
    ("question", "word"),
    [
        ("What is an expert?", "network"),
        ("How do I stop an answer?", "Esc"),
        ("which key opens the models?", "Ctrl+O"),
        ("What is the capital of France?", "only the guide"),
        ("thanks!", "welcome"),
    ],
)
def test_plain_questions_are_answered_rightly(asker: Asker, question: str, word: str) -> None:
    if question == "thanks!":
        assert any(w in asker.answer([("user", question)]) for w in (word, "Gladly"))
    else:
        assert word in asker.answer([("user", question)])


def test_a_follow_up_leans_on_what_was_said(asker: Asker) -> None:
    turns = [("user", "How big is gpt-oss-20b?"), ("assistant", "gpt-oss-20b is 12.1 GB (MXFP4).")]
    assert "131,072" in asker.answer([*turns, ("user", "and how long is its context?")])


def test_the_evaluation_set_is_met(asker: Asker) -> None:
    cases = devset.load(EVAL)
    right = sum(ok for _, _, ok in run(asker, cases, None))
    assert len(cases) >= 60
    assert right / len(cases) >= 0.85


def test_every_group_is_needed_and_nothing_forbidden(tmp_path: Path) -> None:
    path = tmp_path / "q.yaml"
    path.write_text("- {id: a, question: hi, must: [[fine, sure], [now]], must_not: [never]}\n")
    (case,) = devset.load(path)
    assert case.right("Fine, now.")
    assert not case.right("Fine.")
    assert not case.right("Sure, now or never.")
