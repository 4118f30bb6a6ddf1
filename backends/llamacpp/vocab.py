"""The model's vocabulary: text to tokens, tokens to bytes."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from backends.chat_format.format import ChatFormat
from backends.llamacpp import native

_CONTROL, _USER_DEFINED = 1 << 3, 1 << 4
"""``llama_token_attr``."""


class Vocab:
    """A ``llama_vocab``. Thread-safe, as llama.cpp's tokenizer is."""

    def __init__(self, model: int) -> None:
        """`model`: a ``llama_model *``."""
        L = self._lib = native.lib()
        self._vocab = L.llama_model_get_vocab(model)
        self.size = int(L.llama_vocab_n_tokens(self._vocab))
        self.pointer = self._vocab
        self.bos = int(L.llama_vocab_bos(self._vocab))
        self.eos = int(L.llama_vocab_eos(self._vocab))
        self.adds_bos = bool(L.llama_vocab_get_add_bos(self._vocab)) and self.bos >= 0
        self.bos_text = self._text(self.bos)
        self.eos_text = self._text(self.eos)
        self._pieces: dict[int, bytes] = {}
        self._eog: dict[int, bool] = {}
        self._texts: dict[int, bytes] = {}
        self.shown: dict[int, str] = {}
        """Special tokens that a parser looks for, and their texts; every other control token stays invisible."""

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        raw: Any = self._lib.llama_vocab_get_text(self._vocab, token)
        return raw.decode("utf-8", "replace") if raw else ""

    def show(self, markers: Iterable[str]) -> frozenset[str]:
        """Makes the special tokens within some markers visible to `piece`; returns the texts of all of them."""
        for marker in markers:
            for token in self.tokenize(marker):
                if self.is_special(token) and not self.is_end(token):
                    self.shown[token] = self._piece(token, special=True).decode("utf-8", "replace")
        self._pieces.clear()
        return frozenset(t for t in self.shown.values() if t)

    def free_before_text(self, fmt: ChatFormat) -> frozenset[int]:
        """Tokens that may come before an answer's text under a constraint: what opens thinking, what wraps the text,
        and line breaks."""
        first = self.tokenize(fmt.thinking.start)[:1] if fmt.thinking is not None else []
        found = [t for t in first if t in self.shown]
        for piece in fmt.wrapper:
            found += [t for t in self.tokenize(piece) if t in self.shown]
        for space in ("\n", "\n\n"):
            tokens = self.tokenize(space)
            if len(tokens) == 1 and fmt.thinking is not None:
                found += tokens
        return frozenset(found)

    def marker_parts(self, text: str) -> list[tuple[str, int | None]]:
        """A marker as texts and special tokens, for a grammar."""
        parts: list[tuple[str, int | None]] = []
        for token in self.tokenize(text):
            piece = self._piece(token, special=True).decode("utf-8", "replace")
            if self.is_special(token):
                parts.append((piece, token))
            elif parts and parts[-1][1] is None:
                parts[-1] = (parts[-1][0] + piece, None)
            else:
                parts.append((piece, None))
        if "".join(p for p, _ in parts).strip() != text.strip():  # a tokenizer that adds a blank, or cuts a character
            return [(text, None)]
        if parts and parts[0][1] is None and not text.startswith(" "):
            parts[0] = (parts[0][0].lstrip(" "), None)
        return parts

    def all_pieces(self) -> Iterator[bytes]:
        """The bytes of every token in order, special ones by their names."""
        call: Any = C.CFUNCTYPE(C.c_int32, C.c_void_p, C.c_int32, C.c_void_p, C.c_int32, C.c_int32, C.c_bool)(
            C.cast(self._lib._lib.llama_token_to_piece, C.c_void_p).value or 0
        )  # straight to C: a vocabulary has 150,000 tokens, and a checked call costs as much as the rest
        size = 1 << 14
        buffer = C.create_string_buffer(size)
        address, vocab = C.addressof(buffer), C.cast(self._vocab, C.c_void_p).value
        for token in range(self.size):
            n = call(vocab, token, address, size, 0, True)
            yield C.string_at(address, n) if n > 0 else b""

    def is_special(self, token: int) -> bool:
        """Whether a token is none of the text's own: control, or defined by the user for a purpose."""
        attributes = int(self._lib.llama_vocab_get_attr(self._vocab, token))
        return bool(attributes & (_CONTROL | _USER_DEFINED))

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of `text`, without BOS; `special` reads special tokens in it as such."""
        raw = text.encode("utf-8", "surrogatepass").replace(b"\0", b"")
        if not raw:
            return []
        size = len(raw) + 16
        for _ in range(2):
            array = (C.c_int32 * size)()
            n = int(self._lib.llama_tokenize(self._vocab, raw, len(raw), array, size, False, special))
            if n >= 0:
                return list(array[:n])
            size = -n
        return []

    def prompt_tokens(self, text: str) -> list[int]:
        """Tokens of a prompt: BOS goes first where the model wants one and the text doesn't bring it."""
        tokens = self.tokenize(text)
        if self.adds_bos and tokens[:1] != [self.bos]:
            tokens.insert(0, self.bos)
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes of a token: b'' for control tokens that aren't `shown`. Cut characters are possible."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._piece(token, special=token in self.shown)
        return piece

    def text(self, token: int) -> bytes:
        """The bytes that a token stands for in a rendered prompt, control tokens by their names."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._piece(token, special=True)
        return text

    def _piece(self, token: int, *, special: bool) -> bytes:
        buffer = C.create_string_buffer(256)  # of this call alone: other threads ask, too
        n = int(self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special))
        if n < 0:
            buffer = C.create_string_buffer(-n)
            n = int(self._lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special))
        return buffer.raw[: max(0, n)]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Every token that ends an answer."""
        return frozenset(t for t in range(self.size) if self.is_special(t) and self.is_end(t))

    def is_end(self, token: int) -> bool:
        """Whether a token ends the answer (EOS, end of turn)."""
        known = self._eog.get(token)
        if known is None:
            known = self._eog[token] = bool(self._lib.llama_vocab_is_eog(self._vocab, token))
        return known
