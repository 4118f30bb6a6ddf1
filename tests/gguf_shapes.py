"""What a GGUF of each architecture consists of: metadata and tensors, with sizes to choose.

`describe(arch, Dims(...))` gives the metadata below ``<arch>.`` and the tensors in file order, without any bytes, so it
serves tiny models for tests and large synthetic ones for measurements alike. Keys and tensors are those that llama.cpp
(as vendored by llama-cpp-python 0.3.36) requires.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Dims:
    """Sizes of a model. `n_ff` is a dense layer's width, `n_ff_exp` one expert's."""

    n_layer: int = 2
    n_embd: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    n_ff: int = 96
    n_expert: int = 8
    n_expert_used: int = 2
    n_ff_exp: int = 32
    n_expert_shared: int = 1
    n_dense_lead: int = 1
    """Leading layers without experts, in the architectures that have them."""
    n_swa: int = 32
    """Attention window of the sliding layers, in tokens."""
    attn_interval: int = 4
    """Hybrids: every n-th layer has attention, the others are recurrent."""
    ssm_state: int = 16
    ssm_k_heads: int = 2
    ssm_v_heads: int = 4
    """Gated delta nets (qwen3next, qwen35moe): state size and heads."""
    n_nextn: int = 0
    """Multi-token-prediction layers after `n_layer`, counted in ``block_count`` (glm4moe, deepseek2)."""
    n_table_rows: int = 509
    """Rows of each head's part of the table of hashed n-grams (qwen4exp)."""
    n_ctx_train: int = 2048
    n_vocab: int = 512


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its name, its dimensions in ggml's order (the row length first), and what it is for.

    Roles: ``embd output norm router in out expert_in expert_out bias scale conv ssm_a``.
    """

    name: str
    dims: tuple[int, ...]
    role: str

    @property
    def is_expert(self) -> bool:
        """Whether this is a weight of the routed experts, the last dimension counting them."""
        return self.role.startswith("expert_")


@dataclass
class Shape:
    """Metadata below ``<arch>.`` and tensors of one model."""

    arch: str
    kv: dict[str, Any]
    tensors: list[TensorSpec] = field(default_factory=list)

    def add(self, name: str, dims: tuple[int, ...], role: str = "in") -> None:
        self.tensors.append(TensorSpec(name, dims, role))


def _base(arch: str, d: Dims, *, n_head_kv: int | list[int] | None = None, head_dim: int | None = None) -> Shape:
    head_dim = head_dim or d.head_dim
    kv: dict[str, Any] = {
        "context_length": d.n_ctx_train,
        "embedding_length": d.n_embd,
        "block_count": d.n_layer,
        "feed_forward_length": d.n_ff,
        "attention.head_count": d.n_head,
        "attention.head_count_kv": d.n_head_kv if n_head_kv is None else n_head_kv,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": head_dim,
        "rope.freq_base": 10000.0,
    }
    if d.n_expert:
        kv |= {"expert_count": d.n_expert, "expert_used_count": d.n_expert_used}
    return Shape(arch, kv)


def _ends(s: Shape, d: Dims, *, tied: bool = False, norm: str | None = "output_norm") -> None:
    """Token embedding, final norm and output matrix: first in the file, as converters write them."""
    head = [TensorSpec("token_embd.weight", (d.n_embd, d.n_vocab), "embd")]
    if not tied:
        head.append(TensorSpec("output.weight", (d.n_embd, d.n_vocab), "output"))
    if norm is not None:
        head.append(TensorSpec(f"{norm}.weight", (d.n_embd,), "norm"))
    s.tensors[:0] = head


def _attention(s: Shape, d: Dims, p: str, *, q_mult: int = 1, norm: int = 0, bias: bool = False, head: int = 0) -> None:
    """Grouped-query attention; `norm` is the length of the query and key norms, 0 for none."""
    head = head or d.head_dim
    q, kv = d.n_head * head, d.n_head_kv * head
    s.add(f"{p}.attn_q.weight", (d.n_embd, q * q_mult))
    s.add(f"{p}.attn_k.weight", (d.n_embd, kv))
    s.add(f"{p}.attn_v.weight", (d.n_embd, kv))
    s.add(f"{p}.attn_output.weight", (q, d.n_embd), "out")
    if norm:
        s.add(f"{p}.attn_q_norm.weight", (norm,), "norm")
        s.add(f"{p}.attn_k_norm.weight", (norm,), "norm")
    if bias:
        for name, n in (("q", q), ("k", kv), ("v", kv), ("output", d.n_embd)):
            s.add(f"{p}.attn_{name}.bias", (n,), "bias")


def _dense(s: Shape, d: Dims, p: str, n_ff: int = 0, suffix: str = "") -> None:
    n_ff = n_ff or d.n_ff
    s.add(f"{p}.ffn_gate{suffix}.weight", (d.n_embd, n_ff))
    s.add(f"{p}.ffn_up{suffix}.weight", (d.n_embd, n_ff))
    s.add(f"{p}.ffn_down{suffix}.weight", (n_ff, d.n_embd), "out")


def _experts(
    s: Shape, d: Dims, p: str, n_ff: int = 0, *, bias: bool = False, probs: bool = False, fused: bool = False
) -> None:
    n_ff = n_ff or d.n_ff_exp
    s.add(f"{p}.ffn_gate_inp.weight", (d.n_embd, d.n_expert), "router")
    if fused:
        s.add(f"{p}.ffn_gate_up_exps.weight", (d.n_embd, 2 * n_ff, d.n_expert), "expert_in")
    else:
        s.add(f"{p}.ffn_gate_exps.weight", (d.n_embd, n_ff, d.n_expert), "expert_in")
        s.add(f"{p}.ffn_up_exps.weight", (d.n_embd, n_ff, d.n_expert), "expert_in")
    s.add(f"{p}.ffn_down_exps.weight", (n_ff, d.n_embd, d.n_expert), "expert_out")
    if bias:
        s.add(f"{p}.ffn_gate_inp.bias", (d.n_expert,), "bias")
        for name, n in (("gate", n_ff), ("up", n_ff), ("down", d.n_embd)):
            s.add(f"{p}.ffn_{name}_exps.bias", (n, d.n_expert), "bias")
    if probs:
        s.add(f"{p}.exp_probs_b.bias", (d.n_expert,), "bias")


def _nextn(s: Shape, d: Dims, p: str) -> None:
    s.add(f"{p}.nextn.eh_proj.weight", (2 * d.n_embd, d.n_embd))
    s.add(f"{p}.nextn.enorm.weight", (d.n_embd,), "norm")
    s.add(f"{p}.nextn.hnorm.weight", (d.n_embd,), "norm")


def _norms(s: Shape, d: Dims, p: str, *names: str) -> None:
    for name in names:
        s.add(f"{p}.{name}.weight", (d.n_embd,), "norm")


def _qwen3moe(d: Dims) -> Shape:
    s = _base("qwen3moe", d)
    s.kv["expert_feed_forward_length"] = d.n_ff_exp
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "ffn_norm")
        _attention(s, d, p, norm=d.head_dim)
        _experts(s, d, p)
    _ends(s, d)
    return s


def _qwen3(d: Dims) -> Shape:
    s = _base("qwen3", d)
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "ffn_norm")
        _attention(s, d, p, norm=d.head_dim)
        _dense(s, d, p)
    _ends(s, d)
    return s


def _llama(d: Dims) -> Shape:
    """Mixtral where there are experts, else a dense Llama."""
    s = _base("llama", d)
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "ffn_norm")
        _attention(s, d, p)
        if d.n_expert:
            _experts(s, d, p, d.n_ff)
        else:
            _dense(s, d, p)
    _ends(s, d)
    return s


def _olmoe(d: Dims) -> Shape:
    head = d.n_embd // d.n_head  # olmoe has no key_length of its own and no grouped queries
    s = _base("olmoe", d, n_head_kv=d.n_head, head_dim=head)
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "ffn_norm")
        for name, role in (("q", "in"), ("k", "in"), ("v", "in"), ("output", "out")):
            s.add(f"{p}.attn_{name}.weight", (d.n_embd, d.n_embd), role)
        _norms(s, d, p, "attn_q_norm", "attn_k_norm")
        _experts(s, d, p, d.n_ff)
    _ends(s, d)
    return s


def _gpt_oss(d: Dims) -> Shape:
    s = _base("gpt-oss", d)
    s.kv |= {"expert_feed_forward_length": d.n_ff_exp, "attention.sliding_window": d.n_swa}
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "post_attention_norm")
        _attention(s, d, p, bias=True)
        s.add(f"{p}.attn_sinks.weight", (d.n_head,), "bias")
        _experts(s, d, p, bias=True)
    _ends(s, d)
    return s


def _deepseek2(d: Dims) -> Shape:
    """MLA attention, leading dense layers, shared experts."""
    lora_q, lora_kv, rope, nope, v = d.n_embd // 2, d.n_embd // 2, d.head_dim, d.head_dim, d.head_dim
    s = _base("deepseek2", d, n_head_kv=1)
    s.kv |= {
        "block_count": d.n_layer + d.n_nextn,
        "attention.q_lora_rank": lora_q,
        "attention.kv_lora_rank": lora_kv,
        "attention.key_length": lora_kv + rope,
        "attention.value_length": lora_kv,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": v,
        "rope.dimension_count": rope,
        "leading_dense_block_count": d.n_dense_lead,
        "expert_feed_forward_length": d.n_ff_exp,
        "expert_shared_count": d.n_expert_shared,
        "expert_weights_scale": 1.5,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
    }
    if d.n_nextn:
        s.kv["nextn_predict_layers"] = d.n_nextn
    for i in range(d.n_layer + d.n_nextn):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "ffn_norm")
        s.add(f"{p}.attn_q_a_norm.weight", (lora_q,), "norm")
        s.add(f"{p}.attn_kv_a_norm.weight", (lora_kv,), "norm")
        s.add(f"{p}.attn_q_a.weight", (d.n_embd, lora_q))
        s.add(f"{p}.attn_q_b.weight", (lora_q, d.n_head * (nope + rope)))
        s.add(f"{p}.attn_kv_a_mqa.weight", (d.n_embd, lora_kv + rope))
        s.add(f"{p}.attn_k_b.weight", (nope, lora_kv, d.n_head))
        s.add(f"{p}.attn_v_b.weight", (lora_kv, v, d.n_head))
        s.add(f"{p}.attn_output.weight", (d.n_head * v, d.n_embd), "out")
        if i < d.n_dense_lead:
            _dense(s, d, p)
        else:
            _experts(s, d, p, probs=True)
            _dense(s, d, p, d.n_ff_exp * d.n_expert_shared, "_shexp")
        if i >= d.n_layer:
            _nextn(s, d, p)
    _ends(s, d)
    return s


def _glm4moe(d: Dims) -> Shape:
    s = _base("glm4moe", d)
    s.kv |= {
        "block_count": d.n_layer + d.n_nextn,
        "leading_dense_block_count": d.n_dense_lead,
        "expert_feed_forward_length": d.n_ff_exp,
        "expert_shared_count": d.n_expert_shared,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "rope.dimension_count": d.head_dim // 2,
    }
    if d.n_nextn:
        s.kv["nextn_predict_layers"] = d.n_nextn
    for i in range(d.n_layer + d.n_nextn):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "post_attention_norm")
        _attention(s, d, p, norm=d.head_dim)
        if i < d.n_dense_lead:
            _dense(s, d, p)
        else:
            _experts(s, d, p, probs=True)
            _dense(s, d, p, d.n_ff_exp * d.n_expert_shared, "_shexp")
        if i >= d.n_layer:
            _nextn(s, d, p)
    _ends(s, d)
    return s


def _llama4(d: Dims) -> Shape:
    """Every second layer has experts and one shared expert; chunked attention, each fourth layer full."""
    s = _base("llama4", d)
    s.kv |= {"expert_feed_forward_length": d.n_ff_exp, "interleave_moe_layer_step": 2}
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "ffn_norm")
        _attention(s, d, p)
        if i % 2:
            _experts(s, d, p)
            _dense(s, d, p, d.n_ff_exp, "_shexp")
        else:
            _dense(s, d, p)
    _ends(s, d)
    return s


def _gemma4(d: Dims) -> Shape:
    """Alternating windows with another head size, a dense FFN beside the experts, gate and up fused."""
    swa = [(i + 1) % 2 == 1 for i in range(d.n_layer)]
    full = 2 * d.head_dim
    s = _base("gemma4", d, head_dim=full)
    s.kv |= {
        "attention.key_length_swa": d.head_dim,
        "attention.value_length_swa": d.head_dim,
        "rope.dimension_count_swa": d.head_dim,
        "rope.freq_base_swa": 10000.0,
        "attention.sliding_window": d.n_swa,
        "attention.sliding_window_pattern": swa,
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "expert_feed_forward_length": d.n_ff_exp,
        "final_logit_softcapping": 30.0,
    }
    s.add("rope_freqs.weight", (full // 2,), "scale")
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
        _norms(s, d, p, "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
        head = d.head_dim if swa[i] else full
        _attention(s, d, p, norm=head, head=head)
        _dense(s, d, p)
        _experts(s, d, p, fused=True)
        s.add(f"{p}.ffn_gate_inp.scale", (d.n_embd,), "scale")
        s.add(f"{p}.ffn_down_exps.scale", (d.n_expert,), "scale")
    _ends(s, d, tied=True)
    return s


def _recurrent(d: Dims, i: int) -> bool:
    return (i + 1) % min(d.attn_interval, d.n_layer) != 0


def _granitehybrid(d: Dims) -> Shape:
    """Mamba-2 layers with a few of attention among them."""
    inner, state, groups = 2 * d.n_embd, 16, 1
    heads = inner // 16
    s = _base("granitehybrid", d, n_head_kv=[0 if _recurrent(d, i) else d.n_head_kv for i in range(d.n_layer)])
    s.kv |= {
        "feed_forward_length": d.n_ff_exp,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": heads,
        "ssm.group_count": groups,
        "expert_shared_feed_forward_length": d.n_ff_exp * d.n_expert_shared,
        "attention.scale": d.head_dim**-0.5,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "logit_scale": 1.0,
    }
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "ffn_norm")
        if _recurrent(d, i):
            conv = inner + 2 * groups * state
            s.add(f"{p}.ssm_in.weight", (d.n_embd, 2 * inner + 2 * groups * state + heads))
            s.add(f"{p}.ssm_conv1d.weight", (4, conv), "conv")
            s.add(f"{p}.ssm_conv1d.bias", (conv,), "bias")
            s.add(f"{p}.ssm_dt.bias", (heads,), "bias")
            s.add(f"{p}.ssm_a", (1, heads), "ssm_a")
            s.add(f"{p}.ssm_d", (1, heads), "scale")
            s.add(f"{p}.ssm_norm.weight", (inner // groups, groups), "norm")
            s.add(f"{p}.ssm_out.weight", (inner, d.n_embd), "out")
        else:
            _attention(s, d, p)
        _experts(s, d, p)
        if d.n_expert_shared:
            _dense(s, d, p, d.n_ff_exp * d.n_expert_shared, "_shexp")
    _ends(s, d, tied=True)
    return s


def _lfm2moe(d: Dims) -> Shape:
    """Short convolutions with a few layers of attention among them."""
    head = d.n_embd // d.n_head
    kv_heads = [0 if _recurrent(d, i) else d.n_head_kv for i in range(d.n_layer)]
    s = _base("lfm2moe", d, n_head_kv=kv_heads, head_dim=head)
    s.kv |= {
        "shortconv.l_cache": 3,
        "leading_dense_block_count": d.n_dense_lead,
        "expert_feed_forward_length": d.n_ff_exp,
        "expert_gating_func": 2,
    }
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "ffn_norm")
        if _recurrent(d, i):
            s.add(f"{p}.shortconv.conv.weight", (3, d.n_embd), "conv")
            s.add(f"{p}.shortconv.in_proj.weight", (d.n_embd, 3 * d.n_embd))
            s.add(f"{p}.shortconv.out_proj.weight", (d.n_embd, d.n_embd), "out")
        else:
            _attention(s, d, p, norm=head, head=head)
        if i < d.n_dense_lead:
            _dense(s, d, p)
        else:
            _experts(s, d, p, probs=True)
    _ends(s, d, tied=True, norm="token_embd_norm")
    return s


def _delta_net(arch: str, d: Dims) -> Shape:
    """qwen3next and qwen35moe: gated delta nets, attention in every fourth layer, a gated shared expert."""
    state, k_heads, v_heads = d.ssm_state, d.ssm_k_heads, d.ssm_v_heads
    key, value = state * k_heads, state * v_heads
    interval = min(d.attn_interval, d.n_layer)
    s = _base(arch, d)
    s.kv |= {
        "expert_feed_forward_length": d.n_ff_exp,
        "expert_shared_feed_forward_length": d.n_ff_exp * d.n_expert_shared,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": value,
        "ssm.state_size": state,
        "ssm.time_step_rank": v_heads,
        "ssm.group_count": k_heads,
        "full_attention_interval": interval,
    }
    if arch == "qwen35moe":
        third = d.head_dim // 2 // 3
        s.kv["rope.dimension_sections"] = [d.head_dim // 2 - 2 * third, third, third, 0]
    for i in range(d.n_layer):
        p = f"blk.{i}"
        _norms(s, d, p, "attn_norm", "post_attention_norm")
        if _recurrent(d, i):
            s.add(f"{p}.attn_qkv.weight", (d.n_embd, 2 * key + value))
            s.add(f"{p}.attn_gate.weight", (d.n_embd, value))
            s.add(f"{p}.ssm_conv1d.weight", (4, 2 * key + value), "conv")
            s.add(f"{p}.ssm_dt.bias", (v_heads,), "bias")
            s.add(f"{p}.ssm_a", (v_heads,), "ssm_a")
            if arch == "qwen35moe":
                s.add(f"{p}.ssm_beta.weight", (d.n_embd, v_heads))
                s.add(f"{p}.ssm_alpha.weight", (d.n_embd, v_heads))
            else:
                s.add(f"{p}.ssm_ba.weight", (d.n_embd, 2 * v_heads))
            s.add(f"{p}.ssm_norm.weight", (state,), "norm")
            s.add(f"{p}.ssm_out.weight", (value, d.n_embd), "out")
        else:
            _attention(s, d, p, q_mult=2, norm=d.head_dim)
        _experts(s, d, p)
        s.add(f"{p}.ffn_gate_inp_shexp.weight", (d.n_embd,), "router")
        _dense(s, d, p, d.n_ff_exp * d.n_expert_shared, "_shexp")
    _ends(s, d)
    return s


ARCHITECTURES: dict[str, Callable[[Dims], Shape]] = {
    "qwen3moe": _qwen3moe,
    "qwen3": _qwen3,
    "qwen35moe": lambda d: _delta_net("qwen35moe", d),
    "qwen3next": lambda d: _delta_net("qwen3next", d),
    "gpt-oss": _gpt_oss,
    "deepseek2": _deepseek2,
    "llama": _llama,
    "olmoe": _olmoe,
    "glm4moe": _glm4moe,
    "llama4": _llama4,
    "gemma4": _gemma4,
    "granitehybrid": _granitehybrid,
    "lfm2moe": _lfm2moe,
}

MIN_LAYERS = {"llama4": 4, "deepseek2": 2, "glm4moe": 2, "lfm2moe": 2, "gemma4": 2}
"""Fewest layers that show what the architecture is about."""


def describe(arch: str, dims: Dims) -> Shape:
    """Metadata and tensors of a model; raises KeyError for an architecture that isn't in `ARCHITECTURES`."""
    return ARCHITECTURES[arch](dims)
