"""Text from bytes, stop strings: however the stream is cut, the result is the same."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from backends.llamacpp.detok import StopStrings, Utf8Stream, held_back


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in pairwise(bounds)]


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
