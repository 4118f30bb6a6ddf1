"""`LlamaModel`: the adapter interface's `Model` over llama.cpp, shared by the backends `mmap` and `stream`.

A backend loads weights its own way (`loading.Weights`), says in `Parts` what it adds, and gets the rest from here: chat
templates, tokenising, continuous batching, KV reuse, sampling, thinking, prompts on disk, and the benchmark.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from backends.chat_format.events import Said
from backends.chat_format.learn import describe
from backends.chat_format.rendering import Renderer
from backends.chat_format.templates import ChatTemplate, fallback_template
from backends.interface import (
    BenchRequest,
    BenchResult,
    EngineError,
    Event,
    ExpertMap,
    GenerateRequest,
    LoadRequest,
    ModelInfo,
    PrefillProgress,
    Telemetry,
)
from backends.llamacpp import native
from backends.llamacpp.answer import Answer
from backends.llamacpp.bench import run_bench
from backends.llamacpp.context import LlamaContext, can_slice
from backends.llamacpp.guide import Guide
from backends.llamacpp.loading import Weights, vram_free_bytes
from backends.llamacpp.parts import Parts
from backends.llamacpp.pass_meter import PassMeter
from backends.llamacpp.prompt_store import kept_memory, model_identity, open_store, wants_store
from backends.llamacpp.prompts import PromptMaker
from backends.llamacpp.replay import answers_file
from backends.llamacpp.scheduler import Scheduler
from backends.llamacpp.vocab import Vocab
from backends.planner.kv import padded
from backends.system import procfs

IDLE_SEQUENCES = 16
"""Sequences kept for idle conversations beside those that may be active."""
MAX_SEQUENCES = 256
"""llama.cpp's LLAMA_MAX_SEQ."""


class LlamaModel:
    """A loaded model. One thread drives it; `cancel`, `telemetry` and `expert_map` may be called from others."""

    def __init__(self, weights: Weights, request: LoadRequest, parts: Parts, base: ModelInfo) -> None:
        """Makes the context and owns `weights` from here on, also when this fails.

        `base` has what is known of the file (name, architecture, layers, experts, bytes) and the decisions `n_ctx`,
        `n_ubatch` and `n_seq_max`; the rest is filled in here. Raises `EngineError` ``no_memory``.
        """
        self._weights = weights
        self._parts = parts
        self._passes = parts.passes or PassMeter(0)
        self._request = request
        self._renderer = Renderer()
        try:
            L = native.lib()
            self._vocab = Vocab(weights.model)
            recurrent = bool(L.llama_model_is_recurrent(weights.model) or L.llama_model_is_hybrid(weights.model))
            own_caches = request.own_caches and not recurrent
            kept_bytes = 0 if own_caches else kept_memory(request)
            slices = kept_bytes > 0 and wants_store(request) and can_slice(weights.model, recurrent=recurrent)
            # a recurrent state takes tens of MiB, whatever it holds: idle ones are in the store
            idle = 0 if not kept_bytes else int(not slices) if recurrent else IDLE_SEQUENCES
            n_seqs = min(MAX_SEQUENCES - slices, base.n_seq_max + idle)
            started, vram_before = time.perf_counter(), vram_free_bytes()
            self.context = LlamaContext(
                weights,
                n_ctx=base.n_ctx,
                n_batch=min(base.n_ubatch, padded(base.n_ctx)),
                n_seqs=n_seqs,
                n_threads=request.n_threads or procfs.usable_cpus(),
                hook=parts.hook,
                abort=parts.abort,
                embeddings=request.embeddings,
                own_caches=own_caches,
                op_offload=parts.op_offload,
                kv_type=request.kv_type,
                check=parts.check_files,
                slices=slices,
            )
        except BaseException:
            weights.close()
            raise
        self._guide = Guide(self._vocab)
        if request.expects_schemas:  # it gets ready while the template is learned
            self._guide.warm_up()
        load_s = weights.load_s + time.perf_counter() - started
        vram_after, vram = vram_free_bytes(), weights.vram_bytes
        if vram is not None and vram_before is not None and vram_after is not None:
            vram += max(0, vram_before - vram_after)  # KV cache and compute buffers
        raw_template = L.llama_model_chat_template(weights.model, None)
        source = raw_template.decode("utf-8", "replace") if raw_template else ""
        knows_chatml = len(self._vocab.tokenize("<|im_start|>")) == 1
        self._template = ChatTemplate(
            source or fallback_template(knows_chatml),
            bos=self._vocab.bos_text,
            eos=self._vocab.eos_text,
            renderer=self._renderer,
        )
        fmt = self._template.format
        identity = model_identity(base, parts.fingerprint)
        self._store = open_store(self.context, request, identity, kept_bytes) if slices else None
        self._scheduler = Scheduler(
            self.context,
            self._counted,
            base.n_seq_max,
            store=self._store,
            kept_bytes=kept_bytes,
            min_kept=request.kv_min_tokens,
            max_stall_s=request.max_stall_s,
            passes=self._passes if parts.passes is None else None,
        )
        self._prompts = PromptMaker(
            self._template,
            self._vocab,
            special_texts=self._vocab.show(fmt.markers()),
            seq_ctx=self.context.seq_ctx,
            limit=min(self.context.seq_ctx, base.n_ctx_train or self.context.seq_ctx),
            marks=kept_bytes > 0 and (self.context.partial or slices),
            answers=answers_file(request, identity) if self._store is not None else None,
        )
        self.info = parts.info(
            msgspec.structs.replace(
                base,
                backend=parts.backend,
                backend_reason=f"{parts.reason} {request.gpu_reason}".rstrip(),
                n_vocab=self._vocab.size,
                n_ctx=self.context.n_ctx,
                n_batch=self.context.n_batch,
                n_ubatch=self.context.n_batch,
                n_layers=base.n_layers or int(L.llama_model_n_layer(weights.model)),
                kv_bytes=self.context.kv_bytes,
                compute_bytes=self.context.compute_bytes,
                vram_bytes=vram,
                gpu_reason=request.gpu_reason,
                n_gpu_layers=min(weights.n_gpu_layers, int(L.llama_model_n_layer(weights.model)) + 1),
                has_chat_template=bool(source),
                can_think=fmt.can_think,
                chat_format=describe(fmt),
                system_merged=fmt.system == "merge",
                can_call_tools=fmt.calls.kind != "none",
                bos_token=self._vocab.bos_text,
                eos_token=self._vocab.eos_text,
                load_s=load_s,
                load_read_bytes=weights.load_read_bytes,
                n_threads=self.context.n_threads,
                lossy=weights.lossy,
            )
        )
        self._closed = False
        self._close_lock = threading.Lock()

    @property
    def n_threads(self) -> int:
        return self.context.n_threads

    # -- answers -------------------------------------------------------------------------------------------------------

    def count_tokens(self, request: GenerateRequest) -> int:
        """Tokens of the request's prompt after the chat template; raises `EngineError`. Thread-safe."""
        return len(self._prompts.make(request).tokens)

    def tokenize(self, request: GenerateRequest, *, special: bool) -> tuple[int, ...]:
        """The prompt's tokens; `special` False leaves out the one that the model wants before a raw prompt."""
        if not special and request.prompt is not None:
            return tuple(self._vocab.tokenize(request.prompt))
        return tuple(self._prompts.make(request).tokens)

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        """The text of tokens, control tokens by their names. Raises `EngineError` ``bad_request``."""
        self._prompts.check_tokens(tokens)
        return b"".join(self._vocab.text(t) for t in tokens).decode("utf-8", "replace")

    def prepare(self, request: GenerateRequest) -> Answer:
        """Renders, tokenises and checks a request. Thread-safe. Raises `EngineError` ``bad_request``, ``bad_template``,
        ``prompt_too_long``, and ``io_error`` where the model's files were changed."""
        self._parts.check_files()
        prompt = self._prompts.fitting(request)
        return Answer(
            request,
            prompt.tokens,
            vocab=self._vocab,
            parser=prompt.parser,
            n_ctx=self._prompts.limit,
            marks=prompt.marks,
            turn=prompt.turn,
            matcher=self._guide.matcher(request, self._template.format),
            held_calls=self._guide.held_calls(request, self._template.format) if prompt.parser is not None else None,
            notices=prompt.notices,
            remember=self._remembers(request) if request.messages is not None else None,
        )

    def _remembers(self, request: GenerateRequest) -> Callable[[Sequence[int], Sequence[int], Said], None]:
        return partial(self._prompts.answers.remember, chat=request.session)

    def submit_prepared(self, answer: Answer) -> None:
        """Queues what `prepare` gave. Raises `EngineError` ``bad_request`` where its id is in use."""
        answer.counters = self._counted()
        self._scheduler.submit(answer)

    def drop(self, answer: Answer) -> None:
        """Frees what `prepare` gave and that isn't wanted any more."""
        answer.sampler.free()

    def submit(self, request: GenerateRequest) -> None:
        """Prepares and queues a request. Raises `EngineError` as `prepare` does."""
        self.submit_prepared(self.prepare(request))

    def cancel(self, request_id: str) -> None:
        """Stops a request within one layer; thread-safe."""
        self._scheduler.cancel(request_id)

    def step(self) -> list[Event]:
        """Advances every active request by one batch."""
        return self._scheduler.step()

    def prefill_progress(self, emit: Callable[[PrefillProgress], None]) -> None:
        """Tells how far the prompts of the running batch are; thread-safe."""
        self._scheduler.prefill_progress(self._passes, emit)

    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self._scheduler.busy

    def idle(self) -> bool:
        """While there is nothing to do: a little of what can wait; whether there is more of it. Returns soon."""
        return not self.busy() and self._parts.idle()

    # -- figures -------------------------------------------------------------------------------------------------------

    def _counted(self) -> dict[str, float]:
        c = self._parts.counters()
        named = {
            "hits": c.expert_hits, "misses": c.expert_misses, "read_bytes": c.read_bytes, "stall_s": c.stall_s,
        }  # fmt: skip
        return {k: float(v) for k, v in named.items() if v is not None}

    def telemetry(self) -> Telemetry:
        """Counters now; thread-safe."""
        c, s = self._parts.counters(), self._scheduler
        tokens, seconds = s.running_prompt(self._passes)
        return Telemetry(
            t=time.monotonic(),
            prefill_tokens=s.prefill_tokens + int(tokens),
            decode_tokens=s.decode_tokens,
            reused_tokens=s.reused_tokens,
            restored_tokens=s.restored_tokens,
            prefill_s=s.prefill_s + seconds,
            decode_s=s.decode_s,
            stall_s=c.stall_s,
            hook_s=c.hook_s,
            expert_hits=c.expert_hits,
            expert_misses=c.expert_misses,
            read_bytes=c.read_bytes,
            evictions=c.evictions,
            resident_bytes=c.resident_bytes,
            budget_bytes=c.budget_bytes,
            ctx_used=s.book.used,
            n_active=len(s.active),
            n_waiting=len(s.waiting),
            reuse_bytes_hist=c.reuse_bytes_hist,
            next_token_reuse=c.next_token_reuse,
            layer_pace=c.layer_pace,
        )

    def expert_map(self) -> ExpertMap | None:
        """Per-expert state; None where there are no experts."""
        return self._parts.expert_map()

    def bench(self, request: BenchRequest, progress: Callable[[int, int], bool]) -> BenchResult:
        """Runs the benchmark (see `bench.run_bench`); every session's KV cache is dropped for it."""
        if self._scheduler.busy:
            raise EngineError("bad_request", "A benchmark can't run while answers are being made.")
        self._scheduler.close()
        try:
            return run_bench(self.context, self.info, self._parts, request, progress)
        finally:
            self._scheduler.close()

    def forget(self) -> None:
        """Drops every session's KV cache, every prompt that is kept in memory alone, and every request."""
        self._scheduler.close()
        if self._store is not None:
            self._store.forget()

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees everything; a second call does nothing."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        self._renderer.close()
        self._guide.close()
        if self._store is not None:
            self._store.close()
        self._scheduler.close()
        self.context.close()
        self._weights.close()
