"""The models on this machine: the models folder, the user's own folders, Hugging Face's cache and LM Studio's folders.

A split set is one entry; an incomplete one is listed with what it lacks. Only the models folder is ever written to.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from msgspec import Struct

from flashmoe import paths
from flashmoe.hub.downloads.jobs import MANIFEST, JobStore, KnownFile
from flashmoe.hub.downloads.manager import remove_empty
from flashmoe.hub.errors import HubError
from flashmoe.hub.facts import FactsCache, ModelFacts
from flashmoe.hub.inuse import check_unused
from flashmoe.hub.names import display_name, group_files, is_chat_model, part_name, quant_of, show, split_of

SourceKind = Literal["library", "folder", "hf-cache", "lm-studio"]
SOURCE_NAMES: dict[str, str] = {
    "library": "models folder",
    "folder": "your folder",
    "hf-cache": "Hugging Face cache",
    "lm-studio": "LM Studio",
}
MAX_DEPTH = 6
MAX_FILES = 20_000
"""A folder with more is somebody's whole disk: the rest isn't listed."""
_SHA = re.compile(r"^[0-9a-f]{64}$")


class Source(Struct, frozen=True):
    """A folder that is searched for models."""

    kind: SourceKind
    root: Path


class Entry(Struct, frozen=True, kw_only=True):
    """One model on this machine."""

    name: str
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
        if self.missing:
            some = ", ".join(show(m, 60) for m in self.missing[:2]) + (", …" if len(self.missing) > 2 else "")
            total = len(self.files) + len(self.missing)
            return f"{len(self.missing)} of {total} parts are missing: {some}; pull it again or copy them here."
        return self.facts.problem


class Library:
    """Finds models in `sources` (default: all places of this machine)."""

    def __init__(self, sources: list[Source] | None = None, cache: FactsCache | None = None) -> None:
        self.sources = sources if sources is not None else default_sources()
        self.cache = cache or FactsCache()

    def scan(self, *, facts: bool = True) -> list[Entry]:
        """Every model, the models folder's first, each folder by name. Unreadable folders count as empty."""
        entries: list[Entry] = []
        seen: set[tuple[int, int]] = set()
        for source in self.sources:
            found = [e for e in _entries(source) if not _seen(e, seen)]
            entries += sorted(found, key=lambda e: (e.name.lower(), str(e.path)))
        if not facts:
            return entries
        with_facts = [_with_facts(e, self.cache) for e in entries]
        self.cache.save()
        return with_facts

    def find(self, name: str) -> Entry:
        """The entry called `name`: a name, a file name, ``REPO:QUANT`` or ``REPO``. Raises `HubError`."""
        entries = self.scan(facts=False)
        wanted = name.lower()
        exact = [e for e in entries if wanted in _names(e)]
        found = exact or [e for e in entries if e.repo and e.repo.lower() == wanted]
        # The same model in two places is one answer: the first place counts.
        different = list({(e.name.lower(), e.size): e for e in reversed(found)}.values())
        if len(different) == 1:
            return found[0]
        if different:
            listed = ", ".join(show(e.reference, 80) for e in different[:5])
            raise HubError("ambiguous", f"“{show(name, 80)}” may be any of {listed}", "say which.")
        close = difflib.get_close_matches(wanted, [n for e in entries for n in (e.name.lower(),)], n=2, cutoff=0.6)
        hint = f" Did you mean {' or '.join(show(c, 80) for c in close)}?" if close else ""
        raise HubError("not_found", f"No model on this machine is called “{show(name, 80)}”.{hint}", close=tuple(close))

    def delete(self, entry: Entry) -> int:
        """Deletes a model of the models folder; returns the bytes freed. Raises `HubError` (``in_use``, …)."""
        why_not = undeletable(entry)
        if why_not:
            raise HubError("io_error", why_not)
        for file in entry.files:
            check_unused(file, entry.name)
        freed = 0
        for file in entry.files:
            try:
                info = file.lstat()
                file.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise HubError("io_error", f"Can't delete {show(str(file))}: {error.strerror}.") from None
            freed += info.st_blocks * 512 if info.st_nlink == 1 else 0
        if entry.repo:
            base = entry.root / entry.repo
            with contextlib.suppress(HubError):
                JobStore(entry.root).forget(entry.repo, {f.relative_to(base).as_posix() for f in entry.files})
        remove_empty(entry.path.parent, entry.root)
        return freed

    def known_files(self, entry: Entry) -> dict[Path, str | None]:
        """The sha256 that the hub told for each file of `entry`, None where nobody knows."""
        known: dict[str, KnownFile] = {}
        if entry.source == "library" and entry.repo:
            known = JobStore(entry.root).manifest(entry.repo).files
        result: dict[Path, str | None] = {}
        for file in entry.files:
            digest: str | None = None
            if entry.source == "hf-cache":  # its blobs are named by their hashes
                blob = file.resolve().name
                digest = blob if _SHA.match(blob) else None
            elif known:
                with contextlib.suppress(ValueError):
                    item = known.get(file.relative_to(entry.root / entry.repo).as_posix())
                    digest = item.sha256 if item else None
            result[file] = digest
        return result


def default_sources() -> list[Source]:
    """The models folder, the folders of the configuration, Hugging Face's cache, LM Studio's folders."""
    from flashmoe.config.load import load_config

    config = load_config().config.models
    sources = [Source("library", models_root())]
    sources += [Source("folder", Path(folder).expanduser()) for folder in config.extra_folders]
    sources.append(Source("hf-cache", hf_cache_dir()))
    home = paths.user_home()
    sources += [Source("lm-studio", home / p) for p in (".lmstudio/models", ".cache/lm-studio/models")]
    return sources


def models_root() -> Path:
    """Where downloads go: the configuration's folder, else the one that ``paths`` shows."""
    from flashmoe.config.load import load_config

    return load_config().config.models_folder()


def hf_cache_dir() -> Path:
    """Hugging Face's cache, as huggingface_hub finds it (which takes 0.3 s to ask)."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.path.expandvars(os.environ[name])).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(os.environ["HF_HOME"])).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else paths.user_home() / ".cache") / "huggingface" / "hub"


def undeletable(entry: Entry) -> str | None:
    """Why `entry` isn't ours to delete: a sentence, or None."""
    if entry.source == "hf-cache":
        return f"{entry.name} is in Hugging Face's cache, which other programs share: use `hf cache rm` there."
    if entry.source == "lm-studio":
        return f"{entry.name} belongs to LM Studio: delete it there."
    if entry.source == "folder":
        return f"{entry.name} is in {show(str(entry.root))}, one of your own folders: nothing is deleted there."
    return None


def resolve_model(name: str, library: Library | None = None) -> Path:
    """What MODEL means: a GGUF file, a name in the library, ``REPO:QUANT``, or ``demo``. Raises `HubError`."""
    if name == "demo":
        return paths.guide_model()
    with contextlib.suppress(OSError, ValueError):
        path = Path(name).expanduser()
        if path.is_file():
            return path
    entry = (library or Library()).find(name)
    if entry.missing:
        raise HubError("not_found", f"{entry.name}: {entry.problem}")
    return entry.path


def find_entry(library: Library, name: str) -> Entry:
    """The entry of a name or of a path (any part of a set). Raises `HubError`."""
    with contextlib.suppress(OSError, ValueError):
        path = Path(name).expanduser()
        if path.is_file():
            real = path.resolve()
            for entry in library.scan(facts=False):
                if any(real == f.resolve() for f in entry.files):
                    return entry
            source = Source("folder", path.absolute().parent)
            around = [p for p in _walk(source.root, 0) if is_chat_model(p.name)]
            for parts in group_files(p.name for p in around).values():
                if path.name in parts:
                    return _entry(source, [source.root / p for p in parts], "")
    return library.find(name)


# ---- walking -------------------------------------------------------------------------------------------------------


def _names(entry: Entry) -> set[str]:
    return {entry.name.lower(), entry.path.name.lower(), entry.reference.lower()}


def _seen(entry: Entry, seen: set[tuple[int, int]]) -> bool:
    """Whether this very file was listed already (a link, a folder given twice)."""
    try:
        info = entry.files[0].stat()
    except OSError:
        return True
    key = (info.st_dev, info.st_ino)
    if key in seen:
        return True
    seen.add(key)
    return False


def _with_facts(entry: Entry, cache: FactsCache) -> Entry:
    from msgspec import structs

    if entry.missing:
        return entry
    facts = cache.get(list(entry.files))
    return structs.replace(entry, facts=facts, quant=entry.quant or facts.quant)


def _entries(source: Source) -> Iterator[Entry]:
    if source.kind == "hf-cache":
        yield from _hf_entries(source)
        return
    files = {p.relative_to(source.root).as_posix(): p for p in _walk(source.root)}
    for parts in group_files(p for p in files if is_chat_model(p)).values():
        pieces = PurePosixPath(parts[0]).parts
        repo = "/".join(pieces[:2]) if len(pieces) > 2 and source.kind in ("library", "lm-studio") else ""
        yield _entry(source, [files[p] for p in parts], repo)


def _hf_entries(source: Source) -> Iterator[Entry]:
    """``models--owner--name/snapshots/<commit>/…``: the newest snapshot of each file."""
    for folder in sorted(source.root.glob("models--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/")
        newest: dict[str, Path] = {}
        for snapshot in sorted((folder / "snapshots").glob("*"), key=_mtime):
            for path in _walk(snapshot):
                newest[path.relative_to(snapshot).as_posix()] = path
        for parts in group_files(p for p in newest if is_chat_model(p)).values():
            yield _entry(source, [newest[p] for p in parts], repo)


def _entry(source: Source, files: list[Path], repo: str) -> Entry:
    first, missing = files[0], []
    split = split_of(first.name)
    if split:
        stem, _, count = split
        there = {f.name for f in files}
        expected = [part_name(stem, i, count) for i in range(1, count + 1)]
        # Case may differ on disk; what counts is the number.
        numbers = {s[1] for f in files if (s := split_of(f.name))}
        missing = [name for i, name in enumerate(expected, 1) if i not in numbers and name not in there]
        if 1 not in numbers:
            first = first.with_name(expected[0])
    size, modified = 0, 0.0
    for file in files:
        with contextlib.suppress(OSError):
            info = file.stat()
            size += info.st_size
            modified = max(modified, info.st_mtime)
    return Entry(
        name=display_name(first.name), path=first, files=tuple(files), missing=tuple(missing), source=source.kind,
        root=source.root, repo=repo, quant=quant_of(f"{first.parent.name}/{first.name}"), size=size, modified=modified,
    )  # fmt: skip


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _walk(root: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """GGUF files under `root`; links to folders are not followed, links to files are (Hugging Face's cache)."""
    left = MAX_FILES
    todo = [(root, 0)]
    while todo and left > 0:
        folder, level = todo.pop()
        try:
            with os.scandir(folder) as entries:
                items = sorted(entries, key=lambda e: e.name)
        except OSError:
            continue
        for item in items:
            left -= 1
            if item.name.startswith(".") or item.name == MANIFEST:
                continue
            with contextlib.suppress(OSError):
                if item.is_dir(follow_symlinks=False):
                    if level < depth:
                        todo.append((Path(item.path), level + 1))
                elif item.name.lower().endswith(".gguf") and item.is_file():
                    yield Path(item.path)
