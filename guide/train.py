"""Trains the guide.

    python -m guide.train --out build/guide --minutes 4      on a GPU (bf16)
    python -m guide.train --out build/smoke --smoke          a few steps on a CPU, to see that all of it runs

Conversations are drawn from the corpus afresh for every batch, by worker processes; batch i depends on the seed and i
alone. The learning rate follows a cosine over the minutes given (or over --steps, which makes a run repeatable).
Writes state.partN.npz (bfloat16 bits as uint16, at most 15 MB each), shape.json and log.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from guide import devset
from guide.conversations import Corpus
from guide.model import Guide, Shape
from guide.tokenizer import PATH as TOKENIZER
from guide.tokenizer import Encoder

BUCKETS = (("single", 128, 0.6), ("follow", 320, 0.2), ("long", 1024, 0.2))
"""(kind of conversation, padded length, share of the batches)."""


def batch(corpus: Corpus, enc: Encoder, seed: int, index: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Batch `index`: ids (uint16) and loss weights (float16, of predicting the id at that place), both (rows, length)."""
    rng = Random((seed << 32) + index)
    kind, length, _ = rng.choices(BUCKETS, [b[2] for b in BUCKETS])[0]
    rows = max(1, tokens // length)
    ids = np.full((rows, length), enc.end, np.uint16)
    weights = np.zeros((rows, length), np.float16)
    for row in range(rows):
        i, w = enc.encode(corpus.conversation(rng, kind))
        n = min(len(i), length)
        ids[row, :n], weights[row, :n] = i[:n], w[:n]
    return ids, weights


def _worker(queue: Queue, seed: int, first: int, stride: int, tokens: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    corpus, enc = Corpus(), Encoder(Tokenizer.from_file(str(TOKENIZER)))
    index = first
    while True:
        queue.put(batch(corpus, enc, seed, index, tokens))
        index += stride


class Batches:
    """Batches in order from worker processes."""

    def __init__(self, seed: int, tokens: int, workers: int) -> None:
        context = get_context("fork")
        self.queues = [context.Queue(maxsize=6) for _ in range(workers)]
        self.processes = [
            context.Process(target=_worker, args=(q, seed, i, workers, tokens), daemon=True)
            for i, q in enumerate(self.queues)
        ]
        for process in self.processes:
            process.start()
        self.index = 0

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        item = self.queues[self.index % len(self.queues)].get()
        self.index += 1
        return item

    def close(self) -> None:
        for process in self.processes:
            process.terminate()


def loss_of(model: Guide, ids: Tensor, weights: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """(loss to minimise, weighted cross entropy alone) of one batch."""
    hidden, balance, z = model(ids[:, :-1])
    weight = weights[:, 1:].reshape(-1)
    keep = weight > 0
    logits = model.logits(hidden.reshape(-1, hidden.shape[-1])[keep]).float()
    losses = F.cross_entropy(logits, ids[:, 1:].reshape(-1)[keep], reduction="none", label_smoothing=smoothing)
    ce = (losses * weight[keep]).sum() / weight[keep].sum()
    return ce + 0.01 * balance + 1e-4 * z, ce.detach()


@torch.no_grad()
def greedy(model: Guide, enc: Encoder, prompts: list[list[int]], limit: int = 96) -> list[str]:
    """Greedy answers, all prompts at once, without a KV cache (short ones only)."""
    device = model.embed.weight.device
    longest = max(map(len, prompts)) + limit
    ids = torch.full((len(prompts), longest), enc.end, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    at = torch.tensor([len(p) for p in prompts], device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    rows = torch.arange(len(prompts), device=device)
    for _ in range(limit):
        hidden = model(ids[:, : int(at.max())])[0]
        chosen = model.logits(hidden[rows, at - 1]).float().argmax(-1)
        done |= chosen == enc.stop
        if bool(done.all()):
            break
        ids[rows[~done], at[~done]] = chosen[~done]
        at = at + (~done).long()
    return [enc.tok.decode(ids[r, len(p) : int(at[r])].tolist()) for r, p in enumerate(prompts)]


def score(model: Guide, enc: Encoder) -> tuple[float, list[str]]:
    """The share of the dev set answered rightly, and a line for each failure."""
    cases = devset.load()
    wrong = []
    for chunk in range(0, len(cases), 64):
        part = cases[chunk : chunk + 64]
        replies = greedy(model, enc, [enc.prompt(case.turns) for case in part])
        wrong += [f"{c.id}: {c.turns[-1][1]!r} -> {r!r}" for c, r in zip(part, replies, strict=True) if not c.right(r)]
    return 1 - len(wrong) / len(cases), wrong


def save(model: Guide, shape: Shape, out: Path) -> None:
    """bfloat16 bits, split into files that fit everywhere."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "shape.json").write_text(json.dumps(shape.as_dict(), indent=1))
    part: dict[str, np.ndarray] = {}
    index = size = 0
    for name, value in model.state_dict().items():
        array = value.detach().to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
        if size + array.nbytes > 15_000_000 and part:
            np.savez(out / f"state.part{index}.npz", **part)
            part, size, index = {}, 0, index + 1
        part[name], size = array, size + array.nbytes
    np.savez(out / f"state.part{index}.npz", **part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--steps", type=int, help="a fixed number of steps instead of minutes")
    parser.add_argument("--tokens", type=int, default=65_536, help="tokens of a batch, padding included")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    if args.smoke:
        args.steps, args.tokens, args.workers = args.steps or 5, min(args.tokens, 2048), 1
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    enc = Encoder(Tokenizer.from_file(str(TOKENIZER)))
    # The table's rows are a multiple of 32 whatever the corpus gave.
    shape = Shape(n_vocab=-(-enc.tok.get_vocab_size() // 32) * 32)
    source = Batches(args.seed, args.tokens, args.workers)  # forks before CUDA starts
    model = Guide(shape, args.dropout).to(device)
    total = sum(p.numel() for p in model.parameters())
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), eps=1e-9, fused=device == "cuda")
    average = [p.detach().clone() for p in model.parameters()]
    run = torch.compile(model) if args.compile else model
    args.out.mkdir(parents=True, exist_ok=True)
    log = (args.out / "log.txt").open("w")

    def say(text: str) -> None:
        print(text, flush=True)
        print(text, file=log, flush=True)

    say(f"{total:,} parameters, {device}, {shape.as_dict()}")
    began = time.monotonic()
    step = seen = waited = 0
    mean = 0.0
    while True:
        progress = step / args.steps if args.steps else (time.monotonic() - began) / (60 * args.minutes)
        if progress >= 1:
            break
        rate = args.lr * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        t = time.monotonic()
        ids_, weights_ = source.next()
        waited += time.monotonic() - t
        ids = torch.from_numpy(ids_.astype(np.int64)).to(device, non_blocking=True)
        weights = torch.from_numpy(weights_.astype(np.float32)).to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16):
            loss, ce = loss_of(run, ids, weights, args.smoothing)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step, seen = step + 1, seen + ids.numel()
        beta = min(0.998, 1 - 1 / (step + 1))
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 1 - beta)
        if step % 100 == 0 or args.smoke:
            mean = float(ce)
            spent = time.monotonic() - began
            say(
                f"step {step} loss {mean:.4f} lr {rate:.2e} {seen / spent / 1e6:.2f} M tok/s waited {waited:.0f} s of {spent:.0f}"
            )
    source.close()
    with torch.no_grad():
        for p, a in zip(model.parameters(), average, strict=True):
            p.copy_(a)
    model.eval()
    save(model, shape, args.out)
    say(f"{step} steps, {seen:,} tokens, {time.monotonic() - began:.0f} s")
    if not args.smoke:
        with torch.autocast(device, torch.bfloat16):
            right, wrong = score(model, enc)
        say("\n".join(wrong) + f"\ndev set {right:.1%}")


if __name__ == "__main__":
    main()
