"""Which file of a repository is meant: by its quantization, by its name, or the sensible one for this machine."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from flashmoe.figures import size as bytes_text
from flashmoe.hub.address import Reference
from flashmoe.hub.errors import HubError
from flashmoe.hub.listing import HubQuant, HubRepo, base_of_repo
from flashmoe.hub.names import group_files, show
from flashmoe.hub.roles import ROLE_WORDS, role_of_name

PREFERRED = (
    "UD-Q4_K_XL", "Q4_K_M", "MXFP4", "MXFP4_MOE", "Q4_K_XL", "Q4_K_S", "Q4_K_L", "Q4_K", "Q4_0", "IQ4_NL", "IQ4_XS",
    "Q4_1",
)  # fmt: skip
"""Four bits a weight: what most people run, the best first."""
_FULL = frozenset({"BF16", "F16", "F32", "FP16", "FP32"})
_MAYBE_BESIDE = re.compile(r"(^|-)(assistant|eagle|mtp|lora|embedding|embed|reranker)(-|$)")
"""Words of a name that make another model of the repository the likelier one."""

T = TypeVar("T")


def choose(
    repo: HubRepo, wanted: Reference | str | None = None, *, free: int | None = None, without: Collection[str] = ()
) -> tuple[HubQuant, str]:
    """The model of `repo` that is meant, with a sentence that says why where the choice was ours.

    `wanted` is a reference or what follows its colon; `free` what the disk can take; `without` names first files that
    turned out to be no models. Raises `HubError` (``not_found``, ``ambiguous``, ``incomplete``, ``not_a_model``).
    """
    if isinstance(wanted, str):
        wanted = Reference(repo.repo, wanted)
    name, folder = (wanted.wanted, wanted.folder) if wanted else (None, "")
    quants = [q for q in repo.quants if q.files[0].path not in without]
    if folder:
        quants = _in_folder(repo, quants, folder)
    if name and name.lower().endswith(".gguf"):
        return _by_file(repo, name), ""
    if name:
        return _by_quant(repo, quants, name), ""
    return _usual_of(repo, quants, free)


def usual(labels: Sequence[tuple[str, int]], free: int | None) -> tuple[int, str]:
    """Of (quantization, bytes), smallest first: the index of the one that most people want and the disk can take."""
    fitting = [i for i, (_, size) in enumerate(labels) if free is None or size < free]
    if not fitting:
        return 0, "the smallest that it has; even that is more than the disk can take"
    if len(labels) == 1:
        return 0, "the only one that it has"
    upper = {labels[i][0].upper(): i for i in reversed(fitting)}
    for label in PREFERRED:
        if label in upper:
            return upper[label], "the usual balance of quality and size"
    bits = {i: bits_of(labels[i][0]) for i in fitting}
    four = [i for i in fitting if bits[i] == 4]
    if four:
        return four[-1], "the best four-bit file that it has"
    more = [i for i in fitting if (bits[i] or 0) > 4]
    if more:
        return more[0], "the smallest with four bits a weight or more"
    less = [i for i in fitting if bits[i] is not None]
    if less:
        best = "the best that fits on the disk" if len(fitting) < len(labels) else "the best that it has"
        return less[-1], best
    return fitting[0], "the smallest that it has"


def bits_of(label: str) -> int | None:
    """Bits a weight that a quantization's name tells; None where it tells none."""
    upper = label.upper()
    if upper in _FULL:
        return 32 if upper.endswith("32") else 16
    found = re.search(r"\d+", upper.removeprefix("UD-"))
    return int(found[0]) if found else None


# ---- what is meant ---------------------------------------------------------------------------------------------------


def _usual_of(repo: HubRepo, quants: Sequence[HubQuant], free: int | None) -> tuple[HubQuant, str]:
    whole = [q for q in quants if q.complete]
    if not whole:
        if quants:
            raise incomplete(repo, quants[0])
        raise nothing_here(repo)
    main = _main_model(repo, whole)
    if main is None:
        raise HubError(
            "ambiguous", f"{repo.repo} holds several models: {_listed(q.label for q in whole)}",
            f"say which, e.g. {repo.repo}:{show(whole[0].label, 80)}",
        )  # fmt: skip
    index, why = usual([(q.quant or q.label, q.size) for q in main], free)
    quant = main[index]
    return quant, f"{quant.label} ({bytes_text(quant.size)}): {why}."


def _main_model(repo: HubRepo, quants: Sequence[HubQuant]) -> list[HubQuant] | None:
    """The files of the one model that the repository is about, one of each quantization; None where it has several."""
    bases = Counter(q.base for q in quants)
    if len(bases) > 1:
        likely = {b: n for b, n in bases.items() if not _MAYBE_BESIDE.search(b)}
        bases = Counter(likely) or bases
    named = base_of_repo(repo.repo)
    if len(bases) > 1 and named in bases:
        bases = Counter({named: bases[named]})
    if len(bases) > 1:  # one release in many quantizations beside a single file of something else
        (first, most), (_, second) = bases.most_common(2)
        bases = Counter({first: most}) if most >= 4 and second == 1 else bases
    if len(bases) > 1:
        return None
    base = next(iter(bases))
    best: dict[str, HubQuant] = {}
    for quant in quants:
        if quant.base == base:
            known = best.get(quant.quant or quant.label)
            if known is None or len(quant.files) < len(known.files):
                best[quant.quant or quant.label] = quant
    return sorted(best.values(), key=lambda q: (q.size, q.label))


def _by_quant(repo: HubRepo, quants: Sequence[HubQuant], name: str) -> HubQuant:
    upper = name.upper().removeprefix("I1-")
    tests: tuple[Callable[[HubQuant], bool], ...] = (
        lambda q: q.label.upper() == upper,
        lambda q: q.quant.upper() == upper,
        lambda q: q.quant.upper() == f"UD-{upper}",
        lambda q: _ends_with(q.label.upper(), upper),
    )
    for test in tests:
        found = [q for q in quants if test(q)]
        if found:
            break
    else:
        raise _no_such(repo, quants, name)
    whole = [q for q in found if q.complete]
    if not whole:
        raise incomplete(repo, found[0])
    main = _main_model(repo, whole) if len(whole) > 1 else whole
    if main is None or len(main) != 1:
        raise HubError(
            "ambiguous",
            f"“{show(name, 60)}” matches {len(whole)} files of {repo.repo}: {_listed(q.label for q in whole)}",
            f"name one of them, e.g. {repo.repo}:{show(whole[0].label, 80)}",
        )
    return main[0]


def _ends_with(label: str, wanted: str) -> bool:
    return label.endswith(wanted) and (len(label) == len(wanted) or label[-len(wanted) - 1] in "-_./")


def _by_file(repo: HubRepo, name: str) -> HubQuant:
    """A file by its path or its name; any part of a set means the set."""
    every = {f.path: f for q in repo.quants for f in q.files} | {f.path: f for f in repo.other}
    for same in (lambda path: path == name, lambda path: PurePosixPath(path).name == name,
                 lambda path: PurePosixPath(path).name.lower() == PurePosixPath(name).name.lower()):  # fmt: skip
        found = [parts for parts in group_files(every).values() if any(same(p) for p in parts)]
        if found:
            break
    else:
        names = [PurePosixPath(path).name for path in every]
        close = difflib.get_close_matches(PurePosixPath(name).name, names, n=1, cutoff=0.6)
        hint = f"did you mean {show(close[0], 100)}?" if close else f"see `flashmoe-tui search {repo.repo}`"
        raise HubError("not_found", f"{repo.repo} has no file “{show(name, 100)}”", hint)
    if len(found) > 1:
        listed = _listed(parts[0] for parts in found)
        raise HubError("ambiguous", f"{repo.repo} has {len(found)} files of that name: {listed}", "say which folder")
    known = next((q for q in repo.quants if q.files[0].path == found[0][0]), None)
    if known is None:  # its name says that it is no model; its header has the last word
        known = HubQuant(found[0][0].removesuffix(".gguf"), tuple(every[p] for p in found[0]))
    if not known.complete:
        raise incomplete(repo, known)
    return known


def _in_folder(repo: HubRepo, quants: Sequence[HubQuant], folder: str) -> list[HubQuant]:
    prefix = folder.strip("/").lower() + "/"
    found = [q for q in quants if q.files[0].path.lower().startswith(prefix)]
    if found:
        return found
    folders = sorted({f.path.rpartition("/")[0] for q in repo.quants for f in q.files if "/" in f.path})
    has = f"its folders are {_listed(folders)}" if folders else "it has no folders"
    raise HubError("not_found", f"{repo.repo} has no models in a folder “{show(folder, 80)}”; {has}")


# ---- what can't be had -----------------------------------------------------------------------------------------------


def incomplete(repo: HubRepo, quant: HubQuant) -> HubError:
    """The set lacks parts on the hub."""
    n, total = len(quant.missing), len(quant.files) + len(quant.missing)
    which = ", ".join(show(PurePosixPath(m).name, 80) for m in quant.missing[:2]) + (", …" if n > 2 else "")
    parts = "1 part is" if n == 1 else f"{n} parts are"
    return HubError(
        "incomplete",
        f"{repo.repo}:{show(quant.label, 80)} is incomplete on the hub: {parts} missing of {total} ({which})",
        "choose another file, or ask its owner",
    )


def nothing_here(repo: HubRepo) -> HubError:
    """There is no model in it; what there is, is said."""
    roles = Counter(role_of_name(f.path) for f in repo.other)
    has = ", ".join(f"{ROLE_WORDS[role]}" + (f" ({n} files)" if n > 1 else "") for role, n in roles.items())
    beside = f", only {has}" if has else ""
    return HubError("not_found", f"{repo.repo} has no GGUF model to chat with{beside}")


def not_a_model(name: str, role: str) -> HubError:
    """A file that was named turned out to be something else."""
    return HubError(
        "not_a_model", f"{show(name, 100)} is {ROLE_WORDS.get(role, ROLE_WORDS['other'])}, not a model to chat with"
    )


def _no_such(repo: HubRepo, quants: Sequence[HubQuant], name: str) -> HubError:
    if not quants:
        return nothing_here(repo)
    labels = [q.label for q in quants]
    close = difflib.get_close_matches(name.upper(), labels, n=1, cutoff=0.5)
    hint = f"did you mean {show(close[0], 80)}?" if close else ""
    return HubError("not_found", f"{repo.repo} has no “{show(name, 60)}”; it has {_listed(labels)}", hint)


def _listed(items: Iterable[str], limit: int = 12) -> str:
    every = list(items)
    return show(", ".join(show(item, 80) for item in every[:limit]), 400) + (", …" if len(every) > limit else "")
