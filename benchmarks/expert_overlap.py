#!/usr/bin/env python3
"""What the order of a batch's prompts is worth: bytes of experts read per token, by counting, not by timing.

    python benchmarks/expert_overlap.py guide                       # the guide, on the questions of guide/*.yaml
    python benchmarks/synthetic.py t.gguf --layers 12 --experts 64 --used 8 --embd 512 --ff 256 --vocab 16384 \\
           --topics 16 --topic-share 0.3
    python benchmarks/expert_overlap.py t.gguf --topics 16 --widths 8,16

The same requests are fed (prompt, then the tokens of an answer that is given) in three orders: random, the order that
`batch` makes (by the words alone), and grouped by their true subject, which nobody knows in advance. `--width` are
decoded together, a new one takes the place of each that ends, and the pool holds `--share` of the experts. On the guide
a request is a question of its test sets with the model's own greedy answer, its subject the question's id without the
number; on a synthetic model with topics the ids of a request come from its topic's range, by a Zipf law of exponent 1.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from backends.gguf.file import read_gguf  # noqa: E402
from backends.interface import ChatMessage, GenerateRequest, LoadRequest, Sampling  # noqa: E402
from backends.llamacpp.backend import MmapBackend  # noqa: E402
from backends.llamacpp.context import Batch  # noqa: E402
from backends.llamacpp.model import LlamaModel  # noqa: E402
from backends.streaming.backend import StreamBackend  # noqa: E402
from flashmoe.batch.order import by_subject, words  # noqa: E402

N_CTX = 8192


@dataclass
class Piece:
    """One request: its prompt's and its answer's token ids, its true subject, and what the key sees of it."""

    prompt: list[int]
    answer: list[int]
    subject: str
    words: np.ndarray
    done: int = field(default=0)


def guide_pieces(path: Path, answer: int) -> list[Piece]:
    """The guide's test questions with its own greedy answers."""
    model = MmapBackend().load(LoadRequest(path=str(path), n_seq_max=8, n_ctx=N_CTX, n_threads=1), lambda _: True)
    asked: dict[str, tuple[str, GenerateRequest, object]] = {}
    for name in ("dev", "check", "eval"):
        for row in yaml.safe_load((ROOT / "guide" / f"{name}_questions.yaml").read_text()):
            if row.get("turns"):
                continue
            one = GenerateRequest(
                id=f"{name}-{row['id']}", messages=(ChatMessage("user", row["question"]),),
                sampling=Sampling(temperature=0.0, max_tokens=answer),
            )  # fmt: skip
            model.submit(one)
            asked[one.id] = (re.sub(r"\d+$", "", row["id"]), one, model._scheduler.waiting[-1])
    while model.busy():
        model.step()
    out = [
        Piece([int(t) for t in a.prompt], list(a.generated), subject, words(one.messages[0].content))  # type: ignore
        for subject, one, a in asked.values()
    ]
    model.close()
    return [p for p in out if p.answer]


def topical_pieces(n_vocab: int, topics: int, n: int, length: int, seed: int) -> list[Piece]:
    """Requests whose ids come from one topic's range each."""
    rng, each = np.random.default_rng(seed), n_vocab // topics
    law = 1 / np.arange(1, each + 1)
    ranks = {t: t * each + rng.permutation(each) for t in range(topics)}
    out = []
    for i in range(n):
        ids = ranks[i % topics][rng.choice(each, 2 * length, p=law / law.sum())].tolist()
        out.append(Piece(ids[:length], ids[length:], str(i % topics), np.unique(np.array(ids[:length]) % (1 << 16))))
    return out


def count(path: Path, pieces: Sequence[Piece], width: int, share: float) -> dict[str, float]:
    """Feeds the pieces in their order; the pool starts empty."""
    gguf = read_gguf(path)
    request = LoadRequest(
        path=str(path), backend="stream", store="pool", ram_bytes=int(gguf.bytes.experts * share), n_seq_max=width,
        n_ctx=N_CTX, n_ubatch=512, n_threads=1,
    )  # fmt: skip
    model = StreamBackend().load(request, lambda _: True)
    try:
        return _feed(model, list(pieces), width)
    finally:
        model.close()


def _feed(model: LlamaModel, queue: list[Piece], width: int) -> dict[str, float]:
    pager = model.pager  # type: ignore[attr-defined]
    for piece in queue:
        piece.done = 0
    active: dict[int, Piece] = {}
    decoded = graphs = chosen = 0
    tokens = sum(len(p.answer) for p in queue)
    start = (pager.read_bytes, pager.ledger.misses)
    while queue or active:
        for seq in range(width):
            if queue and seq not in active:
                active[seq] = queue.pop(0)
        batch, left = Batch(), model.context.n_batch - len(active)
        prefill = False
        for seq, piece in active.items():
            known = piece.prompt + piece.answer
            n = min(len(piece.prompt) - piece.done, left) if piece.done < len(piece.prompt) else 1
            left -= n - 1
            prefill |= n > 1
            for i in range(n):
                batch.add(known[piece.done + i], piece.done + i, seq, i == n - 1)
            piece.done += n
        before = pager.ledger.hits + pager.ledger.misses
        if model.context.decode(batch).status != "ok":
            raise RuntimeError("a batch could not be decoded")
        if not prefill and len(active) == width:
            graphs += 1
            decoded += len(batch)
            chosen += pager.ledger.hits + pager.ledger.misses - before
        for seq in [s for s, p in active.items() if p.done >= len(p.prompt) + len(p.answer) - 1]:
            model.context.remove(seq, 0)
            del active[seq]
    rows = pager.ledger.rows
    return {
        "distinct": chosen / max(graphs, 1) / rows,
        "read": (pager.read_bytes - start[0]) / tokens,
        "misses": (pager.ledger.misses - start[1]) / tokens,
    }


def orders(pieces: list[Piece], seed: int) -> dict[str, list[Piece]]:
    """The three orders; all begin from the random one."""
    mixed = list(pieces)
    random.Random(seed).shuffle(mixed)
    subjects = list(dict.fromkeys(p.subject for p in mixed))
    return {
        "random": mixed,
        "by words, as batch does": [mixed[i] for i in by_subject([p.words for p in mixed])],
        "by true subject": sorted(mixed, key=lambda p: subjects.index(p.subject)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="guide, or a synthetic model with topics")
    parser.add_argument("--topics", type=int, default=16)
    parser.add_argument("--widths", default="8,16")
    parser.add_argument("--share", type=float, default=1 / 3, help="of the experts, held by the pool")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--length", type=int, default=32, help="tokens of an answer; of a synthetic prompt, too")
    parser.add_argument("--seeds", default="1,2")
    args = parser.parse_args()
    path = ROOT / "flashmoe/assets/guide.gguf" if args.model == "guide" else Path(args.model)
    gguf = read_gguf(path)
    if args.model == "guide":
        pieces = guide_pieces(path, args.length)
    else:
        pieces = topical_pieces(gguf.n_vocab, args.topics, args.requests, args.length, 1)
    print(
        f"{path.name}: {gguf.n_layers} layers x {gguf.n_experts} experts, {gguf.n_expert_used} used; {len(pieces)} "
        f"requests of {len({p.subject for p in pieces})} subjects; the pool holds {args.share:.0%}"
    )
    print("| sequences | seed | order | experts of a layer a step | misses a token | KB read a token | to random |")
    print("|---|---|---|---|---|---|---|")
    for width in (int(w) for w in args.widths.split(",")):
        for seed in (int(s) for s in args.seeds.split(",")):
            base = None
            for name, order in orders(pieces, seed).items():
                r = count(path, order, width, args.share)
                base = base or r["read"]
                print(
                    f"| {width} | {seed} | {name} | {r['distinct']:.1f} | {r['misses']:.1f} | {r['read'] / 1e3:.0f} "
                    f"| {r['read'] / base - 1:+.1%} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
