"""The guide's network in PyTorch, as llama.cpp's `qwen3moe` computes it.

Pre-norm blocks; grouped-query attention with RMS-normed queries and keys per head and NEOX rotary positions; routed
SwiGLU experts with softmax routing whose chosen weights are renormalised to one; embeddings tied to the output.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network. Rows are multiples of 32 for Q8_0."""

    n_vocab: int = 4096
    n_ctx: int = 1024
    n_layer: int = 8
    n_embd: int = 256
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_expert: int = 32
    n_expert_used: int = 4
    n_ff: int = 64
    """Hidden size of one expert."""
    rope_base: float = 10000.0
    eps: float = 1e-6

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Norm(nn.Module):
    """RMS norm over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q = nn.Linear(s.n_embd, s.n_head * s.head_dim, bias=False)
        self.k = nn.Linear(s.n_embd, s.n_head_kv * s.head_dim, bias=False)
        self.v = nn.Linear(s.n_embd, s.n_head_kv * s.head_dim, bias=False)
        self.o = nn.Linear(s.n_head * s.head_dim, s.n_embd, bias=False)
        self.q_norm = Norm(s.head_dim, s.eps)
        self.k_norm = Norm(s.head_dim, s.eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """x: (batch, time, n_embd)."""
        b, t, _ = x.shape
        s = self.s
        q = rotate(self.q_norm(self.q(x).view(b, t, s.n_head, s.head_dim)), rope).transpose(1, 2)
        k = rotate(self.k_norm(self.k(x).view(b, t, s.n_head_kv, s.head_dim)), rope).transpose(1, 2)
        v = self.v(x).view(b, t, s.n_head_kv, s.head_dim).transpose(1, 2)
        repeat = s.n_head // s.n_head_kv
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(b, t, -1))


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions, NEOX pairing: first half with second half. x: (batch, time, heads, head_dim)."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Experts(nn.Module):
    """Routed SwiGLU experts, computed for all experts and masked: at this size faster than gathering."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.router = nn.Linear(s.n_embd, s.n_expert, bias=False)
        self.gate = nn.Parameter(torch.empty(s.n_expert * s.n_ff, s.n_embd))
        self.up = nn.Parameter(torch.empty(s.n_expert * s.n_ff, s.n_embd))
        self.down = nn.Parameter(torch.empty(s.n_embd, s.n_expert * s.n_ff))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (tokens, n_embd). Returns the output, the balance loss and the router's z loss."""
        s = self.s
        logits = F.linear(x.float(), self.router.weight.float())
        probs = logits.softmax(-1)
        top, ids = probs.topk(s.n_expert_used, -1)
        weights = torch.zeros_like(probs).scatter(1, ids, top / top.sum(-1, keepdim=True))
        hidden = F.silu(F.linear(x, self.gate.to(x.dtype))) * F.linear(x, self.up.to(x.dtype))
        hidden = hidden.view(-1, s.n_expert, s.n_ff) * weights.to(x.dtype).unsqueeze(-1)
        y = F.linear(hidden.flatten(1), self.down.to(x.dtype))
        used = (weights > 0).float().mean(0) / s.n_expert_used
        balance = s.n_expert * (used * probs.mean(0)).sum()
        return y, balance, logits.logsumexp(-1).square().mean()


class Block(nn.Module):
    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.attn_norm, self.attn = Norm(s.n_embd, s.eps), Attention(s)
        self.ffn_norm, self.moe = Norm(s.n_embd, s.eps), Experts(s)


class Guide(nn.Module):
    def __init__(self, s: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.s, self.dropout = s, dropout
        self.embed = nn.Embedding(s.n_vocab, s.n_embd)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.n_layer))
        self.norm = Norm(s.n_embd, s.eps)
        depth = (2 * s.n_layer) ** -0.5
        for name, p in self.named_parameters():
            if p.dim() > 1:
                small = name.endswith(("attn.o.weight", "moe.down"))
                nn.init.normal_(p, std=0.02 if name == "embed.weight" else p.shape[1] ** -0.5 * (depth if small else 1))
        # `down` sums over few chosen experts, not over its whole row.
        for block in self.blocks:
            nn.init.normal_(block.moe.down, std=(s.n_ff * s.n_expert_used) ** -0.5 * depth)
        half = s.head_dim // 2
        freq = s.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(s.n_ctx, dtype=torch.float64)[:, None] * freq
        self.register_buffer("cos", angle.cos().float()[:, None, :], persistent=False)
        self.register_buffer("sin", angle.sin().float()[:, None, :], persistent=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens: (batch, time). Returns hidden states after the last norm, and the two router losses per layer."""
        b, t = tokens.shape
        x = self.embed(tokens)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        rope = (self.cos[:t].to(x.dtype), self.sin[:t].to(x.dtype))
        balance = z = torch.zeros((), device=x.device)
        for block in self.blocks:
            x = x + F.dropout(block.attn(block.attn_norm(x), rope), self.dropout, self.training)
            y, bal, zz = block.moe(block.ffn_norm(x).view(b * t, -1))
            x = x + F.dropout(y.view(b, t, -1), self.dropout, self.training)
            balance, z = balance + bal, z + zz
        n = len(self.blocks)
        return self.norm(x), balance / n, z / n

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed.weight.to(hidden.dtype))
