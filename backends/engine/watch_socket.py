"""The socket that a second terminal watches a running engine from: read-only, for its owner alone.

It belongs to the parent (the app, `run`, `serve`), not to the child that computes. The parent already joins the
engine's counters with the machine's; it outlives the child, so a watcher sees that the engine died and came back; and
no watcher, however slow, takes the interpreter from the thread that decodes.

Messages are opaque here: 4 bytes of length, little-endian, then that many bytes. What a client sends is read and
thrown away. The folder is the owner's alone (0700), the socket is 0600, and the kernel is asked who connects.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
import stat
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

MAX_MESSAGE = 16 << 20
_MAX_WATCHERS = 16
_MAX_BACKLOG = 4 << 20
_NAME = re.compile(r"engine-(\d+)\.sock")


class WatchServer:
    """Sends every published message to every watcher; one that doesn't keep up misses messages, nobody waits for it."""

    def __init__(self, folder: Path, greeting: Callable[[], Sequence[bytes]]) -> None:
        """`folder`: exists and is private. `greeting`: what a new watcher gets first, the newest state."""
        self.path = folder / f"engine-{os.getpid()}.sock"
        self._greeting = greeting
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._writers)

    async def start(self) -> None:
        """Listens; raises OSError where the folder doesn't allow it."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with _short_address(self.path) as address:
                mask = os.umask(0o177)
                try:
                    listener.bind(address)
                finally:
                    os.umask(mask)
            listener.setblocking(False)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener)
        except OSError:
            listener.close()
            raise

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._writers) >= _MAX_WATCHERS or _peer_uid(writer) not in (os.getuid(), 0):
                return
            for message in self._greeting():
                writer.write(_framed(message))
            self._writers.add(writer)
            while await reader.read(4096):
                pass
        except OSError:
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            with contextlib.suppress(OSError):
                writer.close()

    def publish(self, message: bytes) -> None:
        """Sends a message to all watchers; never blocks."""
        if not self._writers:
            return
        data = _framed(message)
        for writer in self._writers:
            if not writer.is_closing() and writer.transport.get_write_buffer_size() < _MAX_BACKLOG:
                writer.write(data)

    async def stop(self) -> None:
        """Closes every connection and removes the socket."""
        for writer in list(self._writers):
            writer.close()
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        with contextlib.suppress(OSError):
            self.path.unlink()


def running(folder: Path) -> list[tuple[int, Path]]:
    """(parent's pid, socket) of every engine that can be watched, newest first; sockets of dead parents are removed."""
    found: list[tuple[float, int, Path]] = []
    with contextlib.suppress(OSError):
        if not _is_own(folder, stat.S_ISDIR):
            return []
        for path in folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if match is None or not _is_own(path, stat.S_ISSOCK):
                continue
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                _connect(probe, path)
                found.append((path.stat().st_mtime, int(match[1]), path))
            except ConnectionRefusedError:
                with contextlib.suppress(OSError):
                    path.unlink()
            except OSError:
                continue
            finally:
                probe.close()
    return [(pid, path) for _, pid, path in sorted(found, reverse=True)]


async def watch(path: Path) -> AsyncIterator[bytes]:
    """Messages of the engine behind a socket, until it ends. Raises OSError where it can't be reached."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _connect(client, path)
    except OSError:
        client.close()
        raise
    reader, writer = await asyncio.open_unix_connection(sock=client)
    try:
        while True:
            length = struct.unpack("<I", await reader.readexactly(4))[0]
            if length > MAX_MESSAGE:
                return
            yield await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return
    finally:
        writer.close()


def _framed(message: bytes) -> bytes:
    return struct.pack("<I", len(message)) + message


def _is_own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a folder or socket is this user's, and no link: in /tmp anybody may have made it."""
    info = path.lstat()
    return kind(info.st_mode) and info.st_uid == os.geteuid()


def _connect(client: socket.socket, path: Path) -> None:
    """Connects to a socket of this user's; raises OSError where it or the process behind it is another's."""
    if not (_is_own(path.parent, stat.S_ISDIR) and _is_own(path, stat.S_ISSOCK)):
        raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
    with _short_address(path) as address:
        client.connect(address)
    if _uid_behind(client) != os.geteuid():
        raise PermissionError(errno.EPERM, "another program answers there", str(path))


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    return _uid_behind(writer.get_extra_info("socket"))


def _uid_behind(connection: socket.socket) -> int:
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])


@contextlib.contextmanager
def _short_address(path: Path) -> Iterator[str]:
    """A name for the socket that fits the kernel's 108 bytes however deep its folder lies."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
