"""Walks folders for models: the files of each as one entry, whatever their names, links and other programs do.

A file that vanishes while it is looked at is left out, a name that isn't UTF-8 is written with its bytes escaped, a
link to a folder is followed once, and no exception of one item ends the listing of the others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from msgspec import Struct

from flashmoe.hub.downloads.jobs import MANIFEST
from flashmoe.hub.facts import ModelFacts
from flashmoe.hub.names import display_name, group_files, part_name, quant_of, readable, show, split_of
from flashmoe.hub.roles import is_chat_model

SourceKind = Literal["library", "folder", "hf-cache", "lm-studio"]
MAX_DEPTH = 6
MAX_FILES = 50_000
"""A folder with more is somebody's whole disk: the rest isn't listed, and that is said."""


class Source(Struct, frozen=True):
    """A folder that is searched for models."""

    kind: SourceKind
    root: Path


class Entry(Struct, frozen=True, kw_only=True):
    """One model on this machine."""

    name: str
    """Fit to be shown and stored, whatever the file is called."""
    path: Path
    """The first part (also where it is missing)."""
    files: tuple[Path, ...]
    """The parts that are there."""
    missing: tuple[str, ...] = ()
    source: SourceKind
    root: Path
    repo: str = ""
    """``owner/name`` on the hub, where known."""
    quant: str = ""
    size: int = 0
    modified: float = 0.0
    facts: ModelFacts = ModelFacts()

    @property
    def reference(self) -> str:
        """``REPO:QUANT`` where the hub's repository is known, else the name."""
        return f"{self.repo}:{self.quant}" if self.repo and self.quant else self.name

    @property
    def problem(self) -> str:
        """Why it can't be loaded: a sentence; empty where it can."""
        if readable(self.path.name) != self.path.name:
            return f"The name of {show(self.path.name)} isn't UTF-8; rename it to load it."
        if self.missing:
            some = ", ".join(show(m, 60) for m in self.missing[:2]) + (", …" if len(self.missing) > 2 else "")
            total = len(self.files) + len(self.missing)
            return f"{len(self.missing)} of {total} parts are missing: {some}; pull it again or copy them here."
        return self.facts.problem


class Walk:
    """One walk through a folder: GGUF files, real folders before links to folders, each folder once."""

    def __init__(self, root: Path, depth: int = MAX_DEPTH) -> None:
        self._root, self._depth = root, depth
        self.cut = False
        """Whether there was more than is looked at."""

    def __iter__(self) -> Iterator[Path]:
        left = MAX_FILES
        seen: set[tuple[int, int]] = set()
        todo = [(self._root, 0)]
        links: list[tuple[Path, int]] = []
        while todo or links:
            folder, level = (todo or links).pop()
            try:
                info = folder.stat()
                if (info.st_dev, info.st_ino) in seen:
                    continue
                seen.add((info.st_dev, info.st_ino))
                with os.scandir(folder) as entries:
                    items = sorted(entries, key=lambda e: e.name)
            except (OSError, ValueError):
                continue
            for item in items:
                left -= 1
                if left < 0:
                    self.cut = True
                    return
                if item.name.startswith(".") or item.name == MANIFEST:
                    continue
                with contextlib.suppress(OSError):
                    if item.is_dir():
                        if level < self._depth:
                            (links if item.is_symlink() else todo).append((Path(item.path), level + 1))
                    elif item.name.lower().endswith(".gguf") and item.is_file():
                        yield Path(item.path)


def entries_of(source: Source, notes: list[str]) -> Iterator[Entry]:
    """Every model of a folder; `notes` get a sentence for what couldn't be listed."""
    if source.kind == "hf-cache":
        yield from _hf_entries(source)
        return
    walk = Walk(source.root)
    files: dict[str, Path] = {}
    for path in walk:
        with contextlib.suppress(ValueError):
            files[path.relative_to(source.root).as_posix()] = path
    if walk.cut:
        notes.append(f"{show(str(source.root))} has more than {MAX_FILES:,} files: the rest isn't listed.")
    for parts in group_files(p for p in files if is_chat_model(p)).values():
        pieces = PurePosixPath(parts[0]).parts
        repo = "/".join(pieces[:2]) if len(pieces) > 2 and source.kind in ("library", "lm-studio") else ""
        yield entry_of(source, [files[p] for p in parts], readable(repo))


def _hf_entries(source: Source) -> Iterator[Entry]:
    """``models--owner--name/snapshots/<commit>/…``: the newest snapshot of each file."""
    for folder in sorted(source.root.glob("models--*")):
        repo = readable(folder.name.removeprefix("models--").replace("--", "/"))
        newest: dict[str, Path] = {}
        for snapshot in sorted((folder / "snapshots").glob("*"), key=_mtime):
            for path in Walk(snapshot):
                newest[path.relative_to(snapshot).as_posix()] = path
        for parts in group_files(p for p in newest if is_chat_model(p)).values():
            yield entry_of(source, [newest[p] for p in parts], repo)


def entry_of(source: Source, files: list[Path], repo: str) -> Entry:
    """The entry of one file, or of the parts of a set that are there."""
    first, missing = files[0], []
    split = split_of(first.name)
    if split:
        stem, _, count = split
        there = {f.name for f in files}
        expected = [part_name(stem, i, count) for i in range(1, count + 1)]
        # Case may differ on disk; what counts is the number.
        numbers = {s[1] for f in files if (s := split_of(f.name))}
        missing = [readable(n) for i, n in enumerate(expected, 1) if i not in numbers and n not in there]
        if 1 not in numbers:
            first = first.with_name(expected[0])
    size, modified = 0, 0.0
    for file in files:
        with contextlib.suppress(OSError):
            info = file.stat()
            size += info.st_size
            modified = max(modified, info.st_mtime)
    return Entry(
        name=show(display_name(first.name)), path=first, files=tuple(files), missing=tuple(missing), source=source.kind,
        root=source.root, repo=repo, quant=quant_of(f"{first.parent.name}/{first.name}"), size=size, modified=modified,
    )  # fmt: skip


def seen_before(entry: Entry, seen: set[tuple[int, int]]) -> bool:
    """Whether this very file was listed already (a link, a folder given twice) or is gone by now."""
    try:
        info = entry.files[0].stat()
    except OSError:
        return True
    key = (info.st_dev, info.st_ino)
    if key in seen:
        return True
    seen.add(key)
    return False


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
