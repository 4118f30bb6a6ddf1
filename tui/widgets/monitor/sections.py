"""The sections of the monitor as lines of text: memory, SSD, token, verdict. Pure functions of the feed."""

from __future__ import annotations

from functools import partial

from textual.content import Content

from backends.interface import ModelInfo
from flashmoe import figures
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.frame import Frame, Work
from flashmoe.monitor.sample import Gpu
from flashmoe.remote.address import shown
from flashmoe.text_safety import visible_line
from tui.texts import joined
from tui.widgets.monitor.lines import ALARM, COMPUTE, HOOK, MUTED, READ, line, meter, shares, spark, spread, wrap

_LABEL = 5
_VALUE = 17
_GPUS_IN_FULL = 4
_ROWS_BESIDE_GPUS = 5


def _curve(feed: MonitorFeed, label: str, name: str, top: float, value: str, width: int, style: str) -> Content:
    """``RAM  ▁▂▃▅▆▆   9.4 / 24.0 GiB``."""
    right = max(_VALUE, len(value) + 1)
    columns = max(4, width - _LABEL - right)
    curve = spark(feed.curve(name, columns), top)
    return line((f"{label:<{_LABEL}}", "bold"), (curve, style), f"{value:>{right}}")


def _note(text: str, style: str = MUTED) -> Content:
    return line(" " * _LABEL, (text, style))


def _of(value: float | None, total: float) -> str:
    """``  9.4 / 24.0 GiB``: as wide at 1 as at the whole."""
    whole = figures.size(total)
    amount = figures.size(value, total, unit=False)
    return f"{amount:>{len(whole.split()[0])}} / {whole}"


def memory(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    """RAM in use apart from page cache, the engine's own, the experts' budget; VRAM per GPU."""
    frame = feed.frame
    if frame is None or frame.ram_total is None:
        return [line(("no figures yet", MUTED))]
    total = frame.ram_total
    lines = [_curve(feed, "RAM", "ram", total, _of(frame.ram_used, total), width, COMPUTE)]
    name = "engine" if width >= 38 else "own"
    own = f"{name} {_own(frame.engine_own, total)} · " if frame.engine_own is not None else ""
    limit = "limit" if frame.ram_limited else ""
    cache = f"{own}page cache {figures.size(frame.ram_cache, total)}"
    if _LABEL + len(cache) + (len(limit) + 1 if limit else 0) > width:
        cache = cache.replace("page cache", "cache")
    lines.append(spread(_note(cache), line((limit, MUTED)), width))
    experts = _experts_line(feed, frame, width)
    gpu_lines = _vram(feed, frame, width, rows)
    trouble = _pressure_line(frame)
    if experts is not None:
        lines.append(experts)
    kv = _kv_line(feed, frame, width)
    if kv is not None and rows - len(lines) > max(1, len(gpu_lines)):
        lines.append(kv)
    lines += gpu_lines[: max(1, rows - len(lines))]
    if len(lines) < rows and (trouble is not None or rows - len(lines) >= 1):
        lines.append(trouble if trouble is not None else _note("waits for memory  0 %"))
    return lines[:rows]


def _own(value: float, total: int) -> str:
    """A figure that shares the unit of the total, unless it would read as next to nothing."""
    unit, _ = figures.binary_unit(total)
    return figures.size(value) if value < 0.095 * unit else figures.size(value, total, unit=False)


def _experts_line(feed: MonitorFeed, frame: Frame, width: int) -> Content | None:
    model = feed.model
    if frame.budget and frame.resident is not None:
        text = f"experts {_of(frame.resident, frame.budget).strip()} "
        share = frame.resident / frame.budget
    elif model is not None and model.expert_bytes and frame.resident is not None:
        held = min(frame.resident, model.expert_bytes)  # whole pages can come to more than the experts in them
        text = f"experts {_of(held, model.expert_bytes).strip()} "
        share = held / model.expert_bytes
    elif model is not None and frame.model_cached is not None and model.file_bytes:
        text = f"file {_of(frame.model_cached, model.file_bytes).strip()} "
        share = frame.model_cached / model.file_bytes
    else:
        return None
    return line(" " * _LABEL, (text, MUTED), meter(share, max(0, width - _LABEL - len(text))))


def _kv_line(feed: MonitorFeed, frame: Frame, width: int) -> Content | None:
    """``KV 192 MiB, 12 % in use ▰▱▱▱``: the cache of the context, and how full it is."""
    model = feed.model
    if model is None or not model.kv_bytes or not model.n_ctx:
        return None
    share = frame.ctx_used / model.n_ctx
    text = f"KV {figures.size(model.kv_bytes)}, {figures.percent(share).strip()} used "
    return line(" " * _LABEL, (text, MUTED), meter(share, max(0, width - _LABEL - len(text))))


def vram_rows(gpus: int) -> int:
    """Lines that so many GPUs would like: a second one for the engine's share each, as long as they are few."""
    return 2 * gpus if gpus <= _GPUS_IN_FULL else gpus


def _vram(feed: MonitorFeed, frame: Frame, width: int, rows: int) -> list[Content]:
    if not frame.gpus:
        words = joined(_unmetered(feed.model), width - _LABEL) or frame.gpu_note or "unknown"
        return [line((f"{'VRAM':<{_LABEL}}", "bold"), (words, MUTED))]
    if len(frame.gpus) == 1:
        gpu = frame.gpus[0]
        lines = [_curve(feed, "VRAM", "vram", gpu.total, _of(gpu.used, gpu.total), width, COMPUTE)]
        return [*lines, _gpu_note(gpu, width, in_vram(feed))]
    in_full = len(frame.gpus) <= _GPUS_IN_FULL and rows >= _ROWS_BESIDE_GPUS + vram_rows(len(frame.gpus))
    lines = []
    for gpu in frame.gpus:
        value = _of(gpu.used, gpu.total)
        own = f"own {_own(gpu.engine_used, gpu.total)} · " if gpu.engine_used is not None and not in_full else ""
        if _LABEL + 5 + len(own) + len(value) > width:
            own = ""
        room = max(4, width - _LABEL - len(own) - len(value) - 1)
        gauge = meter(gpu.used / gpu.total if gpu.total else None, room)
        lines.append(line((f"{f'GPU{gpu.index}':<{_LABEL}}", "bold"), gauge, f" {own}{value}"))
        if in_full:
            lines.append(_gpu_note(gpu, width))
    return lines


def _unmetered(model: ModelInfo | None) -> list[str]:
    """What is known of a GPU that the model's layers are on and whose driver tells nothing here (Intel's, Vulkan's in
    software, one in the processor); nothing where no layer is on one."""
    if model is None or not model.n_gpu_layers:
        return []
    taken = [f"{figures.size(model.vram_bytes)} at load"] if model.vram_bytes else []
    return [*taken, "no meter for this GPU"]


def in_vram(feed: MonitorFeed) -> int:
    """Bytes of experts that the GPUs hold."""
    return feed.model.vram_expert_bytes if feed.model is not None else 0


def _gpu_note(gpu: Gpu, width: int, expert_bytes: int = 0) -> Content:
    """Whose the memory is and how busy the GPU is, in the longest words that leave nothing out."""
    busy = f"{figures.percent(gpu.busy).strip()} busy" if gpu.busy is not None else ""
    words = ""
    for name, figure in (("engine", figures.size), ("own", partial(_own, total=gpu.total))):
        engine = f"{name} {figure(gpu.engine_used)}" if gpu.engine_used is not None else gpu.name
        experts = f"experts {figure(expert_bytes)}" if expert_bytes else ""
        words = " · ".join(part for part in (engine, experts, busy) if part)
        if len(words) <= width - _LABEL:
            return _note(words)
    return _note(joined(words.split(" · "), width - _LABEL))


def _pressure_line(frame: Frame) -> Content | None:
    parts = []
    if frame.memory_stall is not None and frame.memory_stall >= 0.005:
        parts.append(f"waits for memory {figures.percent(frame.memory_stall)}")
    if frame.swap_used:
        parts.append(f"swap {figures.size(frame.swap_used)}")
    if not parts:
        return None
    bad = (frame.memory_stall or 0) > 0.1
    return _note(("! " if bad else "") + " · ".join(parts), ALARM if bad else MUTED)


def disk(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    """The engine's reads against the probed ceiling, others' apart, latency; hit rate and bytes a token."""
    frame = feed.frame
    if frame is None:
        return [line(("no figures yet", MUTED))]
    if frame.disk is None and frame.read_s is None:
        return [line(("no engine is running", MUTED))]
    scale, probed = feed.disk_scale()
    whole = figures.rate(scale)
    amount = figures.rate(frame.read_s, scale, unit=False)
    value = f"{amount:>{len(whole.split()[0])}} / {whole}"
    lines = [_curve(feed, "read", "read", scale, value, width, READ)]
    parts = []
    if frame.others_s is not None:
        parts.append(f"others read {figures.rate(frame.others_s, max(frame.others_s, 1e6))}")
    if frame.latency_s:
        latency = figures.duration(frame.latency_s)
        room = width - _LABEL - sum(len(part) + 3 for part in parts)
        parts.append(f"{latency} a read" if len(latency) + 7 <= room else latency)
    right = "of the measured maximum" if probed else "of the highest so far" if frame.disk else ""
    note = _note(" · ".join(parts) or ("other programs: unknown" if frame.disk else "this model's disk is unknown"))
    lines.append(spread(note, line((right, MUTED)), width) if note.cell_length + len(right) < width else note)
    work = frame.decode
    if work is not None and work.hit_rate is not None:
        lines.append(_curve(feed, "hit", "hit", 1.0, figures.percent(work.hit_rate), width, COMPUTE))
    if work is not None and work.bytes_per_token is not None:
        read = work.bytes_per_token
        lines.append(_note(f"{figures.size(read)} read per token" if read >= 1 else "the last tokens read nothing"))
    elif work is None:
        lines.append(_note("no token yet"))
    return lines[:rows]


def is_remote(feed: MonitorFeed) -> bool:
    """Whether a server computes, of which only what arrives is known here."""
    return feed.model is not None and feed.model.backend == "remote"


def server(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    """Where the answers come from, and the context there."""
    model, frame = feed.model, feed.frame
    if model is None:
        return []
    lines = [line((visible_line(shown(model.path), max(8, width)), ""))]
    if model.n_ctx:
        used = f"{frame.ctx_used:,} of " if frame is not None and frame.ctx_used else ""
        lines.append(line((f"context {used}{model.n_ctx:,} tokens", MUTED)))
    else:
        lines.append(line(("context: unknown", MUTED)))
    return lines[:rows]


def _arrivals(feed: MonitorFeed, frame: Frame, width: int) -> list[Content]:
    """A server's answers as they arrive: the wait for the first token, and the speed."""
    lines = []
    if frame.prefill is not None and frame.prefill.total_s:
        lines.append(line(("first token after ", MUTED), figures.duration(frame.prefill.total_s)))
    if frame.tok_s is not None:
        value = f"{figures.speed(frame.tok_s)} tok/s"
        lines.append(_curve(feed, "speed", "tok_s", feed.speed_scale(), value, width, READ))
    return lines or [line(("no token yet", MUTED))]


def token(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    """Where the time of the last tokens went, and the speed."""
    frame = feed.frame
    if frame is not None and is_remote(feed):
        return _arrivals(feed, frame, width)[:rows]
    work = _shown(frame)
    if frame is None or work is None or not work.total_s:
        return [line(("·" * width, MUTED)), line(("no token yet", MUTED))][:rows]
    lines = [anatomy_bar(work, width), anatomy_words(work)]
    lines.append(_curve(feed, "speed", "tok_s", feed.speed_scale(), f"{figures.speed(work.tok_s)} tok/s", width, READ))
    return lines[:rows]


def _shown(frame: Frame | None) -> Work | None:
    if frame is None:
        return None
    if frame.phase == "prefill" and frame.prefill is not None:
        return frame.prefill
    return frame.decode or frame.prefill


def anatomy_bar(work: Work, width: int) -> Content:
    """Reading, the router's call-back and computing as one bar; one colour where the backend doesn't know."""
    if work.stall_s is None:
        return line(("▒" * width, MUTED))
    parts = [(work.stall_s, "█", READ), (work.hook_s or 0.0, "░", HOOK), (work.compute_s or 0.0, "▒", COMPUTE)]
    return shares(parts, width)


def anatomy_words(work: Work) -> Content:
    """``█read 61% ▒compute 38% ░router  1%``: each figure two places wide, so that nothing moves."""
    if work.stall_s is None:
        per_token = figures.duration(work.total_s / work.tokens) if work.tokens else figures.UNKNOWN
        return line((f"{per_token} a token; reads aren't timed here", MUTED))
    total = work.total_s
    hook = (work.hook_s or 0.0) / total
    read = min(1.0, work.stall_s / total)
    compute = max(0.0, 1 - read - hook)
    return line(
        *(("█", READ), f"read {read * 100:2.0f}% "),
        *(("▒", COMPUTE), f"compute {compute * 100:2.0f}% "),
        *(("░", HOOK), f"router {hook * 100:2.0f}%"),
    )


def verdict(feed: MonitorFeed, width: int, rows: int) -> list[Content]:
    """What bounds the speed, how close to the bound, what would help."""
    said = feed.verdict
    lines = [line((text, "bold $primary")) for text in wrap(said.headline, width, 2 if rows > 2 else 1)]
    if said.detail:
        lines += [line((text, "")) for text in wrap(said.detail, width, 2 if rows > 3 else 1)]
    if said.advice:
        lines += [line((text, "$success")) for text in wrap(said.advice, width, max(1, rows - len(lines)))]
    return lines[:rows]
