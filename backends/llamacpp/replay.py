"""Answers as they were sampled, so that a later prompt holds the very tokens that the KV cache has.

A template may render an answer in another way than the model wrote it (without its thinking, calls in other spacing),
and a tokenizer may cut the same text differently. What was sampled after a prompt is remembered by its tokens; a
request whose history comes to the same prompt, with an answer that says the same, gets those tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from backends.chat_format.events import Said
from backends.interface import ChatMessage, LoadRequest
from backends.llamacpp import prompt_chats

KEPT_ANSWERS = 512
KEPT_TOKENS = 2_000_000
"""Of all kept answers together."""
MAX_FILE_BYTES = 16 << 20


class _Kept(msgspec.Struct, frozen=True):
    content: str
    calls: tuple[tuple[str, str], ...]
    tokens: tuple[int, ...]


class Answers:
    """The last answers of a model. Thread-safe."""

    def __init__(self, file: Path | None = None) -> None:
        """`file`: where answers are kept for the next process; only its owner can read it."""
        self._kept: OrderedDict[bytes, list[_Kept]] = OrderedDict()
        self._tokens = 0
        self._lock = threading.Lock()
        self._file = file
        for line in self._lines():
            with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError, ValueError):
                key, kept = msgspec.json.decode(line, type=tuple[str, _Kept])
                self._add(bytes.fromhex(key), kept)

    def _lines(self) -> list[bytes]:
        try:
            if self._file is None or self._file.stat().st_size > MAX_FILE_BYTES:
                return []
            return self._file.read_bytes().splitlines()
        except OSError:
            return []

    def _write(self, key: bytes, kept: _Kept, chat: str | None) -> None:
        if self._file is None:
            return
        line = msgspec.json.encode((key.hex(), kept)) + b"\n"
        try:
            full = self._file.exists() and self._file.stat().st_size + len(line) > MAX_FILE_BYTES
            flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if full else os.O_APPEND)
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if chat is not None:
                prompt_chats.note(self._file.parent, chat, self._file.stem, key.hex())
            number = os.open(self._file, flags | os.O_NOFOLLOW, 0o600)
            try:
                os.write(number, line)
            finally:
                os.close(number)
        except OSError:
            self._file = None  # no room, or no right: the next process renders history anew

    def remember(self, prompt: Sequence[int], tokens: Sequence[int], said: Said, *, chat: str | None = None) -> None:
        """Keeps an answer to a prompt. `chat`: with which it goes on disk."""
        if not tokens or any(not c.complete for c in said.calls):
            return
        calls = tuple((c.name, _same(c.arguments)) for c in said.calls)
        kept = _Kept(said.content.strip(), calls, tuple(tokens))
        key = _key(prompt)
        with self._lock:
            self._add(key, kept)
            self._write(key, kept, chat)

    def _add(self, key: bytes, kept: _Kept) -> None:
        self._kept.setdefault(key, []).append(kept)
        self._kept.move_to_end(key)
        self._tokens += len(kept.tokens)
        while self._kept and (len(self._kept) > KEPT_ANSWERS or self._tokens > KEPT_TOKENS):
            _, dropped = self._kept.popitem(last=False)
            self._tokens -= sum(len(k.tokens) for k in dropped)

    def find(self, prompt: Sequence[int], message: ChatMessage) -> tuple[int, ...] | None:
        """The tokens of an answer to a prompt that says what a message says."""
        content = message.content.strip()
        calls = tuple((c.name, _same(c.arguments)) for c in message.tool_calls)
        with self._lock:
            for kept in reversed(self._kept.get(_key(prompt), [])):
                if kept.content == content and kept.calls == calls:
                    return kept.tokens
        return None

    def __bool__(self) -> bool:
        return bool(self._kept)


def _key(prompt: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(prompt, np.int32).tobytes(), digest_size=16).digest()


def _same(arguments: str) -> str:
    try:
        value: Any = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return json.dumps(value, sort_keys=True)


def answers_file(request: LoadRequest, identity: str) -> Path | None:
    """Where the answers of a model are kept, beside the states of its prompts; None where nothing is."""
    if request.kv_dir is None:
        return None
    name = hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()
    return Path(request.kv_dir) / f"answers-{name}.jsonl"


def forget_answers(file: Path, keys: Collection[str]) -> None:
    """Takes answers out of a model's file."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        kept = []
        for line in file.read_bytes().splitlines(keepends=True):
            with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                if msgspec.json.decode(line, type=tuple[str, msgspec.Raw])[0] not in keys:
                    kept.append(line)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as out:
            out.writelines(kept)
        part.replace(file)
