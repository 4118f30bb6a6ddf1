"""Bytes of llama.cpp's compute buffers on the CPU: the activations alive at once in the widest part of the graph.

Fitted to what llama-cpp-python 0.3.36 allocates with flash attention (tests/backends/planner/test_compute.py): each
stage holds a known number of floats for every token of the ubatch, and the attention mask comes on top.
"""

from __future__ import annotations

from msgspec import Struct

from backends.gguf.file import GgufFile
from backends.planner.kv import number, padded, swa_layers

_GATED_ATTENTION = {"qwen3next", "qwen35", "qwen35moe", "qwen4exp"}


class ComputeBytes(Struct, frozen=True):
    """What the compute buffers take."""

    allocated: int
    """Reserved: logits for every token of a ubatch are provided for."""
    touched: int
    """What answering touches: logits are computed for the last token only."""


def compute_bytes(gguf: GgufFile, n_ctx: int, n_ubatch: int = 512) -> ComputeBytes:
    """Compute buffers for a context of `n_ctx` tokens and batches of `n_ubatch`, never too little by
    more than a tenth, too much by half at most."""
    embd, used = gguf.n_embd, gguf.n_expert_used
    ff = max(gguf.n_ff_exp, 0) or gguf.n_ff
    heads = max(gguf.per_layer("attention.head_count", 1), default=1)
    kv_heads = max(gguf.per_layer("attention.head_count_kv", heads), default=heads)
    key = number(gguf, "attention.key_length", embd // max(heads, 1))
    value = number(gguf, "attention.value_length", embd // max(heads, 1))
    attention = 2 * heads * key + kv_heads * (key + value) + 2 * embd
    mla = number(gguf, "attention.key_length_mla", 0)
    if mla:  # queries in the latent space, and before they are brought there
        attention = 2 * heads * key + heads * mla + 4 * embd
    elif gguf.architecture in _GATED_ATTENTION:
        attention += 2 * heads * key + embd
    moe = 0
    if used:
        moe = max(2 * used * embd + 2 * embd, 3 * used * ff + 4 * embd, used * (embd + ff) + 4 * embd)
    ubatch = max(1, min(n_ubatch, n_ctx))
    cells = padded(max(n_ctx, 1))
    dense = max(3 * gguf.n_ff * bool(gguf.bytes.attention) + 4 * embd, 5 * embd)
    ratio = max(gguf.per_layer("attention.compress_ratios", 0), default=0)
    if ratio and gguf.architecture == "qwen4exp":
        floats = _chosen_blocks(gguf, cells, ratio, 3 * heads * key, max(moe, dense))
    else:
        floats = max(attention, moe, dense, _recurrent(gguf))
    masks = (2 if any(swa_layers(gguf)) else 1) if kv_heads else 0
    fixed = 4 * _fixed(gguf)
    touched = 4 * ubatch * floats + fixed + 2 * cells * ubatch * masks
    return ComputeBytes(max(touched, 4 * ubatch * (gguf.n_vocab + 2 * embd)), touched)


def router_copies(gguf: GgufFile) -> int:
    """Bytes of the routers' 8-bit copies that name experts to read ahead (`backends.streaming.router_product`)."""
    if gguf.n_embd % 32:
        return 0
    return sum(layer.n_experts for layer in gguf.expert_layers) * gguf.n_embd // 32 * 34


def _chosen_blocks(gguf: GgufFile, cells: int, ratio: int, queries: int, feed_forward: int) -> int:
    """Floats for each token where an indexer scores blocks of `ratio` cells, attention sees the best of them, and
    layers pass on several streams (qwen4exp). Two masks of all cells live on beside the rest of the graph."""
    embd, streams = gguf.n_embd, number(gguf, "hyper_connection.count", 1)
    masks = cells * (2 * ratio + 1) // ratio
    scores = cells * (4 * number(gguf, "attention.indexer.head_count", 1) + 3) // (2 * ratio)
    attention = queries + embd * (2 + 3 * streams) // 2 + 2048 + number(gguf, "attention.indexer.top_k", 0)
    return max(
        max(attention, feed_forward) + masks, attention + scores, 6 * streams * embd, _recurrent(gguf) + streams * embd
    )


def _recurrent(gguf: GgufFile) -> int:
    """Floats for each token in a recurrent layer."""
    inner, state = number(gguf, "ssm.inner_size", 0), number(gguf, "ssm.state_size", 0)
    groups = number(gguf, "ssm.group_count", 0)
    if gguf.architecture in _GATED_ATTENTION:  # gated delta nets: queries, keys, values and their convolutions
        return 3 * inner + 6 * groups * state + 3 * gguf.n_embd
    if number(gguf, "shortconv.l_cache", 0):
        return 7 * gguf.n_embd
    return 7 * inner + 6 * groups * state


def _fixed(gguf: GgufFile) -> int:
    """Floats that don't depend on the batch: states being updated."""
    if gguf.architecture in _GATED_ATTENTION:
        state = number(gguf, "ssm.state_size", 0)
        return int(1.8 * number(gguf, "ssm.time_step_rank", 0) * state * state)
    return 0
