"""From counters to what is shown: rates and shares over short windows, computed the same way live and in replay."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any, Literal, TypeVar

from msgspec import Struct

from flashmoe.monitor.sample import Gpu, ProcessCounters, Sample

RATE_WINDOW_S = 2.0
"""Rates are differences over this long: steady enough to read, quick enough to see."""
PHASE_WINDOW_S = 12.0
"""Token anatomy covers the last so many seconds of decoding (or of prefill), idle time left out."""

Phase = Literal["none", "idle", "prefill", "decode"]


class Work(Struct, kw_only=True):
    """What a stretch of one phase (decode or prefill) took. None: this backend can't know."""

    tokens: int = 0
    total_s: float = 0.0
    stall_s: float | None = None
    hook_s: float | None = None
    read_bytes: int | None = None
    """Expert bytes read; of a backend that doesn't count them, what the process read from storage."""
    hits: int | None = None
    misses: int | None = None
    evictions: int | None = None
    major_faults: int | None = None
    cpu_s: float | None = None
    gpu_busy: float | None = None

    @property
    def tok_s(self) -> float | None:
        """Tokens per second of this phase."""
        return self.tokens / self.total_s if self.tokens and self.total_s > 0 else None

    @property
    def compute_s(self) -> float | None:
        """Seconds that were neither waiting for reads nor the hook's; None where the stall isn't known."""
        if self.stall_s is None:
            return None
        return max(0.0, self.total_s - self.stall_s - (self.hook_s or 0.0))

    @property
    def hit_rate(self) -> float | None:
        """Share of chosen experts that were resident."""
        if self.hits is None or self.misses is None or self.hits + self.misses == 0:
            return None
        return self.hits / (self.hits + self.misses)

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes read for each token."""
        return self.read_bytes / self.tokens if self.read_bytes is not None and self.tokens else None


_SUMMED = (
    "tokens",
    "total_s",
    "stall_s",
    "hook_s",
    "read_bytes",
    "hits",
    "misses",
    "evictions",
    "major_faults",
    "cpu_s",
)


def together(stretches: Collection[Work]) -> Work | None:
    """All of them as one; None of none. What one of them doesn't know isn't known of all."""
    if not stretches:
        return None
    summed: dict[str, Any] = {}
    for name in _SUMMED:
        values = [getattr(work, name) for work in stretches]
        summed[name] = None if None in values else sum(values)
    busy = [(work.gpu_busy, work.total_s) for work in stretches if work.gpu_busy is not None]
    seconds = sum(s for _, s in busy)
    mean = sum(share * s for share, s in busy) / seconds if seconds > 0 else busy[-1][0] if busy else None
    return Work(**summed, gpu_busy=mean)


class Frame(Struct, kw_only=True, frozen=True):
    """What the panes show at one moment. Bytes, bytes per second, shares from 0 to 1; None for unknown."""

    t: float
    wall: float
    phase: Phase = "none"
    # memory
    ram_total: int | None = None
    """The machine's memory, or the cgroup's limit where that is less."""
    ram_limited: bool = False
    ram_used: int | None = None
    """In use apart from page cache."""
    ram_cache: int | None = None
    """Page cache: given back when somebody needs it."""
    ram_available: int | None = None
    engine_own: int | None = None
    engine_mapped: int | None = None
    engine_swap: int | None = None
    swap_used: int | None = None
    swap_total: int = 0
    model_cached: int | None = None
    resident: int | None = None
    budget: int | None = None
    memory_stall: float | None = None
    """Share of time that some task waited for memory (PSI some)."""
    io_stall: float | None = None
    cpu_stall: float | None = None
    # GPUs
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str | None = None
    # disk
    disk: str | None = None
    read_s: float | None = None
    """The engine's reads from storage, bytes per second."""
    others_s: float | None = None
    """Everybody else's on the same device."""
    latency_s: float | None = None
    disk_busy: float | None = None
    # engine
    cpu_cores: float | None = None
    cpus: int | None = None
    faults_s: float | None = None
    tok_s: float | None = None
    """Of the phase that runs, or ran last."""
    decode: Work | None = None
    prefill: Work | None = None
    ctx_used: int = 0
    n_active: int = 0
    n_waiting: int = 0
    next_token_reuse: float | None = None
    reuse_hist: tuple[int, ...] | None = None
    layer_pace: tuple[tuple[float, float], ...] | None = None


class Deriver:
    """Turns a stream of samples into frames; holds only short windows of them."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._work: dict[str, deque[Work]] = {"decode": deque(), "prefill": deque()}
        self._totals: dict[str, Work | None] = {}
        self._last_phase: Phase = "idle"  # what advanced last
        self._start: Sample | None = None  # the first sample of what isn't booked yet
        self._started = False  # a request became active and nothing advanced since: it reads its prompt

    def push(self, sample: Sample) -> Frame:
        """The frame at this sample."""
        previous = self._samples[-1] if self._samples else None
        if previous is not None and (sample.t <= previous.t or _restarted(previous, sample)):
            self._samples.clear()
            for work in self._work.values():
                work.clear()
            self._totals.clear()
            previous = None
        if previous is not None:
            before, now = previous.telemetry, sample.telemetry
            if now is not None and now.n_active and before is not None and not before.n_active:
                self._started = True
            # A batch counts its seconds when it is done, but its reads and waits while it runs: what happened since the
            # last batch that was done belongs to this one, over as many samples as it takes.
            start = self._start or previous
            if self._account(start, sample) or start.telemetry is None or now is None or not now.n_active:
                start = sample
            self._start = start
        else:
            self._start = sample
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].t <= sample.t - RATE_WINDOW_S:
            self._samples.popleft()
        return self._frame(sample, self._samples[0])

    def _account(self, a: Sample, b: Sample) -> bool:
        """Books what happened between two samples to decode or to prefill; False where no batch was done yet."""
        x, y = a.telemetry, b.telemetry
        if x is None or y is None or y.t <= x.t:
            return False
        decode_s, prefill_s = y.decode_s - x.decode_s, y.prefill_s - x.prefill_s
        if decode_s <= 0 and prefill_s <= 0:
            return False
        phase: Phase = "decode" if decode_s >= prefill_s else "prefill"
        self._last_phase, self._started = phase, False
        p, q = a.process, b.process
        if p is None or q is None or p.pid != q.pid:
            p = q = ProcessCounters(pid=0)
        read_bytes = _diff(x.read_bytes, y.read_bytes)
        if read_bytes is None:
            read_bytes = _diff(p.read_bytes, q.read_bytes)
        work = Work(
            tokens=(y.decode_tokens - x.decode_tokens) if phase == "decode" else (y.prefill_tokens - x.prefill_tokens),
            total_s=decode_s if phase == "decode" else prefill_s,
            stall_s=_diff(x.stall_s, y.stall_s),
            hook_s=_diff(x.hook_s, y.hook_s),
            read_bytes=read_bytes,
            hits=_diff(x.expert_hits, y.expert_hits),
            misses=_diff(x.expert_misses, y.expert_misses),
            evictions=_diff(x.evictions, y.evictions),
            major_faults=_diff(p.major_faults, q.major_faults),
            cpu_s=_diff(p.cpu_s, q.cpu_s),
            gpu_busy=max((g.busy for g in b.gpus if g.busy is not None), default=None),
        )
        # An interval in which both phases ran can't be told apart: kept only where nothing cleaner is there.
        if min(decode_s, prefill_s) > 0.1 * max(decode_s, prefill_s) and self._work[phase]:
            return True
        window = self._work[phase]
        window.append(work)
        self._totals.pop(phase, None)
        while len(window) > 4 and sum(w.total_s for w in window) - window[0].total_s > PHASE_WINDOW_S:
            window.popleft()
        return True

    def _total(self, phase: str) -> Work | None:
        """The window's stretches together, summed once for each that comes."""
        if phase not in self._totals:
            self._totals[phase] = together(self._work[phase])
        return self._totals[phase]

    def _frame(self, b: Sample, a: Sample) -> Frame:
        dt = b.t - a.t
        tel, mem, proc = b.telemetry, b.memory, b.process
        old = a.process if a.process and proc and a.process.pid == proc.pid else None
        read_s = _rate(old.read_bytes if old else None, proc.read_bytes if proc else None, dt)
        device_s = latency = busy = None
        if a.disk and b.disk and a.disk.name == b.disk.name:
            device_s = _rate(a.disk.read_bytes, b.disk.read_bytes, dt)
            reads = b.disk.reads - a.disk.reads
            latency = (b.disk.read_s - a.disk.read_s) / reads if reads > 0 else None
            busy = _rate(a.disk.busy_s, b.disk.busy_s, dt)
        pa, pb = a.pressure, b.pressure
        decode, prefill = self._total("decode"), self._total("prefill")
        phase: Phase = "none"
        if tel is not None:
            phase = "idle"
            if tel.n_active:
                phase = self._now(a, b)
            else:
                self._started = False
        shown = prefill if self._last_phase == "prefill" else decode
        limited = mem is not None and mem.limit is not None
        total, used, cache, available = _ram(b)
        return Frame(
            t=b.t,
            wall=b.wall,
            phase=phase,
            ram_total=total,
            ram_limited=limited,
            ram_used=used,
            ram_cache=cache,
            ram_available=available,
            engine_own=_add_int(proc.rss_anon, proc.rss_shmem) if proc else None,
            engine_mapped=proc.rss_file if proc else None,
            engine_swap=proc.swap if proc else None,
            swap_used=(mem.swap_total - mem.swap_free) if mem and mem.swap_total else None,
            swap_total=mem.swap_total if mem else 0,
            model_cached=b.model_cached,
            resident=tel.resident_bytes if tel else None,
            budget=tel.budget_bytes if tel else None,
            memory_stall=_rate(pa.memory_some_s, pb.memory_some_s, dt) if pa and pb else None,
            io_stall=_rate(pa.io_some_s, pb.io_some_s, dt) if pa and pb else None,
            cpu_stall=_rate(pa.cpu_some_s, pb.cpu_some_s, dt) if pa and pb else None,
            gpus=b.gpus,
            gpu_note=b.gpu_note,
            disk=b.disk.name if b.disk else None,
            read_s=read_s,
            others_s=max(0.0, device_s - (read_s or 0.0)) if device_s is not None else None,
            latency_s=latency,
            disk_busy=min(1.0, busy) if busy is not None else None,
            cpu_cores=_rate(old.cpu_s if old else None, proc.cpu_s if proc else None, dt),
            cpus=b.cpus,
            faults_s=_rate(old.major_faults if old else None, proc.major_faults if proc else None, dt),
            tok_s=shown.tok_s if shown else None,
            decode=decode,
            prefill=prefill,
            ctx_used=tel.ctx_used if tel else 0,
            n_active=tel.n_active if tel else 0,
            n_waiting=tel.n_waiting if tel else 0,
            next_token_reuse=tel.next_token_reuse if tel else None,
            reuse_hist=tel.reuse_bytes_hist if tel else None,
            layer_pace=tel.layer_pace if tel else None,
        )

    def _now(self, a: Sample, b: Sample) -> Phase:
        """The phase of an active engine: what advanced in the window, else what advanced last."""
        x, y = a.telemetry, b.telemetry
        if self._started:
            return "prefill"
        if x is not None and y is not None:
            decode_s, prefill_s = y.decode_s - x.decode_s, y.prefill_s - x.prefill_s
            if decode_s > 0 or prefill_s > 0:
                return "decode" if decode_s >= prefill_s else "prefill"
        if self._last_phase == "idle":  # whoever began to look in the middle of an answer
            return "decode" if y is not None and y.decode_tokens else "prefill"
        return self._last_phase


def _restarted(a: Sample, b: Sample) -> bool:
    """Whether the engine or its model was replaced between two samples: counters that fell."""
    x, y = a.telemetry, b.telemetry
    if x is None or y is None:
        return False
    return y.decode_tokens < x.decode_tokens or y.prefill_tokens < x.prefill_tokens or y.decode_s < x.decode_s


def _ram(sample: Sample) -> tuple[int | None, int | None, int | None, int | None]:
    """(total, used apart from page cache, page cache, available), inside the cgroup's limit where there is one."""
    mem = sample.memory
    if mem is None:
        return None, None, None, None
    if mem.limit is not None and mem.limit_used is not None:
        cached = min(mem.limit_cached or 0, mem.limit_used)
        available = min(mem.available, mem.limit - mem.limit_used + cached)
        return mem.limit, mem.limit_used - cached, cached, max(0, available)
    return mem.total, max(0, mem.total - mem.free - mem.cached), mem.cached, mem.available


N = TypeVar("N", int, float)


def _diff(a: N | None, b: N | None) -> N | None:
    return None if a is None or b is None else max(b - a, type(b)(0))


def _add_int(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else a + b


def _rate(a: float | None, b: float | None, dt: float) -> float | None:
    return None if a is None or b is None or dt <= 0 else max(0.0, (b - a) / dt)
