"""The one estimator: what of a model goes to RAM, VRAM and SSD, whether it runs here, how fast, and why.

`plan` is pure: a model's header, a machine and a request in, a `Plan` out. The figures of memory are sums over tensors
and llama.cpp's own formulas; the speed is a formula with an honest range until runs of the model here replace it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backends.gguf.file import GgufFile
from backends.interface import Repacked
from backends.planner.compute import compute_bytes, router_copies
from backends.planner.figures import Budgets as Budgets
from backends.planner.figures import Placement as Placement
from backends.planner.figures import Plan as Plan
from backends.planner.figures import PlanRequest as PlanRequest
from backends.planner.figures import Verdict as Verdict
from backends.planner.gpu_use import reason_without_gpu
from backends.planner.kv import CELLS, KV_TYPES, KvBytes, kv_bytes, kv_type_obstacle, padded
from backends.planner.machine import Machine
from backends.planner.prompts import (
    MEMORY_SHARE,
    USUAL_UBATCH,
    PromptPace,
    best_ubatch,
    extra_bytes,
    first_tokens,
    prompt_pace,
    staging_bytes,
)
from backends.planner.repack import choose
from backends.planner.speed import (
    MeasuredRun,
    alike_in_vram,
    measured_prompt_token,
    measured_speed,
    streaming_speed,
)
from backends.planner.vram import RUNTIME_BYTES, bytes_of, choose_layers, copied_bytes, loads_tables

DEFAULT_CTX = 8192
"""Tokens of context where none are asked for (less where the model was trained with less)."""
PROCESS_BYTES = 68 << 20
"""The engine's process before it loads anything: Python, numpy and llama.cpp."""
RESERVE_BYTES = 512 << 20
"""Left to the rest of the machine when experts take what is free."""
GPU_RUNTIME_BYTES = 704 << 20
"""What CUDA itself takes of each GPU once prompts were computed: its context, cuBLAS and scratch memory (698 to 709 MiB
measured on an H200 and two H100, see benchmarks/results/gpu.md). Other cards and drivers differ."""
GPU_IDLE_BYTES = 530 << 20
"""The same of a GPU that no layer is on."""
IDLE_SEQUENCES = 1
"""Recurrent states that the engine keeps for idle chats beside the active ones (attention's cache is shared)."""
LEAST_RESERVE_BYTES = 128 << 20
"""Left to the rest of the machine when even one token's experts barely fit."""
WORTH_OFFERING = 1.1
"""Gain from which on experts in VRAM are proposed."""
PROMPTS = (1000, 8000, 32000)
"""Prompts, in tokens, whose time until the first answer token a plan tells."""
DISK_RESERVE_BYTES = 1 << 30
"""Left on the disk after a download."""


def working_set(gguf: GgufFile, n_used: int | None = None) -> int:
    """Bytes of the experts that one token chooses."""
    return sum(layer.expert_bytes * min(n_used or layer.n_used, layer.n_experts) for layer in gguf.expert_layers)


def advised_budget(gguf: GgufFile, n_used: int | None = None) -> int:
    """A limit from which most choices hit: a quarter of the experts, or two tokens' worth if that is more."""
    return min(gguf.bytes.experts, max(2 * working_set(gguf, n_used), gguf.bytes.experts // 4))


def plan(
    gguf: GgufFile, machine: Machine, request: PlanRequest | None = None, runs: Sequence[MeasuredRun] = ()
) -> Plan:
    """Plans a model on a machine. `runs` are remembered runs of this very model here."""
    given = request or PlanRequest()
    request = msgspec.structs.replace(given, n_ubatch=given.n_ubatch or USUAL_UBATCH)
    made = _plan(gguf, machine, request, runs)
    without, reason = _without_gpu(made, gguf, machine, request, runs)
    if reason:
        made, request = without, msgspec.structs.replace(request, n_gpu_layers=0)
    made, request = _with_prompts(made, gguf, machine, request, given.n_ubatch, runs)
    made = _with_offer(made, gguf, machine, request, given.n_gpu_layers)
    return msgspec.structs.replace(made, gpu_reason=reason, notes=(*made.notes, reason)) if reason else made


def _without_gpu(
    made: Plan, gguf: GgufFile, machine: Machine, request: PlanRequest, runs: Sequence[MeasuredRun]
) -> tuple[Plan, str]:
    """(the plan with nothing on a GPU, why that is better), where experts are computed on the CPU and nobody asked for
    layers on a GPU; "" where it isn't better."""
    asked = request.n_gpu_layers is not None or request.vram_expert_bytes != 0
    if asked or made.speed is None or not gguf.expert_layers or not made.place.n_gpu_layers:
        return made, ""
    without = _plan(gguf, machine, msgspec.structs.replace(request, n_gpu_layers=0), runs)
    if without.speed is None:
        return made, ""
    return without, reason_without_gpu(made.speed, without.speed)


def _with_prompts(
    made: Plan,
    gguf: GgufFile,
    machine: Machine,
    request: PlanRequest,
    asked: int | None,
    runs: Sequence[MeasuredRun],
) -> tuple[Plan, PlanRequest]:
    """The plan with what prompts take, and the request with the ubatch (`asked`, or the one that suits)."""
    if made.speed is None or not made.place.experts_ssd or made.backend != "stream":
        return made, request
    pace, ubatch, why = _prompts(gguf, machine, msgspec.structs.replace(request, n_ubatch=asked), made, runs)
    if ubatch != request.n_ubatch:
        request = msgspec.structs.replace(request, n_ubatch=ubatch)
        made = _plan(gguf, machine, request, runs)
    times, source = first_tokens(pace, ubatch, PROMPTS, runs, gpu=bool(made.place.n_gpu_layers))
    made = msgspec.structs.replace(
        made, n_ubatch=ubatch, ubatch_reason=why, first_token_s=times, first_token_source=source
    )
    return made, request


def _prompts(
    gguf: GgufFile, machine: Machine, request: PlanRequest, made: Plan, runs: Sequence[MeasuredRun]
) -> tuple[PromptPace, int, str]:
    """(what a pass takes, tokens of one, why) for a plan in which experts are on the SSD."""
    token_s, at = measured_prompt_token(runs, made.place.vram_experts)
    pace = prompt_pace(
        gguf, machine, made.place.experts_ssd, on_gpu=bool(machine.gpus),
        vram_experts=made.place.vram_experts, n_used=request.n_expert_used, token_s=token_s, measured_at=at,
    )  # fmt: skip
    if request.n_ubatch is not None:
        return pace, request.n_ubatch, ""
    room = made.place.experts_ram if request.ram_bytes is None else machine.ram_available - made.place.rss
    most = int(room * MEMORY_SHARE) if request.ram_bytes is None else room - RESERVE_BYTES
    if machine.gpus:
        most = min(gpu.free_bytes for gpu in machine.gpus) - made.place.vram // len(machine.gpus)
    ubatch, why = best_ubatch(pace, made.n_ctx, lambda n: extra_bytes(gguf, made.n_ctx, n) <= most)
    return pace, ubatch, why


def _with_offer(made: Plan, gguf: GgufFile, machine: Machine, request: PlanRequest, asked: int | None) -> Plan:
    """The plan with a sentence about experts that would fit into VRAM; `asked`: layers on a GPU that were asked for."""
    if made.speed is None or not machine.gpus or request.vram_expert_bytes != 0 or not gguf.expert_layers:
        return made
    better = _plan(gguf, machine, msgspec.structs.replace(request, vram_expert_bytes=None, n_gpu_layers=asked), ())
    layers = better.place.vram_expert_layers
    if not layers or better.speed is None:
        return made
    plain = _plan(gguf, machine, request, ()).speed
    gain = better.speed.expected / plain.expected if plain is not None else 1.0
    if gain < WORTH_OFFERING:
        return made
    now = made.speed.expected
    text = (
        f"{layers} of {len(gguf.expert_layers)} layers' experts would fit into VRAM: about {_rate(now)} -> "
        f"{_rate(now * gain)} tok/s with --vram-experts auto."
    )
    return msgspec.structs.replace(made, notes=(*made.notes, text))


def _plan(gguf: GgufFile, machine: Machine, request: PlanRequest, runs: Sequence[MeasuredRun]) -> Plan:
    """Plans with a settled ubatch."""
    ubatch = request.n_ubatch or USUAL_UBATCH
    used = request.n_expert_used if gguf.n_experts else None
    n_ctx = context_size(gguf, machine, request)
    kv = _kv(gguf, n_ctx, request)
    compute = compute_bytes(gguf, n_ctx, ubatch).touched
    n_gpu, vram, gpu_share = _gpu(gguf, machine, request, kv.total, compute, n_ctx)
    layers = vram_layers(gguf, machine, request, n_gpu, kv.total, n_ctx)
    in_vram = bytes_of(gguf, layers)
    vram += in_vram
    experts = gguf.bytes.experts - in_vram
    compute = compute_bytes(gguf, n_ctx, min(ubatch, USUAL_UBATCH)).touched
    streams = _streams(gguf, request)
    tables = gguf.bytes.tables if streams and not loads_tables(gguf, layers, machine.ram_available) else 0
    dense = gguf.bytes.dense - tables - int((gguf.bytes.dense - gguf.bytes.embeddings) * gpu_share)
    kv_ram = int(kv.total * (1 - gpu_share))
    process = PROCESS_BYTES + (router_copies(gguf) if streams and experts else 0)
    fixed = dense + kv_ram + compute + process
    room = max(0, machine.ram_available - fixed - RESERVE_BYTES)
    least = working_set(gguf, used)
    here = room if request.ram_bytes is None else min(room, request.ram_bytes)
    streams_some = streams and experts > here
    prompt = 0
    if streams_some:  # what long prompts need is no place for experts, but where a limit leaves memory beside it
        staging = staging_bytes(gguf)
        prompt = staging.total(staging.least) + (0 if machine.gpus else extra_bytes(gguf, n_ctx, ubatch))
        if room - prompt < least:
            prompt = 0  # without them prompts take the way of decode
        here = min(here, room - prompt)
    held = min(experts, here)
    repacked: Repacked = "off"
    told = ""
    if not n_gpu:
        all_fit = 0 < experts == held and request.ram_bytes is None
        repacked, told = choose(request.repack, gguf, all_fit, machine.repack_gains.get)
    copied = dense if not streams and repacked != "off" else 0
    place = Placement(
        dense_ram=dense, experts_ram=held, kv_ram=kv_ram, compute_ram=compute, process_ram=process, vram=vram,
        n_gpu_layers=n_gpu, vram_expert_layers=len(layers), vram_experts=in_vram, prompt_ram=prompt,
        experts_ssd=experts - held, tables_ssd=tables,
        anonymous=fixed - (0 if streams else dense) + copied + (held if repacked == "all" else 0), rss=fixed + held,
    )  # fmt: skip
    verdict, sentence = _verdict(gguf, machine, request, fixed, least, held, n_ctx, in_vram)
    speed = None
    if verdict in ("fits", "streams"):
        share = held / experts if experts else 1.0
        speed = streaming_speed(
            gguf, machine, share, n_used=used, vram_share=gpu_share,
            vram_experts=in_vram / gguf.bytes.experts if in_vram else 0.0, mapped=not streams,
        )  # fmt: skip
        alike = [r for r in alike_in_vram(runs, in_vram) if bool(r.n_gpu_layers) == bool(n_gpu)]
        speed = measured_speed(speed, alike, request.backend, held if share < 1 else None)
    return Plan(
        name=gguf.name, path=gguf.path, architecture=gguf.architecture, quant=gguf.quant, verdict=verdict,
        sentence=sentence, backend="stream" if streams else "mmap", n_layers=gguf.n_layers, n_experts=gguf.n_experts,
        n_expert_used=used or gguf.n_expert_used, n_ctx=n_ctx, n_ctx_train=gguf.n_ctx_train,
        n_ctx_max=largest_context(gguf, machine, request), file_bytes=gguf.file_bytes,
        expert_bytes=gguf.bytes.experts, dense_bytes=gguf.bytes.dense, expert_bytes_per_token=least,
        kv_bytes_per_token=kv.per_token, place=place,
        budgets=Budgets(least, advised_budget(gguf, used), gguf.bytes.experts, here), speed=speed,
        to_download=request.to_download, disk_free=machine.disk_free,
        download_s=request.to_download / request.download_bytes_s if request.download_bytes_s else None,
        repacked=repacked, notes=(*_notes(gguf, machine, request, n_ctx), *_repack_note(repacked, told)),
    )  # fmt: skip


def _kv(gguf: GgufFile, n_ctx: int, request: PlanRequest) -> KvBytes:
    return kv_bytes(
        gguf, n_ctx, n_seqs=request.n_seqs + IDLE_SEQUENCES, n_ubatch=request.n_ubatch or USUAL_UBATCH,
        type_bytes=KV_TYPES[request.kv_type],
    )  # fmt: skip


def _streams(gguf: GgufFile, request: PlanRequest) -> bool:
    return bool(gguf.expert_layers) and request.backend != "mmap"


def context_size(gguf: GgufFile, machine: Machine, request: PlanRequest) -> int:
    """Tokens of context that a load takes, for all sequences together: what is asked for up to what the model was
    trained with, else a usual size that leaves half of the memory to experts."""
    trained = gguf.n_ctx_train or DEFAULT_CTX
    if request.n_ctx:
        return min(request.n_ctx, (gguf.n_ctx_train or request.n_ctx) * request.n_seqs)
    wanted = min(trained, DEFAULT_CTX)
    if request.n_seqs > 1:
        wanted = max(wanted, min(trained, 2048) * request.n_seqs)
    return min(wanted, max(CELLS, largest_context(gguf, machine, request) // 2))


def largest_context(gguf: GgufFile, machine: Machine, request: PlanRequest) -> int:
    """Tokens of context that fit beside the dense weights and one token's experts, at most what was trained
    for each sequence; a multiple of 256, 0 where not even that fits."""
    dense = gguf.bytes.kept if _streams(gguf, request) else gguf.bytes.dense
    weights = dense + working_set(gguf, request.n_expert_used) + PROCESS_BYTES + LEAST_RESERVE_BYTES
    room = machine.ram_available - weights
    low, high = 0, -(-(gguf.n_ctx_train or DEFAULT_CTX) * request.n_seqs // CELLS)
    while low < high:
        middle = (low + high + 1) // 2
        tokens = middle * CELLS
        needed = _kv(gguf, tokens, request).total
        needed += compute_bytes(gguf, tokens, min(request.n_ubatch or USUAL_UBATCH, USUAL_UBATCH)).touched
        low, high = (middle, high) if needed <= room else (low, middle - 1)
    return low * CELLS


def _gpu(
    gguf: GgufFile, machine: Machine, request: PlanRequest, kv: int, compute: int, n_ctx: int
) -> tuple[int, int, float]:
    """(layers on GPUs, bytes of VRAM of all of them, share of the dense weights there): all that fit, experts never.
    llama.cpp spreads the layers over all GPUs, each with buffers of its own. Without a layer there long prompts are
    computed on the first GPU all the same, which takes the fixed part."""
    if not gguf.n_layers or not (machine.gpus or machine.integrated_gpu):
        return 0, 0, 0.0
    layers = gguf.n_layers + 1  # the output matrix counts as one
    if not machine.gpus:  # what is there stays in the machine's memory
        return min(layers, layers if request.n_gpu_layers is None else request.n_gpu_layers), 0, 0.0
    movable = gguf.bytes.dense - gguf.bytes.embeddings + kv
    copy = copied_bytes(gguf, request.n_ubatch or USUAL_UBATCH)
    compute += 2 * padded(n_ctx) * (request.n_ubatch or USUAL_UBATCH)  # the mask is there twice
    each, others = compute + copy + GPU_RUNTIME_BYTES, len(machine.gpus) - 1
    fixed = each * (1 + others)
    free = sum(gpu.free_bytes for gpu in machine.gpus) - fixed
    fitting = layers if movable <= free else max(0, int(layers * free / movable))
    chosen = min(fitting, layers if request.n_gpu_layers is None else request.n_gpu_layers)
    share = chosen / layers
    return chosen, int(movable * share) + (fixed if chosen else each + GPU_IDLE_BYTES * others), share


def vram_layers(
    gguf: GgufFile, machine: Machine, request: PlanRequest, n_gpu_layers: int, kv: int, n_ctx: int
) -> tuple[int, ...]:
    """The layers whose experts would go to VRAM."""
    if request.vram_expert_bytes == 0 or not machine.gpus or not n_gpu_layers:
        return ()
    return choose_layers(
        gguf, request.vram_expert_bytes, n_gpu_layers=n_gpu_layers, free=[g.free_bytes for g in machine.gpus], kv=kv,
        n_ctx=n_ctx, n_ubatch=request.n_ubatch or USUAL_UBATCH, runtime=GPU_IDLE_BYTES + RUNTIME_BYTES,
    )  # fmt: skip


def _rate(tokens_s: float) -> str:
    return f"{tokens_s:.0f}" if tokens_s >= 20 else f"{tokens_s:.1f}" if tokens_s >= 1 else f"{tokens_s:.2f}"


def _verdict(
    gguf: GgufFile,
    machine: Machine,
    request: PlanRequest,
    fixed: int,
    least: int,
    held: int,
    n_ctx: int,
    in_vram: int,
) -> tuple[Verdict, str]:
    if gguf.problems:
        return "unsupported", gguf.problems[0]
    obstacle = kv_type_obstacle(gguf, request.kv_type)
    if obstacle is not None:
        return "unsupported", f"Its KV cache can't be {request.kv_type}: {obstacle}."
    if machine.disk_free is not None and request.to_download + DISK_RESERVE_BYTES * bool(request.to_download) > (
        machine.disk_free
    ):
        missing = request.to_download + DISK_RESERVE_BYTES - machine.disk_free
        return "no_disk", f"The disk has {_gib(machine.disk_free)} free; free up {_gib(missing)} more to download it."
    need = fixed + least + LEAST_RESERVE_BYTES
    if need > machine.ram_available:
        largest = largest_context(gguf, machine, request)
        hint = f"a context of at most {largest:,} tokens fits" if 0 < largest < n_ctx else "take a smaller quantization"
        return "no_memory", (
            f"It needs {_gib(need)} of memory at least ({_gib(fixed)} besides experts), "
            f"{_gib(machine.ram_available)} are available; {hint}."
        )
    if request.ram_bytes is not None and request.ram_bytes < least:
        return "no_memory", (
            f"One token uses {_gib(least)} of experts, more than the limit of {_gib(request.ram_bytes)}; "
            f"allow at least {_gib(least)}, better {_gib(advised_budget(gguf, request.n_expert_used))}."
        )
    total = gguf.bytes.experts - in_vram
    if in_vram and not total:
        return "fits", f"All of its experts go to VRAM: {_gib(in_vram)} of them."
    if held >= total:
        what = "All of its experts stay in memory" if total else "A dense model that fits into memory"
        return "fits", f"{what}: {_gib(fixed + total)} of {_gib(machine.ram_available)} available."
    share = held / total
    return "streams", (
        f"{share:.0%} of its experts{' outside VRAM' if in_vram else ''} stay in memory "
        f"({_gib(held)} of {_gib(total)}); "
        f"the others are read from the SSD when they are chosen."
    )


def _notes(gguf: GgufFile, machine: Machine, request: PlanRequest, n_ctx: int) -> tuple[str, ...]:
    notes = []
    if gguf.missing:
        notes.append(f"{len(gguf.missing)} of {len(gguf.files)} parts are missing here; the figures cover the others.")
    if request.n_ctx and n_ctx < request.n_ctx:
        notes.append(f"The model was trained with {gguf.n_ctx_train:,} tokens of context; more are never allocated.")
    if request.n_expert_used and gguf.n_experts and request.n_expert_used != gguf.n_expert_used:
        notes.append(
            f"{request.n_expert_used} of {gguf.n_expert_used} active experts: answers differ from the full model's."
        )
    if machine.disk_bytes_s is None and gguf.n_experts:
        notes.append("The disk's speed was not measured, so the speed estimate is rough.")
    if gguf.architecture == "deepseek4":
        notes.append("Its unusual KV cache is estimated, not calculated.")
    return tuple(notes)


def _repack_note(repacked: Repacked, told: str) -> tuple[str, ...]:
    if repacked == "off":
        return ()
    what = "All weights are" if repacked == "all" else "Dense weights are"
    return (f"{what} repacked for this processor{f' ({told})' if told else ''}.",)


def _gib(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 1 << 30 else f"{n / 2**20:.0f} MiB"
