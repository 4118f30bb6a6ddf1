"""Prompts that were read once, as slices of KV cache: in memory, and on disk for the next process.

A tree: each node holds the state of some tokens that follow those of its parent, so that what several prompts begin
with is kept once. A node is one file, written by a thread of its own, never changed, and named after all tokens that
lead to it; the folder's name says which model and which settings it belongs to. A state is as hostile as any file, and
llama.cpp trusts what it holds: the digest must fit before it is given one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from backends.interface import LoadRequest, ModelInfo
from backends.llamacpp.context import LlamaContext
from backends.llamacpp.prompt_files import PromptFiles, StoredPart
from backends.llamacpp.slices import Slice

MEMORY_SHARE = 16
"""Of the machine's memory one part in so many is for prompts, where nothing else was asked for."""
MAX_PENDING_BYTES = 1 << 30
"""Of slices that wait for the disk; more aren't kept."""


class Node:
    """Some tokens of prompts, and where the state of the cache after them is."""

    def __init__(self, key: str, parent: Node | None, start: int, tokens: Any) -> None:
        self.key = key
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.children: dict[str, Node] = {}
        self.memory: Slice | None = None
        self.on_disk = False
        self.n_bytes = 0
        self.used_at = time.time()

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def chain(self) -> list[Node]:
        """The nodes from the first token to this one."""
        chain: list[Node] = []
        node: Node | None = self
        while node is not None and node.parent is not None:
            chain.append(node)
            node = node.parent
        return chain[::-1]

    @property
    def worth(self) -> float:
        """The tokens that it saves, by how long nobody has asked for them."""
        return self.end / (60.0 + max(0.0, time.time() - self.used_at))


def key_of(parent: Node, tokens: Any) -> str:
    """The name of the node that has `tokens` (int32 array) after those of `parent`."""
    return hashlib.blake2b(parent.key.encode() + tokens.tobytes(), digest_size=16).hexdigest()


class PromptStore:
    """The tree. One thread uses it; the files are written by another."""

    def __init__(self, *, partial: bool, memory_bytes: int, files: PromptFiles | None) -> None:
        """`partial`: only a node's end can be gone on from (`LlamaContext.partial`). `files`: None keeps all in memory.

        What an earlier process left in `files` is there at once; its states are read when they are asked for.
        """
        self._partial = partial
        self._most = memory_bytes
        self._files = files
        self.root = Node("", None, 0, np.zeros(0, np.int32))
        self._lock = threading.Lock()
        self._memory_bytes = 0
        if files is not None:
            self._adopt(files.parts())

    def _adopt(self, parts: list[StoredPart]) -> None:
        """Builds the tree of what is on disk; parts without their beginning are removed."""
        waiting: dict[str, list[StoredPart]] = {}
        for part in parts:
            waiting.setdefault(part.parent, []).append(part)
        todo = [self.root]
        while todo:
            node = todo.pop()
            for part in waiting.pop(node.key, []):
                tokens = np.frombuffer(part.tokens, np.int32)
                if part.start != node.end or key_of(node, tokens) != part.key:
                    continue
                child = Node(part.key, node, part.start, tokens)
                child.on_disk, child.n_bytes, child.used_at = True, part.n_bytes, part.used_at
                node.children[part.key] = child
                todo.append(child)
        assert self._files is not None
        self._files.keep_only({node.key for node in self.nodes()})

    def nodes(self) -> Iterator[Node]:
        """All nodes but the root, parents first."""
        todo = list(self.root.children.values())
        while todo:
            node = todo.pop()
            yield node
            todo += node.children.values()

    def longest(self, prompt: Any, most: int) -> tuple[Node | None, int]:
        """The node that has most of a prompt's first `most` tokens (int32 array) in a state that can be gone on from,
        and how many of them it has."""
        best, length = None, 0
        todo = [self.root]
        while todo:
            for child in todo.pop().children.values():
                agree = _agreeing(child.tokens, prompt[child.start : most])
                whole = agree == len(child.tokens)
                if agree and child.start + agree > length and (whole or not self._partial):
                    best, length = child, child.start + agree
                if whole:
                    todo.append(child)
        return best, length

    def last_within(self, tokens: Any) -> Node:
        """The last node of which all tokens are among these (int32 array); the root where there is none."""
        last, todo = self.root, [self.root]
        while todo:
            for child in todo.pop().children.values():
                if child.end <= len(tokens) and _agreeing(child.tokens, tokens[child.start :]) == len(child.tokens):
                    todo.append(child)
                    if child.end > last.end:
                        last = child
        return last

    def add(self, parent: Node, tokens: Any, part: Slice, chat: str | None = None) -> Node:
        """Keeps a slice that follows `parent`. `chat`: with which it goes (see `prompt_files.forget_chats`)."""
        key = key_of(parent, tokens)
        known = parent.children.get(key)
        if known is not None:
            known.used_at = time.time()
            return known
        node = Node(key, parent, parent.end, tokens)
        node.memory, node.n_bytes = part, len(part.cells) + len(part.last or b"")
        with self._lock:
            self._memory_bytes += node.n_bytes
        parent.children[key] = node
        if self._files is not None:
            stored = StoredPart(key, parent.key, node.start, tokens.tobytes(), node.n_bytes, node.used_at)
            self._files.write(stored, part, lambda: self._written(node), chat)
            if self._memory_bytes > MAX_PENDING_BYTES:
                self._shrink(MAX_PENDING_BYTES)
            self._shrink_disk(self._files.take_overshoot())
        else:
            self._shrink(self._most)
        return node

    def _written(self, node: Node) -> None:
        """Called by the thread that writes: the memory isn't needed any more, the kernel caches the file."""
        with self._lock:
            node.on_disk = True
            if node.memory is not None:
                node.memory = None
                self._memory_bytes -= node.n_bytes

    def _shrink(self, most: int) -> None:
        while self._memory_bytes > most:
            leaves = [n for n in self.nodes() if not n.children and n.memory is not None]
            if not leaves:
                return
            self.drop(min(leaves, key=lambda n: n.worth))

    def slices(self, node: Node, start: int = 0) -> list[Slice] | None:
        """The slices from the token `start`, where one begins, to a node's end. None: one is gone or damaged; it is
        forgotten, then."""
        found: list[Slice] = []
        now = time.time()
        for each in node.chain():
            if each.end <= start:
                continue
            part = each.memory
            if part is None and self._files is not None:
                part = self._files.read(each.key)
            if part is None or (part.start, part.end) != (each.start, each.end):
                self.drop(each)
                return None
            each.used_at = now
            found.append(part)
        if self._files is not None:
            self._files.used(each.key for each in node.chain() if each.on_disk)
        return found

    def drop(self, node: Node) -> None:
        """Forgets a node and all that follow it."""
        if node.parent is not None:
            node.parent.children.pop(node.key, None)
        gone = [node]
        while gone:
            each = gone.pop()
            gone += each.children.values()
            with self._lock:
                if each.memory is not None:
                    self._memory_bytes -= each.n_bytes
                    each.memory = None
            if self._files is not None:
                self._files.remove(each.key)

    def _shrink_disk(self, n_bytes: int) -> None:
        while n_bytes > 0:
            leaves = [n for n in self.nodes() if not n.children and n.on_disk]
            if not leaves:
                return
            least = min(leaves, key=lambda n: n.worth)
            n_bytes -= least.n_bytes
            self.drop(least)

    def forget(self) -> None:
        """Forgets what is in memory alone."""
        for node in [n for n in self.nodes() if not n.on_disk]:
            self.drop(node)

    def close(self, timeout_s: float = 2.0) -> None:
        """Waits for what is being written."""
        if self._files is not None:
            self._files.close(timeout_s)


def _agreeing(a: Any, b: Any) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def kept_memory(request: LoadRequest) -> int:
    """The most bytes of memory that prompts may take beside the KV cache."""
    if request.kv_budget_bytes is not None:
        return max(0, request.kv_budget_bytes)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEMORY_SHARE


def wants_store(request: LoadRequest) -> bool:
    """Whether prompts are worth keeping beside the KV cache: one chat at a time has it for itself, unless asked for."""
    return request.n_seq_max > 1 or request.kv_dir is not None or request.kv_budget_bytes is not None


def model_identity(info: ModelInfo, fingerprint: str) -> str:
    """What must be equal for a state to fit: the files' content, the active experts and the cache's type."""
    parts = [fingerprint, info.architecture, info.n_layers, info.n_vocab, info.n_expert_used, info.kv_type]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def open_store(context: LlamaContext, request: LoadRequest, identity: str, memory_bytes: int) -> PromptStore:
    """The store of a model's prompts; in memory alone where no folder is wanted or the one that is can't be used.
    `identity`: see `model_identity`."""
    files = None
    if request.kv_dir is not None:
        with contextlib.suppress(OSError):
            files = PromptFiles(Path(request.kv_dir), _name(context, identity), request.kv_dir_bytes)
    return PromptStore(partial=context.partial, memory_bytes=memory_bytes, files=files)


def _name(context: LlamaContext, identity: str) -> str:
    """The folder of this model's prompts: all that changes what is computed, or how it is laid out, is in its name. The
    size of the context isn't: a chat that was given a larger one goes on from what the smaller one has read."""
    told = [identity, context.n_swa, version("llama-cpp-python"), sys.byteorder]
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()[:32]
