"""Help that fits the terminal, and whose examples are true."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest

from flashmoe.cli.common import note
from flashmoe.cli.help_text import reflow
from flashmoe.cli.main import build_parser, main, module
from flashmoe.cli.table import COMMANDS

TEXT = """\
This is a paragraph that was written over more than one line in the source, and it
ends here.

what it means:
  short        one definition that goes on and on, over the end of the line, and is
               continued here
  a term that is far too long for its column  and its definition
  flashmoe-tui batch http://a-rather-long-name-of-a-server:8080/v1 prompts.jsonl -o answers.jsonl

exit codes: 0 done, 1 failed"""


def test_paragraphs_flow_definitions_hang_and_examples_stay() -> None:
    lines = reflow(TEXT, 50).split("\n")
    assert lines[0] == "This is a paragraph that was written over more"
    at = lines.index("what it means:")
    assert lines[at + 1] == "  short        one definition that goes on and on,"
    assert lines[at + 2] == "               over the end of the line, and is"
    assert lines[at + 3] == "               continued here"
    assert lines[at + 4 : at + 6] == ["  a term that is far too long for its column", "      and its definition"]
    long = [line for line in lines if len(line) > 50]
    assert long == ["  flashmoe-tui batch http://a-rather-long-name-of-a-server:8080/v1 prompts.jsonl -o answers.jsonl"]
    assert lines[-1] == "exit codes: 0 done, 1 failed"
    wide = reflow(TEXT, 200).split("\n")
    assert wide[0].endswith("it ends here.")


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize("columns", [60, 80])
def test_every_help_fits(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([name, "--help"]) == 0
    for line in capsys.readouterr().out.splitlines():
        example = re.match(r"  +\S", line) and not re.search(r"\S {2,}\S", line.strip())
        assert len(line) <= columns or example, line


@pytest.mark.parametrize("name", ["run", "batch", "serve", "bench", "plan", "doctor"])
def test_what_a_manual_page_has(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("usage: ", "examples: ", "exit codes: 0", "2 wrong usage", "130"):
        assert words in text


def examples() -> list[str]:
    """Every example of every command's help that calls the program."""
    found = []
    parser = build_parser()
    for action in parser._actions:
        for sub in set((action.choices or {}).values()) if isinstance(action.choices, dict) else ():
            text = re.sub(r"\\\n\s*", " ", f"{sub.description}\n{sub.epilog}")
            found += re.findall(r"flashmoe-tui (?:" + "|".join(COMMANDS) + r")\b[^\n|>;&)]*", text)
    return sorted(set(found))


@pytest.mark.parametrize("line", examples())
def test_examples_are_accepted(line: str, tmp_path: Path) -> None:
    words = [w for w in shlex.split(line.split("  ")[0], comments=True) if not w.startswith("<")]
    if "<" in shlex.split(line):
        words = words[: shlex.split(line).index("<")]
    command = words[1]
    prepare = getattr(module(command), "prepare", list)
    _, unknown = build_parser(command).parse_known_args(prepare(words[1:]))
    assert not unknown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_notes_break_between_words_on_a_terminal_and_stay_one_line_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "energy unknown: this machine has no RAPL counter \x1b[31m at /sys/class/powercap/intel-rapl/and/further"
    screen, file = Terminal(), io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    note(text)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "energy unknown: this machine has no"
    assert "/sys/class/powercap/intel-rapl/and/further" in lines  # what may be copied is kept whole
    assert "\x1b" not in screen.getvalue()
    monkeypatch.setattr("sys.stderr", file)
    note(text)
    assert file.getvalue().count("\n") == 1
