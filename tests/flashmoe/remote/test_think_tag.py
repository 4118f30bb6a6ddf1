"""Thinking in the text of a remote server."""

from __future__ import annotations

import pytest

from flashmoe.remote.think_tag import ThinkTag


def cut(*chunks: str) -> tuple[str, str]:
    tag = ThinkTag()
    pieces = [piece for chunk in chunks for piece in tag.feed(chunk)] + tag.end()
    return "".join(t for kind, t in pieces if kind == "thinking"), "".join(t for kind, t in pieces if kind == "answer")


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>a b</think>Hello", "a b", "Hello"),
        ("<think>\na\n\nb\n</think>\n\nHello", "a\n\nb", "Hello"),
        ("\n <think>a</think>Hello", "a", "Hello"),
        ("Hello", "", "Hello"),
        ("What does <think> mean? </think> ends it.", "", "What does <think> mean? </think> ends it."),
        ("<thin air>", "", "<thin air>"),
        ("<think>never closed", "never closed", ""),
        ("<think></think>Hello <think>x</think>", "", "Hello <think>x</think>"),
        ("<thi", "", "<thi"),
        ("", "", ""),
    ],
)
def test_a_tag_at_the_beginning_counts_however_it_is_cut(text: str, thinking: str, answer: str) -> None:
    assert cut(text) == (thinking, answer)
    assert cut(*text) == (thinking, answer)
    for size in (2, 3, 5):
        assert cut(*(text[i : i + size] for i in range(0, len(text), size))) == (thinking, answer)
