"""Whether layers on a GPU pay where the experts are computed on the CPU: runs of the model here decide.

Each such layer costs a token two handovers, and leaves the CPU less to do while experts are read. Without layers there
the CPU computes attention. On the cards that were measured the GPU won by far where experts are in memory, and neither
where the disk is the bound (benchmarks/results/gpu.md): so `auto` takes it, until both ways were measured here.
"""

from __future__ import annotations

from backends.planner.speed import Speed

CLEARLY = 1.03
"""How many times faster decode must be without a GPU."""


def reason_without_gpu(there: Speed, without: Speed) -> str:
    """A sentence that says why nothing should be put on a GPU; "" where it should, or where that isn't known.

    `there`, `without`: the speeds with layers on a GPU and with none."""
    if there.source != "measured" or without.source != "measured" or without.expected < there.expected * CLEARLY:
        return ""
    return (
        f"The GPU is left out of answers: this model ran here at {_rate(without.expected)} tokens/s without it, and at "
        f"{_rate(there.expected)} with its layers on it. Long prompts still use it."
    )


def _rate(tokens_s: float) -> str:
    return f"{tokens_s:.0f}" if tokens_s >= 20 else f"{tokens_s:.1f}" if tokens_s >= 1 else f"{tokens_s:.2f}"
