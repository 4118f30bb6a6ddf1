"""What a repository holds: its files as the hub lists them, grouped into models and what belongs to models."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from msgspec import Struct

from backends.gguf.names import LABEL
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import check_file_name, check_repo, display_name, group_files, part_name, quant_of, show
from flashmoe.hub.names import split_of as split_name
from flashmoe.hub.roles import role_of_name

MAX_FILE_BYTES = 1 << 46
"""64 TiB: a file that claims more is no model."""
MAX_LISTED = 20_000
"""Files of a repository that are looked at; the largest real ones have a few hundred."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(r"[0-9a-f]{40}")
_WORD = re.compile(r"[-_. ]+")
_EMPTY_WORDS = frozenset({"", "i1", "imat", "gguf", "ggml", "model"})


class HubFile(Struct, frozen=True):
    """One file of a repository. `sha256` is None for files that git holds itself; `blob_id` is then git's hash."""

    path: str
    size: int
    sha256: str | None = None
    blob_id: str = ""


class HubQuant(Struct, frozen=True):
    """One model of a repository: a file or a split set."""

    label: str
    """What follows ``REPO:``, e.g. ``UD-Q4_K_XL``; a path without ``.gguf`` where several have one quantization."""
    files: tuple[HubFile, ...]
    missing: tuple[str, ...] = ()
    """Parts of the set that the repository lacks."""
    quant: str = ""
    """The quantization that the name tells; empty where it tells none."""
    base: str = ""
    """The name without the quantization, in lower case: files of one `base` are one model."""

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def size(self) -> int:
        return sum(f.size for f in self.files)


class HubRepo(Struct, frozen=True):
    """What a repository holds at one commit."""

    repo: str
    commit: str
    quants: tuple[HubQuant, ...]
    other: tuple[HubFile, ...] = ()
    """GGUF files that aren't models to chat with: projectors, drafters, importance matrices, adapters."""
    gated: bool = False
    private: bool = False
    licence: str = ""
    modified: float | None = None
    revision: str = ""
    """The branch, tag or commit that was asked for; empty: the main one."""


class HubHit(Struct, frozen=True):
    """One repository that a search found."""

    repo: str
    downloads: int | None
    likes: int | None
    gated: bool
    modified: float | None
    """Seconds since the epoch."""
    licence: str = ""


def read_listing(answer: Any, repo: str, revision: str = "") -> HubRepo:
    """The hub's answer about `repo`, with what makes no sense or may not be written left out. Raises `HubError`."""
    if not isinstance(answer, dict) or not isinstance(answer.get("siblings", []), list):
        raise HubError("bad_answer", f"The hub's answer about {repo} isn't a listing", "try again later")
    siblings = answer.get("siblings") or []
    if len(siblings) > MAX_LISTED:
        raise HubError("bad_answer", f"{repo} has {len(siblings):,} files, more than the {MAX_LISTED:,} that are read")
    files = [file for item in siblings if (file := _file(item)) is not None]
    models = [f for f in files if role_of_name(f.path) == "model"]
    commit = answer.get("sha")
    card, tags = answer.get("cardData"), answer.get("tags")
    licence = str(card.get("license") or "") if isinstance(card, dict) else ""
    return HubRepo(
        repo=repo,
        commit=commit if isinstance(commit, str) and _BLOB.fullmatch(commit) else "main",
        quants=tuple(quants_of(models)),
        other=tuple(f for f in files if role_of_name(f.path) != "model"),
        gated=bool(answer.get("gated")),
        private=bool(answer.get("private")),
        licence=show(licence or _licence(tags), 40),
        modified=_stamp(answer.get("lastModified")),
        revision=revision,
    )


def read_hit(row: Any) -> HubHit | None:
    """One row of the search's answer; None for one that makes no sense."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        return None
    try:
        check_repo(row["id"])
    except HubError:
        return None

    def number(key: str) -> int | None:
        value = row.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    return HubHit(
        row["id"], number("downloads"), number("likes"), bool(row.get("gated")), _stamp(row.get("lastModified")),
        show(_licence(row.get("tags")), 40),
    )  # fmt: skip


def quants_of(files: Iterable[HubFile]) -> list[HubQuant]:
    """Files as models, smallest first; two of one quantization are told apart by their names."""
    by_path = {f.path: f for f in files}
    groups = group_files(by_path)
    labels: dict[str, int] = {}
    for parts in groups.values():
        labels[quant_of(parts[0])] = labels.get(quant_of(parts[0]), 0) + 1
    quants: list[HubQuant] = []
    for key, parts in groups.items():
        quant = label = quant_of(parts[0])
        if not label or labels[label] > 1:
            label = key.split("|")[0].removesuffix(".gguf")
        quants.append(
            HubQuant(label, tuple(by_path[p] for p in parts), tuple(missing_parts(parts)), quant, base_of(parts[0]))
        )
    return sorted(quants, key=lambda q: (q.size, q.label))


def missing_parts(parts: list[str]) -> list[str]:
    """Paths of the set that `parts` belong to and that aren't among them."""
    split = split_name(PurePosixPath(parts[0]).name)
    if split is None:
        return []
    stem, _, count = split
    there = {s[1] for p in parts if (s := split_name(PurePosixPath(p).name))}
    folder = PurePosixPath(parts[0]).parent
    return [str(folder / part_name(stem, i, count)) for i in range(1, count + 1) if i not in there]


def base_of(path: str) -> str:
    """Which model a file is, whatever its quantization: the words of its name without those that name one."""
    bare = LABEL.sub(" ", display_name(path))
    return "-".join(word for word in _WORD.split(bare.lower()) if word not in _EMPTY_WORDS)


def base_of_repo(repo: str) -> str:
    """The model that a repository is named after."""
    return base_of(repo.partition("/")[2])


def _file(item: Any) -> HubFile | None:
    """One GGUF file of a listing; None for what is none, makes no sense, or has a name that may not be written."""
    if not isinstance(item, dict):
        return None
    name, size, lfs, blob = item.get("rfilename"), item.get("size"), item.get("lfs"), item.get("blobId")
    if not isinstance(name, str) or not name.lower().endswith(".gguf"):
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < MAX_FILE_BYTES:
        return None
    try:
        check_file_name(name)
    except HubError:
        return None
    digest = lfs.get("sha256") if isinstance(lfs, dict) else None
    digest = digest.lower() if isinstance(digest, str) and _SHA256.fullmatch(digest.lower()) else None
    known = blob.lower() if isinstance(blob, str) and _BLOB.fullmatch(blob.lower()) else ""
    return HubFile(name, size, digest, known)


def _licence(tags: Any) -> str:
    if not isinstance(tags, list):
        return ""
    return next((t[8:] for t in tags if isinstance(t, str) and t.startswith("license:")), "")


def _stamp(value: Any) -> float | None:
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError):
        return None
