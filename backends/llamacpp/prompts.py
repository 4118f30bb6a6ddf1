"""From a request to the tokens of its prompt: rendered, tokenised and checked, apart from the thread that decodes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from backends.chat_format.parser import Parser
from backends.chat_format.templates import ChatTemplate, Rendered
from backends.chat_format.variables import tool_of
from backends.interface import EngineError, GenerateRequest
from backends.llamacpp.vocab import Vocab

MAX_CHARACTERS_PER_TOKEN = 64
MIN_PREAMBLE = 64
"""Tokens of instructions and tools at the head of a prompt from which on they are kept by themselves."""
_PREAMBLES = 16


@dataclass(frozen=True)
class Prompt:
    """What a request comes to."""

    tokens: list[int]
    parser: Parser | None
    """Of what the model will say; None: all of it is text."""
    marks: tuple[int, ...] = ()
    """Lengths at which later prompts may part from this one: what was read is worth keeping there."""


class PromptMaker:
    """Makes prompts of one model. Thread-safe."""

    def __init__(
        self,
        template: ChatTemplate,
        vocab: Vocab,
        *,
        special_texts: frozenset[str],
        seq_ctx: int,
        limit: int,
        marks: bool,
    ) -> None:
        """`special_texts`: special tokens that count as markers only by their ids. `seq_ctx`: cells that one sequence
        can have; `limit`: tokens that prompt and answer may have together. `marks`: whether what was read is kept, so
        that it matters where prompts part."""
        self._special_texts = special_texts
        self._template = template
        self._vocab = vocab
        self._seq_ctx = seq_ctx
        self.limit = limit
        self._marks_wanted = marks
        self._preambles: OrderedDict[object, str] = OrderedDict()
        self._lock = threading.Lock()

    def make(self, request: GenerateRequest) -> Prompt:
        """The prompt, of whatever length. Raises `EngineError` ``bad_request``, ``bad_template`` or
        ``prompt_too_long`` (before text that can't fit is tokenised)."""
        given = [x for x in (request.messages, request.prompt, request.tokens) if x is not None]
        if len(given) != 1:
            raise EngineError("bad_request", "A request needs messages, a prompt or tokens: exactly one of them.")
        if request.tokens is not None:
            return self._of_tokens(list(request.tokens))
        self._check_size(request)
        if request.prompt is not None:
            tokens = self._vocab.prompt_tokens(request.prompt)
            return Prompt(tokens, None, self._last(tokens))
        rendered = self._template.rendered(request)
        tokens = self._vocab.prompt_tokens(rendered.text)
        tools = [tool_of(t) for t in request.tools] if request.tool_choice != "none" else []
        parser = Parser(self._template.format, tools=tools, after=rendered.after, special_texts=self._special_texts)
        return Prompt(tokens, parser, self._marks(request, rendered, tokens))

    def fitting(self, request: GenerateRequest) -> Prompt:
        """The prompt, where it leaves room for an answer. Raises `EngineError`, ``prompt_too_long`` with the count."""
        prompt = self.make(request)
        n = len(prompt.tokens)
        if not n:
            raise EngineError("bad_request", "The prompt is empty.")
        if n + request.room > self.limit:
            raise EngineError(
                "prompt_too_long",
                f"The prompt has {n} tokens, but the context holds {self.limit}",
                "shorten it, start a new chat, or load the model with a larger context.",
                tokens=n,
                limit=self.limit,
            )
        return prompt

    def check_tokens(self, tokens: Iterable[int]) -> None:
        """Raises `EngineError` ``bad_request`` where one is none of the vocabulary's."""
        wrong = next((t for t in tokens if not 0 <= t < self._vocab.size), None)
        if wrong is not None:
            raise EngineError("bad_request", f"Token {wrong} is not in the vocabulary of {self._vocab.size} tokens.")

    def _of_tokens(self, tokens: list[int]) -> Prompt:
        self.check_tokens(tokens)
        return Prompt(tokens, None, self._last(tokens))

    def _check_size(self, request: GenerateRequest) -> None:
        """Refuses text that can't fit whatever it holds, before tokenising it takes seconds (or llama.cpp's stack)."""
        size = len(request.prompt or "") + sum(len(m.content) + len(m.thinking) for m in request.messages or ())
        if size > MAX_CHARACTERS_PER_TOKEN * self._seq_ctx:
            raise EngineError(
                "prompt_too_long",
                f"The prompt has {size} characters, far more than {self._seq_ctx} tokens of context can hold",
                "shorten it or load the model with a larger context.",
                limit=self.limit,
            )

    # -- marks -----------------------------------------------------------------------------------------------------

    def _last(self, tokens: list[int]) -> tuple[int, ...]:
        return (len(tokens) - 1,) if self._marks_wanted and len(tokens) > 1 else ()

    def _marks(self, request: GenerateRequest, rendered: Rendered, tokens: list[int]) -> tuple[int, ...]:
        """Where later prompts may part from this one: after the instructions and tools that others share; and after the
        messages, before what opens the answer (which may hold a thinking tag that history drops), or at the last token
        but one where there is no such place."""
        if not self._marks_wanted:
            return ()
        text, head = rendered.text, rendered.head
        if not head or not text.startswith(head) or head == text:
            last = len(tokens) - 1
        else:
            last = self._tokens_of(text, tokens, head)
        marks = {last}
        preamble = self._preamble(request, text)
        if preamble:
            first = self._tokens_of(text, tokens, preamble)
            if MIN_PREAMBLE <= first < last:
                marks.add(first)
        return tuple(sorted(m for m in marks if 0 < m < len(tokens)))

    def _preamble(self, request: GenerateRequest, text: str) -> str:
        """What the prompt begins with whatever the user says."""
        key = self._template.preamble_key(request)
        if key is None:
            return ""
        with self._lock:
            known = self._preambles.get(key)
        if known is None:
            known = self._template.preamble_text(request) or ""
            with self._lock:
                self._preambles[key] = known
                while len(self._preambles) > _PREAMBLES:
                    self._preambles.popitem(last=False)
        return text[: _agreeing(text, known)]

    def _tokens_of(self, text: str, tokens: list[int], head: str) -> int:
        """How many of a text's tokens lie within its beginning `head`."""
        sizes = [len(self._vocab.text(t)) for t in tokens]
        whole, wanted = len(text.encode("utf-8", "surrogatepass")), len(head.encode("utf-8", "surrogatepass"))
        extra = sum(sizes) - whole
        first = sizes[0] if sizes else 0
        if extra not in (0, first):  # a tokenizer that writes blanks of its own: ask it
            alone = self._vocab.prompt_tokens(head)
            return next((i for i, (a, b) in enumerate(zip(alone, tokens, strict=False)) if a != b), len(alone))
        done, n = -extra, 0
        for size in sizes:
            if done + size > wanted:
                break
            done += size
            n += 1
        return n


def _agreeing(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
