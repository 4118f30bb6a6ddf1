"""Names from the hub and from disks: quantizations, split sets, paths that stay in the models folder."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from backends.gguf.names import quant_label
from backends.system.private import make_folders
from flashmoe.hub.errors import HubError
from flashmoe.text_safety import visible_exact

SPLIT = re.compile(r"^(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_REPO = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}$")

MAX_PARTS = 1000
"""More parts than this in one set is no model that anybody made."""


_RAW_BYTE = re.compile("[\udc80-\udcff]")


def readable(name: str) -> str:
    """A file's name as it can be printed and stored: bytes that aren't UTF-8 are written as ``\\xff``."""
    return _RAW_BYTE.sub(lambda m: f"\\x{ord(m[0]) - 0xDC00:02x}", name)


def show(text: str, limit: int = 200) -> str:
    """Text from outside, fit for one line of a terminal."""
    safe = visible_exact(text).replace("\n", "␊").replace("\t", " ")
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def quant_of(path: str) -> str:
    """The quant that a file's name (or else its folder's) tells, e.g. ``UD-Q4_K_XL``; ``""`` where none does."""
    pure = PurePosixPath(path)
    stem = pure.name[:-5] if pure.name.lower().endswith(".gguf") else pure.name
    match = SPLIT.match(pure.name)
    if match:
        stem = match["stem"]
    for text in (stem, *reversed(pure.parent.parts)):
        found = quant_label(text)
        if found:
            return found
    return ""


def split_of(name: str) -> tuple[str, int, int] | None:
    """(stem, number from 1, count) of a part of a split set, None for a single file or an absurd split."""
    match = SPLIT.match(name)
    if not match:
        return None
    number, count = int(match["no"]), int(match["count"])
    return (match["stem"], number, count) if 1 <= number <= count <= MAX_PARTS else None


def part_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def display_name(path: str) -> str:
    """A model's name: the file's without ``.gguf`` and without the part's number."""
    name = readable(PurePosixPath(path).name)
    match = SPLIT.match(name)
    return match["stem"] if match else name[:-5] if name.lower().endswith(".gguf") else name


def check_repo(repo: str) -> str:
    """`repo` if it is a repository's id; raises `HubError`. What passes is two safe folder names."""
    if not _REPO.match(repo) or ".." in repo or "--" in repo or repo.endswith((".git", ".", "-")):
        raise HubError(
            "bad_name",
            f"“{show(repo, 120)}” isn't a repository's name",
            "write it as owner/name, e.g. unsloth/Qwen3-30B-A3B-GGUF",
        )
    return repo


def check_file_name(path: str) -> PurePosixPath:
    """A file's path inside its repository, if it can't lead out of a folder; raises `HubError`."""

    def bad(why: str) -> HubError:
        return HubError("bad_name", f"The hub offers a file named “{show(path, 80)}” ({why})", "it isn't downloaded.")

    if not path or len(path.encode("utf-8", "surrogatepass")) > 1024:
        raise bad("empty or too long")
    if any(ord(c) < 32 or 0x7F <= ord(c) <= 0x9F or 0xD800 <= ord(c) <= 0xDFFF for c in path):
        raise bad("control characters")
    if visible_exact(path) != path:
        raise bad("invisible characters")
    if path.startswith("/") or "\\" in path:
        raise bad("not a plain relative path")
    for piece in path.split("/"):
        if piece in ("", ".", "..") or piece.startswith("~"):
            raise bad("it would leave the models folder")
        if len(piece.encode()) > 200:
            raise bad("a name longer than 200 bytes")
        if piece.startswith("."):
            raise bad("a hidden file")
    if not path.lower().endswith(".gguf"):
        raise bad("not a .gguf file")
    return PurePosixPath(path)


def target_path(root: Path, repo: str, path: str) -> Path:
    """Where a file of a repository goes: ``root/owner/name/path``, proven to lie under `root` with links followed.

    Folders are created. Raises `HubError` for a name or a link that leads out.
    """
    relative = check_file_name(path)
    owner, name = check_repo(repo).split("/")
    target = root / owner / name / relative
    try:
        real_root = root.resolve()
        # Look before creating anything: a planted link must not even get a folder made behind it.
        existing = target.parent
        while not existing.exists() and not existing.is_symlink():
            existing = existing.parent
        _under(existing, real_root, path)
        make_folders(target.parent)
        _under(target.parent, real_root, path)
    except OSError as error:
        raise HubError("io_error", f"Can't create {show(str(target.parent))}: {error.strerror or error}.") from None
    return target


def _under(folder: Path, real_root: Path, name: str) -> None:
    real = folder.resolve()
    if real != real_root and real_root not in real.parents:
        raise HubError(
            "bad_name",
            f"“{show(name, 80)}” would be written to {show(str(real))}, outside the models folder (a link leads there)",
            "remove the link.",
        )


def group_files(paths: Iterable[str]) -> dict[str, list[str]]:
    """GGUF paths by model: ``folder/stem`` -> its parts in order. A single file is a set of one."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for path in paths:
        pure = PurePosixPath(path)
        split = split_of(pure.name)
        folder = "" if str(pure.parent) == "." else f"{pure.parent}/"
        key, number = (f"{folder}{split[0]}|{split[2]}", split[1]) if split else (path, 1)
        groups.setdefault(key, []).append((number, path))
    return {key: [path for _, path in sorted(parts)] for key, parts in groups.items()}
