"""Where things are, and what is said where they can't be written; text that is safe on a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe import paths
from flashmoe.text_safety import SafeStream, encodable, visible, visible_line


def test_home_variable_holds_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path))
    monkeypatch.delenv("FLASHMOE_MODELS", raising=False)
    monkeypatch.delenv("FLASHMOE_CONFIG", raising=False)
    inside = {name: path for name, path in paths.all_paths().items() if name not in ("builtin_themes", "guide_model")}
    assert all(tmp_path in path.parents for path in inside.values())


def test_xdg_variables_count_and_relative_ones_dont(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FLASHMOE_HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert paths.config_dir() == tmp_path / "flashmoe-tui"
    assert paths.data_dir() == Path.home() / ".local/share/flashmoe-tui"
    monkeypatch.setenv("FLASHMOE_MODELS", str(tmp_path / "m"))
    assert paths.models_dir() == tmp_path / "m"


def test_a_folder_that_cannot_be_written_names_the_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("FLASHMOE_HOME", str(blocker))
    with pytest.raises(paths.PathError, match="FLASHMOE_HOME") as caught:
        paths.ensure_dir(paths.data_dir())
    assert str(blocker) in caught.value.message


def test_private_folders_are_private_and_never_a_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path))
    folder = paths.ensure_dir(paths.runtime_dir(), private=True)
    assert folder.stat().st_mode & 0o077 == 0
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(paths.PathError):
        paths.ensure_dir(link, private=True)


def test_home_is_shortened() -> None:
    assert paths.display(Path.home() / "x") == "~/x"
    assert paths.display("/nowhere/x") == "/nowhere/x"


# ---- hostile text


@pytest.mark.parametrize(
    "text", ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "a\rb", "\x08", "\x7f", "\u202eevil", "\ud800"]
)
def test_controls_are_shown_not_sent(text: str) -> None:
    shown = visible(text)
    assert all(ch.isprintable() or ch in "\n\t" for ch in shown)
    assert shown != text
    shown.encode("utf-8")


def test_ordinary_text_is_left_alone() -> None:
    text = "Grüße 你好 👩‍👩‍👧 שלום\tx\n"
    assert visible(text) == text
    assert visible_line("a\nb\x1bc" + "d" * 100, 12) == "a b␛cdddddd…"


@given(st.lists(st.text(alphabet="ab\r\n\x1b"), max_size=20))
def test_a_stream_cut_anywhere_reads_the_same(pieces: list[str]) -> None:
    stream = SafeStream()
    streamed = "".join(map(stream.feed, pieces)) + stream.end()
    assert streamed == visible("".join(pieces))


@given(st.text(alphabet=st.characters(), max_size=30))
def test_encodable_is(text: str) -> None:
    assert encodable(text).encode("utf-8").decode("utf-8") == encodable(text)
    assert encodable("\ud83d\ude00") == "😀"
