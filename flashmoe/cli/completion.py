"""``flashmoe-tui completion``: prints a completion script for bash, zsh or fish."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from flashmoe.cli.common import out

DESCRIPTION = """\
Prints a completion script: commands, the app's flags and each command's, backends, presets and themes, files.

It knows the presets and themes that exist now: print it again after adding some."""

EXAMPLES = """\
examples:
  bash: flashmoe-tui completion bash > ~/.local/share/bash-completion/completions/flashmoe-tui
  zsh:  flashmoe-tui completion zsh > "${fpath[1]}/_flashmoe-tui"
  fish: flashmoe-tui completion fish > ~/.config/fish/completions/flashmoe-tui.fish

exit codes: 0 printed, 2 wrong usage"""

FILES = frozenset({"model", "file", "files", "input", "output", "schema", "grammar", "out", "record"})
"""Names of arguments that take a file: argparse has no notion of that."""


def register(subparsers: Any) -> None:
    """Adds the parser of ``completion``."""
    parser = subparsers.add_parser("completion", help="shell completion", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")


def main(args: argparse.Namespace) -> int:
    """Prints the script for the shell."""
    import shtab

    from flashmoe.cli.app import add_app_flags
    from flashmoe.cli.common import add_load_flags
    from flashmoe.cli.main import build_parser
    from flashmoe.cli.table import COMMANDS

    parser = build_parser()
    parser.add_argument("-V", "--version", action="store_true", help="the version")
    add_app_flags(parser)  # flashmoe-tui [MODEL] takes these without a command
    add_load_flags(parser)
    known = {"backend": _backends(), "preset": _presets(), "theme": _themes()}
    _prepare(parser, shtab.FILE, known, {name: command.help for name, command in COMMANDS.items()})
    out(shtab.complete(parser, shell=args.shell))
    return 0


def _prepare(
    parser: argparse.ArgumentParser, files: object, known: dict[str, tuple[str, ...]], titles: dict[str, str]
) -> None:
    """Says what shtab can't see: which arguments are files, which names are known; descriptions become one line."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                sub.description = titles.get(name, (sub.description or "").split(". ")[0])
                _prepare(sub, files, known, {})
        elif action.nargs == 0:
            continue  # a switch, whatever it is called
        elif action.dest in known:
            action.choices = known[action.dest]
        elif action.dest in FILES and not action.choices:
            action.complete = files  # type: ignore[attr-defined]


def _backends() -> tuple[str, ...]:
    from backends import registry

    return ("auto", *registry.names())


def _presets() -> tuple[str, ...]:
    from flashmoe.presets import AUTO, load_presets

    return _names((AUTO, *load_presets().presets))


def _themes() -> tuple[str, ...]:
    from flashmoe import paths

    places = paths.all_paths()
    found = [p.stem for name in ("builtin_themes", "themes") for p in places[name].glob("*.yaml")]
    return _names(sorted(set(found)))


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Only what a shell takes as one plain word: a name from a user's file ends up in a script."""
    return tuple(n for n in names if n and all(c.isalnum() or c in "-_.+" for c in n))
