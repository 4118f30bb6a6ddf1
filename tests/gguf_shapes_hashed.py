"""qwen4exp for `gguf_shapes`: hyper-connections, delta nets, attention over chosen blocks, and a table of embeddings
that is looked up by hashed n-grams.

Importing this module adds the architecture.
"""

from __future__ import annotations

import numpy as np

from tests.gguf_shapes import ARCHITECTURES, Dims, Shape, _base, _dense, _ends, _experts, _recurrent

STREAMS, LOW_RANK = 2, 8
NGRAM, HEADS_PER_NGRAM = 3, 2
RATIO = 4


def _mixer(s: Shape, d: Dims, p: str) -> None:
    wide = STREAMS * d.n_embd
    s.add(f"{p}_norm.weight", (d.n_embd, STREAMS), "norm")
    s.add(f"{p}_down.weight", (wide, LOW_RANK))
    s.add(f"{p}_up.weight", (LOW_RANK, wide))


def _metadata(s: Shape, d: Dims, rows: int) -> None:
    n_heads = (NGRAM - 1) * HEADS_PER_NGRAM
    third = d.head_dim // 2 // 3
    s.kv |= {
        "expert_feed_forward_length": d.n_ff_exp,
        "expert_shared_feed_forward_length": d.n_ff_exp * d.n_expert_shared,
        "rope.dimension_sections": [d.head_dim // 2 - 2 * third, third, third, 0],
        "ssm.conv_kernel": 4,
        "ssm.inner_size": d.ssm_state * d.ssm_v_heads,
        "ssm.state_size": d.ssm_state,
        "ssm.time_step_rank": d.ssm_v_heads,
        "ssm.group_count": d.ssm_k_heads,
        "full_attention_interval": min(d.attn_interval, d.n_layer),
        "hyper_connection.count": STREAMS,
        "hyper_connection.low_rank": LOW_RANK,
        "attention.indexer.head_count": 2,
        "attention.indexer.key_length": d.head_dim,
        "attention.indexer.top_k": 8,
        "attention.compress_ratios": [0 if _recurrent(d, i) else RATIO for i in range(d.n_layer)],
        "ple.layers": [0],
        "ple.ngram_size": NGRAM,
        "ple.heads_per_ngram": HEADS_PER_NGRAM,
        "ple.conv_kernel": 2,
        "ple.eos_token_id": 0,
        "ple.layer_multipliers": np.array([1_000_003, 998_244_353, 2_147_483_647], np.uint64),
        "ple.head_offsets": np.arange(n_heads, dtype=np.uint64) * np.uint64(rows),
        "ple.head_vocab_sizes": np.full(n_heads, rows, np.uint64),
        "embedding_length_per_layer_input": d.n_embd // n_heads,
    }


def _qwen4exp(d: Dims) -> Shape:
    key, value, wide = d.ssm_state * d.ssm_k_heads, d.ssm_state * d.ssm_v_heads, STREAMS * d.n_embd
    n_heads = (NGRAM - 1) * HEADS_PER_NGRAM
    s = _base("qwen4exp", d)
    _metadata(s, d, d.n_table_rows)
    s.add("per_layer_token_embd.weight", (d.n_embd // n_heads, n_heads * d.n_table_rows), "embd")
    _mixer(s, d, "output_hc")
    for i in range(d.n_layer):
        p = f"blk.{i}"
        for name in ("hc_attn", "hc_ffn"):
            _mixer(s, d, f"{p}.{name}")
            s.add(f"{p}.{name}_inject.weight", (wide, STREAMS))
        if i == 0:
            s.add(f"{p}.ple_key.weight", (d.n_embd, wide))
            s.add(f"{p}.ple_value.weight", (d.n_embd, d.n_embd))
            for name in ("key", "query", "conv"):
                s.add(f"{p}.ple_norm_{name}.weight", (d.n_embd, STREAMS), "norm")
            s.add(f"{p}.ple_conv1d.weight", (2, wide), "conv")
        if _recurrent(d, i):
            s.add(f"{p}.attn_qkv.weight", (d.n_embd, 2 * key + value))
            s.add(f"{p}.attn_gate.weight", (d.n_embd, value))
            s.add(f"{p}.ssm_conv1d.weight", (4, 2 * key + value), "conv")
            s.add(f"{p}.ssm_dt.bias", (d.ssm_v_heads,), "bias")
            s.add(f"{p}.ssm_a", (d.ssm_v_heads,), "ssm_a")
            s.add(f"{p}.ssm_beta.weight", (d.n_embd, d.ssm_v_heads))
            s.add(f"{p}.ssm_alpha.weight", (d.n_embd, d.ssm_v_heads))
            s.add(f"{p}.ssm_norm.weight", (d.ssm_state,), "norm")
            s.add(f"{p}.ssm_out.weight", (value, d.n_embd), "out")
        else:
            q, kv = d.n_head * d.head_dim, d.n_head_kv * d.head_dim
            s.add(f"{p}.attn_q.weight", (d.n_embd, 2 * q))
            s.add(f"{p}.attn_k.weight", (d.n_embd, kv))
            s.add(f"{p}.attn_v.weight", (d.n_embd, kv))
            s.add(f"{p}.attn_output.weight", (q, d.n_embd), "out")
            s.add(f"{p}.indexer.q_proj.weight", (d.n_embd, 2 * d.head_dim))
            s.add(f"{p}.indexer.k_proj.weight", (d.n_embd, d.head_dim))
            for name in ("attn_q_norm", "attn_k_norm", "indexer.q_norm", "indexer.k_norm"):
                s.add(f"{p}.{name}.weight", (d.head_dim,), "norm")
        _experts(s, d, p)
        s.add(f"{p}.ffn_gate_inp_shexp.weight", (d.n_embd,), "router")
        _dense(s, d, p, d.n_ff_exp * d.n_expert_shared, "_shexp")
    _ends(s, d, norm=None)
    return s


ARCHITECTURES["qwen4exp"] = _qwen4exp
