"""What people paste for a repository: ids, pages, file addresses, other programs' references; as one `Reference`.

Nothing here touches the network. What can't be meant is refused with what would be right.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from flashmoe.hub.errors import HubError
from flashmoe.hub.names import check_repo, show

HUB_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"})
"""Hosts whose pages look like the hub's; the configured hub's own host is another."""
_PAGES = frozenset({"tree", "blob", "resolve", "raw", "blame", "commit", "commits", "discussions", "edit"})
_NO_REPOSITORY = {
    "datasets": "a data set", "spaces": "a space", "collections": "a collection", "papers": "a paper",
    "models": "a list of models", "docs": "documentation", "blog": "a blog post", "organizations": "an organization",
}  # fmt: skip
_REVISION = re.compile(r"^[A-Za-z0-9._/-]{1,200}$")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_PROGRAMS = ("ollama run ", "ollama pull ", "llama-server -hf ", "llama-cli -hf ", "hf download ", "-hf ")


class Reference(Struct, frozen=True):
    """A repository, and what of it is meant."""

    repo: str
    wanted: str | None = None
    """A quantization, or a file's path or name; None: the usual one."""
    folder: str = ""
    """The folder of the repository that is meant; empty: all of it."""
    revision: str | None = None
    """A branch, a tag or a commit; None: the main one."""
    host: str = ""
    """The host that was pasted along."""


def parse_reference(text: str, *, endpoint: str = "https://huggingface.co") -> Reference:
    """`text` as a reference. `endpoint` is the hub's address, whose host is known too. Raises `HubError`."""
    rest = text.strip().strip("<>\"'“”`").strip()
    for program in _PROGRAMS:
        rest = rest.removeprefix(program)
    rest = rest.strip()
    if not rest:
        raise _bad(text, "nothing is named")
    scheme = _SCHEME.match(rest)
    if scheme and scheme[1].lower() == "hf":
        return _pieces(text, rest[scheme.end() :].removeprefix("models/"), "", is_url=False)
    own = _host_of(endpoint)
    if scheme:
        if scheme[1].lower() not in ("http", "https"):
            raise _bad(text, f"{scheme[1]}:// isn't an address of a model hub")
        url = urlsplit(rest)
        host = (url.netloc.rpartition("@")[2]).lower()
        path = url.path
        _check_host(text, host, path, own)
        return _pieces(text, path.strip("/"), host, is_url=True)
    first = rest.partition("/")[0].lower()
    if first in HUB_HOSTS or first == own:
        path = rest.partition("/")[2].split("?")[0].split("#")[0]
        return _pieces(text, path.strip("/"), first, is_url=True)
    return _pieces(text, rest, "", is_url=False)


def looks_like_reference(text: str, *, endpoint: str = "https://huggingface.co") -> bool:
    """Whether a MODEL argument can only mean a repository: no path and no server's address."""
    try:
        found = parse_reference(text, endpoint=endpoint)
    except HubError:
        return False
    plain = text.strip().partition(":")[0]
    return bool(found.host) or text.strip().startswith("hf://") or plain.count("/") == 1


def _pieces(text: str, rest: str, host: str, *, is_url: bool) -> Reference:
    """``O/N[@REV][:WANTED]``, and what pages add: ``/tree/REV/FOLDER``, ``/blob/REV/FILE``, ``/FILE``."""
    head, _, wanted = rest.partition(":")
    parts = [unquote(p) if is_url else p for p in head.split("/") if p]
    if parts and parts[0] == "models" and len(parts) > 2:
        parts = parts[1:]
    if is_url and parts and parts[0] in _NO_REPOSITORY:
        raise _bad(text, f"that is the address of {_NO_REPOSITORY[parts[0]]}, not of a model's repository")
    if len(parts) < 2:
        raise _bad(text, "the name of the repository is missing" if parts else "nothing is named")
    name, at, revision = parts[1].partition("@")
    repo = check_repo(f"{parts[0]}/{name}")
    more = parts[2:]
    if at and revision == "refs" and len(more) > 1:  # O/N@refs/pr/1
        revision, more = "/".join([revision, *more[:2]]), more[2:]
    folder = "/".join(more)
    if more and more[0] in _PAGES and (is_url or len(more) > 1):
        page = more[0]
        if page != "discussions" and len(more) > 1:
            revision = more[1]
        folder = "/".join(more[2:]) if page in ("tree", "blob", "resolve", "raw") else ""
        if page in ("blob", "resolve", "raw") and folder and not folder.lower().endswith(".gguf"):
            raise _bad(text, f"{show(folder, 60)} isn't a .gguf file")
    if "@" in wanted and not revision:
        wanted, _, revision = wanted.rpartition("@")
    if revision and (not _REVISION.match(revision) or ".." in revision):
        raise _bad(text, f"“{show(revision, 40)}” isn't a branch, a tag or a commit")
    if wanted.lower() == "latest":
        wanted = ""
    if folder.lower().endswith(".gguf"):
        folder, wanted = "", wanted or folder
    elif folder and wanted.lower().endswith(".gguf") and "/" not in wanted:
        folder, wanted = "", f"{folder}/{wanted}"
    return Reference(repo, wanted or None, folder, revision if revision and revision != "main" else None, host)


def _check_host(text: str, host: str, path: str, own: str) -> None:
    """Other hosts are taken where the address has a hub's shape: they are mirrors of it."""
    if host in HUB_HOSTS or host == own:
        return
    parts = [p for p in path.split("/") if p]
    if len(parts) > 3 and parts[2] in ("tree", "blob", "resolve"):
        return
    raise HubError(
        "bad_name",
        f"{show(host, 80)} isn't the model hub that is asked here ({own})",
        f"set HF_ENDPOINT=https://{show(host, 80)} if it is one, or write owner/name",
    )


def _host_of(endpoint: str) -> str:
    return urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}").netloc.lower()


def _bad(text: str, why: str) -> HubError:
    return HubError(
        "bad_name",
        f"“{show(text.strip(), 100)}” isn't a repository ({why})",
        "write owner/name, e.g. unsloth/Qwen3-30B-A3B-GGUF, or owner/name:Q4_K_M",
    )
