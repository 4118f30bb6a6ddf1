"""What a GGUF model consists of: architecture, layers, experts, bytes by kind, its split set, its chat template.

`read_gguf(path)` reads a local model; `from_headers` puts together what was fetched elsewhere (a repository's files by
HTTP ranges, see `backends.gguf.cursor.FetchSource`). Nothing here loads weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct, structs

from backends.gguf.cursor import FileSource
from backends.gguf.header import MAX_TENSORS, ArrayInfo, Header, Value, read_header
from backends.gguf.metadata import Metadata
from backends.gguf.names import clean_text, part_names, quant_label
from backends.gguf.types import ARCHITECTURES, FILE_TYPES, MAX_EXPERTS, MAX_LAYERS, NOT_CHAT_MODELS, TENSOR_TYPES
from backends.interface import EngineError

EXPERT_WEIGHT = re.compile(r"^blk\.(\d+)\.ffn_(up|down|gate|gate_up)_(?:ch|)exps\.weight$")
"""Names of the tensors that hold routed experts, one slice each along the last dimension."""
LEAST_TABLE_BYTES = 32 << 20
"""Smaller tables aren't worth reading by row."""
_TABLES = ("token_embd.weight", "per_layer_token_embd.weight")
_NOT_COMPUTED = {9, 15, 24, 25, 26, 27, 28}
"""Types that ggml knows, but multiplies nothing with (Q8_1, Q8_K, whole numbers, F64): it would jump to nowhere. Tables
of numbers (tid2eid) are looked up."""
_BLOCK = re.compile(r"^blk\.(\d{1,4})\.")
_UNMERGED = re.compile(r"^blk\.\d+\.ffn_(?:gate|up|down)\.\d+\.weight$")


class Tensor(Struct, frozen=True, gc=False):
    """A tensor of the model; `offset` counts from the start of its file, ``files[file]`` of the set."""

    name: str
    type: int
    dims: tuple[int, ...]
    offset: int
    nbytes: int
    file: int

    @property
    def type_name(self) -> str:
        return TENSOR_TYPES[self.type][0]


class ExpertLayer(Struct, frozen=True):
    """The routed experts of one layer."""

    layer: int
    n_experts: int
    n_used: int
    nbytes: int
    """All of the layer's experts."""

    @property
    def expert_bytes(self) -> int:
        """One expert: its gate, up and down matrices."""
        return self.nbytes // self.n_experts


class ByteKinds(Struct, frozen=True):
    """Bytes of the tensors by what they are for; together they are `total`."""

    experts: int
    """Routed experts: what streams."""
    shared_experts: int
    attention: int
    """Everything else in the layers: attention, norms, routers, dense feed-forward."""
    embeddings: int
    output: int
    """0 where the output matrix is the token embedding."""
    nextn: int
    """Layers for multi-token prediction, which llama.cpp leaves on disk."""
    total: int
    tables: int = 0
    """Those of the embeddings that are only looked up: streaming leaves them on the SSD and reads rows."""

    @property
    def dense(self) -> int:
        """Bytes of all but the routed experts and the prediction layers."""
        return self.total - self.experts - self.nextn

    @property
    def kept(self) -> int:
        """Bytes that streaming keeps in memory whatever is asked."""
        return self.dense - self.tables


class GgufFile(Struct, frozen=True, kw_only=True):
    """A model as its headers describe it. Counts are of the layers that run; `n_nextn` more are in the file."""

    path: str
    files: tuple[str, ...]
    """Every part's path, in order, whether or not it is there."""
    missing: tuple[str, ...] = ()
    """Names of parts that aren't there; their tensors are in no figure then."""
    file_bytes: int
    """Bytes of the files that are there."""
    version: int
    architecture: str
    name: str
    quant: str
    n_layers: int
    n_nextn: int = 0
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    n_experts: int = 0
    n_expert_used: int = 0
    n_expert_shared: int = 0
    n_ff: int = 0
    """Width of a dense feed-forward layer (the widest)."""
    n_ff_exp: int = 0
    """Width of one expert."""
    bytes: ByteKinds
    expert_layers: tuple[ExpertLayer, ...] = ()
    tensors: tuple[Tensor, ...]
    tables: tuple[str, ...] = ()
    """Names of the tensors that are only looked up and large enough to be read by row."""
    kv: dict[str, Value]
    chat_template: str | None = None
    problems: tuple[str, ...] = ()
    """Sentences on why this model can't chat here although its header is sound."""

    def only_looked_up(self, name: str) -> bool:
        """Whether a tensor is a table of rows, with which nothing is multiplied: an embedding that isn't the output
        matrix as well."""
        return _is_table(name, tied=not self.bytes.output)

    def without_tables(self) -> GgufFile:
        """The same, with its tables loaded like the rest."""
        return structs.replace(self, tables=(), bytes=structs.replace(self.bytes, tables=0))

    @property
    def expert_bytes_per_token(self) -> int:
        """Bytes of experts that one token reads with nothing cached."""
        return sum(layer.expert_bytes * layer.n_used for layer in self.expert_layers)

    @property
    def active_bytes_per_token(self) -> int:
        """Bytes of weights that one token computes with: experts used, layers and the output matrix."""
        b = self.bytes
        tied = b.embeddings - sum(t.nbytes for t in self.tensors if t.name == _TABLES[1])
        return self.expert_bytes_per_token + b.shared_experts + b.attention + (b.output or tied)

    def key(self, name: str) -> Value | None:
        """Metadata ``<architecture>.<name>``."""
        return self.kv.get(f"{self.architecture}.{name}")

    def per_layer(self, name: str, default: int) -> tuple[int, ...]:
        """An integer key that may be one number or one for each layer, as one for each layer that runs."""
        value = self.key(name)
        if isinstance(value, tuple):
            values = tuple(int(v) for v in value[: self.n_layers])
            return values + (default,) * (self.n_layers - len(values))
        return ((int(value) if isinstance(value, int | float) else default),) * self.n_layers

    def require_complete(self) -> GgufFile:
        """Itself; raises `EngineError` ``not_found`` where parts of the set are missing."""
        if self.missing:
            shown = ", ".join(self.missing[:3]) + (", …" if len(self.missing) > 3 else "")
            raise EngineError(
                "not_found",
                f"{Path(self.path).name}: {len(self.missing)} of {len(self.files)} parts are missing ({shown})",
                "download them into the same folder.",
            )
        return self


# ---- reading -------------------------------------------------------------------------------------------------------


def read_gguf(path: Path | str) -> GgufFile:
    """Reads a local model's headers, of all parts that are in its folder.

    Raises `EngineError`: ``not_found``, ``not_a_file``, ``io_error``, ``not_gguf``, ``truncated``, ``bad_model``.
    """
    path = Path(path)
    names = part_names(path.name)
    headers: list[Header | None] = []
    sizes: list[int] = []
    n_tensors = 0
    for i, name in enumerate(names):
        part = path.with_name(name)
        if part != path and not part.exists():
            headers.append(None)
            continue
        header, size = _read_local(part)
        # At once, before the next part is read: a thousand links to one file must not be read a thousand times.
        _check_place(header, i, len(names))
        n_tensors += len(header.tensors)
        if n_tensors > MAX_TENSORS:
            raise EngineError("bad_model", f"{path.name}: its parts claim more than {MAX_TENSORS:,} tensors together.")
        headers.append(header if i == 0 else structs.replace(header, kv=_split_keys(header), kv_spans={}))
        sizes.append(size)
    return from_headers([str(path.with_name(name)) for name in names], headers, sum(sizes))


def _read_local(path: Path) -> tuple[Header, int]:
    try:
        if path.is_dir():
            raise EngineError("not_a_file", f"{path} is a folder", "name the GGUF file in it.")
        if path.exists() and not path.is_file():
            raise EngineError("not_a_file", f"{path} is not a regular file.")
        with FileSource(path) as source:
            return read_header(source), source.size or 0
    except FileNotFoundError:
        raise EngineError("not_found", f"{path} does not exist", "check the path.") from None
    except PermissionError:
        raise EngineError("io_error", f"{path} is not readable", "check its permissions.") from None
    except OSError as error:
        raise EngineError("io_error", f"{path} can't be read: {os.strerror(error.errno or 0)}.") from None


def from_headers(paths: Sequence[str], headers: Sequence[Header | None], file_bytes: int) -> GgufFile:
    """Puts a model together from the headers of its files (None where a part isn't there).

    Raises `EngineError` ``bad_model`` where the parts don't belong together or the metadata makes no sense, and
    ``not_found`` where the first part, which has the metadata, is missing.
    """
    first = headers[0]
    if first is None:
        raise EngineError(
            "not_found", f"{Path(paths[0]).name}, the first part of the set, is missing", "it has the metadata."
        )
    _check_split(paths, headers)
    meta = Metadata(first)
    arch = meta.text("general.architecture")
    if not arch:
        raise EngineError("bad_model", f"{first.name}: it doesn't name its architecture (general.architecture).")
    blocks = meta.number(f"{arch}.block_count", 0, 0, MAX_LAYERS)
    nextn = meta.number(f"{arch}.nextn_predict_layers", 0, 0, blocks)
    n_layers = blocks - nextn
    n_experts = meta.number(f"{arch}.expert_count", 0, 0, MAX_EXPERTS)
    used = meta.numbers(f"{arch}.expert_used_count", n_layers, 0, max(n_experts, 0))
    tensors = tuple(
        Tensor(t.name, t.type, t.dims, t.offset, t.nbytes, i)
        for i, header in enumerate(headers)
        if header is not None
        for t in header.tensors
    )
    layers = _expert_layers(first.name, tensors, n_layers, n_experts, used)
    tables = _tables(tensors)
    kinds = _by_kind(tensors, n_layers, tables)
    embd = next((t for t in tensors if t.name == "token_embd.weight"), None)
    if embd is not None and not embd.dims:
        raise EngineError("bad_model", f"{first.name}: its token embeddings (token_embd.weight) have no dimensions.")
    tokens = first.kv.get("tokenizer.ggml.tokens")
    n_vocab = tokens.n if isinstance(tokens, ArrayInfo) else (len(tokens) if isinstance(tokens, tuple) else 0)
    template = first.kv.get("tokenizer.chat_template")
    file_type = first.kv.get("general.file_type")
    label = FILE_TYPES.get(file_type) if isinstance(file_type, int) else None
    shared = meta.number(f"{arch}.expert_shared_count", 0, 0, MAX_EXPERTS)
    model = GgufFile(
        path=paths[0],
        files=tuple(paths),
        missing=tuple(Path(p).name for p, h in zip(paths, headers, strict=True) if h is None),
        file_bytes=file_bytes,
        version=first.version,
        architecture=clean_text(arch, 64),
        name=clean_text(meta.text("general.name") or Path(paths[0]).stem, 120),
        quant=quant_label(Path(paths[0]).name) or label or _main_type(tensors),
        n_layers=n_layers,
        n_nextn=nextn,
        n_embd=meta.number(f"{arch}.embedding_length", embd.dims[0] if embd else 0, 0, 1 << 20),
        n_vocab=n_vocab or (embd.dims[1] if embd and len(embd.dims) > 1 else 0),
        n_ctx_train=meta.number(f"{arch}.context_length", 0, 0, 1 << 31),
        n_experts=n_experts,
        n_expert_used=max(used, default=0),
        n_expert_shared=shared or int(kinds.shared_experts > 0),
        n_ff=max(meta.numbers(f"{arch}.feed_forward_length", n_layers, 0, 1 << 24), default=0),
        n_ff_exp=max(meta.numbers(f"{arch}.expert_feed_forward_length", n_layers, 0, 1 << 24), default=0),
        bytes=kinds,
        expert_layers=layers,
        tensors=tensors,
        tables=tables,
        kv=first.kv,
        chat_template=template if isinstance(template, str) else None,
        problems=_problems(arch, tensors),
    )
    if arch in ARCHITECTURES - NOT_CHAT_MODELS and tensors and not n_layers:
        raise EngineError("bad_model", f"{first.name}: it says that it has no layers ({arch}.block_count).")
    return model


def _check_split(paths: Sequence[str], headers: Sequence[Header | None]) -> None:
    """That the parts are parts of one set, in the order of their names."""
    seen: set[str] = set()
    for i, header in enumerate(headers):
        if header is None:
            continue
        _check_place(header, i, len(paths))
        for tensor in header.tensors:
            if tensor.name in seen:
                raise EngineError("bad_model", f"{header.name}: the tensor {tensor.name!a} is in two parts.")
            seen.add(tensor.name)
    expected = headers[0].kv.get("split.tensors.count") if headers[0] else None
    if len(paths) > 1 and None not in headers and isinstance(expected, int) and expected != len(seen):
        name = Path(paths[0]).name
        raise EngineError("bad_model", f"{name}: has {len(seen)} tensors, expected {expected}.")


def _check_place(header: Header, i: int, n: int) -> None:
    """That a file is part `i` (from 0) of `n`, as its name says."""
    count, no = header.kv.get("split.count", 1), header.kv.get("split.no", 0)
    if n == 1 and isinstance(count, int) and count > 1:
        raise EngineError(
            "bad_model",
            f"{header.name} is one of {count} parts but isn't named as one",
            f"give it back its name ending in -{int(no) + 1 if isinstance(no, int) else 1:05d}-of-{count:05d}.gguf.",
        )
    if (count, no) != (n, i):
        raise EngineError(
            "bad_model",
            f"{header.name} says it is part {no} (from 0) of {count}, unlike its name",
            "the parts were mixed up.",
        )


def _split_keys(header: Header) -> dict[str, Value]:
    """Of a later part only its place counts; its other keys would be kept a thousand times."""
    return {key: value for key, value in header.kv.items() if key.startswith("split.")}


def _expert_layers(
    name: str, tensors: Sequence[Tensor], n_layers: int, n_experts: int, used: Sequence[int]
) -> tuple[ExpertLayer, ...]:
    totals: dict[int, int] = {}
    for tensor in tensors:
        match = EXPERT_WEIGHT.match(tensor.name)
        if match is None or int(match[1]) >= n_layers:
            continue
        chunked = "_chexps" in tensor.name
        if len(tensor.dims) != 3 or (tensor.dims[2] != n_experts and not chunked):
            shape = "x".join(map(str, tensor.dims))
            raise EngineError(
                "bad_model",
                f"{name}: {tensor.name!a} has the shape {shape}, which doesn't hold {n_experts} experts.",
            )
        totals[int(match[1])] = totals.get(int(match[1]), 0) + tensor.nbytes
    return tuple(
        ExpertLayer(layer, n_experts, used[layer] or max(used, default=0), nbytes)
        for layer, nbytes in sorted(totals.items())
    )


def _is_table(name: str, *, tied: bool) -> bool:
    """What is looked up by row and nothing else; the token embedding isn't where it is the output matrix as well."""
    return name in _TABLES and not (tied and name == _TABLES[0])


def _tables(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """The tables that are large enough to be read by row."""
    tied = not any(t.name == "output.weight" for t in tensors)
    return tuple(
        t.name for t in tensors if _is_table(t.name, tied=tied) and len(t.dims) == 2 and t.nbytes >= LEAST_TABLE_BYTES
    )


def _by_kind(tensors: Sequence[Tensor], n_layers: int, tables: Sequence[str]) -> ByteKinds:
    sums = dict.fromkeys(("experts", "shared_experts", "attention", "embeddings", "output", "nextn"), 0)
    for tensor in tensors:
        block = _BLOCK.match(tensor.name)
        if block and int(block[1]) >= n_layers:
            kind = "nextn"
        elif EXPERT_WEIGHT.match(tensor.name):
            kind = "experts"
        elif "_shexp." in tensor.name:
            kind = "shared_experts"
        elif tensor.name in _TABLES:
            kind = "embeddings"
        elif tensor.name == "output.weight":
            kind = "output"
        else:
            kind = "attention"
        sums[kind] += tensor.nbytes
    looked_up = sum(t.nbytes for t in tensors if t.name in tables)
    return ByteKinds(**sums, total=sum(sums.values()), tables=looked_up)


def _main_type(tensors: Sequence[Tensor]) -> str:
    """The type that most bytes have."""
    sums: dict[str, int] = {}
    for tensor in tensors:
        sums[tensor.type_name] = sums.get(tensor.type_name, 0) + tensor.nbytes
    return max(sums, key=lambda name: sums[name], default="?")


def _problems(arch: str, tensors: Sequence[Tensor]) -> tuple[str, ...]:
    found = []
    if arch not in ARCHITECTURES:
        found.append(f"This version of llama.cpp doesn't know the architecture {clean_text(arch, 40)!a}.")
    elif arch in NOT_CHAT_MODELS:
        found.append(f"A model of the architecture {arch} doesn't generate text; you can't chat with it.")
    odd = next((t for t in tensors if len(t.dims) > 1 and t.type in _NOT_COMPUTED and "tid2eid" not in t.name), None)
    if odd is not None:
        found.append(f"Its tensor {odd.name!a} has the type {odd.type_name}, which nothing here computes with.")
    if any(_UNMERGED.match(t.name) for t in tensors):
        found.append("Its experts are stored as separate tensors (a file from before April 2024); get a newer upload.")
    return tuple(found)
