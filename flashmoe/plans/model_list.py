"""The one list of models: those on this machine, the catalogue, and what the hub found; with fit, size, speed and date.

Pure data for the model screen: nothing here draws, and only `local_rows` touches the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from msgspec import Struct, structs

from backends.gguf.file import GgufFile
from backends.planner.machine import Machine as Machine
from backends.planner.plan import Plan as Plan
from backends.planner.plan import PlanRequest
from flashmoe import figures, paths
from flashmoe.failures import keep, told
from flashmoe.hub.catalogue import CatalogueModel, CatalogueQuant
from flashmoe.hub.facts import FactsCache, ModelFacts
from flashmoe.hub.library import Library
from flashmoe.hub.listing import HubHit, HubQuant
from flashmoe.hub.scan import Entry
from flashmoe.hub.selection import usual
from flashmoe.plans.planning import plan_facts, plan_file, plan_header

Section = Literal["here", "catalogue", "hub"]
SECTION_TITLES: dict[str, str] = {"here": "On this machine", "catalogue": "Catalogue", "hub": "On the hub"}

SORTS = ("fit", "size", "speed", "date")
"""What the list can be sorted by; ``fit`` is the order in which a section makes most sense to read."""

EXPERT_SHARE = 0.95
"""Part of a MoE file that is routed experts, where only the catalogue is known: 87 to 98 % in its models."""

MORE_KEY = "hub:more"
"""The row that asks the hub for its next results."""

_FIT_ORDER = {"fits": 0, "streams": 1, "": 2, "no_memory": 3, "no_disk": 4, "unsupported": 5, "incomplete": 6}
FIT_WORDS = {
    "fits": "fits RAM",
    "streams": "streams",
    "no_memory": "too little RAM",
    "no_disk": "disk too full",
    "unsupported": "can't run",
    "incomplete": "incomplete",
    "": "",
}


class Row(Struct, frozen=True, kw_only=True):
    """One line of the list."""

    section: Section
    key: str
    """Stays the same over rescans, so that the cursor can stay."""
    name: str
    quant: str = ""
    size: int | None = None
    fit: str = ""
    """A `planner.Verdict`, ``incomplete``, or empty where it isn't known yet."""
    tok_s: float | None = None
    measured: bool = False
    """Whether `tok_s` comes from runs on this machine."""
    date: float | None = None
    detail: str = ""
    """A few words where there is no fit to show: downloads of a repository, gated."""
    path: Path | None = None
    repo: str = ""
    entry: Entry | None = None
    model: CatalogueModel | None = None
    hit: HubHit | None = None
    search: str = ""
    """Lower case text that the filter looks in."""


def matches(row: Row, text: str) -> bool:
    """Whether every word of `text` is in the row."""
    return all(word in row.search for word in text.lower().split())


def sort_rows(rows: Iterable[Row], by: str) -> list[Row]:
    """Sorted within one section; unknown values go last."""
    rows = list(rows)
    if by == "size":
        return sorted(rows, key=lambda r: (r.size is None, r.size or 0, r.name.lower()))
    if by == "speed":
        return sorted(rows, key=lambda r: (r.tok_s is None, -(r.tok_s or 0.0), r.name.lower()))
    if by == "date":
        return sorted(rows, key=lambda r: (r.date is None, -(r.date or 0.0), r.name.lower()))
    return sorted(rows, key=lambda r: (_FIT_ORDER.get(r.fit, 9), -(r.tok_s or 0.0), r.size or 0, r.name.lower()))


# ---- on this machine -----------------------------------------------------------------------------------------------


def local_rows(library: Library, here: Machine, cache: FactsCache | None = None) -> list[Row]:
    """Every model of the library, and the guide that comes with the project."""
    rows = [_local(entry, here) for entry in library.scan()]
    guide = paths.guide_model()
    if guide.is_file():
        facts = (cache or library.cache).get([guide])
        plan = plan_facts(facts, here) if facts.n_layers else None
        rows.append(
            Row(
                section="here",
                key=str(guide),
                name="demo: the guide",
                quant=facts.quant,
                size=guide.stat().st_size,
                fit=plan.verdict if plan else "",
                tok_s=plan.speed.expected if plan and plan.speed else None,
                path=guide,
                search="demo guide",
            )
        )
    return rows


def entry_plan(entry: Entry, here: Machine) -> tuple[Entry, Plan | None]:
    """A model of the library and its plan; None where it can't be loaded, and the entry then says why. Never raises:
    one model that nobody foresaw must not hide the others."""
    if entry.problem:
        return entry, None
    try:
        return entry, plan_facts(entry.facts, here)
    except Exception as error:
        keep(error)
        return structs.replace(entry, facts=ModelFacts(problem=f"{entry.name} can't be planned: {told(error)}")), None


def _local(entry: Entry, here: Machine) -> Row:
    fit, tok_s = "incomplete" if entry.missing else "unsupported", None
    entry, plan = entry_plan(entry, here)
    if plan is not None:
        fit, tok_s = plan.verdict, plan.speed.expected if plan.speed else None
    return Row(
        section="here",
        key=str(entry.path),
        name=entry.name,
        quant=entry.quant,
        size=entry.size,
        fit=fit,
        tok_s=tok_s,
        date=entry.modified,
        path=entry.path,
        repo=entry.repo,
        entry=entry,
        search=f"{entry.name} {entry.repo} {entry.quant} {entry.facts.architecture}".lower(),
    )


def exact_plan(path: Path, here: Machine) -> Plan:
    """The plan from the header itself, with this model's own runs. Raises `EngineError`."""
    return plan_file(path, None, here)


def remote_plan(gguf: GgufFile, size: int, here: Machine) -> Plan:
    """The plan of a model on the hub, from its header."""
    return plan_header(gguf, PlanRequest(to_download=size), here)


# ---- the catalogue and the hub ---------------------------------------------------------------------------------------


def catalogue_facts(model: CatalogueModel, quant: CatalogueQuant) -> ModelFacts:
    """What the catalogue knows, as facts: the split between experts and the rest is an estimate."""
    experts = int(quant.size * EXPERT_SHARE) if model.n_experts else 0
    used = experts * model.n_expert_used // model.n_experts if model.n_experts else 0
    dense = quant.size - experts
    return ModelFacts(
        architecture=model.architecture,
        name=model.name,
        quant=quant.label,
        n_layers=model.n_layers,
        n_experts=model.n_experts,
        n_expert_used=model.n_expert_used,
        n_ctx_train=model.context,
        file_bytes=quant.size,
        expert_bytes=experts,
        dense_bytes=dense,
        expert_bytes_per_token=used,
        active_bytes_per_token=used + dense,
    )


def catalogue_plan(model: CatalogueModel, quant: CatalogueQuant, here: Machine) -> Plan:
    """An estimate without any header: its KV cache is missing, its experts are a share of the file."""
    return plan_facts(catalogue_facts(model, quant), here, PlanRequest(to_download=quant.size))


def catalogue_rows(models: Iterable[CatalogueModel], here: Machine) -> list[Row]:
    """One row a model, with the quant that suits this machine."""
    rows = []
    for model in models:
        quant = suitable_quant(model, here)
        plan = catalogue_plan(model, quant, here)
        rows.append(
            Row(
                section="catalogue",
                key=f"catalogue:{model.name}",
                name=model.name,
                quant=quant.label,
                size=quant.size,
                fit=plan.verdict,
                tok_s=plan.speed.expected if plan.speed else None,
                repo=model.repo,
                model=model,
                search=f"{model.name} {' '.join(model.repos)} {model.architecture}".lower(),
            )
        )
    return rows


def suitable_quant(model: CatalogueModel, here: Machine) -> CatalogueQuant:
    """The quant that a bare ``pull`` would take of these files on this machine."""
    index, _ = usual([(q.label, q.size) for q in model.quants], here.disk_free)
    return model.quants[index]


def hub_rows(hits: Iterable[HubHit], known: set[str], *, more: bool = False) -> list[Row]:
    """One row a repository; those of the catalogue aren't shown twice. With `more`, a last row asks for the next."""
    rows = [
        Row(
            section="hub",
            key=f"hub:{hit.repo}",
            name=hit.repo,
            date=hit.modified,
            repo=hit.repo,
            hit=hit,
            detail=_popularity(hit),
            search=hit.repo.lower(),
        )
        for hit in hits
        if hit.repo not in known
    ]
    if more:
        rows.append(Row(section="hub", key=MORE_KEY, name="more …"))
    return rows


def _popularity(hit: HubHit) -> str:
    if hit.gated:
        return "gated"
    return f"{figures.count(hit.downloads)} downloads" if hit.downloads is not None else ""


def quant_fit(size: int, here: Machine) -> str:
    """A first look at one quant of a repository, from its size alone."""
    if here.disk_free is not None and size + (1 << 30) > here.disk_free:
        return "no_disk"
    return "fits" if size * 1.05 + (1 << 30) <= here.ram_available else "streams"


def unfinished(quants: Iterable[HubQuant]) -> list[HubQuant]:
    """The quants of a repository that can be pulled whole."""
    return [q for q in quants if q.complete]
