"""One file on its way: its bytes (``NAME.part``) and the table of what is there (``NAME.part.state``).

The table holds one entry a block of 128 KiB: a CRC-32 of the block as it came from the network, written after the
block itself. So nothing depends on the order in which a crash or a power loss left things on the disk: an entry
without its data, or data without its entry, only costs that block. After a kill -9 all entries are true at once (the
page cache outlives the process); whoever opens the file in a new process re-reads every block against its CRC anyway,
because the file's sha256 has to be computed from the start. The table's head (which file of which commit, its ETag,
size and sha256) is written once, atomically, and never changed in place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import threading
import zlib
from pathlib import Path

import msgspec
from msgspec import Struct

from flashmoe.hub.errors import HubError
from flashmoe.hub.names import show

BLOCK = 128 * 1024
_HEAD = 4096
_ENTRY = struct.Struct("<II")
_PRESENT = 0x50415254  # "PART": an entry that was written
_FLAG = bytes(1 if byte == _PRESENT & 0xFF else 0 for byte in range(256))
_FALLOC_FL_KEEP_SIZE = 1

PART = ".part"
STATE = ".part.state"


class PartHead(Struct, frozen=True):
    """What a partial file is a part of."""

    repo: str
    path: str
    commit: str
    etag: str
    size: int
    sha256: str | None
    block: int = BLOCK
    version: int = 1


class PartFile:
    """A partial download, locked against every other process. Blocks may be written from any thread.

    `have[i]` is 1 where block i is there; `trusted[i]` where this process itself wrote it or checked its CRC.
    """

    def __init__(self, target: Path, head: PartHead) -> None:
        """Opens or creates ``target.part`` for exactly `head`; what is there of another version is dropped.

        `replaced` tells whether something was dropped. Raises `HubError` (``locked``, ``io_error``, ``no_space``).
        """
        self.target = target
        self.head = head
        self.n_blocks = -(-head.size // BLOCK)
        self.generation = 0
        self.part_path = target.with_name(target.name + PART)
        self.state_path = target.with_name(target.name + STATE)
        self.replaced = False
        self._lock = threading.Lock()
        self._dirty = 0
        self._state_fd = -1
        try:
            self._fd = os.open(self.part_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise disk_error(error, self.part_path) from None
        try:
            self._claim()
            self._open_table()
        except OSError as error:
            os.close(self._fd)
            raise disk_error(error, self.part_path) from None
        except BaseException:
            os.close(self._fd)
            raise

    def _claim(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = lock_owner(self._fd)
            by = f"process {owner}" if owner else "another process"
            raise HubError(
                "locked",
                f"{show(self.target.name)} is being downloaded by {by}",
                "wait for it, or pause it there and try again.",
            ) from None

    def reset(self, head: PartHead) -> None:
        """The hub has another version of the file: starts over with it. Writes of the old generation do nothing."""
        with self._lock:
            self.head = head
            self.n_blocks = -(-head.size // BLOCK)
            self.generation += 1
            os.close(self._state_fd)
            self._state_fd = -1
            self._open_table()

    def _open_table(self) -> None:
        table = read_table(self.state_path, self.head)
        if table is None:
            if os.fstat(self._fd).st_size or self.state_path.exists():
                self.replaced = True
                os.ftruncate(self._fd, 0)
            self._create_table()
            table = bytes(self.n_blocks * _ENTRY.size)
        # Written with pwrite, not mapped: on a full disk a mapped page of a hole would kill the process (SIGBUS).
        self._state_fd = os.open(self.state_path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        there = min(self.n_blocks, os.fstat(self._fd).st_size // BLOCK)
        if os.fstat(self._fd).st_size >= self.head.size:
            there = self.n_blocks
        flags = table[4 : there * _ENTRY.size : _ENTRY.size].translate(_FLAG)
        self.have = bytearray(flags.ljust(self.n_blocks, b"\0"))
        self.trusted = bytearray(self.n_blocks)
        self.done = self.have.count(1) * BLOCK
        if self.n_blocks and self.have[-1]:
            self.done -= BLOCK - self.block_size(self.n_blocks - 1)

    def _create_table(self) -> None:
        encoded = msgspec.json.encode(self.head)
        if len(encoded) > _HEAD:
            raise HubError("bad_name", f"{show(self.head.path, 80)}: its name and ETag are too long to keep.")
        temporary = self.state_path.with_name(self.state_path.name + ".new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, encoded.ljust(_HEAD, b"\0"))
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(self.state_path)
        fsync_dir(self.state_path.parent)

    # ---- blocks

    def block_size(self, index: int) -> int:
        """Bytes of block `index` (the last may be short)."""
        return min(BLOCK, self.head.size - index * BLOCK)

    def block_end(self, index: int) -> int:
        return index * BLOCK + self.block_size(index)

    def write_block(self, index: int, data: bytes, generation: int) -> bool:
        """Stores one whole block; False if the file has started over since `generation`. Raises OSError."""
        with self._lock:
            if generation != self.generation or self._fd < 0:
                return False
            if len(data) != self.block_size(index):
                raise ValueError("a block is written whole")
            view, at = memoryview(data), index * BLOCK
            while view:
                n = os.pwrite(self._fd, view, at)
                view, at = view[n:], at + n
            os.pwrite(self._state_fd, _ENTRY.pack(zlib.crc32(data), _PRESENT), _HEAD + index * _ENTRY.size)
            if not self.have[index]:
                self.have[index] = 1
                self.done += len(data)
            self.trusted[index] = 1
            self._dirty += len(data)
            return True

    def read_block(self, index: int) -> bytes | None:
        """Block `index` if it is there and is what came from the network; else it is forgotten and None returned."""
        data = os.pread(self._fd, self.block_size(index), index * BLOCK)
        if self.trusted[index] and len(data) == self.block_size(index):
            return data
        entry = os.pread(self._state_fd, _ENTRY.size, _HEAD + index * _ENTRY.size)
        crc, present = _ENTRY.unpack(entry.ljust(_ENTRY.size, b"\0"))
        if present == _PRESENT and len(data) == self.block_size(index) and zlib.crc32(data) == crc:
            self.trusted[index] = 1
            return data
        self.forget(index)
        return None

    def forget(self, index: int) -> None:
        with self._lock:
            os.pwrite(self._state_fd, bytes(_ENTRY.size), _HEAD + index * _ENTRY.size)
            if self.have[index]:
                self.have[index] = 0
                self.done -= self.block_size(index)
            self.trusted[index] = 0

    def forget_all(self) -> None:
        """Starts the same file over (its bytes were complete and wrong)."""
        with self._lock:
            os.ftruncate(self._state_fd, _HEAD)
            self.have = bytearray(self.n_blocks)
            self.trusted = bytearray(self.n_blocks)
            self.done = 0
            self.generation += 1

    @property
    def complete(self) -> bool:
        return self.have.find(0) < 0

    # ---- the disk

    def allocated(self) -> int:
        """Bytes that the disk has already given to this file."""
        return os.fstat(self._fd).st_blocks * 512

    def preallocate(self) -> bool:
        """Reserves the whole file on the disk without changing its size; False where the file system can't.

        Raises OSError (ENOSPC). glibc's own posix_fallocate is not used: where it can't it writes to every block.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        call = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
        if call is None or not self.head.size:
            return False
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        if call(self._fd, _FALLOC_FL_KEEP_SIZE, 0, self.head.size) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(code, os.strerror(code))
        return False

    def flush(self, *, at_least: int = 1) -> None:
        """Puts data, then table, on the disk if `at_least` bytes came since the last time."""
        with self._lock:
            if self._dirty < at_least or self._fd < 0:
                return
            self._dirty = 0
            # Copies, so that a slow disk doesn't hold up the writers.
            data, table = os.dup(self._fd), os.dup(self._state_fd)
        try:
            os.fdatasync(data)
            os.fdatasync(table)
        finally:
            os.close(data)
            os.close(table)

    def finish(self) -> None:
        """The file is complete and verified: it gets its own name, for good."""
        os.ftruncate(self._fd, self.head.size)
        os.fsync(self._fd)
        self.part_path.replace(self.target)
        fsync_dir(self.target.parent)
        self.close()
        with contextlib.suppress(OSError):
            self.state_path.unlink()

    def close(self) -> None:
        """Lets go of the file and its lock; what is there stays."""
        with self._lock:
            for fd in (self._state_fd, self._fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._state_fd = -1

    def remove(self) -> None:
        """Deletes what is there (a cancelled download)."""
        self.close()
        remove_part(self.target)


def read_table(state_path: Path, head: PartHead) -> bytes | None:
    """The table if there is one for exactly `head`'s file, else None."""
    n_bytes = -(-head.size // BLOCK) * _ENTRY.size
    try:
        with os.fdopen(os.open(state_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            found = msgspec.json.decode(file.read(_HEAD).rstrip(b"\0 \n"), type=PartHead)
            table = file.read(n_bytes)
    except (OSError, msgspec.DecodeError):
        return None
    # The commit may differ: the same bytes (size, ETag) under a newer commit are the same file.
    same = (found.repo, found.path, found.etag, found.size, found.sha256, found.block, found.version) == (
        head.repo, head.path, head.etag, head.size, head.sha256, BLOCK, 1,
    )  # fmt: skip
    return table.ljust(n_bytes, b"\0") if same else None


def peek(target: Path, head: PartHead) -> int:
    """Bytes of `head`'s file that are here (finished or in part), without opening them for writing."""
    with contextlib.suppress(OSError):
        if target.lstat().st_size == head.size:
            return head.size
    table = read_table(target.with_name(target.name + STATE), head)
    if table is None:
        return 0
    return min(head.size, table[4 :: _ENTRY.size].translate(_FLAG).count(1) * BLOCK)


def remove_part(target: Path) -> int:
    """Deletes the partial files of `target`; returns the bytes that the disk gets back."""
    freed = 0
    for suffix in (PART, STATE, STATE + ".new"):
        path = target.with_name(target.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            freed += path.lstat().st_blocks * 512
            path.unlink()
    return freed


def fsync_dir(path: Path) -> None:
    """Makes a rename or a new file in `path` survive a power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError:  # some network file systems can't
        pass
    finally:
        os.close(fd)


def lock_owner(fd: int) -> int | None:
    """The process that holds a flock on this file, as far as /proc/locks tells."""
    info = os.fstat(fd)
    key = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            for line in file:
                fields = line.split()
                if "FLOCK" in fields and key in fields and "->" not in fields:
                    pid = int(fields[fields.index(key) - 1])
                    return pid if pid > 0 else None
    except (OSError, ValueError, IndexError):
        pass
    return None


def disk_error(error: OSError, path: Path) -> HubError:
    """A failed write as one sentence."""
    name = show(str(path))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
        return HubError("no_space", f"Paused: {what} at {name}", "free some space and resume; nothing is lost.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HubError(
            "io_error", f"No permission to write {name}", "set FLASHMOE_MODELS to a folder that you can write to."
        )
    if error.errno == errno.ELOOP:
        return HubError("bad_name", f"{name} is a symbolic link where a download goes", "remove it.")
    if error.errno == errno.EFBIG:
        return HubError("io_error", f"The file system can't hold a file as large as {name} (FAT?)", "use another disk.")
    return HubError("io_error", f"Can't write {name}: {error.strerror or error}.")
