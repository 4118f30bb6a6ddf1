"""One line in words: what bounds the speed now, how close to the physical bound, and what one change would bring.

The figures are this session's own: time shares from the engine's counters, the bound from the probed disk, and the
effect of another budget from the reuse distances measured while it ran (`backends.streaming.reuse_distance`).
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from backends.interface import ModelInfo
from flashmoe import figures
from flashmoe.monitor.frame import Frame, Work
from flashmoe.monitor.prediction import predict_total_s
from flashmoe.monitor.vram_advice import vram_advice
from flashmoe.remote.address import shown

Bound = Literal["none", "idle", "ssd", "cpu", "gpu", "memory", "faults", "hook", "prefill", "remote"]

_GIB = 1 << 30
_MIB = 1 << 20
_STEPS = tuple(
    [n * _MIB for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)] + [n * _GIB for n in (1, 2, 4, 8, 16, 32, 64, 128)]
)
_KEEP_FREE = 512 * _MIB
"""Memory that no advice touches."""
_WORTH_SAYING = 1.05
_STALLED = 0.1
"""The share of time that some task waits for memory, from which faults are not just those of a first use."""
_FAULTS_OF_A_MISS = 4
"""Reading an expert counts as half a fault (measured), of which some room is left."""
_SOME_FAULTS = 4
_KEPT = 0.85
"""Of the pages that the kernel let the experts have: it needs some to work with."""
_CPUS_TAKEN = 0.2
"""The share of time that some task waits for a CPU, from which another thread would find none free."""
_FULL = 0.9
"""A budget that holds less of itself than this, and gave nothing up yet, is still filling."""


class Verdict(Struct, kw_only=True, frozen=True):
    """What bounds the speed. `share` is the physical bound's time over the measured one, 1 at the bound."""

    kind: Bound
    headline: str
    detail: str = ""
    advice: str = ""
    share: float | None = None
    tok_s: float | None = None
    predicted_tok_s: float | None = None
    """With the advised change; None where the advice has no number."""
    change_bytes: int | None = None
    """The advised change of the experts' memory."""

    @property
    def line(self) -> str:
        """All of it on one line."""
        return " · ".join(part for part in (self.headline, self.detail, self.advice) if part)


def judge(frame: Frame, info: ModelInfo | None, ceiling: float | None) -> Verdict:
    """The verdict on a frame. `ceiling`: bytes per second that the model's disk can give, None while unknown."""
    if info is None or frame.phase == "none":
        return Verdict(kind="none", headline="no model loaded")
    if info.backend == "remote":
        return _remote(frame, info)
    if frame.phase == "prefill" and frame.prefill is not None and frame.prefill.tokens:
        return _prefill(frame, frame.prefill, info, ceiling)
    if frame.phase == "prefill":
        return _prompt_begun(frame, ceiling)
    work = frame.decode
    if work is None or not work.tokens or work.total_s <= 0:
        if frame.prefill is not None and frame.prefill.tokens:
            return _prefill(frame, frame.prefill, info, ceiling)
        waiting = frame.phase == "decode"
        return Verdict(kind="idle", headline="the first token is on its way" if waiting else "ready")
    if pressed := _memory_pressure(frame, work, info):
        return pressed
    if work.stall_s is None:
        return _unmetered(frame, work, info, ceiling)
    stall, hook, compute = work.stall_s, work.hook_s or 0.0, work.compute_s or 0.0
    if hook > 0.2 * work.total_s and hook >= stall and hook >= 0.5 * compute:
        return _hook(frame, work, info, hook)
    if taken := _taken_back(frame, work, info):
        return taken
    if stall > compute:
        return _ssd(frame, work, info, ceiling)
    return _compute(frame, work, info)


def _remote(frame: Frame, info: ModelInfo) -> Verdict:
    """A server computes. What bounds it can't be seen from here; its speed as it arrives can."""
    if frame.phase == "prefill":
        return Verdict(kind="remote", headline="waiting for the server", detail=shown(info.path))
    speed = f"{figures.speed(frame.tok_s)} tok/s as they arrive" if frame.tok_s is not None else ""
    return Verdict(kind="remote", headline="computed by a server", detail=speed, tok_s=frame.tok_s)


def _taken_back(frame: Frame, work: Work, info: ModelInfo) -> Verdict | None:
    """Experts were made resident, and the kernel took them back before they were computed on: the engine counts them
    as held, so its waits are few, and the computing itself waits, or the CPUs are busy fetching pages."""
    faults, stalled = (work.major_faults or 0) / work.tokens, frame.memory_stall or 0.0
    got = _cpu_got(work, info, frame)
    starved = got[0] / got[1] if got is not None and got[0] < 0.7 * got[1] else None
    unexplained = work.misses is not None and faults > _FAULTS_OF_A_MISS * work.misses / work.tokens
    if faults <= 20 or (starved is None and stalled < _STALLED and not unexplained):
        return None
    if starved is not None:
        without = work.total_s - (work.compute_s or 0.0) * (1 - starved)
    else:
        without = work.total_s * (1 - min(0.9, stalled))
    held = min(frame.resident or 0, frame.ram_cache or 0)
    advice, change = _change("with a pool or more memory, up to", work, without), None
    if info.store == "pagecache" and held:
        keeps = int(_KEPT * held)
        change = keeps - frame.budget if frame.budget else None
        gain = f"{figures.speed(work.tok_s)} → {figures.speed(_speed(work, without))} tok/s or more"
        if change is None or change < 0:
            advice = f"--ram {keeps / _GIB:.2f}, which stays in memory"
            if without * _WORTH_SAYING < work.total_s:
                advice += f": {gain}"
    return Verdict(
        kind="faults",
        headline="bound by page faults",
        detail=f"{faults:.0f} a token: too little memory to keep what was just read",
        advice=advice,
        tok_s=work.tok_s,
        predicted_tok_s=_speed(work, without),
        change_bytes=change if change is not None and change < 0 else None,
    )


def _hook(frame: Frame, work: Work, info: ModelInfo, hook: float) -> Verdict:
    """What helps is to do without it, where all experts fit into memory; else that fewer of them are missed."""
    fits = (
        bool(info.expert_bytes) and info.expert_bytes < (frame.resident or 0) + (frame.ram_available or 0) - _KEEP_FREE
    )
    advice, predicted, change = _memory_advice(frame, work, info) if not fits else ("", None, None)
    if fits:
        predicted = _speed(work, work.compute_s or 0.0)
        advice = (
            f"all experts fit into RAM, --backend mmap: {figures.speed(work.tok_s)} → {figures.speed(predicted)} tok/s"
        )
    return Verdict(
        kind="hook",
        headline="bound by the router",
        detail=f"{figures.percent(hook / work.total_s).strip()} of each token",
        advice=advice,
        share=(work.total_s - hook) / work.total_s,
        tok_s=work.tok_s,
        predicted_tok_s=predicted,
        change_bytes=change,
    )


def _speed(work: Work, total_s: float) -> float | None:
    return work.tokens / total_s if total_s > 0 else None


def _change(what: str, work: Work, total_s: float) -> str:
    return f"{what}: {figures.speed(work.tok_s)} → {figures.speed(_speed(work, total_s))} tok/s"


def _bound_share(work: Work, ceiling: float | None) -> float | None:
    """max(compute, reads at the disk's ceiling) over what it took; None where either isn't known."""
    compute = work.compute_s
    if compute is None or ceiling is None or work.read_bytes is None or work.total_s <= 0:
        return None
    return min(1.0, max(compute, work.read_bytes / ceiling) / work.total_s)


def _memory_pressure(frame: Frame, work: Work, info: ModelInfo) -> Verdict | None:
    """Swapping, or stalls for memory that aren't reads of experts (which the kernel also books as memory stalls)."""
    swapped = frame.engine_swap or 0
    faults = (work.major_faults or 0) / work.tokens
    stalled = frame.memory_stall or 0.0
    if swapped > 64 * _MIB and faults > 20:
        return Verdict(
            kind="memory",
            headline="bound by memory pressure",
            detail=f"{figures.size(swapped)} of the engine is swapped out",
            advice=f"lower --ram by {figures.size(_step_over(swapped))}",
            tok_s=work.tok_s,
            change_bytes=-_step_over(swapped),
        )
    waits = (work.stall_s or 0.0) / work.total_s
    # The kernel tells of all tasks together: others' waits alone don't bound the engine.
    if stalled > 0.2 and work.stall_s is not None and stalled > 2 * waits and faults > _SOME_FAULTS:
        short = max(0, _KEEP_FREE - (frame.ram_available or 0))
        give = _step_over(max(short, (info.budget_bytes or frame.resident or _GIB) // 8))
        return Verdict(
            kind="memory",
            headline="bound by memory pressure",
            detail=f"tasks wait for memory {figures.percent(stalled).strip()} of the time",
            advice=f"lower --ram by {figures.size(give)}",
            tok_s=work.tok_s,
            change_bytes=-give,
        )
    return None


def _filling(frame: Frame, work: Work) -> bool:
    """The budget isn't full yet: what is missed now was never read, which says nothing of another budget."""
    short = frame.budget is not None and frame.resident is not None and frame.resident < _FULL * frame.budget
    return short and not work.evictions


def _still_filling(frame: Frame) -> str:
    return f"the budget is still filling: {figures.size(frame.resident)} of {figures.size(frame.budget)}"


def _step_over(amount: float) -> int:
    return next((step for step in _STEPS if step >= amount), _STEPS[-1])


def _unmetered(frame: Frame, work: Work, info: ModelInfo, ceiling: float | None) -> Verdict:
    """A backend that doesn't know its stalls (mmap): faults and the block layer tell."""
    read, faults = work.bytes_per_token or 0.0, (work.major_faults or 0) / work.tokens
    if read > _MIB and (faults > 4 or (frame.io_stall or 0.0) > 0.2):
        detail = f"{figures.size(read)} and {faults:.0f} faults a token"
        share = work.read_bytes / ceiling / work.total_s if ceiling and work.read_bytes else None
        advice, predicted = "", None
        if ceiling and share is not None and share < 0.8:
            cpus = info.n_threads or frame.cpus or 1
            least = (work.cpu_s or 0.0) / cpus
            # At least: faults read around what they need, and streaming reads only the experts.
            predicted = _speed(work, max(work.read_bytes or 0, 1) / ceiling + least)
            if predicted and work.tok_s and predicted > work.tok_s * _WORTH_SAYING:
                advice = f"--backend stream: {figures.speed(work.tok_s)} → {figures.speed(predicted)} tok/s or more"
            else:
                predicted = None
        return Verdict(
            kind="faults",
            headline="bound by page faults",
            detail=detail,
            advice=advice,
            share=min(1.0, share) if share is not None else None,
            tok_s=work.tok_s,
            predicted_tok_s=predicted,
        )
    return _compute(frame, work, info)


def _cpu_got(work: Work, info: ModelInfo, frame: Frame) -> tuple[float, int] | None:
    """(CPUs that the compute really had, threads that wanted one); llama.cpp's threads spin, so they want all."""
    threads = min(info.n_threads or frame.cpus or 0, frame.cpus or 1 << 10)
    compute = work.compute_s if work.compute_s is not None else work.total_s
    if not threads or work.cpu_s is None or compute <= 0.2:
        return None
    return min(float(threads), work.cpu_s / compute), threads


def _compute(frame: Frame, work: Work, info: ModelInfo) -> Verdict:
    on_gpu = bool(info.n_gpu_layers) and (work.gpu_busy or 0.0) > 0.6
    name = "GPU" if on_gpu else "CPU"
    compute = work.compute_s if work.compute_s is not None else work.total_s
    share = compute / work.total_s if work.stall_s is not None else None
    detail = f"computing {figures.percent(share).strip()} of each token" if share is not None else ""
    headline, advice, predicted, change = f"bound by the {name}", "", None, None
    waits = work.total_s - compute
    threads, cpus = info.n_threads, frame.cpus
    got = None if on_gpu else _cpu_got(work, info, frame)
    if got is not None and got[0] < 0.7 * got[1] and not info.n_gpu_layers:
        headline = "bound by the CPU, which is shared"
        detail = f"the engine got {got[0]:.1f} of the {got[1]} CPUs that it wants"
        alone = waits + compute * got[0] / got[1]
        predicted = _speed(work, alone)
        advice = _change("without other programs", work, alone)
    elif not on_gpu and threads and cpus and threads < cpus and (frame.cpu_stall or 0.0) < _CPUS_TAKEN:
        fewer = waits + compute * threads / cpus
        predicted = _speed(work, fewer)
        advice = f"--threads {cpus}: up to {figures.speed(predicted)} tok/s"
    elif work.misses and _filling(frame, work):
        advice = _still_filling(frame)
    elif work.misses or info.vram_expert_bytes < info.expert_bytes:
        advice, predicted, change = _best_change(frame, work, info)
    if not advice and work.stall_s is not None:
        advice = "more memory would hardly help" if work.misses else "more memory would not help"
    if not detail and got is not None:
        detail = f"{got[0]:.1f} of {got[1]} CPUs busy"
    if info.gpu_reason:
        detail = f"{detail}{', ' if detail else ''}faster without the GPU"
    return Verdict(
        kind="gpu" if on_gpu else "cpu",
        headline=headline,
        detail=detail,
        advice=advice,
        share=share,
        tok_s=work.tok_s,
        predicted_tok_s=predicted,
        change_bytes=change,
    )


def _ssd(frame: Frame, work: Work, info: ModelInfo, ceiling: float | None) -> Verdict:
    stall = work.stall_s or 0.0
    share = _bound_share(work, ceiling)
    per_token = work.bytes_per_token
    detail = f"{figures.size(per_token)} a token" if per_token is not None else ""
    if share is not None:
        detail = f"{figures.percent(share).strip()} of the bound, {detail}"
    got = (work.read_bytes or 0) / stall if stall > 0 else 0.0
    others = frame.others_s or 0.0
    if ceiling and others > 0.3 * ceiling and got < 0.7 * ceiling:
        # Without the others, reads would go at the probed ceiling.
        quiet = work.total_s - stall + (work.read_bytes or 0) / ceiling
        return Verdict(
            kind="ssd",
            headline="bound by the SSD, which is shared",
            detail=f"other programs read {figures.rate(others)}",
            advice=_change("without them", work, quiet),
            share=share,
            tok_s=work.tok_s,
            predicted_tok_s=_speed(work, quiet),
        )
    if _filling(frame, work):
        return Verdict(
            kind="ssd",
            headline="bound by the SSD",
            detail=detail,
            advice=_still_filling(frame),
            share=share,
            tok_s=work.tok_s,
        )
    advice, predicted, change = _best_change(frame, work, info)
    if not advice:
        predicted = _speed(work, work.total_s - stall / 2)
        advice = _change("an SSD twice as fast", work, work.total_s - stall / 2)
    return Verdict(
        kind="ssd",
        headline="bound by the SSD",
        detail=detail,
        advice=advice,
        share=share,
        tok_s=work.tok_s,
        predicted_tok_s=predicted,
        change_bytes=change,
    )


def _best_change(frame: Frame, work: Work, info: ModelInfo) -> tuple[str, float | None, int | None]:
    """Memory, or experts in VRAM where that is free and brings more."""
    memory = _memory_advice(frame, work, info) if work.misses else ("", None, None)
    vram = vram_advice(frame, work, info)
    if vram is None or not work.tok_s or vram[1] < _WORTH_SAYING * max(work.tok_s, memory[1] or 0.0):
        return memory
    words, speed = vram
    return f"{words}: {figures.speed(work.tok_s)} → {figures.speed(speed)} tok/s", speed, None


def _memory_advice(frame: Frame, work: Work, info: ModelInfo) -> tuple[str, float | None, int | None]:
    """(words, predicted tok/s, bytes): the smallest step that brings most of what more memory can bring."""
    held = frame.resident or frame.budget
    if frame.reuse_hist is None or not held or not work.tok_s:
        return "", None, None
    fits = (frame.ram_available or 0) - _KEEP_FREE
    if info.store == "pagecache" and info.budget_bytes is None:
        fits = 0  # it already uses all memory that is free: more has to be freed or bought
    missing = max(0, info.expert_bytes - held)
    # No further than twice what is held: beyond, the cost of reads was hardly ever seen.
    steps = [step for step in _STEPS if held / 16 <= step <= held and step < missing]
    if 0 < missing <= held:
        steps.append(missing)
    options: list[tuple[int, float]] = []
    for step in steps:
        total = predict_total_s(frame, work, info, step)
        if total is not None and total > 0 and (speed := _speed(work, total)):
            options.append((step, speed))
    possible = [option for option in options if option[0] <= fits]
    chosen_from = possible or options
    if not chosen_from:
        return "", None, None
    best = max(speed for _, speed in chosen_from)
    if best < work.tok_s * _WORTH_SAYING:
        return "", None, None
    step, speed = next(o for o in chosen_from if o[1] - work.tok_s >= 0.7 * (best - work.tok_s))
    what = "more budget" if possible else "more RAM"
    words = f"{figures.size(step)} {what}: {figures.speed(work.tok_s)} → {figures.speed(speed)} tok/s"
    return words, speed, step


def _prompt_begun(frame: Frame, ceiling: float | None) -> Verdict:
    """The first batch of a prompt isn't done, which may take minutes: only the disk tells what it waits for."""
    read = frame.read_s or 0.0
    reading = ceiling is not None and read > 0.5 * ceiling
    return Verdict(
        kind="prefill",
        headline="reading the prompt, bound by the SSD" if reading else "reading the prompt",
        detail=f"its first batch reads {figures.rate(read)}" if read > _MIB else "its first batch",
        share=min(1.0, read / ceiling) if reading and ceiling else None,
    )


def _prefill(frame: Frame, work: Work, info: ModelInfo, ceiling: float | None) -> Verdict:
    """The prompt: a ubatch touches most experts of each layer, so reads come once a ubatch, not once a token."""
    stall = work.stall_s
    if stall is None or stall < 0.5 * work.total_s:
        detail = f"computing {figures.percent(1 - (stall or 0.0) / work.total_s).strip()} of the time"
        return Verdict(
            kind="prefill",
            headline="reading the prompt, bound by the " + ("GPU" if (work.gpu_busy or 0) > 0.6 else "CPU"),
            detail=detail if stall is not None else f"{figures.speed(work.tok_s)} tok/s",
            share=1 - stall / work.total_s if stall is not None else None,
            tok_s=work.tok_s,
        )
    share = _bound_share(work, ceiling)
    predicted = _speed(work, work.total_s - stall / 2)
    return Verdict(
        kind="prefill",
        headline="reading the prompt, bound by the SSD",
        detail=f"{figures.percent(share).strip()} of the bound" if share is not None else "",
        advice=_change(f"batches of {2 * info.n_ubatch}", work, work.total_s - stall / 2),
        share=share,
        tok_s=work.tok_s,
        predicted_tok_s=predicted,
    )
