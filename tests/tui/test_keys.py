"""Keys and pastes in a real pseudo-terminal, many at once, as a slow line, tmux or a fast typist sends them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual import events

from tests.tui.plain_editor import BACKSPACE, DELETE, DOWN, END, ENTER, HOME, LEFT, RIGHT, UP, K, U, W, Y
from tests.tui.typing_probe import Probe
from tui.terminal.escapes import KeyParser

MODELS = "\x0f"


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    app = Probe(tmp_path_factory.mktemp("keys") / "home")
    yield app
    app.close()


@pytest.fixture(autouse=True)
def _quiet(request: pytest.FixtureRequest) -> None:
    """What was typed before isn't the beginning of what comes now."""
    request.getfixturevalue("probe").wait(0.35)


def test_editing_keys_don_t_overtake_letters(probe: Probe) -> None:
    probe.type("abc" + LEFT + LEFT + "X" + RIGHT + "Y" + HOME + "Z")
    assert probe.field()["text"] == "ZaXbYc"


def test_a_filter_takes_its_keys_in_order_too(probe: Probe) -> None:
    probe.type(MODELS)
    probe.wait(1)
    probe.type("acme" + BACKSPACE * 4 + "many")
    field = probe.field()
    assert (field["screen"], field["text"]) == ("ModelsScreen", "many")
    probe.type("\x1b", pause=0.5)
    assert probe.field()["screen"] == "ChatScreen"


def test_what_is_typed_behind_a_key_that_opens_a_screen_goes_there(probe: Probe) -> None:
    probe.type("before" + MODELS + "qw" + LEFT + "e")
    field = probe.field()
    assert (field["screen"], field["text"]) == ("ModelsScreen", "qew")
    probe.type("\x1b", pause=0.5)
    assert probe.field()["text"] == "before"


@pytest.mark.parametrize("text", ["word", "two\nlines", "tab\tand é 👍🏽", "dos\r\nends\rmixed"])
def test_a_bracketed_paste_goes_in_once(probe: Probe, text: str) -> None:
    probe.type(f"\x1b[200~{text}\x1b[201~")
    field = probe.field()
    assert field["text"] == text.replace("\r\n", "\n").replace("\r", "\n")
    assert not field["sent"]


def test_a_paste_without_brackets_is_one_text_and_nothing_is_sent(probe: Probe) -> None:
    probe.type("one\r  two\r\tthree\rfour\r")
    field = probe.field()
    assert field["text"] == "one\n  two\n\tthree\nfour\n"
    assert field["sent"] == []


def test_a_long_paste_in_pieces_is_one_text(probe: Probe) -> None:
    lines = [f"line {number} " + "x" * 60 for number in range(90)]
    data = "\r".join(lines) + "\r"
    for start in range(0, len(data), 1000):  # as a network delivers it, cut anywhere
        probe.type(data[start : start + 1000], pause=0.01)
    probe.wait(0.2)
    field = probe.field()
    assert field["sent"] == []
    assert field["text"] == "\n".join(lines) + "\n"


def test_enter_behind_typed_text_sends(probe: Probe) -> None:
    probe.type("a question" + ENTER)
    probe.wait(0.5)
    assert probe.field()["sent"] == ["a question"]
    for key in "typed":
        probe.type(key, pause=0.1)
    probe.type(ENTER, pause=0.3)
    assert probe.field()["sent"] == ["typed"]


def test_enter_after_an_editing_key_sends_what_stands_there_then(probe: Probe) -> None:
    probe.type("helo" + LEFT + "l" + END + ENTER)
    probe.wait(0.5)
    assert probe.field()["sent"] == ["hello"]


@pytest.mark.parametrize("character", ["👍🏽", "🇩🇪", "é", "👨‍👩‍👧", "❤️", "漢"])
def test_a_character_is_one_step(probe: Probe, character: str) -> None:
    probe.type("a" + character + "b" + LEFT + BACKSPACE)
    assert probe.field()["text"] == "ab"
    probe.type("a" + character + "b" + HOME + RIGHT + DELETE)
    assert probe.field()["text"] == "ab"
    probe.type("a" + character + LEFT + LEFT + "x" + RIGHT + RIGHT + "y")
    assert probe.field()["text"] == "xa" + character + "y"
    probe.type(MODELS)
    probe.type("a" + character + "b" + LEFT + BACKSPACE + LEFT + "x")
    assert probe.field()["text"] == "xab"
    probe.type("\x1b", pause=0.5)


def test_what_was_cut_comes_back(probe: Probe) -> None:
    probe.type("one two three" + W + W + HOME + Y)
    assert probe.field()["text"] == "two threeone "
    probe.type("abc" + LEFT + K + U + Y + "|" + Y)
    assert probe.field()["text"] == "abc|abc"


# ---- the leader, ^C, earlier prompts, / commands ---------------------------------------------------------------------


LEADER, CTRL_C, CTRL_R, TAB, ESC = "\x18", "\x03", "\x12", "\t", "\x1b"


def test_the_leader_and_a_letter_open_a_screen_and_the_rest_goes_there(probe: Probe) -> None:
    probe.type("kept" + LEADER + "oqwen")
    field = probe.field()
    assert (field["screen"], field["text"]) == ("ModelsScreen", "qwen")
    probe.type(ESC, pause=0.5)
    assert probe.field()["text"] == "kept"
    probe.type("a" + LEADER + "zb")  # means nothing, and isn't typed either
    assert probe.field()["text"] == "ab"


def test_a_command_is_completed_and_run_however_fast_it_is_typed(probe: Probe) -> None:
    probe.type("/the" + TAB + "pap" + TAB + ENTER)
    probe.wait(1)
    assert probe.field()["text"] == ""
    probe.type("/mod" + DOWN + DOWN + ENTER)
    probe.wait(1)
    field = probe.field()
    assert field["screen"] == "ModelsScreen"
    probe.type(ESC, pause=0.5)
    probe.type("/etc/passwd has what?" + ENTER)
    probe.wait(0.5)
    assert probe.field()["sent"][-1] == "/etc/passwd has what?"  # it was no command


def test_earlier_prompts_are_searched_backwards(probe: Probe) -> None:
    # Nothing is loaded, so no question is accepted: commands are prompts, too.
    probe.type("/keys standard" + ENTER)
    probe.wait(0.5)
    probe.type("/theme paper" + ENTER)
    probe.wait(0.5)
    probe.type("draft" + CTRL_R + "stand" + ENTER)
    assert probe.field()["text"] == "/keys standard"
    probe.type("draft" + CTRL_R + "/" + CTRL_R + ENTER)
    assert probe.field()["text"] == "/keys standard"
    probe.type("draft" + CTRL_R + "zzz" + ESC, pause=0.5)
    assert probe.field()["text"] == "draft"


def test_a_backslash_and_alt_break_the_line(probe: Probe) -> None:
    probe.type("one\\")
    probe.wait(0.2)
    probe.type(ENTER, pause=0.2)
    probe.type("two\x1b\rthree", pause=0.3)
    field = probe.field()
    assert field["text"] == "one\ntwo\nthree"
    assert not field["sent"]


def test_ctrl_c_says_how_to_quit_and_twice_quits(tmp_path: Path) -> None:
    app = Probe(tmp_path / "home", 100, 30)
    try:
        app.type(CTRL_C)
        end = time.monotonic() + 280
        while b"again or ^Q to quit" not in app.written and time.monotonic() < end:
            app.wait(0.1)
        assert app.field()["screen"] == "ChatScreen"
        app.wait(2.5)  # so long that the next is a first one again
        app.type(CTRL_C * 2)
        end = time.monotonic() + 280
        while not (ended := os.waitpid(app.pid, os.WNOHANG)[0]) and time.monotonic() < end:
            app.wait(0.1)
        assert ended
    finally:
        app.close()


def test_esc_and_a_control_key_in_one_piece_are_two_keys(probe: Probe) -> None:
    """tmux holds an Esc back to see what follows, and sends both together."""
    probe.type("/mo", pause=0.3)
    probe.type("\x1b\x15", pause=0.3)  # Esc closes what is offered, ^U cuts
    assert probe.field()["text"] == ""
    probe.type("\x18", pause=0.1)
    probe.type("\x1b\x18i", pause=0.3)  # Esc ends the leader, and it begins anew
    for _ in range(3000):
        field = probe.field()
        if field["screen"] == "SettingsScreen":
            break
        probe.wait(0.1)
    assert field["screen"] == "SettingsScreen"
    probe.type("\x1b", pause=0.3)
    for _ in range(3000):
        if probe.field()["screen"] == "ChatScreen":
            break
        probe.wait(0.1)


def test_esc_and_a_letter_in_one_piece_are_two_keys_where_alt_means_nothing(probe: Probe) -> None:
    probe.type("\x1bhello")
    assert probe.field()["text"] == "hello"
    probe.type("\x1bbut")  # no word to go back over in an empty field
    assert probe.field()["text"] == "but"
    probe.type("one two")
    probe.type("\x1bbX")
    assert probe.field()["text"] == "one Xtwo"
    probe.type("some/path")
    probe.type("\x1b\x7f")
    assert probe.field()["text"] == "some/"


def test_a_bracketed_paste_with_escapes_is_text(probe: Probe) -> None:
    """Copied from a terminal with its colours; Textual took the rest of it for keys, and Enter sent it."""
    probe.type("\x1b[200~one \x1b[31mred\x1b[0m\rtwo\r\x1b]0;title\x07three\x1b[201~!", pause=0.3)
    field = probe.field()
    assert field["text"] == "one red\ntwo\nthree!"
    assert not field["sent"]


def test_a_paste_is_whole_wherever_it_is_cut() -> None:
    text = "ab\x1b[31mred\x1b[0m\r\x1b\x1b[Aü" * 3
    typed = f"x\x1b[200~{text}\x1b[201~y\x1b[200~\x1b[201~z\x1b[200~q\x1b[201~"
    for seed in range(300):
        draw, parser, rest = random.Random(seed), KeyParser(), typed
        found: list[str] = []
        while rest:
            size = draw.randint(1, 9)
            for event in parser.feed(rest[:size]):
                assert isinstance(event, events.Key | events.Paste)
                found.append(event.text if isinstance(event, events.Paste) else event.key)
            rest = rest[size:]
        assert found == ["x", text, "y", "", "z", "q"], seed


def test_a_sequence_that_nobody_knows_is_not_the_key_esc() -> None:
    assert "escape" not in [event.key for event in KeyParser().feed("\x1b[99;5z") if isinstance(event, events.Key)]


def test_the_whole_question_is_cut_and_put_back(probe: Probe) -> None:
    probe.type("one\ntwo\nthree", pause=0.5)
    probe.type(UP + "\x18\x0b", pause=0.2)
    assert probe.field()["text"] == ""
    probe.type(Y)
    assert probe.field()["text"] == "one\ntwo\nthree"
