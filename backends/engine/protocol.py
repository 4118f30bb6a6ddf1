"""What crosses the pipe between the app and the engine's child: one JSON object a line, typed by msgspec structs.

Every command carries an id; every event that answers one carries the same id. The child never writes anything else
to its stdout (llama.cpp's prints go to the log file).
"""

from __future__ import annotations

import os
from typing import Literal

import msgspec
from msgspec import Struct

from backends.errors import sentence
from backends.interface import BenchRequest, BenchResult, EngineError, Event, GenerateRequest, LoadRequest

PROTOCOL_VERSION = 1


# ---- commands: parent to child -----------------------------------------------------------------------------------


class Load(Struct, tag=True, frozen=True):
    """Load a model (frees the loaded one first). Answers: LoadProgress…, then ModelInfo or Failure."""

    id: str
    request: LoadRequest


class CancelLoad(Struct, tag=True, frozen=True):
    id: str


class Unload(Struct, tag=True, frozen=True):
    """Free the model, keep the child. Answers: Done."""

    id: str


class Generate(Struct, tag=True, frozen=True):
    """Answers: PrefillProgress…, Delta…, then Finished or Failed; all carry ``request.id``."""

    request: GenerateRequest


class Cancel(Struct, tag=True, frozen=True):
    """Stop the request with this id within one layer; its Finished(reason="cancelled") follows."""

    id: str


class CountTokens(Struct, tag=True, frozen=True):
    """Answers: Counted or Failure."""

    id: str
    request: GenerateRequest


class Tokenize(Struct, tag=True, frozen=True):
    """Answers: Tokens or Failure. `special` False leaves out the token that the model wants before a raw prompt."""

    id: str
    request: GenerateRequest
    special: bool = True


class Detokenize(Struct, tag=True, frozen=True):
    """Answers: Text or Failure."""

    id: str
    tokens: tuple[int, ...]


class Bench(Struct, tag=True, frozen=True):
    """Answers: BenchProgress…, then BenchResult or Failure."""

    id: str
    request: BenchRequest


class Watch(Struct, tag=True, frozen=True):
    """Send Telemetry every `interval_s` and an ExpertMap every `map_interval_s`; 0 stops either."""

    interval_s: float = 0.5
    map_interval_s: float = 0.0


class Shutdown(Struct, tag=True, frozen=True):
    """Free everything and exit 0."""


Command = (
    Load | CancelLoad | Unload | Generate | Cancel | CountTokens | Tokenize | Detokenize | Bench | Watch | Shutdown
)


# ---- events: child to parent -------------------------------------------------------------------------------------


class Hello(Struct, tag=True, frozen=True):
    """The first line of every child."""

    version: int
    pid: int
    backends: tuple[str, ...]


class Reply(Struct, tag=True, frozen=True):
    """An event that answers the command `id` (progress and results of loads and benches)."""

    id: str
    event: Event | BenchResult


class Counted(Struct, tag=True, frozen=True):
    id: str
    n: int


class Tokens(Struct, tag=True, frozen=True):
    id: str
    tokens: tuple[int, ...]


class Text(Struct, tag=True, frozen=True):
    id: str
    text: str


class BenchProgress(Struct, tag=True, frozen=True):
    id: str
    done: int
    total: int


class Done(Struct, tag=True, frozen=True):
    id: str


class Failure(Struct, tag=True, frozen=True):
    """The command `id` failed; the child goes on."""

    id: str
    code: str
    what: str
    advice: str = ""
    tokens: int | None = None
    limit: int | None = None

    @classmethod
    def of(cls, command_id: str, error: EngineError) -> Failure:
        """The failure that an error means for a command."""
        return cls(command_id, error.code, error.what, error.advice, error.tokens, error.limit)

    def error(self) -> EngineError:
        """The error again."""
        return EngineError(self.code, self.what, self.advice, tokens=self.tokens, limit=self.limit)

    @property
    def message(self) -> str:
        """One sentence for the user: what happened and what to do."""
        return sentence(self.what, self.advice)


class Notice(Struct, tag=True, frozen=True):
    """Something the user should know though nothing failed (a fallback to mmap, a shrunken ubatch)."""

    level: Literal["info", "warning"]
    message: str


ChildEvent = Hello | Event | Reply | Counted | Tokens | Text | BenchProgress | Done | Failure | Notice

encoder = msgspec.json.Encoder()
command_decoder: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
event_decoder: msgspec.json.Decoder[ChildEvent] = msgspec.json.Decoder(ChildEvent)


def require_utf8(path: str) -> None:
    """That a path can cross the pipe. A file's name may be any bytes; Python keeps those that aren't UTF-8 as lone
    surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise EngineError("bad_request", f"The name of {shown} isn't UTF-8", "rename it to load it.") from None
