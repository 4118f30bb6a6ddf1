#!/usr/bin/env python3
"""Samples of an engine that doesn't exist, for looking at the panes and for their tests: no figure here is measured.

    python benchmarks/demo_samples.py --case capped --seconds 120 --record /tmp/demo.fmrec

then `flashmoe-tui replay /tmp/demo.fmrec`. Cases: capped (the SSD bounds), warm (the CPU bounds), prefill, shared (a
disk that others read), gpu.

Everything that is counted or decided here is an integer, every draw comes from a generator's raw bits and every tie is
broken by a rule: numpy's kernels for floats and its unstable sorts give other results on other processors, and the
tests' pictures must not.
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

_DRAWS = 64
"""Experts drawn for each row of a token; the first different ones are taken."""
_HEAT_ONE = 1 << 16
"""The heat of one use; heat is kept in whole parts of it."""
_HEAT_KEPT = 64830
"""Of `_HEAT_ONE`, what a token leaves: half after 64 tokens."""


class Dice:
    """Whole random numbers from raw bits, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, limits: np.ndarray, each: int) -> np.ndarray:
        """`each` numbers from 0 up to each of the limits (n); n x each, int64."""
        raw = self._bits.random_raw(len(limits) * each).reshape(len(limits), each) >> np.uint64(1)
        return raw.astype(np.int64) % limits[:, None]

    def one(self, limit: int) -> int:
        """One number from 0 up to `limit`."""
        return (int(self._bits.random_raw()) >> 1) % limit

    def shuffled(self, values: np.ndarray) -> np.ndarray:
        """The values in a random order."""
        return values[np.argsort(self._bits.random_raw(len(values)), kind="stable")]


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
        self.dice = Dice(seed)
        self.shape = (layers, experts)
        self.used = used
        self.expert_bytes = expert_bytes
        self.total = layers * experts * expert_bytes
        self.budget = self.total if case == "warm" else int(self.total * budget_share)
        self.ceiling = 1_400_000_000
        weights = np.array([round(1_000_000 / rank**skew) for rank in range(1, experts + 1)], np.int64)
        self.weights = np.stack([self.dice.shuffled(weights) for _ in range(layers)])
        self.meter = ReuseMeter(layers, experts, [expert_bytes] * layers)
        self.uses = np.zeros(self.shape, np.uint32)
        self.heat = np.zeros(self.shape, np.int64)  # in parts of a use, see _HEAT_ONE
        self.last = np.zeros(self.shape, np.uint32)
        self.stamp = np.zeros(self.shape, np.int64)
        self.resident = np.zeros(self.shape, bool)
        self.layer_hits = np.zeros(layers, np.uint32)
        self.layer_misses = np.zeros(layers, np.uint32)
        self.clock = 0
        # Times are whole microseconds.
        self.t = 1_000_000_000
        self.tokens = self.prefilled = 0
        self.decode = self.prefill = self.stall = self.hook = self.cpu = 0
        self.read = self.others = self.hits = self.misses = self.evictions = 0
        self.reads = 0
        self.left = 0  # of the current sample, what a token still takes
        self.previous = np.zeros(self.shape, bool)  # what the token before used
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
            disk_bytes_s=float(self.ceiling),
        )

    def _choose(self) -> list[list[int]]:
        """The experts of a token's rows: drawn by weight, those of the token before 20 times for 7."""
        layers, experts = self.shape
        summed = np.cumsum(self.weights * np.where(self.previous, 20, 7), axis=1)
        totals = summed[:, -1]
        # One search in all rows: each row's sums lie above those of the row before.
        base = np.arange(layers)[:, None] * int(totals.max() + 1)
        drawn = self.dice.below(totals, _DRAWS) + base
        found = np.searchsorted((summed + base).reshape(-1), drawn.reshape(-1), side="right").reshape(drawn.shape)
        found -= np.arange(layers)[:, None] * experts
        # Where too few are different, the lowest numbers that are left.
        rows: list[list[int]] = found.tolist()
        return [list(dict.fromkeys([*row, *range(experts)]))[: self.used] for row in rows]

    def _token(self) -> int:
        """Runs one token through the cache; returns the microseconds that it took."""
        layers, experts = self.shape
        missed = 0
        uses: list[np.ndarray] = []
        rows = self._choose()
        self.previous[:] = False
        for row, numbers in enumerate(rows):
            chosen = np.array(numbers, np.int64)
            uses.append(chosen + row * experts)
            self.previous[row, chosen] = True
            miss = int((~self.resident[row, chosen]).sum())
            self.layer_misses[row] += miss
            self.layer_hits[row] += self.used - miss
            missed += miss
            self.resident[row, chosen] = True
            self.clock += 1
            self.stamp[row, chosen] = self.clock
            self.uses[row, chosen] += 1
            self.last[row, chosen] = self.tokens + 1
            self.heat[row, chosen] += _HEAT_ONE
        self.meter.note(uses)
        over = int(self.resident.sum()) - self.budget // self.expert_bytes
        if over > 0:
            flat = np.where(self.resident, self.stamp, np.iinfo(np.int64).max).reshape(-1)
            self.resident.reshape(-1)[np.argsort(flat, kind="stable")[:over]] = False
            self.evictions += over
        self.heat = self.heat * _HEAT_KEPT // _HEAT_ONE
        self.tokens += 1
        self.hits += layers * self.used - missed
        self.misses += missed
        size = missed * self.expert_bytes
        rate = self.ceiling * (45 if self.case == "shared" else 93) // 100
        compute, hook = (20 if self.case == "gpu" else 85) * (950 + self.dice.one(101)), 2_000
        waited = size * 1_000_000 // rate
        self.read += size
        self.reads += missed * 3
        self.stall += waited
        self.hook += hook
        self.cpu += compute * 8
        took = compute + hook + waited
        self.decode += took
        return took

    def _prefill(self, dt: int) -> None:
        self.prefill += dt
        self.prefilled += dt * 90 // 1_000_000
        size = dt * 85 * 95 * self.ceiling // 10_000 // 1_000_000
        self.read += size
        self.reads += size // 900_000
        self.stall += dt * 85 // 100
        self.cpu += dt * 15 * 8 // 100

    def step(self, dt: float = 0.5) -> Sample:
        """The next sample, `dt` seconds on."""
        passed = round(dt * 1_000_000)
        self.t += passed
        idle = self.case != "prefill" and self.t // 1_000_000 % 47 > 40
        if self.case == "prefill":
            self._prefill(passed)
        elif idle:
            self.left = 0
        else:
            self.left += passed
            while self.left > 0:
                self.left -= self._token()
        self.others += passed * (600_000 if self.case == "shared" else self.dice.one(4_001)) // 1_000
        held = int(self.resident.sum()) * self.expert_bytes
        return Sample(
            t=_seconds(self.t),
            wall=1.7e9 + _seconds(self.t),
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
                cpu_s=_seconds(self.cpu),
                major_faults=3,
                rss_anon=GIB,
                rss_shmem=held,
                rss_file=64 * MIB,
                swap=0,
                threads=9,
            ),
            pressure=Pressure(
                memory_some_s=_seconds(self.t // 500),
                memory_full_s=0.0,
                io_some_s=_seconds(self.stall),
                io_full_s=0,
                cpu_some_s=_seconds(self.t // 20),
            ),
            disk=DiskCounters(
                name="nvme0n1",
                read_bytes=self.read + self.others,
                reads=self.reads + self.others // 100_000,
                read_s=_seconds(self.reads * 800),
                busy_s=_seconds(self.stall),
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
                t=_seconds(self.t),
                prefill_tokens=self.prefilled,
                decode_tokens=self.tokens,
                prefill_s=_seconds(self.prefill),
                decode_s=_seconds(self.decode),
                stall_s=_seconds(self.stall),
                hook_s=_seconds(self.hook),
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
            heat=(self.heat / _HEAT_ONE).astype("<f4").tobytes(),
            last_used=self.last.astype("<u4").tobytes(),
            residency=(self.resident * np.uint8(255)).tobytes(),
            hits=self.layer_hits.astype("<u4").tobytes(),
            misses=self.layer_misses.astype("<u4").tobytes(),
            next_token_reuse=self.meter.next_token_reuse_by_row().astype("<f4").tobytes(),
        )


def _seconds(microseconds: int) -> float:
    return microseconds / 1_000_000


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
