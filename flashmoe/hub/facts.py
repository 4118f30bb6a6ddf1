"""What a model's header tells, kept small and remembered, so that a list of models needs no reading of headers."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from backends.gguf.file import GgufFile, read_gguf
from backends.interface import EngineError
from backends.system import private
from flashmoe.failures import keep, told
from flashmoe.hub.names import readable, show
from flashmoe.hub.roles import ROLE_WORDS, role_of_header
from flashmoe.paths import cache_dir


class ModelFacts(Struct, frozen=True, kw_only=True):
    """Figures of one model, summed from its header. Bytes; 0 experts for a dense model."""

    architecture: str = ""
    name: str = ""
    quant: str = ""
    n_layers: int = 0
    n_experts: int = 0
    n_expert_used: int = 0
    n_expert_shared: int = 0
    n_ctx_train: int = 0
    file_bytes: int = 0
    expert_bytes: int = 0
    dense_bytes: int = 0
    table_bytes: int = 0
    """Those of the dense bytes that are only looked up."""
    expert_bytes_per_token: int = 0
    """Experts that one token reads with nothing cached."""
    active_bytes_per_token: int = 0
    """All weights that one token computes with."""
    problem: str = ""
    """Why it can't chat here, a sentence; empty where nothing speaks against it."""


def facts_of(model: GgufFile) -> ModelFacts:
    """The figures of a parsed header, local or remote."""
    return ModelFacts(
        architecture=model.architecture, name=model.name, quant=model.quant, n_layers=model.n_layers,
        n_experts=model.n_experts, n_expert_used=model.n_expert_used, n_expert_shared=model.n_expert_shared,
        n_ctx_train=model.n_ctx_train, file_bytes=model.file_bytes, expert_bytes=model.bytes.experts,
        dense_bytes=model.bytes.dense, table_bytes=model.bytes.tables,
        expert_bytes_per_token=model.expert_bytes_per_token, active_bytes_per_token=model.active_bytes_per_token,
        problem=model.problems[0] if model.problems else "",
    )  # fmt: skip


def _facts(path: Path) -> ModelFacts:
    model = read_gguf(path)
    facts = facts_of(model)
    first = any(t.name.startswith("blk.0.") for t in model.tensors) if not model.missing else None
    role = role_of_header(model.kv, len(model.tensors), first)
    if role != "model" and not facts.problem:
        facts = structs.replace(facts, problem=f"It is {ROLE_WORDS[role]}, not a model to chat with.")
    return facts


class _Remembered(Struct):
    stamp: str
    facts: ModelFacts


class FactsCache:
    """Facts by path, valid while sizes and times of the files stay. Losing the file costs a fraction of a second."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_dir() / "library.json"
        self._lock = threading.Lock()
        self._known: dict[str, _Remembered] | None = None
        self._dirty = False

    def get(self, files: list[Path]) -> ModelFacts:
        """Facts of the model whose parts are `files`; a file that is no sound GGUF gives a `problem`. Never raises."""
        stamp = _stamp(files)
        key = readable(str(files[0]))
        with self._lock:
            known = self._load().get(key)
        if known is not None and known.stamp == stamp:
            return known.facts
        try:
            facts = _facts(files[0])
        except EngineError as error:
            facts = ModelFacts(problem=readable(error.message))
        except Exception as error:  # whatever a file holds: it is named, and the others are listed
            keep(error)
            return ModelFacts(problem=f"{show(files[0].name)} can't be read: {told(error)}")
        with self._lock:
            self._load()[key] = _Remembered(stamp, facts)
            self._dirty = True
        return facts

    def save(self) -> None:
        """Writes what is new; a cache that can't be written is no failure."""
        with self._lock:
            if not self._dirty or self._known is None:
                return
            known = {k: v for k, v in self._known.items() if Path(k).exists()}
            data = msgspec.json.encode(known)
            self._dirty = False
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        with contextlib.suppress(OSError):
            private.make_folders(self.path.parent)
            private.write_bytes(temporary, data)
            temporary.replace(self.path)

    def _load(self) -> dict[str, _Remembered]:
        if self._known is None:
            try:
                self._known = msgspec.json.decode(self.path.read_bytes(), type=dict[str, _Remembered])
            except (OSError, msgspec.DecodeError):
                self._known = {}
        return self._known


def _stamp(files: list[Path]) -> str:
    pieces = []
    for file in files:
        try:
            info = file.stat()
            pieces.append(f"{info.st_size}:{info.st_mtime_ns}")
        except OSError:
            pieces.append("-")
    return ",".join(pieces)
