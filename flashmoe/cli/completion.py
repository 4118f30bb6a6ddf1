"""``flashmoe-tui completion``: prints a completion script for bash, zsh or fish."""

from __future__ import annotations

import argparse
from typing import Any

from flashmoe.cli.common import out

DESCRIPTION = "Prints a completion script: commands, flags, choices and files."

EXAMPLES = """examples:
  bash: flashmoe-tui completion bash > ~/.local/share/bash-completion/completions/flashmoe-tui
  zsh:  flashmoe-tui completion zsh > "${fpath[1]}/_flashmoe-tui"
  fish: flashmoe-tui completion fish > ~/.config/fish/completions/flashmoe-tui.fish"""


def register(subparsers: Any) -> None:
    """Adds the parser of ``completion``."""
    parser = subparsers.add_parser("completion", help="shell completion", description=DESCRIPTION, epilog=EXAMPLES)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def main(args: argparse.Namespace) -> int:
    """Prints the script for the shell."""
    import shtab

    from flashmoe.cli.main import build_parser

    parser = build_parser()
    # argparse has no notion of "this is a file": every MODEL, FILE and PATH completes file names.
    _complete_files(parser, shtab.FILE)
    out(shtab.complete(parser, shell=args.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, how: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in set(action.choices.values()):
                _complete_files(sub, how)
        elif action.dest in ("model", "file", "files", "input", "output", "schema", "out") and not action.choices:
            action.complete = how  # type: ignore[attr-defined]
