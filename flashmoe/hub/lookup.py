"""The one look-up: from what somebody typed or chose to a repository's model, the same in every command and the app.

A name decides first; before anything of size is fetched the first kilobytes of the file say whether it is a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from backends.errors import ReportedError
from backends.interface import EngineError
from flashmoe.hub.address import Reference, parse_reference
from flashmoe.hub.client import HubClient, configured_endpoint
from flashmoe.hub.downloads.jobs import free_bytes
from flashmoe.hub.errors import HubError
from flashmoe.hub.listing import HubQuant, HubRepo
from flashmoe.hub.names import show
from flashmoe.hub.remote_header import read_remote, read_remote_start
from flashmoe.hub.roles import role_of_header
from flashmoe.hub.selection import choose, not_a_model
from flashmoe.retry import patiently

TRIES = 4
"""So many files that their headers unmask are passed over for the usual one."""

Waiting = Callable[[ReportedError, float], None]


class Found(Struct, frozen=True):
    """What a look-up found."""

    repo: HubRepo
    quant: HubQuant
    why: str
    """A sentence where the choice was ours."""


def read_reference(text: str) -> Reference:
    """What `text` refers to, with the configured hub's own address known. Raises `HubError`."""
    return parse_reference(text, endpoint=configured_endpoint())


def look_up(
    client: HubClient,
    wanted: Reference,
    *,
    models: Path,
    waiting: Waiting | None = None,
    known: Callable[[HubRepo, HubQuant], bool] | None = None,
) -> Found:
    """The model that is meant. `models` is the folder that it would go to; `waiting` hears of pauses; `known` tells
    what was looked at before (a download that was begun).

    Raises `HubError`.
    """
    repo = patiently(lambda: client.repo(wanted.repo, wanted.revision), waiting=waiting)
    return pick(client, repo, wanted, free=free_bytes(models), known=known)


def pick(
    client: HubClient,
    repo: HubRepo,
    wanted: Reference | None,
    *,
    free: int | None,
    known: Callable[[HubRepo, HubQuant], bool] | None = None,
) -> Found:
    """The model of a repository that was listed already; its header is looked at. Raises `HubError`."""
    without: list[str] = []
    unmasked: HubError | None = None
    while True:
        try:
            quant, why = choose(repo, wanted, free=free, without=without)
        except HubError as error:
            raise unmasked if unmasked is not None and error.code == "not_found" else error from None
        if known is not None and known(repo, quant):
            return Found(repo, quant, why)
        try:
            check_header(client, repo, quant)
        except HubError as error:
            if error.code != "not_a_model" or (wanted is not None and wanted.wanted) or len(without) >= TRIES:
                raise
            without.append(quant.files[0].path)
            unmasked = error
            continue
        return Found(repo, quant, why)


def check_header(client: HubClient, repo: HubRepo, quant: HubQuant) -> None:
    """Raises `HubError` (``not_a_model``) where the header's start says that this isn't a model to chat with."""
    file = quant.files[0]
    name = file.path.rsplit("/", 1)[-1]
    try:
        start = read_remote_start(client, repo.repo, repo.commit, file)
        alone = len(quant.files) == 1
        role = role_of_header(start.kv, start.n_tensors if alone else None)
        if role == "model" and alone and _few_tensors(start.kv, start.n_tensors):
            whole = read_remote(client, repo.repo, repo.commit, quant)
            first = any(t.name.startswith("blk.0.") for t in whole.tensors)
            role = role_of_header(start.kv, start.n_tensors, first)
    except EngineError as error:
        raise HubError("not_a_model", f"{show(name, 100)} can't be used: {error.gist}") from None
    if role != "model":
        raise not_a_model(name, role)


def _few_tensors(kv: Mapping[str, object], n_tensors: int) -> bool:
    """Whether there are fewer tensors than a model's layers need: a drafter that was cut out of its model."""
    layers = kv.get(f"{kv.get('general.architecture')}.block_count")
    return isinstance(layers, int) and layers > 1 and n_tensors < 4 * layers


def is_large(size: int, free: int | None) -> bool:
    """Whether a download takes more than half of what is free: it asks first."""
    return free is not None and size > free // 2
