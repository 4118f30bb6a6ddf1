"""``flashmoe-tui paths``: where things are."""

from __future__ import annotations

import argparse
from typing import Any

from flashmoe import paths
from flashmoe.cli.common import add_json_flag, out, print_json

DESCRIPTION = """Prints where the configuration, models, chats, logs and themes are.

FLASHMOE_HOME puts everything below one folder; without it the XDG variables count (XDG_CONFIG_HOME, XDG_DATA_HOME,
XDG_CACHE_HOME, XDG_STATE_HOME, XDG_RUNTIME_DIR). FLASHMOE_MODELS moves the models alone, for instance to a larger
disk, and FLASHMOE_CONFIG names another configuration file."""

EXAMPLES = """examples:
  flashmoe-tui paths
  cd "$(flashmoe-tui paths models)"
  flashmoe-tui paths --json | jq -r .logs"""


def register(subparsers: Any) -> None:
    """Adds the parser of ``paths``."""
    parser = subparsers.add_parser("paths", help="where things are", description=DESCRIPTION, epilog=EXAMPLES)
    names = list(paths.all_paths())
    parser.add_argument(
        "name", nargs="?", choices=names, metavar="NAME", help="print this path alone: " + ", ".join(names)
    )  # fmt: skip
    add_json_flag(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the paths, those that don't exist yet marked so."""
    from flashmoe.config.load import load_config

    places = paths.all_paths()
    places["models"] = load_config().config.models_folder()
    if args.name is not None:
        out(str(places[args.name]))
    elif args.json:
        print_json({name: str(path) for name, path in places.items()})
    else:
        width = max(map(len, places))
        for name, path in places.items():
            out(f"{name:<{width}}  {path}{'' if path.exists() else '  (not there yet)'}")
    return 0
