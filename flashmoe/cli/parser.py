"""argparse with manners: help that fits the terminal, flags between arguments, one-line usage errors."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from typing import Any, NoReturn

from flashmoe.cli.table import PROGRAM


class HelpFormatter(argparse.HelpFormatter):
    """Fits help to the terminal (at most 100 columns) but keeps examples as written, and gives flags room."""

    def __init__(self, prog: str, **options: Any) -> None:
        options.setdefault("max_help_position", 28)
        options.setdefault("width", min(shutil.get_terminal_size().columns, 102) - 2)
        super().__init__(prog, **options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        from flashmoe.cli.help_text import reflow

        return textwrap.indent(reflow(text, width - len(indent)), indent)


class Parser(argparse.ArgumentParser):
    """One-line usage errors that say where help is; no abbreviated flags, which would break scripts later."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)
        self._mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Lets flags stand between positional arguments: ``run MODEL --ram 6 PROMPT``.

        argparse by itself gives an optional argument its default as soon as a flag comes, and then knows no place for
        the real one.
        """
        if self._mixing or any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{PROGRAM}: {message} (see {self.prog} --help)\n")
        raise SystemExit(2)
