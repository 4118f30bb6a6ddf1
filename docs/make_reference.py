#!/usr/bin/env python3
"""Writes docs/reference.md from the code: settings, keys, environment, commands, exit codes, endpoints, formats.

python docs/make_reference.py           # writes it
python docs/make_reference.py --check   # exit 1 where the file is not what the code says (the test suite does this)
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

os.environ["COLUMNS"] = "100"  # argparse's help would follow this terminal

TARGET = HERE / "reference.md"
HEAD = """# Reference

Made from the code by `python docs/make_reference.py`; the test suite checks that it is up to date.
Contents: [settings](#settings) · [keys](#keys) · [environment variables](#environment-variables) ·
[commands](#commands) · [exit codes](#exit-codes) · [endpoints](#endpoints-of-serve) · [batch lines](#batch-lines) ·
[error codes](#error-codes) · [recordings](#recordings)
"""


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return out + ["| " + " | ".join(cell(c) for c in row) + " |" for row in rows]


def settings() -> Iterator[str]:
    from flashmoe.config.docs import field_docs
    from flashmoe.config.reader import describe_type, fields_of
    from flashmoe.config.schema import Config

    yield "In `config.yaml`, whose place `flashmoe-tui paths` shows; `flashmoe-tui config --defaults` prints the file."
    yield "Each can be set by the environment too: `FLASHMOE_<SECTION>__<FIELD>`."
    for section, kind in fields_of(Config).items():
        yield f"\n### {section}\n"
        yield f"{inspect.cleandoc(kind.__doc__ or '')}\n"
        docs, kinds = field_docs(kind), fields_of(kind)
        values = msgspec.to_builtins(getattr(Config(), section))
        rows = []
        for name, value in values.items():
            shown = "true or false" if kinds[name] is bool else describe_type(kinds[name])
            default = msgspec.json.encode(value).decode()
            rows.append((f"`{section}.{name}`", shown, f"`{default}`", docs[name]))
        yield from table(("setting", "values", "default", "meaning"), rows)


def keys() -> Iterator[str]:
    from tui.key_table import KEYS, SCOPE_TITLES
    from tui.keymap import display_key
    from tui.screens.chat.commands import COMMANDS

    yield (
        "Remap them by id in `ui.keys`, for instance `chat.new: ctrl+x b`; `set: classic` brings back the keys of "
        "earlier versions. "
        "F1 shows the keys in force."
    )
    yield "\n### Commands in the composer\n"
    rows = [(f"`/{c.name} {c.argument}`".replace(" `", "`"), c.description) for c in COMMANDS]
    yield from table(("command", "does"), rows)
    for scope, title in SCOPE_TITLES.items():
        rows = [
            (f"`{k.id}`", ", ".join(display_key(key) for key in k.keys.split(",") if key) or "-", k.description)
            for k in KEYS
            if k.scope == scope
        ]
        if rows:
            yield f"\n### {title}\n"
            yield from table(("id", "keys", "does"), rows)


def environment() -> Iterator[str]:
    from flashmoe.environment import VARIABLES

    for group in dict.fromkeys(v.group for v in VARIABLES):
        yield f"\n### {group}\n"
        yield from table(
            ("variable", "meaning"),
            ((", ".join(f"`{n}`" for n in v.name.split(", ")), v.meaning) for v in VARIABLES if v.group == group),
        )


def commands() -> Iterator[str]:
    from flashmoe.cli import app
    from flashmoe.cli.main import build_parser
    from flashmoe.cli.table import COMMANDS, PROGRAM

    def options(parser: argparse.ArgumentParser) -> Iterator[str]:
        rows = []
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
                continue
            name = ", ".join(f"`{o}`" for o in action.option_strings)
            if not name:
                name = f"`{action.metavar or action.dest}`"
            elif action.nargs != 0:
                choices = "|".join(map(str, action.choices or ()))
                value = action.metavar or choices or action.dest.upper()
                name = name[:-1] + f" {value}`"
            text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
            rows.append((name, text))
        yield from table(("argument", "meaning"), rows)

    yield f"\n### {PROGRAM} [MODEL]\n"
    yield from options(app.parser())
    for name, command in COMMANDS.items():
        parser = build_parser(name)
        sub = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[name]
        yield f"\n### {name}\n"
        yield f"{command.help[0].upper()}{command.help[1:]}.\n"
        yield from options(sub)


def exit_codes() -> Iterator[str]:
    from flashmoe.cli.table import EXIT_TEXT

    yield EXIT_TEXT


def endpoints() -> Iterator[str]:
    from flashmoe.serve.reference import describe

    yield from describe()


def batch() -> Iterator[str]:
    from flashmoe.batch import lines

    yield inspect.cleandoc(lines.__doc__ or "").replace("``", "`")
    yield f"\nA line may be {lines.MAX_LINE // 2**20} MiB long."
    yield "Its settings are the request fields of `/v1/chat/completions`."


def errors() -> Iterator[str]:
    from backends.interface import EngineError
    from flashmoe.hub.errors import HubError
    from flashmoe.retry import PASSING

    for title, kind in (("the engine", EngineError), ("the hub and the library", HubError)):
        codes = re.findall(r"``(\w+)``", kind.__doc__ or "")
        yield f"- of {title}: {', '.join(f'`{c}`' for c in codes)}"
    yield f"\nWorth trying again (exit code 3): {', '.join(f'`{c}`' for c in sorted(PASSING))}, `engine_died`."


def recordings() -> Iterator[str]:
    from flashmoe.monitor import recording

    text = inspect.cleandoc(recording.__doc__ or "").replace("``", "`").split("\n")
    inside, rows = False, []
    for line in text:
        if set(line) == {"=", " "}:  # the rules of a table in a docstring: above, below the head, at its end
            inside = True
            if len(rows) > 1:
                yield from table(rows[0], rows[1:])
                rows, inside = [], False
            continue
        parts = line.split(None, 1)
        if inside and len(parts) == 2 and (parts[0] == "kind" or len(parts[0]) == 1):
            rows.append(parts)
        else:
            inside = False
            yield line


SECTIONS = (
    ("Settings", settings), ("Keys", keys), ("Environment variables", environment), ("Commands", commands),
    ("Exit codes", exit_codes), ("Endpoints of serve", endpoints), ("Batch lines", batch),
    ("Error codes", errors), ("Recordings", recordings),
)  # fmt: skip


def render() -> str:
    """The whole page."""
    out = [HEAD]
    for title, section in SECTIONS:
        out += [f"\n## {title}\n", *section()]
    text = "\n".join(out)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the file is out of date")
    args = parser.parse_args()
    text = render()
    if args.check:
        return 0 if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text else 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
