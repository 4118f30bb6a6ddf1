"""The disk that models are read from: its file system, its room, and what it really gives."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from backends.system.disk_probe import SCRATCH_BYTES, probe_file, probe_scratch
from flashmoe.monitor.disk import Device

PROBE_S = 1.0
NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "ceph", "glusterfs", "lustre", "beegfs")


def existing(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def disk(folder: Path, *, probe: bool) -> dict[str, Any]:
    """Facts about the disk below `folder`; `bandwidth_bytes_s` is None where it was not or can't be probed."""
    here = existing(folder)
    kind = file_system(here)
    device = Device(here).name
    found: dict[str, Any] = {"file_system": kind, "device": device, "free_bytes": None, "rotational": None}
    try:
        found["free_bytes"] = shutil.disk_usage(here).free
    except OSError:
        pass
    if device:
        text = _read(Path(f"/sys/block/{device}/queue/rotational"))
        # Virtual disks often claim to rotate; only a real one's word counts.
        virtual = device.startswith(("vd", "xvd", "zram", "loop"))
        found["rotational"] = text == "1" if text and not virtual else None
    found["network"] = kind in NETWORK
    found["bandwidth_bytes_s"], found["bandwidth_note"] = bandwidth(here) if probe else (None, "not probed")
    return found


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, empty where unknown."""
    best, kind = -1, ""
    resolved = str(path.resolve())
    for line in _read(Path("/proc/self/mounts")).splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), fields[2]
    return kind


def bandwidth(folder: Path) -> tuple[float | None, str]:
    """Bytes a second of random reads past the page cache, and on what they were measured.

    Reads the largest GGUF of the folder, else a file of its own that it writes and deletes.
    """
    if not hasattr(os, "O_DIRECT"):
        return None, "this system has no O_DIRECT"
    model = _largest_model(folder)
    if model is not None:
        speed, what = probe_file(model, PROBE_S)
        return speed, f"{what} of {model.name}"
    try:
        if shutil.disk_usage(folder).free < 4 * SCRATCH_BYTES:
            return None, "not enough free space for a probe"
        return probe_scratch(folder, PROBE_S), "random 1 MiB blocks of a scratch file of 256 MiB"
    except OSError as error:
        return None, f"no probe: {error.strerror}"


def _largest_model(folder: Path) -> Path | None:
    best, best_size = None, SCRATCH_BYTES
    for number, path in enumerate(folder.rglob("*.gguf")):
        if number > 1000:
            break
        try:
            size = path.stat().st_size
        except OSError:
            continue
        if size >= best_size and path.is_file():
            best, best_size = path, size
    return best


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
