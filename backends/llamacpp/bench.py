"""The teacher-forced benchmark: random token ids in, a hash over every logit out, and figures of what it took."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from backends.interface import BenchRequest, BenchResult, EngineError, ModelInfo
from backends.llamacpp.context import Batch, LlamaContext
from backends.llamacpp.parts import Counters, Parts
from backends.system import procfs


def token_ids(request: BenchRequest, n_vocab: int) -> Any:
    """The ids to feed: an int64 array (parallel, prompt_tokens + tokens). Uniform, or by a Zipf law over ranks that a
    permutation gives to the ids."""
    rng = np.random.default_rng(request.seed)
    n = request.prompt_tokens + request.tokens
    if request.skew <= 0:
        return np.stack([rng.integers(0, n_vocab, n) for _ in range(request.parallel)])
    weights = np.arange(1, n_vocab + 1, dtype=np.float64) ** -request.skew
    ids = rng.permutation(n_vocab)
    return np.stack([ids[rng.choice(n_vocab, n, p=weights / weights.sum())] for _ in range(request.parallel)])


def run_bench(
    context: LlamaContext, info: ModelInfo, parts: Parts, request: BenchRequest, progress: Callable[[int, int], bool]
) -> BenchResult:
    """Feeds the prompts, as many whole ones in a batch as it holds, then one id a step for every sequence. The KV cache
    must be empty.

    Raises `EngineError`: ``bad_request`` where it doesn't fit the context, ``cancelled``.
    """
    total = request.prompt_tokens + request.tokens
    if request.prompt_tokens < 1 or request.tokens < 1 or request.parallel < 1:
        raise EngineError("bad_request", "A benchmark needs at least one prompt token, one token and one sequence.")
    if request.parallel > min(context.n_seqs, context.n_batch):
        raise EngineError(
            "bad_request",
            f"{request.parallel} sequences were asked for, but the model was loaded for {info.n_seq_max}.",
        )
    if total * request.parallel > context.n_ctx:
        raise EngineError(
            "bad_request",
            f"The benchmark needs a context of {total * request.parallel} tokens, and there are {context.n_ctx}.",
        )
    ids, digest = token_ids(request, context.n_vocab), hashlib.sha256()
    parts.before_bench()
    context.abort.clear()
    prefill_s = decode_s = 0.0
    start, read_start = parts.counters(), procfs.read_bytes()
    for rows in _together(request, context.n_batch):
        prefill_s += _prefill(context, rows, ids[:, : request.prompt_tokens], digest)
        _tell(progress, 0, request.tokens)
    before, read_before, faults_before = parts.counters(), procfs.read_bytes(), procfs.major_faults()
    for step in range(request.tokens):
        batch = Batch()
        for row in range(request.parallel):
            batch.add(int(ids[row, request.prompt_tokens + step]), request.prompt_tokens + step, row, True)
        decode_s += _decode(context, batch)
        for row in range(request.parallel):
            _hash_logits(context, row, digest)
        _tell(progress, step + 1, request.tokens)
    after, read_after, faults_after = parts.counters(), procfs.read_bytes(), procfs.major_faults()
    peak = procfs.peak_rss_bytes()  # before the probe, whose memory is not the model's
    disk = parts.disk_probe()
    n = request.tokens * request.parallel
    stall = _per(after.stall_s, before.stall_s, n)
    hook = _per(after.hook_s, before.hook_s, n)
    hits = _per(after.expert_hits, before.expert_hits, 1)
    misses = _per(after.expert_misses, before.expert_misses, 1)
    read = _per(read_after, read_before, n)
    compute = None if stall is None else max(0.0, decode_s / n - stall)
    bound = None if compute is None or read is None or not disk else 1.0 / max(1e-9, compute + read / disk)
    return BenchResult(
        backend=info.backend,
        model=info.name,
        load_s=info.load_s,
        load_read_bytes=info.load_read_bytes,
        prefill_tok_s=request.prompt_tokens * request.parallel / prefill_s,
        decode_tok_s=n / decode_s,
        compute_s_per_token=compute,
        stall_s_per_token=stall,
        hit_rate=hits / (hits + misses) if hits is not None and misses is not None and hits + misses else None,
        read_bytes_per_token=read,
        disk_bytes_s=disk,
        bound_tok_s=bound,
        bound_share=None if bound is None else n / decode_s / bound,
        peak_rss_bytes=peak,
        budget_bytes=info.budget_bytes,
        major_faults=None if faults_after is None or faults_before is None else faults_after - faults_before,
        logits_sha256=digest.hexdigest(),
        store=info.store,
        parallel=request.parallel,
        prompt_tokens=request.prompt_tokens,
        tokens=request.tokens,
        seed=request.seed,
        evictions=None if after.evictions is None or before.evictions is None else after.evictions - before.evictions,
        hook_s_per_token=hook,
        n_threads=context.n_threads,
        n_ubatch=info.n_ubatch,
        prefill_s=prefill_s,
        prefill_read_bytes=None if read_before is None or read_start is None else read_before - read_start,
        prefill_stall_s=_per(before.stall_s, start.stall_s, 1),
        prefill_overlap=_overlap(start, before),
        prefill_layer_s=tuple(
            round(b - a, 6) for a, b in zip(start.layer_s or (0.0,) * len(before.layer_s), before.layer_s, strict=True)
        ),
        lossy=info.lossy,
    )


def _per(after: float | None, before: float | None, n: int) -> float | None:
    return None if after is None or before is None else (after - before) / n


def _overlap(before: Counters, after: Counters) -> float | None:
    read, waited = (
        _per(after.whole_layer_read_s, before.whole_layer_read_s, 1),
        _per(after.whole_layer_wait_s, before.whole_layer_wait_s, 1),
    )
    return None if not read or waited is None else max(0.0, 1.0 - waited / read)


def _tell(progress: Callable[[int, int], bool], done: int, total: int) -> None:
    if not progress(done, total):
        raise EngineError("cancelled", "The benchmark was cancelled.")


def _together(request: BenchRequest, n_batch: int) -> list[range]:
    """Rows whose prompts go into one batch: as many whole prompts as it holds."""
    each = max(1, n_batch // request.prompt_tokens)
    return [range(a, min(a + each, request.parallel)) for a in range(0, request.parallel, each)]


def _prefill(context: LlamaContext, rows: range, prompts: Any, digest: Any) -> float:
    """Prefills the prompts (int64, sequences x tokens) of `rows`, hashes the logits of each one's last token, and
    returns the seconds it took. Several rows fit into one batch together."""
    seconds, n = 0.0, prompts.shape[1]
    for start in range(0, n, context.n_batch):
        batch, outputs = Batch(), []
        for row in rows:
            for i in range(start, min(n, start + context.n_batch)):
                index = batch.add(int(prompts[row, i]), i, row, i == n - 1)
                if i == n - 1:
                    outputs.append(index)
        seconds += _decode(context, batch)
        for index in outputs:
            _hash_logits(context, index, digest)
    return seconds


def _decode(context: LlamaContext, batch: Batch) -> float:
    """Decodes a batch; returns the seconds until its logits were there (hashing them is not the model's time)."""
    started = time.perf_counter()
    result = context.decode(batch)
    if result.status == "cancelled":
        raise EngineError("cancelled", "The benchmark was cancelled.")
    if result.status != "ok":
        raise EngineError("internal", f"The benchmark's batch could not be decoded ({result.status}).")
    if batch.outputs[-1]:
        context.logits(-1)  # waits for a GPU
    return time.perf_counter() - started


def _hash_logits(context: LlamaContext, index: int, digest: Any) -> None:
    logits = np.ctypeslib.as_array(context.logits(index), (context.n_vocab,))
    digest.update(logits.astype(np.float32, copy=False).tobytes())
