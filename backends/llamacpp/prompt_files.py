"""The files of `prompt_store`: one for each part of a prompt, in a folder that is its owner's alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import re
import shutil
import stat
import struct
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec
from msgspec import Struct

from backends.llamacpp import prompt_chats
from backends.llamacpp.replay import forget_answers
from backends.llamacpp.slices import Slice

_MAGIC = b"FMKV0001"
_HEAD = struct.Struct("<8sI32s")
"""Magic, bytes of the header that follows, sha256 of the header and of the state behind it."""
_NAME = re.compile(r"[0-9a-f]{32}\.kv")
_MAX_HEADER = 8 << 20
_MAX_FILES = 20_000
MOST_BYTES = 16 << 30
"""On disk for all models together, where nothing else was asked for."""
FREE_SHARE = 0.1
"""Of what is free, at most."""
_CHECK_BYTES = 64 << 20
"""So much is written between two looks at how much there is."""


class StoredPart(Struct, frozen=True, array_like=True):
    """What is known of a file without its state. `tokens`: int32, little-endian."""

    key: str
    parent: str
    start: int
    tokens: bytes
    n_bytes: int
    used_at: float = 0.0


class _Header(Struct, frozen=True):
    parent: str
    start: int
    tokens: bytes
    cells: int
    last: int | None


class _Job(NamedTuple):
    part: StoredPart
    state: Slice
    done: Callable[[], None]
    chat: str | None


class PromptFiles:
    """The folder of one model's parts, within the folder of all models'."""

    def __init__(self, folder: Path, identity: str, most_bytes: int | None = None) -> None:
        """`most_bytes`: of all models together; None for `MOST_BYTES`. Raises OSError where the folder can't be made or
        isn't this user's own."""
        self._most = MOST_BYTES if most_bytes is None else most_bytes
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._all = folder
        self.folder = folder / identity
        self.folder.mkdir(exist_ok=True, mode=0o700)
        for each in (folder, self.folder):
            info = os.lstat(each)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
                raise OSError(f"{each} belongs to another user")
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._removed: set[str] = set()
        self._thread: threading.Thread | None = None
        self._problem = False
        self._unchecked = _CHECK_BYTES
        self._overshoot = 0

    # -- reading ---------------------------------------------------------------------------------------------------

    def parts(self) -> list[StoredPart]:
        """What the folder has, as its headers say; what can't be read is left out."""
        return _parts(self.folder)

    def read(self, key: str) -> Slice | None:
        """A part with its state; None where it is gone or damaged."""
        try:
            with _open(self.folder / f"{key}.kv") as file:
                header, digest = _read_header(file.read(_HEAD.size), file.read)
                size = header.cells + (header.last or 0)
                if os.fstat(file.fileno()).st_size > size + _MAX_HEADER + _HEAD.size:
                    return None
                state = file.read(size)
        except (OSError, msgspec.MsgspecError, ValueError):
            return None
        hasher = hashlib.sha256(msgspec.msgpack.encode(header))
        hasher.update(state)
        if len(state) != size or hasher.digest() != digest:
            return None
        last = None if header.last is None else state[header.cells :]
        return Slice(header.start, header.start + len(header.tokens) // 4, state[: header.cells], last)

    # -- writing ---------------------------------------------------------------------------------------------------

    def write(self, part: StoredPart, state: Slice, done: Callable[[], None], chat: str | None = None) -> None:
        """Writes a part soon, on a thread, which then calls `done`; nothing happens where it can't be written. `chat`:
        whose it is, where it goes with a chat (see `forget_chats`)."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prompt-files", daemon=True)
            self._thread.start()
        self._removed.discard(part.key)
        self._queue.put(_Job(part, state, done, chat))

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            part = job.part
            if part.key in self._removed or self._problem:
                continue
            try:
                if job.chat is not None:
                    prompt_chats.note(self._all, job.chat, self.folder.name, part.key)
                self._write(part, job.state)
            except OSError:
                self._problem = shutil.disk_usage(self._all).free < 1 << 20 or self._problem
            else:
                job.done()
                self._unchecked += part.n_bytes
                if self._unchecked >= _CHECK_BYTES:
                    self._unchecked, self._overshoot = 0, self._over_bound()

    def take_overshoot(self) -> int:
        """Bytes that this model's parts should give up now, because all together take more than they may."""
        overshoot, self._overshoot = self._overshoot, 0
        return overshoot

    def _write(self, part: StoredPart, state: Slice) -> None:
        last = None if state.last is None else len(state.last)
        header = _Header(part.parent, part.start, part.tokens, len(state.cells), last)
        encoded = msgspec.msgpack.encode(header)
        hasher = hashlib.sha256(encoded)
        hasher.update(state.cells)
        hasher.update(state.last or b"")
        path = self.folder / f"{part.key}.kv"
        temporary = self.folder / f".{part.key}.{os.getpid()}.part"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(_HEAD.pack(_MAGIC, len(encoded), hasher.digest()))
                file.write(encoded)
                file.write(state.cells)
                file.write(state.last or b"")
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def used(self, keys: Iterable[str]) -> None:
        """Notes on the files that they were of use: the oldest go first."""
        for key in keys:
            with contextlib.suppress(OSError):
                os.utime(self.folder / f"{key}.kv")

    def remove(self, key: str) -> None:
        """Removes a part, also one that waits to be written."""
        self._removed.add(key)
        with contextlib.suppress(OSError):
            (self.folder / f"{key}.kv").unlink()

    def keep_only(self, keys: Collection[str]) -> None:
        """Removes all others of this model, and what was left half written."""
        for path in _files(self.folder):
            if path.stem not in keys:
                with contextlib.suppress(OSError):
                    path.unlink()
        for path in self.folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _over_bound(self) -> int:
        """Bytes that all models' parts take beyond what they may, once other models' oldest are gone."""
        try:
            others = sorted(
                (path.stat().st_mtime, path.stat().st_size, path)
                for folder in self._all.iterdir()
                if folder.is_dir() and folder != self.folder
                for path in _files(folder)
            )
            own = sum(path.stat().st_size for path in _files(self.folder))
            total = own + sum(size for _, size, _ in others)
            most = min(self._most, int((shutil.disk_usage(self._all).free + total) * FREE_SHARE))
        except OSError:
            return 0
        for _, size, path in others:
            if total <= most:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
        return max(0, total - most)

    def close(self, timeout_s: float) -> None:
        """Waits until what was given to `write` is written, or the time is over."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout_s)
            self._thread = None


def _open(path: Path) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("not a file")
    return open(descriptor, "rb")


def _read_header(head: bytes, read: Callable[[int], bytes]) -> tuple[_Header, bytes]:
    """The header and the digest; raises ValueError or MsgspecError for anything else."""
    if len(head) != _HEAD.size:
        raise ValueError("too short")
    magic, size, digest = _HEAD.unpack(head)
    if magic != _MAGIC or size > _MAX_HEADER:
        raise ValueError("another format")
    header = msgspec.msgpack.decode(read(size), type=_Header)
    if header.start < 0 or header.cells < 0 or (header.last or 0) < 0 or len(header.tokens) % 4:
        raise ValueError("impossible figures")
    return header, digest


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except OSError:
        return []


def _parts(folder: Path) -> list[StoredPart]:
    found = []
    for path in _files(folder)[:_MAX_FILES]:
        with contextlib.suppress(OSError, msgspec.MsgspecError, ValueError):
            with _open(path) as file:
                header, _ = _read_header(file.read(_HEAD.size), file.read)
                info = os.fstat(file.fileno())
            found.append(StoredPart(path.stem, header.parent, header.start, header.tokens, info.st_size, info.st_mtime))
    return found


def forget_chats(folder: Path, chats: Iterable[str]) -> None:
    """Removes what only these chats have in a folder of kept prompts, of all models: parts that no other prompt goes on
    from, and answers. An engine that runs meanwhile finds them gone."""
    parts, answers = prompt_chats.take(folder, chats)
    for name in {name for name, _ in parts}:
        own = {key for each, key in parts if each == name}
        left = {part.key: part.parent for part in _parts(folder / name)}
        while gone := (own & left.keys()) - set(left.values()):
            for key in gone:
                del left[key]
                with contextlib.suppress(OSError):
                    (folder / name / f"{key}.kv").unlink()
    for stem in {stem for stem, _ in answers}:
        forget_answers(folder / f"{stem}.jsonl", {key for each, key in answers if each == stem})
