"""Thinking apart from the answer, text from bytes, stop strings: however the stream is cut, the result is the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.llamacpp.detok import StopStrings, Utf8Stream, held_back
from backends.llamacpp.thinking import HarmonyParser, PlainParser, TagParser, ThinkingParser, can_think, parser_for

HARMONY = "{{ '<|start|>' }}<|channel|>analysis<|message|>"

CASES: list[tuple[Callable[[], ThinkingParser], str, str, str]] = [
    (TagParser, "<think>\nhm\n</think>\n\nYes.", "hm", "Yes."),
    (TagParser, "\n<think>a</think> <think>b</think>c", "ab", "c"),
    (TagParser, "No tags at all.", "", "No tags at all."),
    (TagParser, "  indented <think>x</think>", "", "  indented <think>x</think>"),
    (TagParser, "<think>never closed </thin", "never closed </thin", ""),
    (TagParser, "<think></think>A", "", "A"),
    (TagParser, "<thinner>", "", "<thinner>"),
    (TagParser, "", "", ""),
    (lambda: TagParser("</think>"), "\nfrom the template\n</think>\n\nDone", "from the template", "Done"),
    (lambda: TagParser("</think>"), "only thinking", "only thinking", ""),
    (TagParser, "<|channel>thought\nlook<channel|>42", "look", "42"),
    (TagParser, "[THINK]mistral[/THINK]ok", "mistral", "ok"),
    (
        HarmonyParser,
        "<|channel|>analysis<|message|>We think.<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>",
        "We think.",
        "Hello",
    ),
    (HarmonyParser, "<|channel|>final<|message|>a < b and <|", "", "a < b and <|"),
    (HarmonyParser, "<|channel|>commentary to=functions.x<|message|>{}<|call|>", "{}", ""),
    (HarmonyParser, "Plain words without any channel", "", "Plain words without any channel"),
    (lambda: HarmonyParser("analysis"), "go on<|end|><|start|>assistant<|channel|>final<|message|>x", "go on", "x"),
    (PlainParser, "<think>raw</think>", "", "<think>raw</think>"),
]


def collect(parser: ThinkingParser, parts: list[str]) -> tuple[str, str]:
    pieces = [piece for part in parts for piece in parser.feed(part)] + parser.finish()
    return (
        "".join(text for kind, text in pieces if kind == "thinking"),
        "".join(text for kind, text in pieces if kind == "answer"),
    )


@pytest.mark.parametrize(("make", "text", "thinking", "answer"), CASES)
def test_split_into_thinking_and_answer(
    make: Callable[[], ThinkingParser], text: str, thinking: str, answer: str
) -> None:
    assert collect(make(), [text]) == (thinking, answer)
    assert collect(make(), list(text)) == (thinking, answer)


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in pairwise(bounds)]


@given(
    words=st.lists(
        st.sampled_from(
            ["<think>", "</think>", "<", "thi", "nk>", " ", "\n", "word", "<|channel|>", "analysis", "final",
             "<|message|>", "<|end|>", "<|start|>", "assistant", "<|channel>thought", "<channel|>", "é"]
        )
    ),
    places=st.lists(st.integers(0, 200), max_size=12),
    which=st.integers(0, 4),
)  # fmt: skip
def test_any_cut_gives_the_same_result(words: list[str], places: list[int], which: int) -> None:
    makes: list[Callable[[], ThinkingParser]] = [
        TagParser, lambda: TagParser("</think>"), HarmonyParser, lambda: HarmonyParser("analysis"), PlainParser,
    ]  # fmt: skip
    text, make = "".join(words), makes[which]
    assert collect(make(), cut(text, places)) == collect(make(), [text])


def test_text_streams_before_the_tag_closes() -> None:
    parser = TagParser()
    assert parser.feed("<think>one two") == [("thinking", "one two")]
    assert parser.phase == "thinking"


def test_the_prompt_says_where_the_stream_begins() -> None:
    assert parser_for("… <think> …", "<|im_start|>assistant\n<think>\n").phase == "thinking"
    assert parser_for("… <think> …", "<|im_start|>assistant\n<think>\n\n</think>\n\n").phase == "boundary"
    assert parser_for("", "<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n").phase == "boundary"
    assert parser_for(HARMONY, "<|start|>assistant").phase == "header"
    assert parser_for(HARMONY, "<|start|>assistant<|channel|>analysis<|message|>so far").phase == "thinking"


def test_templates_that_can_think() -> None:
    assert can_think("{% if enable_thinking %}")
    assert can_think("{{ '<think>\n' }}")
    assert can_think(HARMONY)
    assert not can_think("{{ messages }}")


@given(text=st.text(max_size=60), places=st.lists(st.integers(0, 300), max_size=8))
def test_utf8_survives_any_cut(text: str, places: list[int]) -> None:
    data = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
    bounds = sorted({0, len(data), *(p % (len(data) + 1) for p in places)})
    stream = Utf8Stream()
    out = "".join(stream.feed(data[a:b]) for a, b in pairwise(bounds)) + stream.finish()
    assert out == data.decode()


def test_invalid_bytes_become_replacement_characters() -> None:
    stream = Utf8Stream()
    assert stream.feed(b"a\xff\xe2\x82") + stream.finish() == "a��"


@given(
    text=st.text(alphabet="abc", max_size=40),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    places=st.lists(st.integers(0, 100), max_size=10),
)
def test_stop_strings_cut_at_the_first_match(text: str, stops: list[str], places: list[int]) -> None:
    matcher, out = StopStrings(tuple(stops)), ""
    for part in cut(text, places):
        out += matcher.feed(part)
    out += matcher.finish()
    first = [at for at in (text.find(s) for s in stops) if at >= 0]
    assert matcher.stopped == bool(first)
    if first:  # the match that ends first wins where parts arrive one by one
        ends = min(text.find(s) + len(s) for s in stops if s in text)
        assert text.startswith(out)
        assert min(first) <= len(out) <= ends
    else:
        assert out == text


def test_a_start_of_a_marker_is_held_back() -> None:
    assert held_back("abc</thi", ("</think>",)) == 5
    assert held_back("abc", ("</think>",)) == 0
