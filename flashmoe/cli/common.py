"""What every command shares: exit codes, flags that load a model, printing, errors and running asyncio code.

A command is a module with ``register(subparsers)`` (adds its parser, imports nothing heavy) and ``main(args) -> int``.
stdout belongs to the result, stderr to diagnostics and progress. Heavy imports wait until they are needed: this
module is imported before any command says what it is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from backends.errors import ReportedError
from flashmoe import figures
from flashmoe.cli.json_output import print_json as print_json
from flashmoe.cli.json_output import print_json_line as print_json_line
from flashmoe.text_safety import visible, visible_line

if TYPE_CHECKING:
    from backends.engine.client import EngineClient
    from backends.interface import LoadProgress, LoadRequest, ModelInfo
    from flashmoe.config.schema import LoadedConfig

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_RETRY = 3
"""Worth trying again: the network, a lock."""
EXIT_INTERRUPTED = 130

T = TypeVar("T")


class CliError(ReportedError):
    """Ends a command: one clear sentence for stderr and an exit code."""

    def __init__(self, what: str, advice: str = "", *, exit_code: int = EXIT_FAILED) -> None:
        super().__init__("usage" if exit_code == EXIT_USAGE else "failed", what, advice)
        self.exit_code = exit_code


class UsageError(CliError):
    """A flag or argument that makes no sense: exit code 2."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(what, advice, exit_code=EXIT_USAGE)


RETRY_CODES = frozenset({"network", "engine_died"})
"""`EngineError` codes that may go away by themselves."""
USAGE_CODES = frozenset({"not_found", "not_a_file", "bad_request"})
"""`EngineError` codes that mean: what was typed is wrong."""


def exit_code_of(engine_code: str) -> int:
    """The exit code for an `EngineError`'s code."""
    if engine_code == "cancelled":
        return EXIT_INTERRUPTED
    if engine_code in USAGE_CODES:
        return EXIT_USAGE
    return EXIT_RETRY if engine_code in RETRY_CODES else EXIT_FAILED


# ---- printing --------------------------------------------------------------------------------------------------


def out(text: str = "", *, end: str = "\n") -> None:
    """Writes to stdout: made safe where that is a terminal, as it is where it is piped."""
    if sys.stdout.isatty():
        text = visible(text)
    sys.stdout.write(text + end)


def note(text: str) -> None:
    """Writes a line to stderr, where progress and diagnostics belong; a terminal's is broken between words."""
    text = visible(text)
    if sys.stderr.isatty() and len(text) >= (columns := shutil.get_terminal_size().columns):
        text = "\n".join(
            textwrap.fill(line, max(columns - 1, 20), break_long_words=False, break_on_hyphens=False)
            for line in text.split("\n")
        )
    print(text, file=sys.stderr, flush=True)


def error(text: str) -> None:
    """Writes an error line to stderr."""
    note(f"flashmoe-tui: {text}")


class ProgressLine:
    """One line on stderr that is redrawn at most five times a second, and only where stderr is a terminal."""

    def __init__(self, *, enabled: bool = True) -> None:
        self._on = enabled and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._last = 0.0
        self._drawn = False

    def update(self, text: str, *, force: bool = False) -> None:
        """Shows `text`, unless it was drawn a moment ago."""
        now = time.monotonic()
        if not self._on or (not force and now - self._last < 0.2):
            return
        self._last, self._drawn = now, True
        with contextlib.suppress(OSError):
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            sys.stderr.write("\r\x1b[K" + visible_line(text, max(width - 1, 10)))
            sys.stderr.flush()

    def clear(self) -> None:
        """Removes the line."""
        if self._drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._drawn = False


# ---- flags -----------------------------------------------------------------------------------------------------


def _positive_int(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small: the minimum is 1")
    return value


def positive_int(text: str) -> int:
    """argparse type: a whole number of at least 1."""
    return _positive_int(text)


def count_or_auto(text: str) -> int | None:
    """argparse type: a whole number of at least 0; ``auto`` gives None."""
    if text == "auto":
        return None
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(|[GM](?:i?B)?)", re.IGNORECASE)


def gib(text: str) -> int:
    """argparse type: GiB (``6``, ``2.5``, also ``900MiB``) to bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size in GiB, such as 6 or 2.5")
    value = float(match[1]) * (figures.MIB if match[2][:1].lower() == "m" else figures.GIB)
    if not 1 <= value < 1 << 50:
        raise argparse.ArgumentTypeError(f"{text!r} is larger than any machine's memory")
    return int(value)


def gib_or_auto(text: str) -> int | None:
    """argparse type: `gib`, or ``auto`` for None."""
    return None if text == "auto" else gib(text)


def gib_auto_or_none(text: str) -> int | None:
    """argparse type: `gib`, ``0`` for none, or ``auto`` for None."""
    return 0 if text.strip() in ("0", "0.0") else gib_or_auto(text)


def ubatch_or_auto(text: str) -> int | None:
    """argparse type: 1 to 65536 tokens; ``auto`` gives None."""
    value = count_or_auto(text)
    if value is not None and not 1 <= value <= 65536:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 65536 tokens")
    return value


class _Unset:
    """Default of the load flags: the flag was not given, so the configuration decides (None means ``auto``)."""

    def __repr__(self) -> str:
        return "from the configuration"


UNSET: Any = _Unset()


def add_load_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of everything that loads a model; `load_request` reads them."""
    group = parser.add_argument_group(
        "loading", "Defaults come from the configuration file (section backend), else auto."
    )
    group.add_argument(
        "--backend", metavar="NAME", default=UNSET,
        help="auto, mmap (the kernel pages the file in), stream (experts are read on demand) or another installed one",
    )  # fmt: skip
    group.add_argument(
        "--ram", metavar="GIB", type=gib_or_auto, default=UNSET,
        help="the most memory that experts may hold, in GiB, or auto; dense weights and the context come on top",
    )  # fmt: skip
    group.add_argument(
        "--gpu-layers", metavar="N", type=count_or_auto, default=UNSET,
        help="layers whose dense weights go to the GPU, or auto",
    )  # fmt: skip
    group.add_argument(
        "--vram-experts", metavar="GIB", type=gib_auto_or_none, default=UNSET,
        help="the most GiB of experts that go to the GPU, whole layers of them; auto: as many as fit (default 0)",
    )  # fmt: skip
    group.add_argument("--threads", metavar="N", type=count_or_auto, default=UNSET, help="compute threads, or auto")
    group.add_argument("--ctx", metavar="N", type=count_or_auto, default=UNSET, help="context in tokens, or auto")
    group.add_argument(
        "--ubatch", metavar="N", type=ubatch_or_auto, default=UNSET,
        help="prompt tokens computed in one pass, or auto: each pass reads all experts that aren't in memory once, so "
        "more tokens make long prompts faster and take more memory",
    )  # fmt: skip
    group.add_argument(
        "--experts", metavar="N", type=positive_int, default=UNSET,
        help="use fewer active experts than the model was trained with: faster, and lossy",
    )  # fmt: skip
    group.add_argument(
        "--kv-type", choices=("f16", "q8_0"), default=UNSET,
        help="how the context is kept: q8_0 takes about half of the memory, and answers differ a little",
    )  # fmt: skip
    group.add_argument(
        "--repack", choices=("auto", "on", "off"), default=UNSET,
        help="repack weights for this processor: on takes those that stay in memory (experts as well where all of them "
        "fit there), auto what was measured to pay here; answers differ by rounding",
    )  # fmt: skip


def add_json_flag(parser: argparse.ArgumentParser, help: str = "print one JSON object") -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", action="store_true", help=help)


def settings_of(args: argparse.Namespace, *, quiet: bool = False) -> LoadedConfig:
    """The user's configuration, read once for a command; what is wrong in it is named on stderr and stays at its
    default. `quiet` says nothing: the app says it itself."""
    loaded: LoadedConfig | None = getattr(args, "settings", None)
    if loaded is None:
        from flashmoe.config.load import load_config

        loaded = args.settings = load_config()
    if not quiet and not getattr(args, "settings_told", False):
        args.settings_told = True
        for problem in loaded.problems:
            error(problem.sentence)
    return loaded


_FLAGS = {
    "backend": "backend", "ram": "ram_bytes", "gpu_layers": "n_gpu_layers",
    "threads": "n_threads", "ctx": "n_ctx", "experts": "n_expert_used", "kv_type": "kv_type",
    "repack": "repack",
    "ubatch": "n_ubatch", "vram_experts": "vram_expert_bytes",
}  # fmt: skip
"""The load flags and the fields of `LoadRequest` that they set."""


def load_request(args: argparse.Namespace, path: str | Path, **more: Any) -> LoadRequest:
    """The request that the load flags and the configuration ask for; `more` are further `LoadRequest` fields."""
    from flashmoe.config.loading import load_request as configured

    flags = {name: value for flag, name in _FLAGS.items() if (value := getattr(args, flag, UNSET)) is not UNSET}
    return configured(path, settings_of(args).config.backend, **(flags | more))


# ---- models and the engine ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def engine(log_name: str = "engine.log", *, record: Path | None = None) -> AsyncIterator[EngineClient]:
    """A started engine client, stopped at the end. Its prints go to the log folder (or to a scratch file).

    Others may watch it (``top``); `record` names a new file for its monitor.
    """
    from backends.engine.protocol import Notice
    from flashmoe.monitor.engine import MonitoredEngine
    from flashmoe.monitor.recording import RecordingError

    def tell(event: object) -> None:
        if isinstance(event, Notice):
            note(event.message)

    client = MonitoredEngine(log_path=log_file(log_name), on_event=tell, record=record)
    try:
        try:
            await client.start()
        except RecordingError as problem:
            raise UsageError(str(problem)) from None
        yield client
    finally:
        await client.stop()


def log_file(name: str) -> Path:
    """A file in the log folder; in a folder of its own in /tmp where that can't be written."""
    from flashmoe import paths

    return paths.log_file(name)


async def load_model(client: EngineClient, request: LoadRequest, progress: ProgressLine) -> ModelInfo:
    """Loads a model with its progress on stderr; says what is lossy."""

    def show(p: LoadProgress) -> None:
        done = f" {figures.size(p.done_bytes)}" if p.done_bytes else ""
        if p.total_bytes:
            done = f" {figures.size(p.done_bytes)} of {figures.size(p.total_bytes)}"
        progress.update(f"{p.stage}{done}")

    try:
        info = await client.load(request, show)
    finally:
        progress.clear()
    if info.lossy:
        note(info.lossy)
    return info


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs `coroutine`; SIGINT and SIGTERM cancel it (so that engines are stopped), then raise KeyboardInterrupt."""

    async def supervised() -> T:
        task = asyncio.ensure_future(coroutine)
        loop = asyncio.get_running_loop()
        signalled = False

        def stop() -> None:
            nonlocal signalled
            signalled = True
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        try:
            return await task
        except asyncio.CancelledError:
            if signalled:
                raise KeyboardInterrupt from None
            raise

    return asyncio.run(supervised())
