"""A session's KV cache on disk: llama.cpp's sequence file, and beside it a header that says which model it belongs to.

A state is as hostile as any file, and llama.cpp trusts what it holds: the header's digest must fit before it is read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from backends.interface import EngineError, ModelInfo
from backends.llamacpp.context import LlamaContext
from backends.llamacpp.sequences import KvBook, KvSequence

FORMAT = 2


class StateHeader(msgspec.Struct, kw_only=True):
    """Written to ``<path>.json``."""

    format: int
    model: str
    """Identity of the model and of what shapes its KV cache."""
    n_tokens: int
    size: int
    sha256: str


def model_identity(info: ModelInfo, fingerprint: str) -> str:
    """What must be equal for a state to fit: the files' content, the active experts and the cache's type."""
    parts = [fingerprint, info.architecture, info.n_layers, info.n_vocab, info.n_expert_used, info.kv_type]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def save_session(context: LlamaContext, identity: str, sequence: KvSequence | None, path: Path) -> int:
    """Writes a sequence; returns bytes written, 0 where it is empty. Raises `EngineError` ``io_error``."""
    if sequence is None or not sequence.tokens:
        return 0
    part = path.with_name(path.name + ".part")
    try:
        size = context.save(sequence.seq_id, str(part), sequence.tokens)
        if not size or size != part.stat().st_size:
            raise OSError("llama.cpp could not write it")
        header = StateHeader(
            format=FORMAT,
            model=identity,
            n_tokens=len(sequence.tokens),
            size=part.stat().st_size,
            sha256=_digest(part),
        )
        _header_path(path).unlink(missing_ok=True)
        part.replace(path)
        _header_path(path).write_bytes(msgspec.json.encode(header))
        return header.size
    except OSError as error:
        part.unlink(missing_ok=True)
        raise EngineError(
            "io_error", f"The chat's state could not be saved to {path} ({error.strerror or error})."
        ) from error


def restore_session(context: LlamaContext, identity: str, book: KvBook, session: str, path: Path) -> int:
    """Puts a saved sequence back as `session`'s; returns its tokens, 0 where it doesn't fit."""
    try:
        header = msgspec.json.decode(_header_path(path).read_bytes(), type=StateHeader)
        fits = (
            header.format == FORMAT
            and header.model == identity
            and 0 < header.n_tokens < context.n_ctx
            and path.stat().st_size == header.size
            and _digest(path) == header.sha256
        )
    except (OSError, msgspec.MsgspecError):
        return 0
    if not fits or context.own_caches:  # caches of their own keep nothing for later
        return 0
    old = book.of_session(session)
    if old is not None:
        book.release(old)
    if not book.make_room(header.n_tokens):
        return 0
    sequence = book.open(session)
    if sequence is None:
        return 0
    tokens = context.restore(sequence.seq_id, str(path))
    if tokens is None or len(tokens) != header.n_tokens:
        book.release(sequence)
        return 0
    book.append(sequence, tokens)
    book.park(sequence)
    return len(tokens)
