"""Plans for the commands and the screens: the planner fed with this machine, what was measured on it, and a model.

A model is a local file, a header that was fetched from the hub, or just the figures of a catalogue.
"""

from __future__ import annotations

from pathlib import Path

from backends.gguf.file import ByteKinds, ExpertLayer, GgufFile, Tensor, read_gguf
from backends.gguf.types import TENSOR_TYPES
from backends.interface import LoadRequest
from backends.planner.machine import Machine
from backends.planner.plan import Plan, PlanRequest, plan
from flashmoe.hub.facts import ModelFacts
from flashmoe.plans import measurements

__all__ = ["Machine", "Plan", "PlanRequest", "plan_facts", "plan_file", "plan_header", "request_of"]


def request_of(load: LoadRequest) -> PlanRequest:
    """What a plan is asked for a load."""
    return PlanRequest(
        backend=load.backend, n_ctx=load.n_ctx, n_seqs=load.n_seq_max, ram_bytes=load.ram_bytes,
        n_gpu_layers=load.n_gpu_layers, n_ubatch=load.n_ubatch, vram_expert_bytes=load.vram_expert_bytes,
        n_expert_used=load.n_expert_used, kv_type=load.kv_type, repack=load.repack,
    )  # fmt: skip


def plan_file(path: Path | str, request: PlanRequest | None = None, here: Machine | None = None) -> Plan:
    """Plans a local model; raises `EngineError` where the file is none. Measures the machine's speed where it isn't
    remembered (a second), unless `here` is given."""
    gguf = read_gguf(path)
    here = here or measurements.machine(Path(path).absolute().parent, files=gguf.files)
    return plan_header(gguf, request, here)


def plan_header(gguf: GgufFile, request: PlanRequest | None, here: Machine) -> Plan:
    """Plans a model whose header is known, with its remembered runs on this machine."""
    return plan(gguf, here, request, measurements.runs_of(gguf))


def plan_facts(facts: ModelFacts, here: Machine, request: PlanRequest | None = None) -> Plan:
    """Plans a model of which only the sums are known (a catalogue's entry, a remembered header): good enough to sort a
    list by fit and speed. The KV cache is missing in it."""
    return plan(_sketch(facts), here, request)


def _sketch(facts: ModelFacts) -> GgufFile:
    kind = next(
        (i for i, (name, *_) in TENSOR_TYPES.items() if name == facts.quant.removeprefix("UD-")),
        next((i for i, (name, *_) in TENSOR_TYPES.items() if name in facts.quant), 12),
    )
    dense = facts.dense_bytes
    layers = max(1, facts.n_layers)
    experts, used = max(facts.n_experts, 0), max(facts.n_expert_used, 0)
    per_layer = facts.expert_bytes // layers
    return GgufFile(
        path=facts.name, files=(), file_bytes=facts.file_bytes, version=3, architecture=facts.architecture,
        name=facts.name, quant=facts.quant, n_layers=layers, n_embd=0, n_vocab=0, n_ctx_train=facts.n_ctx_train,
        n_experts=experts, n_expert_used=used, n_expert_shared=facts.n_expert_shared,
        bytes=ByteKinds(
            facts.expert_bytes, 0, dense - facts.table_bytes, facts.table_bytes, 0, 0, facts.expert_bytes + dense,
            tables=facts.table_bytes,
        ),
        expert_layers=tuple(ExpertLayer(i, experts, used, per_layer) for i in range(layers)) if experts else (),
        tensors=(
            Tensor("blk.0.ffn_up_exps.weight", kind, (1, 1, max(experts, 1)), 0, facts.expert_bytes, 0),
            Tensor("blk.0.attn_q.weight", kind, (1, 1), 0, dense - facts.table_bytes, 0),
            Tensor("per_layer_token_embd.weight", kind, (1, 1), 0, facts.table_bytes, 0),
        ),
        kv={}, problems=(facts.problem,) if facts.problem else (),
    )  # fmt: skip
