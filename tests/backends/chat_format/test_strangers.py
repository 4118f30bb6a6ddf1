"""Models that came out this morning: their format is learnt from templates that nobody has seen before."""

from __future__ import annotations

import pytest

from backends.chat_format.templates import ChatTemplate
from tests.backends.chat_format.formats import TEMPLATES
from tests.backends.chat_format.round_trip import CASES, DirectRenderer, differs, trips, unsound
from tests.backends.chat_format.strangers import STRANGERS

RENDERER = DirectRenderer()
NO_THINKING = {"python", "a tag before json", "no markers", "words"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>", renderer=RENDERER)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", STRANGERS)
def test_what_goes_in_comes_out(name: str) -> None:
    made = template(STRANGERS[name])
    found = list(trips(made))
    assert {trip.name for trip in found} == set(CASES)
    assert {trip.name: wrong for trip in found if (wrong := differs(made, trip))} == {}
    assert all(trip.whole or name in NO_THINKING for trip in found)


@pytest.mark.parametrize("name", [n for n in STRANGERS if n != "words"])  # “Action” may be text
def test_what_is_cut_off_is_sound(name: str) -> None:
    made = template(STRANGERS[name])
    cases = {"thinking, text and a call", "every type", "two calls", "text and a call"}
    wrong = {trip.name: unsound(made, trip) for trip in trips(made) if trip.name in cases}
    assert {name: found[:3] for name, found in wrong.items() if found} == {}


@pytest.mark.parametrize("name", STRANGERS)
def test_the_format_that_is_told_is_what_the_template_writes(name: str) -> None:
    source = STRANGERS[name]
    told = template(source).format.told()
    assert told["learnt"] == "template"
    for piece in told.get("thinking", ()):
        assert piece in source
    for key, value in told["tool_calls"].items():
        if isinstance(value, str) and key != "kind":
            assert all(piece in source for piece in value.split()), (key, value)


STUBS = ("plain", "bare", "gemma", "dsml", "harmony", "kimi3", "muse", "minimax", "functionary", "no calls")
"""They have the signs of a family, but don't write its answers."""


@pytest.mark.parametrize("name", [n for n in TEMPLATES if n not in STUBS])
def test_known_ones_too(name: str) -> None:
    made = template(TEMPLATES[name])
    assert {trip.name: wrong for trip in trips(made) if (wrong := differs(made, trip))} == {}
