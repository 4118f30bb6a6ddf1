#!/usr/bin/env python3
"""Samples of an engine that doesn't exist, for looking at the panes and for their tests: no figure here is measured.

    python benchmarks/demo_samples.py --case capped --seconds 120 --record /tmp/demo.fmrec

then `flashmoe-tui replay /tmp/demo.fmrec`. Cases: capped (the SSD bounds), warm (the CPU bounds), prefill, shared (a
disk that others read), gpu.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backends.interface import ExpertMap, ModelInfo, Telemetry
from backends.streaming.reuse_distance import ReuseMeter
from flashmoe.monitor.recording import Recorder
from flashmoe.monitor.sample import DiskCounters, Gpu, MemoryCounters, Pressure, ProcessCounters, Sample

GIB = 1 << 30
MIB = 1 << 20
CASES = ("capped", "warm", "prefill", "shared", "gpu")


class DemoEngine:
    """A made-up engine whose cache is really simulated: LRU over a skewed trace, so that curves hang together."""

    def __init__(
        self,
        case: str = "capped",
        *,
        layers: int = 48,
        experts: int = 128,
        used: int = 8,
        expert_bytes: int = 2_800_000,
        budget_share: float = 0.35,
        seed: int = 7,
        skew: float = 0.8,
    ) -> None:
        self.case = case
        self.rng = np.random.default_rng(seed)
        self.shape = (layers, experts)
        self.used = used
        self.expert_bytes = expert_bytes
        self.total = layers * experts * expert_bytes
        self.budget = self.total if case == "warm" else int(self.total * budget_share)
        self.ceiling = 1.4e9
        weights = 1.0 / np.arange(1, experts + 1) ** skew
        self.weights = np.stack([self.rng.permutation(weights) for _ in range(layers)])
        self.meter = ReuseMeter(layers, experts, [expert_bytes] * layers)
        self.uses = np.zeros(self.shape, np.uint32)
        self.heat = np.zeros(self.shape, np.float32)
        self.last = np.zeros(self.shape, np.uint32)
        self.stamp = np.zeros(self.shape, np.int64)
        self.resident = np.zeros(self.shape, bool)
        self.layer_hits = np.zeros(layers, np.uint32)
        self.layer_misses = np.zeros(layers, np.uint32)
        self.clock = 0
        self.t = 1000.0
        self.tokens = self.prefilled = 0
        self.decode_s = self.prefill_s = self.stall = self.hook = 0.0
        self.read = self.others = self.hits = self.misses = self.evictions = 0
        self.reads = 0
        self.cpu = 0.0
        self.left = 0.0  # seconds of the current sample that a token still takes
        self.previous: np.ndarray | None = None
        if case == "warm":
            self.resident[:] = True

    @property
    def info(self) -> ModelInfo:
        """What such an engine would say of its model."""
        layers, experts = self.shape
        return ModelInfo(
            name="demo-30B-A3B",
            path="/nowhere/demo.gguf",
            architecture="qwen3moe",
            quant="Q4_K_M",
            backend="stream",
            backend_reason="made up",
            n_layers=layers,
            n_vocab=151936,
            n_ctx=8192,
            n_ctx_train=32768,
            n_ubatch=512,
            n_experts=experts,
            n_expert_used=self.used,
            file_bytes=self.total + GIB,
            expert_bytes=self.total,
            budget_bytes=self.budget,
            store="pool",
            n_gpu_layers=48 if self.case == "gpu" else 0,
            n_threads=8,
            disk_bytes_s=self.ceiling,
        )

    def _token(self) -> float:
        """Runs one token through the cache; returns the seconds that it took."""
        layers, experts = self.shape
        missed = 0
        uses: list[np.ndarray] = []
        for row in range(layers):
            keys = self.rng.exponential(size=experts) / self.weights[row]
            if self.previous is not None:
                keys[self.previous[row]] *= 0.35
            chosen = np.argpartition(keys, self.used)[: self.used]
            uses.append(chosen + row * experts)
            if self.previous is None:
                self.previous = np.zeros((layers, self.used), np.int64)
            self.previous[row] = chosen
            miss = int((~self.resident[row, chosen]).sum())
            self.layer_misses[row] += miss
            self.layer_hits[row] += self.used - miss
            missed += miss
            self.resident[row, chosen] = True
            self.clock += 1
            self.stamp[row, chosen] = self.clock
            self.uses[row, chosen] += 1
            self.last[row, chosen] = self.tokens + 1
            self.heat[row, chosen] += 1
        self.meter.note(uses)
        over = int(self.resident.sum()) - self.budget // self.expert_bytes
        if over > 0:
            flat = np.where(self.resident, self.stamp, np.iinfo(np.int64).max).reshape(-1)
            self.resident.reshape(-1)[np.argpartition(flat, over)[:over]] = False
            self.evictions += over
        self.heat *= np.float32(0.5 ** (1 / 64))
        self.tokens += 1
        self.hits += layers * self.used - missed
        self.misses += missed
        size = missed * self.expert_bytes
        rate = self.ceiling * (0.45 if self.case == "shared" else 0.93)
        compute, hook = (0.02 if self.case == "gpu" else 0.085) * self.rng.uniform(0.95, 1.05), 0.002
        self.read += size
        self.reads += missed * 3
        self.stall += size / rate
        self.hook += hook
        self.cpu += compute * 8
        took = compute + hook + size / rate
        self.decode_s += took
        return took

    def _prefill(self, dt: float) -> None:
        self.prefill_s += dt
        self.prefilled += int(dt * 90)
        size = int(dt * 0.85 * self.ceiling * 0.95)
        self.read += size
        self.reads += size // 900_000
        self.stall += dt * 0.85
        self.cpu += dt * 0.15 * 8

    def step(self, dt: float = 0.5) -> Sample:
        """The next sample, `dt` seconds on."""
        self.t += dt
        idle = self.case != "prefill" and int(self.t) % 47 > 40
        if self.case == "prefill":
            self._prefill(dt)
        elif idle:
            self.left = 0.0
        else:
            self.left += dt
            while self.left > 0:
                self.left -= self._token()
        self.others += int(dt * (0.6e9 if self.case == "shared" else 4e6 * self.rng.uniform(0, 1)))
        held = int(self.resident.sum()) * self.expert_bytes
        return Sample(
            t=self.t,
            wall=1.7e9 + self.t,
            cpus=8,
            memory=MemoryCounters(
                total=24 * GIB,
                available=24 * GIB - held - 3 * GIB,
                free=24 * GIB - held - 3 * GIB - 3 * GIB,
                cached=3 * GIB,
                swap_total=2 * GIB,
                swap_free=2 * GIB,
            ),
            process=ProcessCounters(
                pid=4711,
                read_bytes=self.read,
                cpu_s=self.cpu,
                major_faults=3,
                rss_anon=GIB,
                rss_shmem=held,
                rss_file=64 * MIB,
                swap=0,
                threads=9,
            ),
            pressure=Pressure(
                memory_some_s=self.t * 0.002,
                memory_full_s=0.0,
                io_some_s=self.stall,
                io_full_s=0,
                cpu_some_s=self.t * 0.05,
            ),
            disk=DiskCounters(
                name="nvme0n1",
                read_bytes=self.read + self.others,
                reads=self.reads + self.others // 100_000,
                read_s=self.reads * 0.0008,
                busy_s=self.stall,
            ),
            gpus=(
                (
                    Gpu(
                        index=0,
                        name="Demo GPU",
                        total=8 * GIB,
                        used=int(1.4 * GIB),
                        engine_used=int(1.1 * GIB),
                        busy=0.35,
                    ),
                )
                if self.case == "gpu"
                else ()
            ),
            gpu_note=None if self.case == "gpu" else "no GPU here",
            model_cached=2 * GIB,
            telemetry=Telemetry(
                t=self.t,
                prefill_tokens=self.prefilled,
                decode_tokens=self.tokens,
                prefill_s=self.prefill_s,
                decode_s=self.decode_s,
                stall_s=self.stall,
                hook_s=self.hook,
                expert_hits=self.hits,
                expert_misses=self.misses,
                read_bytes=self.read,
                evictions=self.evictions,
                resident_bytes=held,
                budget_bytes=self.budget,
                ctx_used=self.tokens,
                n_active=0 if idle else 1,
                reuse_bytes_hist=self.meter.histogram(),
                next_token_reuse=self.meter.next_token_reuse(),
            ),
        )

    def map(self) -> ExpertMap:
        """The expert map now."""
        layers, experts = self.shape
        return ExpertMap(
            n_layers=layers,
            n_experts=experts,
            layers=tuple(range(layers)),
            expert_bytes=(self.expert_bytes,) * layers,
            uses=self.uses.astype("<u4").tobytes(),
            heat=self.heat.astype("<f4").tobytes(),
            last_used=self.last.astype("<u4").tobytes(),
            residency=(self.resident * np.uint8(255)).tobytes(),
            hits=self.layer_hits.astype("<u4").tobytes(),
            misses=self.layer_misses.astype("<u4").tobytes(),
            next_token_reuse=self.meter.next_token_reuse_by_row().astype("<f4").tobytes(),
        )


def samples(case: str, seconds: float, seed: int = 7) -> Iterator[tuple[Sample, DemoEngine]]:
    """Samples twice a second, with the engine to ask for its map."""
    engine = DemoEngine(case, seed=seed)
    for _ in range(int(seconds * 2)):
        yield engine.step(), engine


def main() -> None:
    """Writes a recording of a made-up session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="capped")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--record", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    recorder = Recorder(args.record)
    first = True
    for sample, engine in samples(args.case, args.seconds, args.seed):
        if first:
            recorder.model(engine.info)
            first = False
        recorder.sample(sample)
        recorder.expert_map(engine.map())
    recorder.close()
    print(f"{args.record}: {args.seconds:.0f} s, {args.record.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
