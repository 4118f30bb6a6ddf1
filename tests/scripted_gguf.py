"""Tiny models that say what a test wants them to: a call of their own accord, then an answer to its result.

A real GGUF that llama.cpp runs: its output weights make each token of a text the certain successor of the one before.
The chat template chooses among several texts by the token with which it opens the answer. Everything between a client
and the model is as with any other: the template is learned, the call is found and held to its schema, the stream is
cut wherever tokens end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

from tests.backends.chat_format.formats import chatml, each
from tests.gguf_factory import byte_characters, make_gguf, tokenizer

ANSWER = "The tool has said it, and so do I."
N_BASE, N_EMBD = 4096, 128
_PARTS = re.compile(
    r'\n?<tool_call>\s*\{"name"|\}*\s*</tool_call>|[:,}]\s*\{?\s*"[^"]{0,12}"?|[:,}][^:,}"]*|[^:,}"]{1,6}|"[^"]{0,12}"?',
    re.DOTALL,
)
"""What becomes a token, or the beginning of one: each has one successor, so what was used before takes the next part
with it. Where a grammar leaves one way to go on, llguidance takes that way's own tokens: so in a call's JSON a token
begins where blanks would be allowed."""


def called(tool: str) -> str:
    """A condition of the template: the model was told of this tool and has no result yet."""
    return f"tools and '{tool}' in tools | map(attribute='function') | map(attribute='name') and {_NO_RESULT}"


_NO_RESULT = "not messages | selectattr('role', 'equalto', 'tool') | list"


def call_text(tool: str, arguments: dict[str, Any]) -> str:
    """A call as the template's format has it."""
    return "<tool_call>\n" + json.dumps({"name": tool, "arguments": arguments}) + "\n</tool_call>"


def make_scripted(
    path: Path, says: Sequence[tuple[str, str]], *, answer: str = ANSWER, n_ctx_train: int = 8192
) -> Path:
    """Writes a model and returns its path. `says`: what it says where a Jinja condition holds, the first that does;
    `answer` where none does."""
    tokens, types, merges = tokenizer(N_BASE)
    eos = tokens.index("<|im_end|>")
    taken = {*tokens}
    after: dict[int, int] = {}
    choices = ""
    for i, (condition, text) in enumerate([*says, ("true", answer)]):
        choices += "{% " + ("elif" if i else "if") + f" {condition} %}}<|says {i}|>"
        before = len(tokens)
        tokens.append(f"<|says {i}|>")
        types.append(3)
        for piece in _pieces(text, taken):
            after[before] = before = len(tokens)
            tokens.append(piece)
            types.append(1)
        after[before] = eos
    call = each('<tool_call>\n{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}\n</tool_call>\n')
    make_gguf(
        path, n_vocab=len(tokens), n_embd=N_EMBD, n_layer=1, n_head=1, n_head_kv=1, n_ctx_train=n_ctx_train,
        name="scripted",
        chat_template=chatml(call, generation=choices + "{% endif %}"),
        extra_kv={
            "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.eos_token_id": eos,
            "tokenizer.ggml.bos_token_id": tokens.index("<|endoftext|>"),
            "tokenizer.ggml.padding_token_id": tokens.index("<|endoftext|>"),
        },
    )  # fmt: skip
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path, "r+").tensors}
    embeddings, output = found["token_embd.weight"], found["output.weight"]
    output[:] = 0
    for one, next_one in after.items():
        output[next_one] += embeddings[one]
    output.flush()
    return path


def _pieces(text: str, taken: set[str]) -> list[str]:
    """A text cut into tokens that none of `taken` is, written as byte-level BPE writes them."""
    table = byte_characters()
    rest = ["".join(table[b] for b in part.encode()) for part in _PARTS.findall(text)]
    pieces: list[str] = []
    while rest:
        piece = rest.pop(0)
        while piece in taken and rest:
            piece += rest.pop(0)
        while piece in taken:  # the end is like another text's: what stands before takes it over
            taken.discard(pieces[-1])
            piece = pieces.pop() + piece
        pieces.append(piece)
        taken.add(piece)
    return pieces
