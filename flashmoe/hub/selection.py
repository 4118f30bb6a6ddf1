"""Which file of a repository is meant: by its quant, by its name, or the sensible one for this machine."""

from __future__ import annotations

import difflib

from flashmoe.hub.client import HubQuant, HubRepo
from flashmoe.hub.downloads.jobs import gib
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import group_files, show

PREFERRED = (
    "UD-Q4_K_XL", "Q4_K_M", "MXFP4", "MXFP4_MOE", "Q4_K_S", "Q4_K", "Q4_0", "IQ4_NL", "IQ4_XS", "Q4_1",
)  # fmt: skip
"""Four bits a weight: what most people run, the best first."""


def choose(repo: HubRepo, wanted: str | None, *, free: int | None = None) -> tuple[HubQuant, str]:
    """The model of `repo` that `wanted` names (a quant or a file), or the default, with a sentence that says why.

    `free` is what the disk can take. Raises `HubError` with what there is.
    """
    if wanted:
        return _named(repo, wanted), ""
    whole = [q for q in repo.quants if q.complete]
    if not whole:
        raise HubError("not_found", f"{repo.repo} has no GGUF model to chat with.")
    fitting = [q for q in whole if free is None or q.size < free] or whole[:1]
    if len(whole) == 1:
        return whole[0], f"{whole[0].label} ({gib(whole[0].size)}): the only one that it has."
    for label in PREFERRED:
        for quant in fitting:
            if quant.label.upper() == label:
                return quant, f"{label} ({gib(quant.size)}): the usual balance of quality and size."
    if any(_bits(q.label) == 4 for q in fitting):
        quant = next(q for q in reversed(fitting) if _bits(q.label) == 4)
        return quant, f"{quant.label} ({gib(quant.size)}): the best four-bit file that it has."
    small = [q for q in fitting if (_bits(q.label) or 0) < 4]
    quant = small[-1] if small else fitting[0]
    return quant, f"{quant.label} ({gib(quant.size)}): the best that fits the disk."


def _bits(label: str) -> int | None:
    digits = [c for c in label.upper().removeprefix("UD-") if c.isdigit()]
    return int(digits[0]) if digits else None


def _named(repo: HubRepo, wanted: str) -> HubQuant:
    upper = wanted.upper()
    exact = [q for q in repo.quants if q.label.upper() == upper]
    if not exact:
        exact = [q for q in repo.quants if q.label.upper() == f"UD-{upper}"]
    if not exact:  # a file: any of a set's parts means the set
        every = [f for q in repo.quants for f in q.files] + list(repo.other)
        for parts in group_files(f.path for f in every).values():
            if any(wanted in (p, p.rsplit("/", 1)[-1]) for p in parts):
                by_path = {f.path: f for f in every}
                files = tuple(by_path[p] for p in parts)
                known = next((q for q in repo.quants if q.files == files), None)
                return known or HubQuant(parts[0].removesuffix(".gguf"), files)
    if len(exact) == 1:
        return exact[0]
    labels = [q.label for q in repo.quants]
    close = difflib.get_close_matches(upper, labels, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    have = ", ".join(labels[:12]) + (", …" if len(labels) > 12 else "")
    raise HubError(
        "not_found", f"{repo.repo} has no “{show(wanted, 60)}”", f"it has {show(have, 300) or 'no models'}.{hint}"
    )
