"""One answer of a model on stdout: what ``run`` and ``demo --text`` share."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.cli.common import (
    EXIT_FAILED,
    EXIT_OK,
    ProgressLine,
    UsageError,
    engine,
    load_model,
    note,
    positive_int,
    print_json_line,
    settings_of,
)
from flashmoe.figures import duration, size
from flashmoe.text_safety import SafeStream

if TYPE_CHECKING:
    from backends.interface import Finished, GenerateRequest, LoadRequest, ModelInfo, PrefillProgress, Sampling

MAX_SCHEMA_BYTES = 1 << 20
PREFILL_SHOWN = 512
"""Prompts shorter than this show no progress: they take a moment."""


# ---- flags -----------------------------------------------------------------------------------------------------


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"{text} is not from {low:g} to {high:g}")
        return value

    return parse


def _top_k(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 0 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1000000")
    return value


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if not 0 <= value < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {(1 << 31) - 1}")
    return value


SAMPLER_FLAGS: tuple[tuple[str, str, Any, str], ...] = (
    ("temperature", "T", _number(0, 10), "0 always picks the most likely token"),
    ("top_p", "P", _number(0, 1), "keep the most likely tokens until their probabilities reach P; 1 keeps all"),
    ("top_k", "K", _top_k, "keep the K most likely tokens; 0 keeps all"),
    ("min_p", "P", _number(0, 1), "drop tokens less than P times as likely as the top one; 0 keeps all"),
    ("repeat_penalty", "X", _number(0.01, 10), "above 1 makes tokens of the recent text less likely"),
    ("presence_penalty", "X", _number(-10, 10), "penalty on tokens already used"),
    ("frequency_penalty", "X", _number(-10, 10), "penalty on a token for each time it was used"),
    ("seed", "N", _seed, "the same seed, model and settings give the same answer"),
)


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the sampler flags; `sampling_of` reads them."""
    group = parser.add_argument_group(
        "sampling", "Defaults come from the preset: what the model's card recommends where known."
    )
    group.add_argument("--preset", metavar="NAME", help="sampler preset (flashmoe-tui config --presets lists them)")
    group.add_argument("--max-tokens", metavar="N", type=positive_int, help="stop after N tokens")
    for name, metavar, kind, text in SAMPLER_FLAGS:
        group.add_argument("--" + name.replace("_", "-"), metavar=metavar, type=kind, help=text)
    group.add_argument("--stop", metavar="TEXT", action="append", default=[], help="stop before this text (repeatable)")


def sampling_of(args: argparse.Namespace, model: str) -> Sampling:
    """The sampler settings: the preset's for a model of this name, with what the flags say over them."""
    import msgspec

    from flashmoe.presets import load_presets

    presets = load_presets()
    name = args.preset or settings_of(args).config.chat.preset
    if name != "auto" and name not in presets.presets:
        problem = presets.unknown(name, "--preset" if args.preset else "chat.preset")
        raise UsageError(problem.sentence)
    flags = {flag: value for flag, *_ in SAMPLER_FLAGS if (value := getattr(args, flag)) is not None}
    if args.max_tokens is not None:
        flags["max_tokens"] = args.max_tokens
    if args.stop:
        flags["stop"] = tuple(args.stop)
    flags |= _form(args)
    return msgspec.structs.replace(presets.pick(name, model).sampling, **flags)


def _form(args: argparse.Namespace) -> dict[str, str]:
    """``--schema`` and ``--grammar``, read and roughly checked before a model is loaded for nothing."""
    form: dict[str, str] = {}
    for flag, name in (("schema", "json_schema"), ("grammar", "grammar")):
        path: Path | None = getattr(args, flag, None)
        if path is not None:
            form[name] = read_text(path, MAX_SCHEMA_BYTES)
    if "json_schema" in form:
        try:
            schema = json.loads(form["json_schema"])
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{args.schema} is not valid JSON: {error}.") from None
        if not isinstance(schema, dict):
            raise UsageError(f"{args.schema} is not a JSON schema: it must be an object.")
    return form


def read_text(path: Path, limit: int) -> str:
    """A text file's (or for ``-`` stdin's) content. Raises `UsageError`: it is missing, too large, or no text."""
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(limit + 1)
        else:
            with path.open("rb") as stream:
                raw = stream.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.") from None
    if len(raw) > limit:
        raise UsageError(f"{path} is larger than {size(limit)}.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{'stdin' if str(path) == '-' else path} is not UTF-8 text (byte {error.start}).") from None


# ---- the answer --------------------------------------------------------------------------------------------------


class _Output:
    """Writes the parts of an answer as they come."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.json: bool = args.json
        self.show_thinking: bool = args.show_thinking
        self.text: list[str] = []
        self.thinking: list[str] = []
        self._safe = SafeStream() if sys.stdout.isatty() else None
        self._safe_thinking = SafeStream()
        self._tail = ""
        self._tail_thinking = ""
        self.progress = ProgressLine(enabled=not args.json)

    def delta(self, text: str, kind: str) -> None:
        """The next piece of the answer or of the thinking."""
        (self.thinking if kind == "thinking" else self.text).append(text)
        if self.json:
            print_json_line({"type": "delta", "kind": kind, "text": text})
        elif kind == "thinking":
            self._think(text)
        else:
            self._end_thinking()
            self.progress.clear()
            self._write(self._safe.feed(text) if self._safe is not None else text)

    def _think(self, text: str) -> None:
        if self.show_thinking:
            shown = self._safe_thinking.feed(text)
            sys.stderr.write(shown)
            sys.stderr.flush()
            self._tail_thinking = shown or self._tail_thinking
        else:
            self.progress.update(f"thinking: {sum(map(len, self.thinking)):,} characters")

    def _end_thinking(self) -> None:
        if self._tail_thinking:
            sys.stderr.write(self._safe_thinking.end() + ("" if self._tail_thinking.endswith("\n") else "\n"))
            sys.stderr.flush()
            self._tail_thinking = ""

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._tail = text or self._tail

    def close(self) -> None:
        """Ends the last line, whatever ended the answer."""
        self.progress.clear()
        if self.json:
            return
        self._end_thinking()
        if self._safe is not None:
            self._write(self._safe.end())
        if self._tail and not self._tail.endswith("\n"):
            self._write("\n")


async def answer(args: argparse.Namespace, load: LoadRequest, request: GenerateRequest) -> int:
    """Loads the model, streams the answer to stdout and returns the exit code. Raises `EngineError`."""
    import msgspec

    from backends.interface import Delta, EngineError, Finished, PrefillProgress

    out = _Output(args)
    async with engine(record=getattr(args, "record", None)) as client:
        try:
            info = await load_model(client, load, out.progress)
            if info.backend == "mmap" and not info.n_experts:
                note(f"{info.name} is a dense model: it has no experts, so nothing streams.")
            if args.json:
                print_json_line({**msgspec.to_builtins(info), "type": "model"})
            sampling = sampling_of(args, f"{info.name} {Path(info.path).stem}")
            request = msgspec.structs.replace(request, sampling=sampling)
            finished: Finished | None = None
            async for event in client.generate(request):
                match event:
                    case PrefillProgress():
                        _prefill(event, out)
                    case Delta():
                        out.delta(event.text, event.kind)
                    case Finished():
                        finished = event
        except EngineError as error:
            out.close()
            if args.json:
                print_json_line({"type": "failed", "code": error.code, "message": error.message})
            raise
        except (asyncio.CancelledError, KeyboardInterrupt):
            out.close()
            if args.json:
                print_json_line({"type": "finished", "reason": "cancelled", "text": "".join(out.text)})
            raise
        out.close()
        if finished is None:
            return EXIT_FAILED
        if args.json:
            print_json_line({
                "type": "finished", "reason": finished.reason, "text": "".join(out.text),
                "thinking": "".join(out.thinking), "usage": msgspec.to_builtins(finished.usage),
            })  # fmt: skip
        if args.stats:
            note(_stats(info, finished))
        from flashmoe.plans.measurements import record_answer

        await asyncio.to_thread(record_answer, info, finished.usage)  # plans know its speed from now on
        return _verdict(args, finished, info)


def _prefill(event: PrefillProgress, out: _Output) -> None:
    if out.json:
        told = {"type": "prefill", "done": event.done, "total": event.total, "reused": event.reused}
        print_json_line(told | ({} if event.eta_s is None else {"eta_s": round(event.eta_s, 1)}))
    elif event.total >= PREFILL_SHOWN and event.done < event.total:
        left = "" if event.eta_s is None else f", about {duration(event.eta_s)} left"
        out.progress.update(f"reading the prompt: {event.done:,} of {event.total:,} tokens{left}")


def _verdict(args: argparse.Namespace, finished: Finished, info: ModelInfo) -> int:
    """Whether the answer is whole; if not, says why on stderr."""
    if finished.reason == "context":
        note(f"The answer was cut short: the context of {info.n_ctx} tokens is full; --ctx gives it more.")
        return EXIT_FAILED
    if finished.reason == "length" and getattr(args, "schema", None) is not None:
        note("The answer was cut short by --max-tokens, so it isn't complete JSON.")
        return EXIT_FAILED
    return EXIT_OK


def _stats(info: ModelInfo, finished: Finished) -> str:
    """One line of figures; what the backend can't know is left out."""
    usage = finished.usage
    parts = [f"{info.name} on {info.backend}", f"loaded in {duration(info.load_s)}"]
    if usage.prompt_tokens is not None and usage.prefill_s:
        fresh = usage.prompt_tokens - (usage.reused_tokens or 0)
        parts.append(f"prompt {fresh} tokens at {fresh / usage.prefill_s:.1f} tok/s")
    if usage.completion_tokens is not None and usage.decode_s:
        speed = usage.completion_tokens / usage.decode_s
        parts.append(f"answer {usage.completion_tokens} tokens at {speed:.1f} tok/s")
    if usage.hit_rate is not None:
        parts.append(f"{usage.hit_rate:.0%} of experts were in RAM")
    if usage.read_bytes:
        parts.append(f"read {size(usage.read_bytes)}")
    if usage.seed is not None:
        parts.append(f"seed {usage.seed}")
    return ", ".join(parts)
