"""What models, files and servers write never reaches a terminal as more than text."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.cli.json_output import json_text
from flashmoe.text_safety import MARKS_A_LETTER, MORE_MARKS, SafeStream, visible, visible_exact, visible_line

ACUTE = "\u0301"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rm\u200b -rf x", "rm<U+200B> -rf x"),
        ("cat\u00a0a", "cat<U+00A0>a"),
        ("a\u200d\u200db", "a<U+200D><U+200D>b"),
        ("pay\u3164pal", "pay<U+3164>pal"),
        ("x\U000e0101\U000e0102", "x<U+E0101><U+E0102>"),
        ("bad\udcff.gguf", r"bad\xff.gguf"),
        ("\u202egpj.exe", "<U+202E>gpj.exe"),
        ("a\x1b]0;x\x07", "a␛]0;x␇"),
    ],
)
def test_what_nobody_sees_is_shown_where_it_deceives(text: str, shown: str) -> None:
    assert visible_exact(text) == shown


@pytest.mark.parametrize(
    "text", ["👩‍🔬", "❤️", "1️⃣", "👨‍👩‍👧‍👦", "می‌خواهم", "क्‍ष", "Tiếng Việt", "naïve", "שָׁלוֹם", "ཧཱུྃ", "漢字 かな"]
)
def test_what_writing_needs_stays(text: str) -> None:
    assert visible(text) == visible_exact(text) == text


def test_marks_are_bounded_to_a_few_a_letter() -> None:
    heap = "a" + ACUTE * 500 + "b"
    assert visible(heap) == "a" + ACUTE * MARKS_A_LETTER + MORE_MARKS + "b"
    assert len(visible_line("\u200b".join("x" * 3) + "\u0336" * 400)) < 60
    hidden = "x" + "\u200b" * 1000 + "y"  # text that only a machine reads
    assert visible(hidden) == "x" + "\u200b" * MARKS_A_LETTER + MORE_MARKS + "y"


@given(st.lists(st.text(alphabet="ab \n\r\u0301\u0336\u200b\u4e2d\x1b\x9b", max_size=12), max_size=8))
def test_a_stream_shows_what_the_whole_text_would(pieces: list[str]) -> None:
    stream = SafeStream()
    shown = "".join(stream.feed(piece) for piece in pieces) + stream.end()
    assert shown == visible("".join(pieces))


@given(st.text(max_size=200))
def test_nothing_dangerous_is_left(text: str) -> None:
    for shown in (visible(text), visible_exact(text), visible_line(text)):
        assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n" for c in shown)
        assert not any("\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u206f" for c in shown)
        shown.encode()


@given(st.recursive(st.text(max_size=20) | st.integers(-5, 5) | st.none(), lambda x: st.lists(x, max_size=3)))
def test_json_on_a_terminal_is_ascii_and_means_the_same(value: object) -> None:
    text = json_text(value, ascii_only=True)
    assert all(" " <= char < "\x7f" for char in text)
    assert json.loads(text) == value


def test_json_of_any_file_name() -> None:
    assert json.loads(json_text({"path": "a\udcff"})) == {"path": "a\udcff"}
    assert json_text({"n": float("nan"), "path": "a\udcff"}) == r'{"n":null,"path":"a\udcff"}'
    assert json_text({"n": float("nan"), "x": "é"}) == '{"n":null,"x":"é"}'
