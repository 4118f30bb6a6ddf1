"""What an engine measures: its counters, the state of its experts, a benchmark. See `backends.interface`."""

from __future__ import annotations

from msgspec import Struct


class TokenLogprob(Struct, frozen=True):
    """How likely a token was where it stands."""

    token: int
    text: bytes
    """What it stands for; may be part of a character."""
    logprob: float | None
    """Natural logarithm of its probability, before any sampler setting; None: it is the first of a prompt."""
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens there, best first."""

    @property
    def shown(self) -> str:
        """Its text, with U+FFFD for what is no whole character."""
        return self.text.decode("utf-8", "replace")


class BenchRequest(Struct, kw_only=True, frozen=True):
    """Teacher-forced random tokens: see the fields of `BenchResult`."""

    prompt_tokens: int = 16
    tokens: int = 32
    seed: int = 1
    parallel: int = 1
    """Sequences decoded together; each gets its own random ids."""
    skew: float = 0.0
    """0 draws ids uniformly; above 0 by a Zipf law of this exponent."""


class Telemetry(Struct, kw_only=True, frozen=True, tag=True):
    """Counters since the model was loaded; take differences. None: this backend can't know."""

    t: float
    """time.monotonic() in the engine."""
    prefill_tokens: int = 0
    decode_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens that were in the KV cache already."""
    restored_tokens: int = 0
    """Prompt tokens that came from the store of prompts, in memory or on disk."""
    prefill_s: float = 0.0
    """Wall seconds inside llama_decode for batches with prompt tokens."""
    decode_s: float = 0.0
    stall_s: float | None = None
    """Seconds that the compute waited for expert bytes (prefill and decode)."""
    hook_s: float | None = None
    """Seconds in the router hook that were not waiting."""
    expert_hits: int | None = None
    """Chosen experts (layer, expert) that were resident when the router chose them."""
    expert_misses: int | None = None
    read_bytes: int | None = None
    """Expert bytes read from storage."""
    evictions: int | None = None
    resident_bytes: int | None = None
    budget_bytes: int | None = None
    ctx_used: int = 0
    n_active: int = 0
    """Sequences being prefilled or decoded."""
    n_waiting: int = 0
    reuse_bytes_hist: tuple[int, ...] | None = None
    """Recent decode uses per bin of reuse distance (`backends.streaming.reuse_distance.ReuseMeter.histogram`)."""
    next_token_reuse: float | None = None
    """The share of a token's experts that the token before it used too."""
    layer_pace: tuple[tuple[float, float], ...] | None = None
    """(layers, seconds they took together) of recent decoding, by how many experts were read meanwhile, from 0
    (`backends.streaming.layer_times.LayerTimes`). The last layer of each token is left out: its time holds the output
    as well."""


class ExpertMap(Struct, kw_only=True, frozen=True, tag=True):
    """Per (layer, expert) state, row-major little-endian arrays of n_layers x n_experts."""

    n_layers: int
    n_experts: int
    first_layer: int = 0
    """Index of row 0 in the model: leading dense layers have no row."""
    layers: tuple[int, ...] = ()
    """The model's layer index of each row."""
    expert_bytes: tuple[int, ...] = ()
    """Bytes of one expert, per row."""
    uses: bytes | None = None
    """uint32: times chosen since load; None where the backend doesn't see the router."""
    heat: bytes | None = None
    """float32: uses that decay by half every 64 tokens."""
    last_used: bytes | None = None
    """uint32: the token number of the last use, 0 for never."""
    residency: bytes | None = None
    """uint8: resident share of the expert's bytes, 0 (on SSD) to 255 (all in RAM)."""
    hits: bytes | None = None
    """uint32 per row: chosen experts that were resident, since load."""
    misses: bytes | None = None
    """uint32 per row: chosen experts that were not."""
    next_token_reuse: bytes | None = None
    """float32 per row: the share of a token's experts that the token before it used too; NaN while unknown."""


class BenchResult(Struct, kw_only=True, frozen=True, tag=True):
    """The contract of ``bench --json``."""

    backend: str
    model: str
    load_s: float
    load_read_bytes: int | None
    prefill_tok_s: float
    decode_tok_s: float
    compute_s_per_token: float | None
    stall_s_per_token: float | None
    hit_rate: float | None
    read_bytes_per_token: float | None
    disk_bytes_s: float | None
    bound_tok_s: float | None
    bound_share: float | None
    peak_rss_bytes: int | None
    budget_bytes: int | None
    major_faults: int | None
    logits_sha256: str
    store: str | None = None
    parallel: int = 1
    prompt_tokens: int = 0
    tokens: int = 0
    seed: int = 0
    evictions: int | None = None
    hook_s_per_token: float | None = None
    n_ubatch: int = 0
    prefill_s: float = 0.0
    """Seconds until the prompts' last logits."""
    prefill_read_bytes: int | None = None
    prefill_stall_s: float | None = None
    """Seconds of it that computing waited for reads."""
    prefill_overlap: float | None = None
    """Of the time in which whole layers were being read, the share in which computing went on; None where none were."""
    prefill_layer_s: tuple[float, ...] = ()
    """Seconds of each layer with experts, from one router's choice to the next one's, over all passes."""
    n_threads: int | None = None
    lossy: str | None = None


class Usage(Struct, kw_only=True, frozen=True):
    """What one answer took. `prefill_s` and `decode_s` are wall seconds; the rates follow from them.

    Token counts are None only where a remote server doesn't tell them.
    """

    prompt_tokens: int | None
    reused_tokens: int | None
    """Of the prompt's tokens those that weren't computed, because they had been before."""
    completion_tokens: int | None
    restored_tokens: int = 0
    """Of the reused tokens those that weren't in the KV cache any more, but in the store of prompts."""
    thinking_tokens: int = 0
    prefill_s: float
    decode_s: float
    hit_rate: float | None = None
    read_bytes: int | None = None
    stall_s: float | None = None
    seed: int | None = None
