"""Whether a model's files are still what was loaded."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from backends.gguf.on_disk import ModelFiles
from backends.interface import EngineError


def parts(folder: Path, n: int = 3, size: int = 1 << 20) -> list[Path]:
    paths = [folder / f"p{i}" for i in range(n)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i + 1]) * size)
    return paths


def test_the_fingerprint_is_of_the_content_and_not_of_the_name(tmp_path: Path) -> None:
    first = ModelFiles(parts(tmp_path))
    (tmp_path / "copy").mkdir()
    copies = [Path(shutil.copy(p, tmp_path / "copy" / f"x{i}")) for i, p in enumerate(parts(tmp_path))]
    second = ModelFiles(copies)
    assert first.fingerprint == second.fingerprint
    second.close()
    with copies[1].open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    third = ModelFiles(copies)
    assert third.fingerprint != first.fingerprint
    third.close()
    first.close()


def test_a_mode_that_changes_beside_the_content_is_no_excuse(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    files = ModelFiles(paths)
    before = paths[2].stat()
    time.sleep(0.05)
    paths[2].write_bytes(bytes(before.st_size))
    os.utime(paths[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    paths[2].chmod(0o600)
    with pytest.raises(EngineError, match="p2 was changed on disk while in use"):
        files.check()
    files.close()


def test_a_part_that_is_missing_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    paths = parts(tmp_path)
    paths[1].unlink()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(EngineError, match=r"p1 can't be read: No such file or directory"):
        ModelFiles(paths)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097])
def test_small_files(tmp_path: Path, size: int) -> None:
    files = ModelFiles(parts(tmp_path, 1, size))
    files.check()
    assert len(files.fingerprint) == 64
    files.close()
