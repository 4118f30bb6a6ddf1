"""Recordings of the monitor: what ``--record FILE`` writes and ``flashmoe-tui replay`` reads.

Format, version 1: the 8 bytes ``FMREC\\x01\\r\\n``, then blocks. A block is its compressed length (4 bytes,
little-endian) and that many bytes of zlib data; inside is one MessagePack array of messages ``[kind, payload]``:

====  ===========================================================================================================
kind  payload
====  ===========================================================================================================
h     map: version (of the payloads, 1), app (the program's version), started (seconds since 1970); once, first
m     `backends.interface.ModelInfo` as a map, its path cut to the file's name; nil when the model was unloaded
s     `flashmoe.monitor.sample.Sample` as a map: counters as they stood, never rates
e     `flashmoe.monitor.map_codec.MapFrame` as a map
====  ===========================================================================================================

A block is written every ten seconds, so a killed program loses no more than that; a file that ends in mid-block is
read up to there. Unknown kinds and unknown keys are skipped, so later versions may add some.
"""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from backends.errors import ReportedError
from backends.interface import ExpertMap, ModelInfo
from flashmoe.monitor.kept import Kept, Part, sound
from flashmoe.monitor.map_codec import MapEncoder, MapFrame
from flashmoe.monitor.sample import Sample
from flashmoe.text_safety import visible_line

MAGIC = b"FMREC\x01\r\n"
VERSION = 1
_BLOCK_S = 10.0
_MAP_EVERY_S = 4.0
_MAX_BLOCK = 64 << 20
MAX_PER_BLOCK = 10_000
"""Messages; a block of ten seconds has some tens."""
MAX_KEPT = 512 << 20
"""Bytes of memory for a recording: days of samples with maps of a large model."""
MAX_MESSAGES = 2_000_000

_encoder = msgspec.msgpack.Encoder()
_Raw = list[tuple[str, msgspec.Raw]]
_block_decoder = msgspec.msgpack.Decoder(_Raw)


class RecordingError(ReportedError):
    """A recording that can't be written or read."""

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__("recording", what, advice)


class Header(msgspec.Struct, kw_only=True, frozen=True):
    """The first message."""

    version: int
    app: str = ""
    started: float = 0.0


Message = Header | ModelInfo | Sample | MapFrame | None
"""None: the model was unloaded."""


def encode_message(message: Message) -> tuple[str, msgspec.Raw]:
    """A message as (kind, MessagePack)."""
    kind = "h" if isinstance(message, Header) else "s" if isinstance(message, Sample) else "m"
    kind = "e" if isinstance(message, MapFrame) else kind
    if isinstance(message, ModelInfo):
        message = msgspec.structs.replace(message, path=Path(message.path).name)
    return kind, msgspec.Raw(_encoder.encode(message))


_DECODERS: dict[str, Any] = {
    "h": msgspec.msgpack.Decoder(Header),
    "m": msgspec.msgpack.Decoder(ModelInfo | None),
    "s": msgspec.msgpack.Decoder(Sample),
    "e": msgspec.msgpack.Decoder(MapFrame),
}


def decode_message(kind: str, payload: msgspec.Raw | bytes) -> tuple[bool, Message]:
    """(known, message); an unknown kind is (False, None). Raises msgspec.DecodeError."""
    decoder = _DECODERS.get(kind)
    return (False, None) if decoder is None else (True, decoder.decode(payload))


def _decoded(kind: str, payload: bytes) -> Message:
    return decode_message(kind, payload)[1]


def _array_length(packed: bytes) -> int:
    """How many items a MessagePack array says it has, before any of them is made; 0 where it is none."""
    first = packed[0] if packed else 0
    if 0x90 <= first <= 0x9F:
        return first & 0x0F
    width = {0xDC: 2, 0xDD: 4}.get(first, 0)
    return int.from_bytes(packed[1 : 1 + width], "big")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("flashmoe-tui")
    except PackageNotFoundError:
        return "unknown"


class Recorder:
    """Writes a recording. Thread-safe; never raises once open: a full disk ends it, `problem` says so."""

    def __init__(self, path: Path) -> None:
        """Opens a new file; raises `RecordingError` where that can't be done."""
        self.path = path
        self.problem: str | None = None
        self._lock = threading.Lock()
        self._messages: list[tuple[str, msgspec.Raw]] = []
        self._now = 0.0  # the clock of the samples
        self._flushed = -1e9
        self._maps = MapEncoder()
        self._map_t = -1e9
        try:
            self._file = open(path, "xb")  # noqa: SIM115
            self._file.write(MAGIC)
        except FileExistsError:
            raise RecordingError(f"{path} exists already", "name another file to record to.") from None
        except OSError as error:
            raise RecordingError(f"Can't record to {path} ({error.strerror})", "name another file.") from None
        self._add(Header(version=VERSION, app=_version(), started=time.time()))
        self._flush()

    def sample(self, sample: Sample) -> None:
        """Adds a sample."""
        self._now = sample.t
        self._add(sample)
        if abs(self._now - self._flushed) >= _BLOCK_S:
            self._flush()

    def model(self, info: ModelInfo | None) -> None:
        """Adds that a model was loaded, or for None unloaded."""
        self._add(info)
        self._map_t = -1e9

    def expert_map(self, experts: ExpertMap) -> None:
        """Adds a map, at most one every four seconds."""
        if self._now - self._map_t >= _MAP_EVERY_S:
            self._map_t = self._now
            self._add(self._maps.encode(experts))

    def _add(self, message: Message) -> None:
        encoded = encode_message(message)
        with self._lock:
            if self.problem is None:
                self._messages.append(encoded)

    def _flush(self) -> None:
        with self._lock:
            messages, self._messages = self._messages, []
            self._flushed = self._now
            if not messages or self.problem is not None:
                return
            data = zlib.compress(_encoder.encode(messages), 6)
            try:
                self._file.write(struct.pack("<I", len(data)) + data)
                self._file.flush()
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                self.problem = f"Recording to {self.path} stopped: {reason}."

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._flush()
        with self._lock:
            try:
                self._file.close()
            except OSError as error:
                self.problem = self.problem or f"Recording to {self.path} stopped: {error.strerror}."


class Recording:
    """A recording in memory: its messages in order, samples with their times."""

    def __init__(self, path: Path) -> None:
        """Reads the whole file; raises `RecordingError` where it is not a recording or of a later version."""
        self.path = path
        self.header = Header(version=VERSION)
        self.cut = False
        """Whether the file ends in mid-block: the program that wrote it was killed."""
        self.more = False
        """Whether there is more than is kept in memory: what came after `duration` is left out."""
        self.unsound = 0
        """Messages that were left out, since their numbers can't be any engine's."""
        self.messages: Kept[Message] = Kept(_decoded)
        for kind, payload in self._read():
            try:
                self._take(kind, payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise RecordingError(f"{self.path.name} is damaged and can't be replayed.") from None
            if self.messages.size > MAX_KEPT or len(self.messages) >= MAX_MESSAGES:
                self.more = True
                break
        self.messages.end()
        self.samples: Part[Sample] = Part(self.messages, "s")
        if not self.samples:
            raise RecordingError(f"{path.name} holds no sample", "record for longer than a second.")

    def _take(self, kind: str, payload: bytes) -> None:
        known, message = decode_message(kind, payload)
        if not known:
            return
        if isinstance(message, Header):
            self.header = message
            if message.version > VERSION:
                app = visible_line(message.app, 40)
                raise RecordingError(
                    f"{self.path.name} was recorded by a newer flashmoe-tui ({app})", "update to replay it."
                )
        elif isinstance(message, MapFrame) or sound(message):
            self.messages.add(kind, payload)
        else:
            self.unsound += 1

    @property
    def duration(self) -> float:
        """Seconds from the first sample to the last."""
        return self.samples[-1].t - self.samples[0].t

    def _read(self) -> Iterator[tuple[str, bytes]]:
        try:
            with open(self.path, "rb") as file:
                if file.read(len(MAGIC)) != MAGIC:
                    raise RecordingError(f"{self.path.name} is not a recording", "make one with --record FILE.")
                while head := file.read(4):
                    length = struct.unpack("<I", head)[0] if len(head) == 4 else _MAX_BLOCK + 1
                    data = file.read(length) if length <= _MAX_BLOCK else b""
                    if len(data) < length:
                        self.cut = True
                        return
                    yield from self._block(data)
        except OSError as error:
            raise RecordingError(f"Can't read {self.path} ({error.strerror}).") from None

    def _block(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        try:
            unpacker = zlib.decompressobj()
            plain = unpacker.decompress(data, _MAX_BLOCK)
            if not unpacker.eof:
                raise RecordingError(f"{self.path.name} is damaged: a block unpacks to more than it may.")
            if _array_length(plain) > MAX_PER_BLOCK:
                raise RecordingError(f"{self.path.name} is damaged: a block holds more messages than it may.")
            for kind, payload in _block_decoder.decode(plain):
                yield kind, bytes(payload)
        except (zlib.error, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise RecordingError(f"{self.path.name} is damaged and can't be replayed.") from None
