"""MODEL as typed, to what a `LoadRequest` takes: a file, ``demo``, a server's address or a name in the library."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path

from flashmoe import paths
from flashmoe.cli.common import UsageError, settings_of

DEMO = "demo"
URL_SCHEMES = ("http://", "https://")


def demo_model() -> Path:
    """The model that comes with the project."""
    path = paths.guide_model()
    if not path.exists():
        raise UsageError(
            f"The demo model is missing from this installation ({paths.display(path)})", "install it again."
        )
    return path


def resolve_model(name: str, args: argparse.Namespace) -> Path | str:
    """What to load for MODEL. Raises `UsageError` with one sentence and the closest names."""
    if name == DEMO and not Path(name).exists():
        return demo_model()
    if name.startswith(URL_SCHEMES):
        return _of_the_hub(name, args) or name
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return path
        if path.is_dir():
            return _only_model_in(path)
        if path.exists():
            raise UsageError(f"{name} is not a file.")
    except OSError as error:
        raise UsageError(f"{name} can't be opened: {error.strerror}.") from None
    except ValueError:
        raise UsageError("The model's name contains a character that no file name can contain.") from None
    if name.startswith(("/", "./", "../", "~")):
        raise UsageError(f"{name} does not exist.")
    if ":" in name:
        from backends import registry

        if name.partition(":")[0] in registry.names():  # an address that only a third party's backend understands
            return name
    found = _in_library(name, args)
    if found is not None:
        return found
    if path.suffix.lower() == ".gguf" or "/" in name:
        raise UsageError(f"{name} does not exist, and no model in the library has that name.")
    raise UsageError(f"There is no model, file or command called {name!r}{_hint(name)}.")


def _of_the_hub(url: str, args: argparse.Namespace) -> Path | None:
    """The downloaded model that an address on the hub means; None for any other server's address."""
    from flashmoe.hub.address import looks_like_reference
    from flashmoe.hub.client import configured_endpoint

    if not looks_like_reference(url, endpoint=configured_endpoint()):
        return None
    found = _in_library(url, args, hints=False)
    if found is None:
        raise UsageError(f"{url} isn't downloaded", f"`flashmoe-tui pull {url}` downloads it.")
    return found


def _only_model_in(folder: Path) -> Path:
    """The one GGUF of a folder (the first of one split set)."""
    firsts = [f for f in sorted(folder.glob("*.gguf")) if "-of-" not in f.name or "-00001-of-" in f.name]
    if len(firsts) == 1:
        return firsts[0]
    if not firsts:
        raise UsageError(f"{folder} is a folder without GGUF files", "name a GGUF file.")
    shown = ", ".join(f.name for f in firsts[:4]) + (" …" if len(firsts) > 4 else "")
    raise UsageError(f"{folder} is a folder with {len(firsts)} models", f"name one of them: {shown}.")


def _in_library(name: str, args: argparse.Namespace, *, hints: bool = True) -> Path | None:
    """The model of that name; None where there is none (and, with `hints`, none like it)."""
    from flashmoe.hub.errors import HubError
    from flashmoe.hub.library import Library, default_sources

    try:
        entry = Library(default_sources(settings_of(args, quiet=True).config)).find(name)
    except HubError as error:
        if error.code == "not_found" and not (hints and error.close):
            return None
        raise UsageError(error.message) from None
    if entry.missing:
        raise UsageError(f"{entry.name} is not complete: {entry.problem}")
    return entry.path


def _hint(name: str) -> str:
    from flashmoe.cli.table import COMMANDS

    close = difflib.get_close_matches(name, [*COMMANDS, DEMO], n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?"[:-1] if close else "; give a GGUF file, or demo"
