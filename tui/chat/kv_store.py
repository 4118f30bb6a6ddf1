"""Computed contexts of chats on disk: coming back to a long chat then costs a read instead of minutes of prefill.

The engine checks a file against model and tokens; here it is only named, bounded in size and thrown away when old.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from flashmoe.config.schema import KvCacheConfig
from flashmoe.paths import PathError, ensure_dir, kv_dir
from tui.engine.controller import EngineController

GIB = 1 << 30


def kv_file(uid: str) -> Path:
    """The file of one chat."""
    return kv_dir() / f"{re.sub(r'[^0-9A-Za-z_-]', '_', uid)}.kv"


async def save(controller: EngineController, uid: str, tokens: int, config: KvCacheConfig) -> int:
    """Saves a chat's context where that pays; returns the file's bytes, 0 where nothing was saved."""
    if config.max_gib <= 0 or tokens < config.min_tokens or controller.model is None:
        return 0
    expected = controller.model.kv_bytes
    if (
        expected is not None
        and controller.model.n_ctx
        and expected * tokens / controller.model.n_ctx > (config.max_gib * GIB)
    ):
        return 0
    try:
        ensure_dir(kv_dir(), private=True)
    except PathError:
        return 0
    path = kv_file(uid)
    written = await controller.save_state(uid, path)
    if written > 0:
        prune(int(config.max_gib * GIB), keep=path)
    return written


async def restore(controller: EngineController, uid: str) -> int:
    """Restores a chat's context; the tokens that need no prefill now. A file that doesn't fit stays until it is old."""
    path = kv_file(uid)
    if not path.is_file():
        return 0
    return await controller.restore_state(uid, path)


def forget(uids: list[str]) -> None:
    """Deletes the contexts of chats that are gone."""
    for uid in uids:
        with contextlib.suppress(OSError):
            kv_file(uid).unlink()


def prune(limit: int, keep: Path | None = None) -> None:
    """Deletes the oldest files until the folder is within `limit` bytes."""
    files: list[tuple[float, int, Path]] = []
    with contextlib.suppress(OSError):
        for path in kv_dir().glob("*.kv"):
            with contextlib.suppress(OSError):
                info = path.stat()
                files.append((info.st_mtime, info.st_size, path))
    total = sum(n for _, n, _ in files)
    for _, n, path in sorted(files):
        if total <= limit:
            return
        if path == keep and n <= limit:
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            total -= n
