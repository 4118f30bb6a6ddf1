"""Any keys in any bursts do what a plain editor does, in every kind of text field, over a real pseudo-terminal."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from textual import events

from flashmoe.history import History
from tests.tui.plain_editor import PASTE, PASTED, Editor, pieces, press_some
from tests.tui.typing_probe import Probe
from tui.terminal.bursts import Bursts, TextOfKeys

CUT = "x\x15"
"""Types an x and cuts it: what was cut before is forgotten."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    """No line wraps here, so that Up and Down have a plain model, too."""
    app = Probe(tmp_path_factory.mktemp("wide") / "home", 300, 30, config="ui: {monitor: hidden}\n")
    assert app.field()["size"][0] > 280
    yield app
    app.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    """Most lines wrap here."""
    home = tmp_path_factory.mktemp("small") / "home"
    (home / "config" / "prompts").mkdir(parents=True)
    (home / "config" / "prompts" / "about.txt").write_text("About {{thing}}")
    (home / "data").mkdir()
    with History(home / "data" / "chats.db") as history:
        chat = history.create_chat(title="Where words are found")
        history.add_message(chat.id, "user", "a b c")
    app = Probe(home, 60, 20, chat=chat.id)
    yield app
    app.close()


def type_and_compare(
    probe: Probe, burst: int, sequences: int, *, widest: int = 10_000, lines: bool = True, up_down: bool = False
) -> None:
    """Types random sequences in bursts of at most `burst` keys, whole and cut into pieces."""
    probe.type(CUT)
    assert probe.field()["text"] == ""
    cut = "x"
    for seed in range(sequences):
        draw = random.Random(f"{burst} {seed} {widest} {lines}")
        model = Editor(cut=cut, one_line=not lines)
        n = draw.randint(1, max(12, burst))
        keys = press_some(draw, n, model, widest=min(widest, 2_000), lines=lines, up_down=up_down)
        sent: list[bytes] = []
        index = 0
        while index < len(keys):
            size = draw.randint(1, burst)
            some = keys[index : index + size]
            sent += pieces(draw, some) if seed % 4 == 3 else ["".join(some).encode()]
            index += size
        for piece in sent:
            probe.type(piece)
            if burst == 1 and draw.random() < 0.5:
                probe.wait(0.001)
        cut = model.cut
        shown = probe.field()
        assert shown["text"] == model.text, (burst, seed, shown["size"], keys, sent)
        assert not shown["sent"]


ALL = [pytest.param(n, 500, marks=pytest.mark.slow) for n in (1, 20, 200)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("burst", "sequences"), [(1, 100), (20, 60), (200, 25), *ALL])
def test_the_composer(wide: Probe, burst: int, sequences: int) -> None:
    type_and_compare(wide, burst, sequences, widest=280, up_down=True)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("burst", "sequences"), [(20, 30), (200, 10), *ALL])
def test_the_composer_with_wrapped_lines(small: Probe, burst: int, sequences: int) -> None:
    type_and_compare(small, burst, sequences)


FIELDS = {
    "filter of the models": ("\x0f", "\x1b"),
    "search in all chats": ("\x18/", "\x1b"),
    "find in this chat": ("\x06", "\x1b"),
    "dialog": ("/about\r", "\x1b"),
}
"""Keys that lead to a field, and away from it."""


def in_field(app: Probe, wanted: Callable[[str], bool]) -> None:
    """Waits until such a field has the focus: a screen may take its time to open on a busy machine."""
    for _ in range(600):
        if wanted(app.field()["id"]):
            return
        app.wait(0.5)
    raise AssertionError(app.field()["id"])


@pytest.mark.parametrize("field", FIELDS)
def test_fields_of_one_line(small: Probe, field: str) -> None:
    opens, leaves = FIELDS[field]
    before = small.field()
    small.wait(1.0)  # what comes right after lines in one piece would still belong to them
    small.type(opens, pause=0.5)
    in_field(small, lambda name: name != before["id"])
    type_and_compare(small, 40, 15, lines=False, widest=200)
    small.type(leaves, pause=0.5)
    in_field(small, lambda name: name == "composer")


def test_the_system_prompt(small: Probe) -> None:
    small.type("\x1bOR", pause=0.5)
    in_field(small, lambda name: name == "system")
    type_and_compare(small, 40, 15)
    small.type("\x1b", pause=0.5)
    in_field(small, lambda name: name == "composer")


@pytest.mark.parametrize("bracketed", [True, False])
def test_a_paste_of_many_lines_in_pieces(small: Probe, bracketed: bool) -> None:
    """Cut anywhere, within the marks and within characters."""
    draw = random.Random(4)
    lines = [f"{number} {'für 漢 👍🏽 ' * draw.randrange(3)}" for number in range(260)]
    data = "\r".join(lines).encode()
    if bracketed:
        data = PASTE.encode() + data + PASTED.encode()
    data = b"<" + data + b">"
    while data:
        size = draw.randint(1, 700)
        small.type(data[:size])
        small.wait(draw.choice([0, 0.002]))
        data = data[size:]
    small.wait(0.5)
    field = small.field()
    assert not field["sent"]
    assert field["text"] == "<" + "\n".join(lines) + ">"


# ---- pieces that a busy machine or a bad line cuts -------------------------------------------------------------------


def keys_of(text: str) -> list[events.Key]:
    return [events.Key("enter" if char == "\r" else char, char) for char in text]


@pytest.mark.parametrize("text", ["🇩", "a🇩🇪🇫", "👨\u200d"])
def test_half_a_character_is_waited_for(text: str) -> None:
    """It would join with what stands behind the cursor, and its other half would come before both."""
    assert Bursts().unfinished(keys_of(text), 1.0)
    assert not Bursts().unfinished(keys_of("🇩🇪👨"), 1.0)


def test_what_stood_there_already_belongs_to_the_piece_before_however_late_it_is_read() -> None:
    bursts = Bursts()
    assert [type(event) for event in bursts.take(keys_of("a"), 1.0)] == [events.Key]
    bursts.more_at_once(9.0)
    pasted = bursts.take(keys_of("\rb"), 9.0)
    assert [event.text for event in pasted if isinstance(event, TextOfKeys)] == ["\nb"]
    later = Bursts()
    later.take(keys_of("a"), 1.0)
    assert [event.key for event in later.take(keys_of("\rb"), 9.0) if isinstance(event, events.Key)] == ["enter", "b"]
