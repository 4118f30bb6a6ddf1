"""How likely tokens were, from a batch's logits: before any sampler setting."""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.interface import TokenLogprob
from backends.llamacpp.context import LlamaContext
from backends.llamacpp.vocab import Vocab

MAX_TOP = 20


def told(context: LlamaContext, vocab: Vocab, index: int, token: int, top: int) -> TokenLogprob:
    """What the batch's output `index` says of the token that follows it, and of the `top` likeliest ones."""
    logits = np.ctypeslib.as_array(context.logits(index), (context.n_vocab,)).astype(np.float64)
    highest = float(logits.max())
    total = highest + float(np.log(np.exp(logits - highest).sum()))

    def one(which: int) -> TokenLogprob:
        return TokenLogprob(which, vocab.text(which), max(float(logits[which]) - total, -9999.0))

    best: Any = ()
    if top > 0:
        best = np.argpartition(-logits, min(top, len(logits) - 1))[:top]
        best = best[np.argsort(-logits[best], kind="stable")]
    said = one(token)
    return TokenLogprob(token, said.text, said.logprob, tuple(one(int(which)) for which in best))
