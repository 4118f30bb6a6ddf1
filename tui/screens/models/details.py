"""What is known about one model, as lines: its make, where its bytes would go, how fast it would be and why."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from textual.content import Content

from flashmoe import figures
from flashmoe.hub.library import SOURCE_NAMES
from flashmoe.paths import display
from flashmoe.plans.model_list import FIT_WORDS, Row, quant_fit
from flashmoe.text_safety import visible_line
from tui.screens.models.rows import FIT_STYLES

if TYPE_CHECKING:
    from flashmoe.hub.listing import HubRepo
    from flashmoe.plans.model_list import Machine, Plan

LABEL = 10
TWO_COLUMNS = 70
"""Columns of a pane from which on two short fields share a line."""
MOST_QUANTS = 24


class Field(NamedTuple):
    """A figure with its label; two short ones share a line."""

    content: Content
    starts: bool
    """It has a label: the ones without go on where the line before ends."""


Item = Content | Field | str | None


def lines(items: Iterable[Item], width: int = 0) -> Content:
    """Joins what is there; fields in two columns where the pane's `width` has room for them."""
    half, found = width // 2 if width >= TWO_COLUMNS else 0, list[Content]()
    waiting: Content | None = None
    for item in items:
        if item is None:
            continue
        if isinstance(item, Field) and item.starts and item.content.cell_length < half:
            if waiting is not None:
                pad = " " * (half - waiting.cell_length)
                found[-1], waiting = Content.assemble(waiting, pad, item.content), None
            else:
                found.append(item.content)
                waiting = item.content
            continue
        if isinstance(item, Field):
            item = item.content
        found.append(Content(item) if isinstance(item, str) else item)
        waiting = None
    return Content("\n").join(found)


def field(label: str, value: str) -> Field:
    """``label     value``."""
    return Field(Content.assemble((f"{label:<{LABEL}}", "$foreground-muted"), visible_line(value)), bool(label))


def heading(text: str) -> Content:
    """A small heading with an empty line above."""
    return Content.assemble("\n", (text, "bold $accent"))


def local(row: Row, plan: Plan | None, note: str = "", width: int = 0) -> Content:
    """A model on this machine. `width`: of the pane, in columns."""
    entry = row.entry
    items: list[Item] = [Content.styled(visible_line(row.name), "bold"), *headline(plan)]
    if entry is None:  # the guide
        items.append("It comes with flashmoe-tui, knows how to use it, and needs no download.")
    else:
        items.append(field("from", entry.repo or SOURCE_NAMES[entry.source]))
        items.append(field("where", _short(display(entry.path.parent))))
        parts = len(entry.files) + len(entry.missing)
        files = f"{figures.size(entry.size)}" + (f" in {parts} parts" if parts > 1 else "")
        items.append(field("size", files))
        if entry.problem:
            items.append(Content.styled("\n" + entry.problem, "$text-error"))
        if entry.facts.n_layers:
            facts = entry.facts
            items.append(field("quant", f"{row.quant or facts.quant}, {facts.architecture}"))
            items += shape(facts.n_layers, facts.n_experts, facts.n_expert_used, facts.n_ctx_train)
            items.append(active(facts.expert_bytes_per_token, facts.active_bytes_per_token))
    items += placement(plan)
    items.append(Content.styled("\n" + visible_line(note), "$foreground-muted") if note and plan is None else None)
    return lines(items, width)


def catalogue(
    row: Row, plan: Plan | None, repo: HubRepo | None, here: Machine, note: str = "", plan_key: str = "", width: int = 0
) -> Content:
    """A model of the catalogue; with `repo`, what the hub says of its files now. `plan_key` plans from the header."""
    model = row.model
    assert model is not None
    items: list[Item] = [
        Content.styled(visible_line(model.name), "bold"),
        *headline(plan),
        field("hub", model.repo),
        *[field("", other) for other in model.repos[1:]],
        field("licence", model.licence) if model.licence else None,
        field("arch", model.architecture) if model.architecture else None,
        *shape(model.n_layers, model.n_experts, model.n_expert_used, model.context),
        download(plan.to_download) if plan is not None and plan.to_download else None,
        Content(model.note) if model.note else None,
    ]
    items += placement(plan)
    if plan is not None and plan.kv_bytes_per_token == 0:
        text = "Estimated from the catalogue's figures"
        text += f"; {plan_key} plans from the header on the hub." if plan_key else "."
        items.append(Content.styled(text, "$foreground-muted"))
    items.append(heading("Files"))
    if repo is not None:
        items += quants([(q.label, q.size, len(q.files)) for q in repo.quants if q.complete], here)
    else:
        items += quants([(q.label, q.size, 0) for q in model.quants], here)
        items.append(Content.styled(note or "Sizes from the catalogue.", "$foreground-muted"))
    return lines(items, width)


def hub(
    row: Row, plan: Plan | None, repo: HubRepo | None, here: Machine, note: str = "", plan_key: str = "", width: int = 0
) -> Content:
    """A repository that the search found. `plan_key` plans from the header."""
    hit = row.hit
    items: list[Item] = [Content.styled(visible_line(row.name), "bold"), *headline(plan)]
    if hit is not None:
        items.append(field("downloads", f"{hit.downloads:,}" if hit.downloads is not None else figures.UNKNOWN))
        if hit.modified:
            items.append(field("updated", figures.ago(hit.modified, time.time())))
        licence = hit.licence or (repo.licence if repo else "")
        items.append(field("licence", licence) if licence else None)
    if plan is not None and plan.to_download:
        items.append(download(plan.to_download))
    if (repo is not None and repo.gated) or (hit is not None and hit.gated):
        text = f"Gated: accept its terms on the page of {row.repo}, then run `hf auth login` or set HF_TOKEN."
        items.append(Content.styled("\n" + text, "$text-warning"))
    if repo is not None and repo.private:
        items.append(Content.styled("\nPrivate: your token gives access.", "$text-warning"))
    items += placement(plan)
    if repo is not None:
        items.append(heading("Files"))
        items += quants([(q.label, q.size, len(q.files)) for q in repo.quants if q.complete], here)
        if not repo.quants:
            items.append(Content.styled("No GGUF model to chat with.", "$foreground-muted"))
        elif plan is None and plan_key:
            text = f"{plan_key} plans the usual one from its header (a few MB)."
            items.append(Content.styled(text, "$foreground-muted"))
    elif note:
        items.append(Content.styled("\n" + visible_line(note), "$foreground-muted"))
    return lines(items, width)


LINE_BYTES_S = 100e6 / 8
"""What a download's time is told for: a line of 100 Mbit/s."""


def download(size: int) -> Field:
    """How much comes, and how long that takes on a line that many people have."""
    about = figures.roughly(max(60.0, size / LINE_BYTES_S))
    return field("download", f"{figures.size(size)}, {about} at 100 Mbit/s")


def shape(n_layers: int, n_experts: int, n_used: int, context: int) -> list[Item]:
    """Layers, experts, context."""
    experts = f"{n_layers} layers x {n_experts} experts, {n_used} used" if n_experts else f"{n_layers} layers, dense"
    return [
        field("shape", experts) if n_layers else None,
        field("context", f"{context:,} tokens") if context else None,
    ]


def active(expert_bytes: int, active_bytes: int) -> Field | None:
    """Bytes that a token touches."""
    if not active_bytes:
        return None
    of = f", {figures.size(expert_bytes)} experts" if expert_bytes else ""
    return field("a token", f"{figures.size(active_bytes)}{of}")


def headline(plan: Plan | None) -> list[Item]:
    """What would happen, in a sentence, and how fast it would be."""
    if plan is None:
        return []
    verdict = Content.assemble(
        (_sentence(FIT_WORDS.get(plan.verdict, plan.verdict)), f"bold {FIT_STYLES.get(plan.verdict, '')}"),
        visible_line(plan.sentence),
    )
    speed = plan.speed
    if speed is None:
        return [verdict]
    about = f"{'' if speed.source == 'measured' else '~'}{figures.speed(speed.expected)} tok/s"
    spread = f"  {figures.speed(speed.low)} to {figures.speed(speed.high)}, bound by {speed.bound}"
    return [verdict, Content.assemble((about, "bold"), (spread, "$foreground-muted"))]


def placement(plan: Plan | None) -> list[Item]:
    """Where the bytes would go, and what the speed rests on."""
    if plan is None:
        return []
    place, speed = plan.place, plan.speed
    items: list[Item] = []
    if plan.verdict in ("fits", "streams"):
        rest = f"dense {figures.size(place.dense_ram)}"
        rest += f", KV {figures.size(place.kv_ram)} for {figures.count(plan.n_ctx)}" if place.kv_ram else ""
        vram = f"{figures.size(place.vram)}, {place.n_gpu_layers} layers" if place.vram else "none used"
        if place.vram_expert_layers:
            vram += f", experts of {place.vram_expert_layers}"
        ssd = f"{figures.size(place.experts_ssd)} of experts" if place.experts_ssd else "not needed"
        if place.tables_ssd:
            ssd = f"{ssd if place.experts_ssd else 'no experts'}, {figures.size(place.tables_ssd)} of embeddings"
        items += [
            heading(f"{visible_line(plan.quant, 20)} on this machine" if plan.quant else "On this machine"),
            field("RAM", f"experts {figures.size(place.experts_ram)}"),
            field("", rest),
            field("VRAM", vram),
            field("SSD", ssd),
        ]
        if plan.first_token_s:
            waits = ", ".join(f"{n // 1000}k {figures.duration(s)}" for n, s in plan.first_token_s)
            items.append(field("prompts", f"first token: {waits}"))
        if plan.budgets.least:
            least, advised = figures.size(plan.budgets.least), figures.size(plan.budgets.advised)
            items.append(field("budget", f"at least {least}, better {advised}"))
    if speed is not None:
        measured = speed.source == "measured"
        rests = "Measured on this machine." if measured else "Estimated; not measured on this machine yet."
        items.append(Content.styled(f"{rests} {visible_line(speed.reason)}", "$foreground-muted"))
    items += [Content.styled(visible_line(text), "$text-warning") for text in plan.notes]
    return items


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}. "


def _short(path: str, width: int = 32) -> str:
    """The end of a path, which tells more than its start."""
    return path if len(path) <= width else "…" + path[-(width - 1) :]


def quants(rows: list[tuple[str, int, int]], here: Machine) -> list[Item]:
    """(label, size, parts) with a first look at how each fits."""
    if not rows:
        return []
    width = min(24, max(len(label) for label, _, _ in rows))
    items: list[Item] = []
    for label, size, parts in rows[:MOST_QUANTS]:
        fit = quant_fit(size, here)
        split = f"  {parts} parts" if parts > 1 else ""
        items.append(
            Content.assemble(
                (f"{visible_line(label, width):<{width}} {figures.size(size):>9}  ", ""),
                (FIT_WORDS[fit], FIT_STYLES.get(fit, "")),
                (split, "$foreground-muted"),
            )
        )
    if len(rows) > MOST_QUANTS:
        items.append(Content.styled(f"and {len(rows) - MOST_QUANTS} more", "$foreground-muted"))
    return items
