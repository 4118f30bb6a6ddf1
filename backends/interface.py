"""The adapter interface: what a backend is asked and what it answers, as typed structs.

Everything here crosses the pipe between the app and the engine's child process as JSON (`backends.engine.protocol`),
so it holds plain data only. A backend implements `Backend` and `Model`; it registers under the entry-point group
``flashmoe.backends`` and is driven by `backends.engine`. Units: bytes, seconds, tokens. A value that can't be known
is None, never zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct, field

from backends.conversation import ChatMessage as ChatMessage
from backends.conversation import Sampling as Sampling
from backends.conversation import ToolCall as ToolCall
from backends.conversation import ToolSpec as ToolSpec
from backends.errors import EngineError as EngineError
from backends.errors import sentence
from backends.figures import BenchRequest as BenchRequest
from backends.figures import BenchResult as BenchResult
from backends.figures import ExpertMap as ExpertMap
from backends.figures import Telemetry as Telemetry
from backends.figures import TokenLogprob as TokenLogprob
from backends.figures import Usage as Usage

KvType = Literal["f16", "q8_0"]
RepackChoice = Literal["auto", "on", "off"]
Repacked = Literal["off", "dense", "all"]
"""What of a model is repacked: nothing, all but the routed experts, or these as well."""


class LoadRequest(Struct, kw_only=True, frozen=True):
    """What to load and how. None means that the backend chooses and says what it chose in `ModelInfo`."""

    path: str
    """A GGUF file (the first of a split set), or whatever else the chosen backend understands (a URL for `remote`)."""
    backend: str = "auto"
    """A registered backend's name, or ``auto``."""
    ram_bytes: int | None = None
    """The most bytes of RAM that routed experts may hold (``--ram``). Dense weights, KV and buffers come on top."""
    n_ctx: int | None = None
    """Context size in tokens, for all sequences together; None takes min(trained context, what fits)."""
    n_seq_max: int = 1
    """Sequences that may be decoded together."""
    own_caches: bool = False
    """Each sequence has a KV cache of its own, an equal part of `n_ctx`, and no idle one is kept. Attention then costs
    what the sequence's own tokens cost, where in a cache for all it goes over everybody's. Sequences with a recurrent
    state share one all the same."""
    n_batch: int | None = None
    n_ubatch: int | None = None
    """Tokens of a prompt that are computed in one pass (``--ubatch``), which reads what isn't in memory of all experts
    once. None: as many as make reading and computing take equally long, where memory allows; 512 where nothing has to
    be read."""
    disk_bytes_s: float | None = None
    """What the model's disk gives, where that was measured before: it decides the ubatch."""
    prompt_token_s: float | None = None
    """Seconds of computing for a prompt's token, where this model's own runs told them."""
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    """Layers whose attention and dense weights go to the GPU. None: all that fit."""
    gpu_reason: str = ""
    """Why `n_gpu_layers` is what it is, where that was decided before; a sentence for `ModelInfo.backend_reason`."""
    vram_expert_bytes: int | None = 0
    """The most bytes of routed experts that go to the GPUs, whole layers of them (``--vram-experts``); None: as many as
    fit there."""
    n_expert_used: int | None = None
    """Fewer active experts than the model was trained with (``--experts``): lossy."""
    max_stall_s: float | None = 2.0
    """The longest that answers wait while another one's prompt is computed: its passes are cut for that. None: as long
    as a pass takes, which is best for many answers together."""
    store: Literal["auto", "pagecache", "pool"] = "auto"
    """Which residency store the backend `stream` uses."""
    embeddings: bool = False
    kv_type: KvType = "f16"
    """How keys and values are kept: ``q8_0`` takes about half of the memory of ``f16``, and answers differ a little."""
    repack: RepackChoice = "off"
    """Whether weights are repacked for this processor: ``on`` those that stay in memory, and routed experts as well
    where all of them fit there and neither a limit nor a store was asked for; ``auto`` what pays on this processor."""
    repack_file: str = ""
    """Where it is remembered what repacking gains on this processor; empty: nowhere."""
    kv_budget_bytes: int | None = None
    """The most memory that states of prompts may take beside the KV cache, so that what was read once isn't read again.
    None: a sixteenth of the machine's memory, where several sequences share the cache; with one, only states to go back
    to. 0: nothing of a prompt is kept once its answer has ended."""
    kv_dir: str | None = None
    """Where states of prompts are kept for the next process; None: nowhere."""
    kv_dir_bytes: int | None = None
    """The most bytes there, of all models together; None: 16 GiB. It is never more than a tenth of what is free."""
    kv_min_tokens: int = 0
    """Prompts of fewer tokens aren't kept there: to compute them again is as fast."""
    expects_schemas: bool = False
    """Schemas and calls will be asked for: what tries them starts with the load, not with the first of them."""
    heat_folder: str = ""
    """Where each expert's use is kept, so that the next start is warm; empty: nowhere."""


class GenerateRequest(Struct, kw_only=True, frozen=True):
    """One answer to produce. Exactly one of `messages`, `prompt` and `tokens` is given."""

    id: str
    """Unique among the running requests of one engine; every event about this answer carries it."""
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    """Raw text, tokenised without a chat template."""
    tokens: tuple[int, ...] | None = None
    sampling: Sampling = Sampling()
    session: str | None = None
    """The chat that this belongs to: what is kept on disk of its prompts and answers goes when the chat is deleted."""
    enable_thinking: bool | None = None
    """Passed to templates that know a switch, under the name that they use; None leaves the template's default."""
    effort: Literal["low", "medium", "high"] | None = None
    """How much to think, passed to templates that know degrees; elsewhere it only turns thinking on."""
    tools: tuple[ToolSpec, ...] = ()
    """Tools that the model may call: they go into the prompt through the template, and calls come back as `Delta`s of
    kind ``call``, ``arguments`` and ``call_end``. Without tools whatever looks like a call is text."""
    tool_choice: Literal["auto", "none", "required"] = "auto"
    """none: the tools are in the prompt, but what the model writes is text. required: the answer is at least one call,
    constrained from its first token after the thinking."""
    forced_tool: str | None = None
    """The tool that must be called, with `tool_choice` required."""
    parallel_tool_calls: bool = True
    """False: a constrained answer holds one call."""
    room: int = 1
    """Tokens that the prompt must leave for the answer, or the request is refused."""
    continue_final: bool = False
    """The last message is an assistant's that was cut short: go on in it instead of opening a new one."""
    template_args: dict[str, str | int | float | bool] = field(default_factory=dict)


# ---- events ----------------------------------------------------------------------------------------------------


class LoadProgress(Struct, kw_only=True, frozen=True, tag=True):
    """While a model loads. `total_bytes` counts what will really be read or mapped, None while unknown."""

    stage: str
    """A few words for the user, e.g. ``reading dense weights``."""
    done_bytes: int = 0
    total_bytes: int | None = None


class PrefillProgress(Struct, kw_only=True, frozen=True, tag=True):
    """The prompt's tokens done of `total`; `reused` of them came from the KV cache. Within a pass, its tokens times the
    layers done of all count as done."""

    id: str
    done: int
    total: int
    reused: int = 0
    eta_s: float | None = None
    """Seconds until the first answer token, by the pace of the layers; None before that is known."""


class Delta(Struct, kw_only=True, frozen=True, tag=True):
    """Something new of an answer, in order, with the number of tokens that made it.

    ``answer`` and ``thinking`` add `text`. A tool call is a ``call`` (its `index` from 0, its `name`, and `call_id`
    where the model wrote one by then), then any number of ``arguments`` whose `text` adds up to the JSON of its
    arguments, then a ``call_end``: `complete` says whether that JSON is whole (False: cut off by the length, a cancel
    or the model itself; `text` then is what the model wrote), `call_id` is the model's own id or None. Calls don't
    overlap. ``prompt`` has no text: its `logprobs` are those of the prompt's tokens, where they were asked for.
    """

    id: str
    text: str
    kind: Literal["answer", "thinking", "call", "arguments", "call_end", "prompt"] = "answer"
    n_tokens: int = 1
    index: int = 0
    name: str = ""
    call_id: str | None = None
    complete: bool = True
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens that made it, where they were asked for."""

    def joins(self, later: Delta) -> bool:
        """Whether the next delta of the same answer only adds text to this one."""
        same = self.kind == later.kind and self.index == later.index
        return same and self.kind in ("answer", "thinking", "arguments")

    def joined(self, later: Delta) -> Delta:
        """Both in one."""
        return Delta(
            id=self.id,
            text=self.text + later.text,
            kind=self.kind,
            n_tokens=self.n_tokens + later.n_tokens,
            index=self.index,
            logprobs=self.logprobs + later.logprobs,
        )


class Finished(Struct, kw_only=True, frozen=True, tag=True):
    """The answer ended: by itself, a stop string, its length, a full context, or because it was cancelled."""

    id: str
    reason: Literal["stop", "length", "context", "cancelled"]
    usage: Usage
    tokens: tuple[int, ...] = ()
    """The ids that were sampled, for `ChatMessage.tokens` of the next request. Empty where a server doesn't tell."""
    stop_string: str | None = None
    """The stop string that ended it."""


class Failed(Struct, kw_only=True, frozen=True, tag=True):
    """The request failed; the engine goes on. The parts of an `EngineError`."""

    id: str
    code: str
    what: str
    advice: str = ""
    tokens: int | None = None
    limit: int | None = None

    @classmethod
    def of(cls, request_id: str, error: EngineError) -> Failed:
        """The failure that an error means for a request."""
        return cls(
            id=request_id,
            code=error.code,
            what=error.what,
            advice=error.advice,
            tokens=error.tokens,
            limit=error.limit,
        )

    def error(self) -> EngineError:
        """The error again."""
        return EngineError(self.code, self.what, self.advice, tokens=self.tokens, limit=self.limit)

    @property
    def message(self) -> str:
        """One sentence for the user: what happened and what to do."""
        return sentence(self.what, self.advice)


class ModelInfo(Struct, kw_only=True, frozen=True, tag=True):
    """A loaded model. Byte figures are what was really allocated or mapped, None where unknown."""

    name: str
    path: str
    architecture: str
    quant: str
    backend: str
    backend_reason: str
    """Why this backend and store were chosen, or why a better one was not: a sentence."""
    n_layers: int
    n_vocab: int
    n_ctx: int
    """0: a remote server that doesn't tell."""
    n_ctx_train: int
    n_seq_max: int = 1
    n_batch: int = 512
    n_ubatch: int = 512
    ubatch_reason: str = ""
    """Why so many tokens, where the backend chose; a half sentence."""
    n_experts: int = 0
    """0: a dense model, of which nothing streams."""
    n_expert_used: int = 0
    n_expert_used_trained: int = 0
    file_bytes: int
    expert_bytes: int = 0
    """All routed experts together."""
    dense_bytes: int | None = None
    table_bytes: int = 0
    """Weights that are only looked up: they stay on the SSD, and rows are read (`stream`)."""
    kv_bytes: int | None = None
    kv_type: KvType = "f16"
    repacked: Repacked = "off"
    repack_reason: str = ""
    """Why that is repacked where it wasn't asked for; a half sentence."""
    compute_bytes: int | None = None
    budget_bytes: int | None = None
    """The most that experts may hold in RAM; None: unlimited."""
    vram_bytes: int | None = None
    """Weights, KV cache and compute buffers on GPUs, without the driver's own (0.5 GiB with CUDA, more once used)."""
    n_gpu_layers: int = 0
    gpu_reason: str = ""
    """Why no layer is on a GPU although nobody asked for that and there is one; a sentence."""
    vram_expert_layers: tuple[int, ...] = ()
    """Layers whose experts are in VRAM, where nothing streams."""
    vram_expert_bytes: int = 0
    """Bytes of these experts."""
    has_chat_template: bool = True
    can_think: bool = False
    """The template has a switch for thinking, or opens a thinking tag."""
    chat_format: str = ""
    """How the model writes, as far as its template shows, in a few words for people; it says so where nothing could be
    learnt and the output is taken as plain text."""
    system_merged: bool = False
    """The template has no place for a system message, which goes into the first user message instead."""
    can_call_tools: bool = False
    """Tool calls of this model are understood."""
    bos_token: str = ""
    """The text of the token that prompts begin with, where there is one."""
    eos_token: str = ""
    """The text of the token that ends an answer."""
    load_s: float = 0.0
    load_read_bytes: int | None = None
    store: str | None = None
    n_threads: int | None = None
    disk_bytes_s: float | None = None
    """What the model's disk gave when it was probed with reads of an expert's size: the ceiling of the SSD pane."""
    lossy: str | None = None
    """A sentence where answers differ from the full model's (fewer experts); shown wherever the model is named."""


Event = LoadProgress | PrefillProgress | Delta | Finished | Failed | ModelInfo | Telemetry | ExpertMap | BenchResult


# ---- what a backend implements -----------------------------------------------------------------------------------

ProgressCallback = Callable[[LoadProgress], bool]
"""Called now and then while loading; returning False cancels (the loader raises `EngineError("cancelled")`)."""


@runtime_checkable
class Backend(Protocol):
    """Loads models. Created without arguments by the registry, in the engine's child process."""

    name: str

    def why_not(self, request: LoadRequest) -> str | None:
        """None if this backend can run the request here, else one sentence that says why not. Cheap: reads headers."""
        ...

    def load(self, request: LoadRequest, progress: ProgressCallback) -> Model:
        """Loads the model; raises `EngineError`."""
        ...


class Prepared(Protocol):
    """A request that was checked, rendered and tokenised, and waits for its place."""

    request: GenerateRequest
    notices: tuple[str, ...]
    """What a person should know of it though nothing failed: sentences, each told once a load."""

    @property
    def n_tokens(self) -> int:
        """Of its prompt."""
        ...


@runtime_checkable
class Prepares(Protocol):
    """A model that can do what comes before an answer apart from the thread that drives it."""

    def prepare(self, request: GenerateRequest) -> Prepared:
        """Everything that needs no decoding: rendering, tokenising, building grammars, every check. Called from several
        threads at once. Raises `EngineError` where the request can't ever run."""
        ...

    def submit_prepared(self, prepared: Prepared) -> None:
        """Queues what `prepare` gave; it advances in `step`. Raises `EngineError` where its id is in use."""
        ...

    def drop(self, prepared: Prepared) -> None:
        """Frees what `prepare` gave and that won't be submitted."""
        ...

    def count_tokens(self, request: GenerateRequest) -> int:
        """Tokens of the request's prompt after the chat template; raises `EngineError`."""
        ...

    def tokenize(self, request: GenerateRequest, *, special: bool) -> tuple[int, ...]:
        """The prompt's tokens; `special` False leaves out the one that the model wants before a raw prompt."""
        ...

    def detokenize(self, tokens: tuple[int, ...]) -> str:
        """The text of tokens, control tokens by their names; raises `EngineError` for ids that aren't any."""
        ...


@runtime_checkable
class Model(Protocol):
    """A loaded model that answers requests. One thread drives it; only `cancel` may be called from another."""

    info: ModelInfo

    def count_tokens(self, request: GenerateRequest) -> int:
        """Tokens of the request's prompt after the chat template; raises `EngineError`. Of a model that `Prepares` it
        is called from other threads, too."""
        ...

    def submit(self, request: GenerateRequest) -> None:
        """Queues a request; it advances in `step`. Raises `EngineError` where it can't ever run."""
        ...

    def cancel(self, request_id: str) -> None:
        """Stops a request within one layer; `step` then emits its `Finished`. Thread-safe; unknown ids are ignored."""
        ...

    def step(self) -> list[Event]:
        """Advances every active request by one batch and returns what happened; [] when there is nothing to do."""
        ...

    def busy(self) -> bool:
        """Whether `step` has something to do."""
        ...

    # optional and thread-safe: ``prefill_progress(emit)``, called twice a second with how far the batch's prompts are
    def telemetry(self) -> Telemetry:
        """Counters now. Thread-safe and cheap: it is read several times a second while `step` runs."""
        ...

    def expert_map(self) -> ExpertMap | None:
        """Per-expert state, None where the backend has none (dense models, `remote`). Thread-safe."""
        ...

    def bench(self, request: BenchRequest, progress: Callable[[int, int], bool]) -> BenchResult:
        """Runs the teacher-forced benchmark; `progress(done, total)` returning False cancels."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...
