"""``flashmoe-tui config``: checks the configuration, prints its defaults or its schema. Never writes it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from flashmoe.cli.common import EXIT_FAILED, EXIT_OK, UsageError, error, note, out, print_json

DESCRIPTION = """Shows the configuration in force: the file, with what the environment overrides.

The program only reads the file. A field with a wrong value keeps its default, and is named here and wherever the
program starts. FLASHMOE_<SECTION>__<FIELD> in the environment wins over the file."""

EXAMPLES = """examples:
  mkdir -p "$(dirname "$(flashmoe-tui paths config)")"
  flashmoe-tui config --defaults > "$(flashmoe-tui paths config)"
  flashmoe-tui config --check
  FLASHMOE_BACKEND__RAM=6 flashmoe-tui config
  flashmoe-tui config --schema > flashmoe.schema.json"""


def register(subparsers: Any) -> None:
    """Adds the parser of ``config``."""
    parser = subparsers.add_parser(
        "config", help="check the configuration", description=DESCRIPTION, epilog=EXAMPLES
    )  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--defaults", action="store_true", help="print a commented file with every field and its default")
    what.add_argument("--schema", action="store_true", help="print the JSON schema of the file")
    what.add_argument("--check", action="store_true", help="report every problem; exit 1 if there are any")
    what.add_argument("--presets", action="store_true", help="print the sampler presets in force")
    what.add_argument("--json", action="store_true", help="print the configuration in force as one JSON object")
    parser.add_argument("--file", type=Path, help="read this file instead of the user's own")


def main(args: argparse.Namespace) -> int:
    """Runs ``config``."""
    from flashmoe import paths
    from flashmoe.config import docs as config_docs
    from flashmoe.config.load import load_config

    if args.file is not None and not args.file.exists():
        raise UsageError(f"{args.file} does not exist.")
    if args.defaults:
        out(config_docs.default_yaml(), end="")
        return EXIT_OK
    if args.schema:
        print_json(config_docs.json_schema())
        return EXIT_OK
    loaded = load_config(args.file)
    from flashmoe.presets import load_presets

    presets = load_presets()
    problems = [*loaded.problems, *presets.problems]
    if loaded.config.chat.preset != "auto" and loaded.config.chat.preset not in presets.presets:
        problems.append(presets.unknown(loaded.config.chat.preset, loaded.place("chat.preset"), "chat.preset"))
    for problem in problems:
        error(problem.sentence)
    if args.check:
        if not problems:
            where = paths.display(loaded.path)
            note(f"{where} has no problems." if loaded.exists else f"{where} doesn't exist; the defaults are in force.")
        return EXIT_FAILED if problems else EXIT_OK
    if args.presets:
        out(presets.as_yaml(), end="")
    elif args.json:
        print_json(loaded.config)
    else:
        sys.stdout.write(config_docs.current_yaml(loaded.config))
    return EXIT_OK
