"""The models on this machine: the models folder, the user's own folders, Hugging Face's cache and LM Studio's folders.

A split set is one entry; an incomplete one is listed with what it lacks. Only the models folder is ever written to.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, structs

from flashmoe import paths
from flashmoe.hub.downloads.jobs import JobStore, KnownFile
from flashmoe.hub.downloads.manager import remove_empty
from flashmoe.hub.downloads.state import Check
from flashmoe.hub.errors import HubError
from flashmoe.hub.facts import FactsCache
from flashmoe.hub.inuse import check_unused
from flashmoe.hub.lookup import read_reference
from flashmoe.hub.names import group_files, readable, show
from flashmoe.hub.roles import is_chat_model
from flashmoe.hub.scan import Entry, Source, Walk, entries_of, entry_of, seen_before

if TYPE_CHECKING:
    from flashmoe.config.schema import Config

SOURCE_NAMES: dict[str, str] = {
    "library": "models folder",
    "folder": "your folder",
    "hf-cache": "Hugging Face cache",
    "lm-studio": "LM Studio",
}
_SHA256, _GIT = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")


class Expected(Struct, frozen=True):
    """What is known of a file that its bytes can be compared with."""

    check: Check
    digest: str
    """In hex; empty for ``size``."""
    size: int | None = None


class Library:
    """Finds models in `sources` (default: all places of this machine)."""

    def __init__(self, sources: list[Source] | None = None, cache: FactsCache | None = None) -> None:
        self.sources = sources if sources is not None else default_sources()
        self.cache = cache or FactsCache()
        self.notes: list[str] = []
        """What the last scan couldn't list, a sentence each."""

    def scan(self, *, facts: bool = True) -> list[Entry]:
        """Every model, the models folder's first, each folder by name. Unreadable folders count as empty."""
        entries: list[Entry] = []
        seen: set[tuple[int, int]] = set()
        self.notes = []
        for source in self.sources:
            try:
                found = [e for e in entries_of(source, self.notes) if not seen_before(e, seen)]
            except Exception as error:  # one folder must not hide the others
                self.notes.append(f"{show(str(source.root))} can't be listed ({type(error).__name__}).")
                continue
            entries += sorted(found, key=lambda e: (e.name.lower(), str(e.path)))
        if not facts:
            return entries
        with_facts = [self._with_facts(entry) for entry in entries]
        self.cache.save()
        return with_facts

    def _with_facts(self, entry: Entry) -> Entry:
        if entry.missing:
            return entry
        facts = self.cache.get(list(entry.files))
        return structs.replace(entry, facts=facts, quant=entry.quant or facts.quant)

    def find(self, name: str) -> Entry:
        """The entry called `name`: a name, a file name, or a repository as people write it. Raises `HubError`."""
        entries = self.scan(facts=False)
        found = _called(entries, name)
        # The same model in two places is one answer: the first place counts.
        different = list({(e.name.lower(), e.size): e for e in reversed(found)}.values())
        if len(different) == 1:
            return found[0]
        if different:
            listed = ", ".join(show(e.reference, 80) for e in different[:5])
            raise HubError("ambiguous", f"“{show(name, 80)}” may be any of {listed}", "say which")
        close = closest(name, entries)
        hint = f"did you mean {' or '.join(show(c, 80) for c in close)}?" if close else ""
        raise HubError("not_found", f"No model on this machine is called “{show(name, 80)}”", hint, close=tuple(close))

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

    def known_files(self, entry: Entry) -> dict[Path, Expected | None]:
        """What the hub told of each file of `entry`, None where nobody knows anything."""
        known: dict[str, KnownFile] = {}
        if entry.source == "library" and entry.repo:
            known = JobStore(entry.root).manifest(entry.repo).files
        result: dict[Path, Expected | None] = {}
        for file in entry.files:
            result[file] = None
            if entry.source == "hf-cache":  # its blobs are named by their hashes
                result[file] = _of_hash(file.resolve().name, None)
            elif known:
                with contextlib.suppress(ValueError):
                    item = known.get(file.relative_to(entry.root / entry.repo).as_posix())
                    if item is not None:
                        told = _of_hash(item.sha256 or item.etag, item.size)
                        result[file] = told or Expected("size", "", item.size)
        return result


def closest(name: str, entries: Sequence[Entry], n: int = 3) -> list[str]:
    """Names of models here that are like `name`, the likeliest first."""
    names = {e.name.lower(): e.name for e in reversed(entries)}
    wanted = name.strip().lower().rpartition("/")[2].removesuffix(".gguf")
    held = [key for key in names if wanted and wanted in key]
    like = difflib.get_close_matches(wanted, names, n=n, cutoff=0.55)
    return [names[key] for key in dict.fromkeys([*held, *like])][:n]


def _called(entries: Sequence[Entry], name: str) -> list[Entry]:
    """The entries that `name` may mean: by the exact name, else whatever the case, else as a repository."""
    exact = [e for e in entries if name in (e.name, readable(e.path.name), e.reference)]
    if exact:
        return exact
    lower = name.lower()
    same = [e for e in entries if lower in (e.name.lower(), readable(e.path.name).lower(), e.reference.lower())]
    if same:
        return same
    try:
        meant = read_reference(name)
    except HubError:
        return []
    of_repo = [e for e in entries if e.repo.lower() == meant.repo.lower()]
    if not meant.wanted:
        return of_repo
    wanted = meant.wanted.rpartition("/")[2].lower()
    quant = meant.wanted.upper()
    return [
        e for e in of_repo
        if e.quant.upper() in (quant, f"UD-{quant}") or wanted in {readable(f.name).lower() for f in e.files}
    ]  # fmt: skip


def _of_hash(digest: str, size: int | None) -> Expected | None:
    if _SHA256.fullmatch(digest):
        return Expected("sha256", digest, size)
    return Expected("git", digest, size) if _GIT.fullmatch(digest) else None


def default_sources(config: Config | None = None) -> list[Source]:
    """The models folder, the folders of the configuration, Hugging Face's cache, LM Studio's folders.

    `config` where it was read already."""
    if config is None:
        from flashmoe.config.load import load_config

        config = load_config().config
    sources = [Source("library", config.models_folder())]
    sources += [Source("folder", Path(folder).expanduser()) for folder in config.models.extra_folders]
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
            around = [p for p in Walk(source.root, 0) if is_chat_model(p.name)]
            for parts in group_files(p.name for p in around).values():
                if path.name in parts:
                    return entry_of(source, [source.root / p for p in parts], "")
    return library.find(name)
