"""``flashmoe-tui``: finds the command and imports only its module.

The table below is all that ``--help`` needs, so it answers before anything heavy is imported. A first word that is no
command is a model, and opens the app; a command wins over a model of the same name.
"""

from __future__ import annotations

import argparse
import codecs
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from flashmoe.cli.parser import Parser
from flashmoe.cli.table import COMMANDS, EXIT_TEXT, GROUPS, PROGRAM


def general_help() -> str:
    """The text of ``flashmoe-tui --help``."""
    width = max(map(len, COMMANDS)) + 2
    lines = [
        f"usage: {PROGRAM} [MODEL] [options]      the app",
        f"       {PROGRAM} COMMAND …              {PROGRAM} COMMAND --help says more",
        "",
        "Chat in the terminal with Mixture-of-Experts models larger than RAM: experts stream from the SSD.",
        "",
        "MODEL is a GGUF file (the first of a split set), a name in the library, or demo.",
    ]
    for group, title in GROUPS.items():
        names = [name for name, command in COMMANDS.items() if command.group == group]
        if names:
            lines += ["", f"{title}:", *(f"  {name:<{width}}{COMMANDS[name].help}" for name in names)]
    lines += [
        "",
        "Options of the app:",
        "  --backend NAME  --ram GIB  --gpu-layers N  --vram-experts GIB  --threads N  --ctx N",
        "  --ubatch N  --experts N",
        "                  how MODEL is loaded (flashmoe-tui run --help explains each)",
        "  --calm          no animation and fewer repaints, as over SSH",
        "  --theme NAME    use this theme for this session",
        "  --chat ID       open this chat",
        "  --record FILE   record the monitor, for flashmoe-tui replay",
        "  --version       the version",
        "",
        "Examples:",
        f"  {PROGRAM} demo",
        f"  {PROGRAM} ~/models/Qwen3-30B-A3B-Q4_K_M.gguf --ram 6",
        f'  {PROGRAM} run demo "What is an expert?"',
        "",
        EXIT_TEXT,
    ]
    return "\n".join(lines) + "\n"


def version() -> str:
    """The installed version."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed(PROGRAM)
    except PackageNotFoundError:
        return "unknown"


def build_parser(only: str | None = None) -> Parser:
    """The parser with the command `only`, or with all of them (completion)."""
    parser = Parser(prog=PROGRAM, description="Chat with Mixture-of-Experts models larger than RAM.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS if only is None else (only,):
        module(name).register(subparsers)
    return parser


def _refuse(unknown: Sequence[str], command: str, parser: argparse.ArgumentParser) -> NoReturn:
    """Names what no parser knew, with the closest flag."""
    import difflib

    word = unknown[0]
    flags = [flag for sub in _parsers(parser) for action in sub._actions for flag in action.option_strings]
    close = difflib.get_close_matches(word.partition("=")[0], flags, n=1) if word.startswith("-") else []
    hint = f"did you mean {close[0]}? S" if close else "s"
    what = f"there is no {word}" if word.startswith("-") else f"{word!r} is an extra argument"
    sys.stderr.write(f"{PROGRAM}: {what}; {hint}ee {f'{PROGRAM} {command}'.rstrip()} --help\n")
    raise SystemExit(2)


def _no_command(word: str) -> NoReturn:
    """Names a first word that is no command, with the closest one."""
    import difflib

    close = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {close[0]}? S" if close else "s"
    sys.stderr.write(f"{PROGRAM}: there is no command {word!r}; {hint}ee {PROGRAM} --help\n")
    raise SystemExit(2)


def _open_closed_streams() -> None:
    """Puts the null device where stdin, stdout or stderr was closed (``<&-``).

    Otherwise the next file or pipe would get that number, and an engine's messages would land on "stderr".
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _as_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """Writes the bytes that a file's name is made of where they aren't text; "?" for what the locale can't write."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    return (bytes([ord(char) - 0xDC00]) if "\udc80" <= char <= "\udcff" else "?"), error.start + 1


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in set(action.choices.values()):
                yield from _parsers(sub)


def module(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"flashmoe.cli.{COMMANDS[name].module}")


def dispatch(argv: Sequence[str]) -> int:
    """Runs the command or the app."""
    first = argv[0] if argv else ""
    if first in ("-h", "--help", "help"):
        topic = argv[1] if first == "help" and len(argv) > 1 else None
        if topic in COMMANDS:
            return dispatch([topic, "--help"])
        if topic is not None:
            _no_command(topic)
        sys.stdout.write(general_help())
        return 0
    if first in ("-V", "--version"):
        sys.stdout.write(f"{PROGRAM} {version()}\n")
        return 0
    if first in COMMANDS:
        if os.path.isfile(first):  # noqa: PTH113 - pathlib would be one more import before --help
            sys.stderr.write(f"{PROGRAM}: {first} is taken as the command; for the file of that name say ./{first}\n")
        prepare = getattr(module(first), "prepare", None)
        if prepare is not None:
            argv = prepare(list(argv))
        parser = build_parser(first)
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            _refuse(unknown, first, parser)
        return int(module(first).main(args))
    from flashmoe.cli import app

    args, unknown = app.parser().parse_known_args(argv)
    if unknown:
        if not first.startswith("-") and not unknown[0].startswith("-") and not os.path.exists(first):  # noqa: PTH110
            _no_command(first)
        _refuse(unknown, "", app.parser())
    return app.main(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Turns every failure into one sentence on stderr and an exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    codecs.register_error("flashmoe", _as_bytes)
    for stream in (sys.stdout, sys.stderr):
        # A C locale or a model's lone surrogate must not end in a UnicodeEncodeError.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="flashmoe")
    try:
        code = dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader went away (| head): say nothing, and keep Python's own flush at exit quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except Exception as failure:
        from flashmoe.cli.failures import report

        return report(failure)


if __name__ == "__main__":
    sys.exit(main())
