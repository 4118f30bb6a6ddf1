"""Bytes of the KV cache and recurrent state at a context size, as llama.cpp (llama-cpp-python 0.3.36) allocates them.

Grouped-query attention keeps keys and values for every position; latent attention (MLA) one latent vector; sliding
windows only what the window needs, unless the cache is kept whole; recurrent layers a constant, whatever the context.
"""

from __future__ import annotations

from msgspec import Struct

from backends.gguf.file import GgufFile

_INTERVAL_HYBRIDS = {"qwen3next", "qwen35", "qwen35moe", "qwen4exp", "minimax-01"}
_ZERO_HEAD_HYBRIDS = {
    "granitehybrid", "lfm2", "lfm2moe", "jamba", "plamo2", "kimi-linear", "bailingmoe3", "kimi-k3", "glm5-next",
    "nemotron_h", "nemotron_h_moe",
}  # fmt: skip
_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
_SWA_PATTERN = {
    "gpt-oss": 2, "gemma2": 2, "gemma3": 6, "gemma3n": 5, "llama4": 4, "cohere2": 4, "cohere2moe": 4, "exaone4": 4,
    "exaone-moe": 4, "olmo2": 4, "smallthinker": 4, "afmoe": 4, "laguna": 4, "mellum": 4, "muse-glimmer": 4,
    "plamo3": 8, "gemma4": 0, "mimo2": 0, "step35": 0,
}  # fmt: skip
"""Architectures with sliding windows and their pattern where the file gives none: every n-th layer sees everything."""
_DENSE_FIRST = {"cohere2moe", "laguna", "smallthinker"}
_WINDOW = {"llama4": 8192}
CONTEXT_RESERVE_BYTES = 256 << 20
"""Left for compute buffers and the engine's process when a context is sized to memory."""
KV_TYPES: dict[str, float] = {"f16": 2.0, "q8_0": 34 / 32}
"""Bytes of a number in the cache, by `LoadRequest.kv_type`."""
_BLOCK = 32
"""Numbers that q8_0 keeps together."""
CELLS = 256
"""The context is padded to a multiple of this."""


def padded(n_ctx: int) -> int:
    """Cells that llama.cpp allocates for so many tokens of context: the next multiple of `CELLS`."""
    return -(-n_ctx // CELLS) * CELLS


def allocated_cells(n_ctx: int, n_seqs: int, *, own_caches: bool) -> int:
    """Cells that llama.cpp allocates for `n_ctx` tokens of `n_seqs` sequences. With caches of their own each gets an
    equal part, and each part is padded."""
    return n_seqs * padded(-(-n_ctx // n_seqs)) if own_caches else padded(n_ctx)


class KvBytes(Struct, frozen=True):
    """Bytes that a context takes besides its compute buffers."""

    attention: int
    recurrent: int
    per_token: int
    """Bytes that one more token of context adds (far from the padding)."""

    @property
    def total(self) -> int:
        return self.attention + self.recurrent


def kv_bytes(
    gguf: GgufFile, n_ctx: int, *, n_seqs: int = 1, n_ubatch: int = 512, swa_full: bool = True, type_bytes: float = 2.0
) -> KvBytes:
    """KV cache and recurrent state of a unified cache of `n_ctx` tokens for `n_seqs` sequences; f16 by default."""
    cells = padded(max(n_ctx, 1))
    recurrent = _recurrent_layers(gguf)
    swa = swa_layers(gguf)
    window = number(gguf, "attention.sliding_window", 0) or _WINDOW.get(gguf.architecture, 0)
    swa_cells = cells
    if not swa_full and window:
        swa_cells = min(padded(min(cells, window * n_seqs + n_ubatch)), cells)
    attention, per_token = 0.0, 0.0
    for layer, width in enumerate(_widths(gguf, swa)):
        if recurrent[layer] and gguf.architecture != "falcon-h1":
            continue
        sliding = swa[layer] and swa_cells < cells
        attention += width * type_bytes * (swa_cells if sliding else cells)
        per_token += 0.0 if sliding else width * type_bytes
    index = _index_width(gguf)
    attention += index * type_bytes * cells
    per_token += index * type_bytes
    if gguf.architecture == "deepseek4":  # raw, compressed and indexer caches, each per sequence
        attention, per_token = _deepseek4(gguf, cells, n_seqs, type_bytes)
    state = _state_bytes(gguf) * sum(recurrent) + _ngram_bytes(gguf)
    return KvBytes(int(attention), state * max(1, n_seqs), int(per_token))


def kv_type_obstacle(gguf: GgufFile, kv_type: str) -> str | None:
    """Why a cache of this type can't be had for a model, as the end of a sentence; None where it can."""
    if kv_type == "f16":
        return None
    if gguf.architecture == "grok":
        return "llama.cpp computes it without flash attention, which a quantized cache needs"
    names = ("key_length", "value_length", "key_length_swa", "value_length_swa", "indexer.key_length")
    given = {number(gguf, f"attention.{name}", 0) for name in names} - {0}
    heads = max(gguf.per_layer("attention.head_count", 0), default=0)
    if not number(gguf, "attention.key_length", 0) and heads:
        given.add(gguf.n_embd // heads)
    odd = sorted(n for n in given if n % _BLOCK)
    return f"its heads are {odd[0]} numbers wide, and {kv_type} keeps {_BLOCK} together" if odd else None


def number(gguf: GgufFile, name: str, default: int) -> int:
    """Metadata ``<architecture>.<name>`` as an integer, the largest where there is one for each layer."""
    value = gguf.key(name)
    if isinstance(value, tuple):
        value = max(value, default=default)
    return int(value) if isinstance(value, int | float) else default


def _recurrent_layers(gguf: GgufFile) -> list[bool]:
    """Which layers keep a recurrent state in place of keys and values."""
    arch, n = gguf.architecture, gguf.n_layers
    if arch in _RECURRENT or arch == "falcon-h1":
        return [True] * n
    if arch in _INTERVAL_HYBRIDS:
        given = gguf.key("attention.recurrent_layers")
        if isinstance(given, tuple):
            return [bool(v) for v in given[:n]] + [False] * (n - len(given[:n]))
        interval = max(1, number(gguf, "full_attention_interval", 4))
        return [(i + 1) % interval != 0 for i in range(n)]
    if arch in _ZERO_HEAD_HYBRIDS:
        heads = gguf.per_layer("attention.head_count_kv", 0)
        if arch.startswith("nemotron_h"):
            return [h == 0 and ff == 0 for h, ff in zip(heads, gguf.per_layer("feed_forward_length", 0), strict=True)]
        return [h == 0 for h in heads]
    return [False] * n


def swa_layers(gguf: GgufFile) -> list[bool]:
    """Which layers see a sliding window only."""
    arch, n = gguf.architecture, gguf.n_layers
    if arch not in _SWA_PATTERN or gguf.key("attention.sliding_window") == 0:
        return [False] * n
    given = gguf.key("attention.sliding_window_pattern")
    if isinstance(given, tuple):
        return [bool(v) for v in given[:n]] + [False] * (n - len(given[:n]))
    every = int(given) if isinstance(given, int) else _SWA_PATTERN[arch]
    if every <= 1:
        return [every == 0] * n
    if arch in _DENSE_FIRST:
        return [i % every != 0 for i in range(n)]
    return [i % every < every - 1 for i in range(n)]


def _widths(gguf: GgufFile, swa: list[bool]) -> list[int]:
    """Numbers (of `type_bytes` each) that one position takes in each layer's cache."""
    heads = gguf.per_layer("attention.head_count", 0)
    kv_heads = gguf.per_layer("attention.head_count_kv", 0)
    if gguf.key("attention.head_count_kv") is None:
        kv_heads = heads
    default = gguf.n_embd // max(1, max(heads, default=1))
    key, value = number(gguf, "attention.key_length", default), number(gguf, "attention.value_length", default)
    key_swa = number(gguf, "attention.key_length_swa", key)
    value_swa = number(gguf, "attention.value_length_swa", value)
    if number(gguf, "attention.key_length_mla", 0) and number(gguf, "attention.value_length_mla", 0):
        value = value_swa = 0  # latent attention: the values are part of the latent
    shared = number(gguf, "attention.shared_kv_layers", 0) if gguf.architecture == "gemma4" else 0
    own = 20 if gguf.architecture == "gemma3n" else gguf.n_layers - shared
    return [0 if i >= own else n * ((key_swa + value_swa) if swa[i] else (key + value)) for i, n in enumerate(kv_heads)]


class Attention(Struct, frozen=True):
    """What attention computes for a token, in products of two numbers for each earlier token that it sees."""

    all: float
    """In the layers that see every earlier token."""
    near: float
    """In those that see at most `window` of them."""
    window: int

    def products(self, start: int, end: int) -> float:
        """For the tokens at positions `start` to `end` of a prompt."""
        pairs = (end * end - start * start) / 2
        edge = min(max(self.window, start), end)
        near = (edge * edge - start * start) / 2 + (end - edge) * self.window
        return self.all * pairs + self.near * near


def attention(gguf: GgufFile) -> Attention:
    """The attention of a model; sparse attention counts as a window of the tokens that its indexer picks."""
    recurrent, swa = _recurrent_layers(gguf), swa_layers(gguf)
    heads, kv_heads = gguf.per_layer("attention.head_count", 0), gguf.per_layer("attention.head_count_kv", 0)
    window = number(gguf, "attention.sliding_window", 0) or _WINDOW.get(gguf.architecture, 0)
    latent = 2 if number(gguf, "attention.key_length_mla", 0) else 1  # the latent serves as keys and as values
    sums = {False: 0.0, True: 0.0}
    for layer, width in enumerate(_widths(gguf, swa)):
        if not recurrent[layer] or gguf.architecture == "falcon-h1":
            sums[swa[layer] and window > 0] += width * latent * heads[layer] / max(1, kv_heads[layer] or heads[layer])
    if gguf.architecture == "deepseek4" or _index_width(gguf):
        return Attention(0.0, sum(sums.values()), number(gguf, "attention.indexer.top_k", 2048))
    return Attention(sums[False], sums[True], window)


def _index_width(gguf: GgufFile) -> int:
    """Keys of sparse attention's indexer, one head a layer, over all layers together."""
    size = number(gguf, "attention.indexer.key_length", 0)
    if gguf.architecture in ("glm-dsa", "deepseek32"):
        types = gguf.key("attention.indexer.types")
        full = sum(bool(v) for v in types[: gguf.n_layers]) if isinstance(types, tuple) else gguf.n_layers
        return size * full
    if gguf.architecture == "qwen4exp":
        return size * (gguf.n_layers - sum(_recurrent_layers(gguf)))
    if gguf.architecture == "minimax-m3":
        value = number(gguf, "attention.value_length", 128)
        return (size + value) * (gguf.n_layers - number(gguf, "leading_dense_block_count", 0))
    return 0


def _deepseek4(gguf: GgufFile, cells: int, n_seqs: int, type_bytes: float) -> tuple[float, float]:
    key = number(gguf, "attention.key_length", 512)
    index = number(gguf, "attention.indexer.key_length", 128)
    ratios = gguf.key("attention.compress_ratios")
    ratios = ratios[: gguf.n_layers] if isinstance(ratios, tuple) else ()
    per_token = float(key * gguf.n_layers)
    for ratio in ratios:
        if ratio:
            per_token += (key + (index if ratio == 4 else 0)) / float(ratio)
    return per_token * type_bytes * cells * max(1, n_seqs), per_token * type_bytes * max(1, n_seqs)


def _ngram_bytes(gguf: GgufFile) -> int:
    """Bytes of float32 that the layer with hashed n-grams keeps for one sequence: what it looks back at."""
    back = max(0, number(gguf, "ple.conv_kernel", 0) - 1) * number(gguf, "ple.ngram_size", 0)
    return 4 * back * number(gguf, "hyper_connection.count", 0) * gguf.n_embd


def _state_bytes(gguf: GgufFile) -> int:
    """Bytes of float32 that one recurrent layer keeps for one sequence: convolution and state."""
    heads = max(gguf.per_layer("attention.head_count", 1), default=1)
    conv, inner = number(gguf, "ssm.conv_kernel", 0), number(gguf, "ssm.inner_size", 0)
    state, groups = number(gguf, "ssm.state_size", 0), number(gguf, "ssm.group_count", 0)
    wkv, kda = number(gguf, "wkv.head_size", 0), number(gguf, "kda.head_dim", 0)
    short = number(gguf, "shortconv.l_cache", 0)
    if wkv:
        return 4 * gguf.n_embd * (number(gguf, "token_shift_count", 2) + wkv)
    if short:
        return 4 * (gguf.n_embd * (short - 1) + state * inner)
    if kda:
        return 4 * (3 * max(conv - 1, 0) * heads * kda + kda * kda * heads)
    if gguf.architecture == "minimax-01":
        head = number(gguf, "attention.key_length", gguf.n_embd // heads)
        return 4 * head * head * heads
    return 4 * (max(conv - 1, 0) * (inner + 2 * groups * state) + state * inner)
