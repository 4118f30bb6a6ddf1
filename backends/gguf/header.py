"""Walks a GGUF's header without believing it: every count, length and offset is checked against what is there.

The walk keeps scalars, short strings and short numeric arrays; the contents of the token list and of other long arrays
are stepped over. It reads through a `Source`, so it works on a file, on the first bytes of a download, and over HTTP
ranges, and it fetches no more than it needs: about the header's size, which a vocabulary makes 5 to 15 MB.
"""

from __future__ import annotations

import struct

from msgspec import Struct

from backends.gguf.cursor import Cursor, IncompleteHeader, Source
from backends.gguf.types import MAX_DIMS, MAX_TENSOR_NAME, TENSOR_TYPES, tensor_bytes
from backends.interface import EngineError

MAX_KEYS = 8192
MAX_TENSORS = 32768
MAX_KEY_BYTES = 4096
MAX_KEPT_STRING = 1 << 20
"""Longer text (a whole tokenizer.json) is stepped over."""
MAX_KEPT_TEXT = 4 << 20
"""All text that is kept; real headers have less than 1 MiB."""
MAX_ARRAY_STRINGS = 1 << 20
"""Strings in all arrays together that are stepped over: twice the largest vocabulary with its merges."""
MAX_KEPT_ARRAY = 1024
"""Numeric arrays up to this length (one value a layer) are kept."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SIZES = {kind: struct.calcsize("<" + code) for kind, code in _SCALARS.items()}
_STRING, _ARRAY = 8, 9
_MIN_KEY_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8


class ArrayInfo(Struct, frozen=True):
    """An array, or a long text, in the metadata whose contents were stepped over."""

    n: int
    """Elements, or bytes of text."""


Value = int | float | bool | str | tuple[int | float | bool, ...] | ArrayInfo


class RawTensor(Struct, frozen=True, gc=False):
    """A tensor as the header lists it; `offset` counts from the start of the file."""

    name: str
    type: int
    dims: tuple[int, ...]
    offset: int
    nbytes: int


class Header(Struct, frozen=True):
    """One file's metadata and tensor list."""

    name: str
    version: int
    kv: dict[str, Value]
    kv_spans: dict[str, tuple[int, int]]
    """First byte of each key-value pair in the file, key included, and the first byte after it."""
    tensors: tuple[RawTensor, ...]
    data_offset: int
    """Where the tensors' data begins: the header's own bytes with their padding."""
    alignment: int
    end: int
    """Bytes that the file must have for all of its tensors."""


def read_header(source: Source) -> Header:
    """Parses the header of one GGUF file.

    Raises:
        IncompleteHeader: more of the file is needed than the source has.
        EngineError: ``not_gguf``, ``truncated`` or ``bad_model``, naming the file and what is wrong with it.
    """
    c = Cursor(source)
    version = _read_magic(c)
    n_tensors = c.u64("the tensor count")
    n_kv = c.u64("the key count")
    for n, limit, least, what in (
        (n_tensors, MAX_TENSORS, _MIN_TENSOR_BYTES, "tensors"),
        (n_kv, MAX_KEYS, _MIN_KEY_BYTES, "metadata keys"),
    ):
        if n > limit:
            raise EngineError("bad_model", f"{source.name}: it claims {n:,} {what}; the limit is {limit:,}.")
        c.check(n * least, f"its list of {n:,} {what}")
    kv, spans = _read_kv(c, n_kv, {})
    alignment = kv.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise EngineError("bad_model", f"{source.name}: its alignment {alignment} is not a power of two up to 1 MiB.")
    return _read_tensors(c, version, kv, spans, n_tensors, alignment)


class Start(Struct, frozen=True):
    """The metadata at a header's start, as far as it was there."""

    kv: dict[str, Value]
    n_tensors: int


def read_start(source: Source) -> Start:
    """What the first bytes of a GGUF tell: enough for its type and its architecture, which stand in front.

    Raises `EngineError` as `read_header` does, but takes an incomplete header as it is.
    """
    c = Cursor(source)
    kv: dict[str, Value] = {}
    n_tensors = 0
    try:
        _read_magic(c)
        n_tensors = c.u64("the tensor count")
        _read_kv(c, min(c.u64("the key count"), MAX_KEYS), kv)
    except IncompleteHeader:
        pass
    return Start(kv, n_tensors)


def _read_magic(c: Cursor) -> int:
    name = c.source.name
    if c.source.size == 0:
        raise EngineError("not_gguf", f"{name} is empty.")
    try:
        c.need(4, "the magic")
    except IncompleteHeader:
        raise
    except EngineError:
        raise EngineError("not_gguf", f"{name} is not a GGUF model: it has only {c.source.size} bytes.") from None
    if c.buf[:4] != b"GGUF":
        hint = _what_it_is(bytes(c.buf[:16]))
        raise EngineError("not_gguf", f"{name} is not a GGUF model: it doesn't begin with the letters GGUF{hint}.")
    c.pos = 4
    version = c.u32("the version")
    if version not in (2, 3):
        if version & 0xFFFF == 0:
            raise EngineError("bad_model", f"{name} is a big-endian GGUF", "get the little-endian one.")
        raise EngineError("bad_model", f"{name} is GGUF version {version}", "versions 2 and 3 can be read.")
    return version


def _what_it_is(start: bytes) -> str:
    known = {
        b"version https://": " (this is a Git LFS pointer: fetch the file itself)",
        b"<": " (this is a web page: the download went wrong)",
        b"PK": " (this is a zip archive or a PyTorch file)",
        b"{": " (this is JSON)",
        b"tjgg": " (this is a GGML file from before GGUF: convert it again)",
        b"\x00" * 8: " (it begins with zeros: the download is incomplete)",
    }
    return next((text for prefix, text in known.items() if start.startswith(prefix)), "")


def _read_kv(c: Cursor, n_kv: int, kv: dict[str, Value]) -> tuple[dict[str, Value], dict[str, tuple[int, int]]]:
    """Fills `kv` as it goes; the spans beside it."""
    name = c.source.name
    spans: dict[str, tuple[int, int]] = {}
    strings_left, text_left = MAX_ARRAY_STRINGS, MAX_KEPT_TEXT
    for _ in range(n_kv):
        start = c.tell()
        key = c.string("a metadata key", MAX_KEY_BYTES)
        if not key or key in kv:
            raise EngineError("bad_model", f"{name}: the metadata key {_shown(key)} is empty or appears twice.")
        what = f"metadata key {_shown(key)}"
        kind = c.u32(what)
        if kind == _STRING:
            kv[key] = text = _read_text(c, what)
            text_left -= len(text) if isinstance(text, str) else 0
            if text_left < 0:
                raise EngineError("bad_model", f"{name}: {what} brings its text above {MAX_KEPT_TEXT >> 20} MiB.")
        elif kind == _ARRAY:
            of, n = c.u32(what), c.u64(what)
            if of == _STRING:
                c.check(8 * n, what)
                strings_left -= n
                if strings_left < 0:
                    raise EngineError(
                        "bad_model", f"{name}: {what} brings the strings in arrays above {MAX_ARRAY_STRINGS:,}."
                    )
                c.skip_strings(n, what)
                kv[key] = ArrayInfo(n)
            elif of in _SIZES:
                kv[key] = _read_array(c, of, n, what)
            else:
                raise EngineError("bad_model", f"{name}: {what} is an array of the unknown type {of}.")
        elif kind in _SIZES:
            c.need(_SIZES[kind], what)
            (kv[key],) = struct.unpack_from("<" + _SCALARS[kind], c.buf, c.pos)
            c.pos += _SIZES[kind]
        else:
            raise EngineError("bad_model", f"{name}: {what} has the unknown type {kind}.")
        spans[key] = start, c.tell()
    return kv, spans


def _read_text(c: Cursor, what: str) -> str | ArrayInfo:
    c.need(8, what)
    (n,) = _U64.unpack_from(c.buf, c.pos)
    if n <= MAX_KEPT_STRING:
        return c.string(what, MAX_KEPT_STRING)
    c.skip(8 + n, what)
    return ArrayInfo(n)


def _read_array(c: Cursor, of: int, n: int, what: str) -> Value:
    nbytes = _SIZES[of] * n
    if n > MAX_KEPT_ARRAY:
        c.skip(nbytes, what)
        return ArrayInfo(n)
    c.need(nbytes, what)
    values = struct.unpack_from(f"<{n}{_SCALARS[of]}", c.buf, c.pos)
    c.pos += nbytes
    return values


def _read_tensors(
    c: Cursor,
    version: int,
    kv: dict[str, Value],
    spans: dict[str, tuple[int, int]],
    n_tensors: int,
    alignment: int,
) -> Header:
    name = c.source.name
    seen: set[str] = set()
    found: list[tuple[str, int, tuple[int, ...], int, int]] = []
    end = 0
    for _ in range(n_tensors):
        tensor = c.string("a tensor's name", MAX_TENSOR_NAME - 1)
        shown = _shown(tensor)
        if tensor in seen:
            raise EngineError("bad_model", f"{name}: the tensor {shown} appears twice.")
        seen.add(tensor)
        n_dims = c.u32(f"tensor {shown}")
        if n_dims > MAX_DIMS:
            raise EngineError("bad_model", f"{name}: tensor {shown} has {n_dims} dimensions; the limit is {MAX_DIMS}.")
        c.need(8 * n_dims + 12, f"tensor {shown}")
        *dims, kind, offset = struct.unpack_from(f"<{n_dims}QIQ", c.buf, c.pos)
        c.pos += 8 * n_dims + 12
        if kind not in TENSOR_TYPES:
            raise EngineError(
                "bad_model", f"{name}: tensor {shown} has the type {kind}, which this llama.cpp doesn't know."
            )
        label, block, _size = TENSOR_TYPES[kind]
        row = dims[0] if dims else 1
        if row % block:
            raise EngineError(
                "bad_model", f"{name}: tensor {shown} has rows of {row}, not a multiple of {label}'s {block}."
            )
        nbytes = tensor_bytes(kind, tuple(dims))
        if nbytes >= 1 << 62 or 0 in dims:
            raise EngineError("bad_model", f"{name}: tensor {shown} has the impossible shape {dims}.")
        if offset != end:  # llama.cpp demands the same: no holes, no overlaps
            raise EngineError("bad_model", f"{name}: tensor {shown} begins at {offset:,} where {end:,} is expected.")
        end = offset + nbytes + -nbytes % alignment
        found.append((tensor, kind, tuple(dims), offset, nbytes))
    data = c.tell() + -c.tell() % alignment
    tensors = tuple(RawTensor(n, k, d, data + o, b) for n, k, d, o, b in found)
    last = tensors[-1].offset + tensors[-1].nbytes if tensors else c.tell()
    if c.source.size is not None and last > c.source.size:
        raise EngineError(
            "truncated",
            f"{name} is cut off: it has {c.source.size:,} bytes of at least {last:,}",
            "download the rest.",
        )
    return Header(
        name=name,
        version=version,
        kv=kv,
        kv_spans=spans,
        tensors=tensors,
        data_offset=data,
        alignment=alignment,
        end=last,
    )


def _shown(text: str) -> str:
    """A name from the file, safe to print: quoted, escaped and short."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")
