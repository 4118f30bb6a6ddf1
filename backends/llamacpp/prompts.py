"""From a request to the tokens of its prompt: rendered, tokenised and checked, apart from the thread that decodes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.chat_format.parser import Parser, parse
from backends.chat_format.templates import ChatTemplate, Rendered
from backends.chat_format.variables import tool_of
from backends.interface import ChatMessage, EngineError, GenerateRequest
from backends.llamacpp.replay import Answers
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
    turn: int = 0
    """Length at which the last message of a user begins, where a conversation stands before it: what an edit keeps."""
    notices: tuple[str, ...] = ()
    """What a person should know of it: sentences."""


def check_size(request: GenerateRequest, cells: int, limit: int) -> None:
    """Refuses text that can't fit into a context of `cells` whatever it holds, before tokenising it takes seconds (or
    llama.cpp's stack). Raises `EngineError` ``prompt_too_long`` with the `limit` of tokens."""
    size = len(request.prompt or "") + sum(len(m.content) + len(m.thinking) for m in request.messages or ())
    if size > MAX_CHARACTERS_PER_TOKEN * cells:
        raise EngineError(
            "prompt_too_long",
            f"The prompt has {size} characters, far more than {cells} tokens of context can hold",
            "shorten it or load the model with a larger context.",
            limit=limit,
        )


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
        answers: Path | None = None,
    ) -> None:
        """`special_texts`: special tokens that count as markers only by their ids. `seq_ctx`: cells that one sequence
        can have; `limit`: tokens that prompt and answer may have together. `marks`: whether what was read is kept, so
        that it matters where prompts part. `answers`: the file in which answers are kept for the next process."""
        self._special_texts = special_texts
        self.answers = Answers(answers)
        self._template = template
        self._vocab = vocab
        self._seq_ctx = seq_ctx
        self.limit = limit
        self._marks_wanted = marks
        self._preambles: OrderedDict[object, str] = OrderedDict()
        self._lock = threading.Lock()

    def make(self, request: GenerateRequest, *, must_fit: bool = False) -> Prompt:
        """The prompt, of whatever length, unless it `must_fit` (see `fitting`). Raises `EngineError` ``bad_request``,
        ``bad_template`` or ``prompt_too_long`` (before text that can't fit is tokenised)."""
        given = [x for x in (request.messages, request.prompt, request.tokens) if x is not None]
        if len(given) != 1:
            raise EngineError("bad_request", "A request needs messages, a prompt or tokens: exactly one of them.")
        if request.tokens is not None:
            return self._of_tokens(list(request.tokens))
        check_size(request, self._seq_ctx, self.limit)
        if request.prompt is not None:
            tokens = self._vocab.prompt_tokens(request.prompt)
            return Prompt(tokens, None, self._last(tokens))
        alone: list[int] = []
        """The tokens, where there is no history whose answers may have been sampled as others."""

        def tokenised(text: str) -> None:
            alone.extend(self._vocab.prompt_tokens(text))
            if must_fit:  # most of what follows takes longer than this
                self._check_fit(request, len(alone))

        answers = any(m.role == "assistant" for m in request.messages or ())
        rendered = self._template.rendered(request, check=None if answers else tokenised)
        notices = _notices(request.messages or (), rendered)
        replayed = self._replayed(request, rendered)
        if replayed is not None:
            tokens, marks, turn = replayed
        else:
            tokens = alone or self._vocab.prompt_tokens(rendered.text)
            marks = self._marks(request, rendered, tokens)
            turn = self._turn(request, rendered.text, rendered.after, tokens) if answers else 0
        tools = [tool_of(t) for t in request.tools] if request.tool_choice != "none" else []
        parser = Parser(self._template.format, tools=tools, after=rendered.after, special_texts=self._special_texts)
        return Prompt(tokens, parser, marks, turn, notices)

    def _replayed(self, request: GenerateRequest, rendered: Rendered) -> tuple[list[int], tuple[int, ...], int] | None:
        """The prompt with the answers of its history as they were sampled, its marks and where its last turn begins;
        None where none is known."""
        answers = [i for i, m in enumerate(request.messages or ()) if m.role == "assistant"]
        told = any(m.tokens for m in request.messages or ())
        if not answers or not (self.answers or told) or request.continue_final:
            return None
        made = self._with_answers(request, rendered, answers)
        if isinstance(made, int) and made:
            made = self._with_answers(request, rendered, answers[:made])
        return None if isinstance(made, int) else made

    def _with_answers(
        self, request: GenerateRequest, rendered: Rendered, kept: list[int]
    ) -> tuple[list[int], tuple[int, ...], int] | int:
        """As `_replayed`, with those answers; else how many of them are known."""
        pieces = self._template.around(request, kept, rendered.after)
        if pieces is None:
            return 0
        tokens: list[int] = self._vocab.prompt_tokens(pieces[0])
        for n, i in enumerate(kept):
            message = (request.messages or ())[i]
            found = self.answers.find(tokens, message) or self._as_told(message, rendered.after)
            if found is None:
                return n
            last = len(tokens) + len(found)
            tokens = [*tokens, *found, *self._vocab.tokenize(pieces[n + 1])]
        head = pieces[-1].removesuffix(rendered.after)
        marks = {last + self._tokens_of(pieces[-1], tokens[last:], head)}
        turn = self._turn(request, pieces[-1], rendered.after, tokens[last:])
        return (
            tokens,
            tuple(sorted(m for m in marks if self._marks_wanted and 0 < m < len(tokens))),
            last + turn if turn else 0,
        )

    def _as_told(self, message: ChatMessage, after: str) -> tuple[int, ...] | None:
        """The tokens that a message brings, where they still say what it says."""
        if not message.tokens or any(not 0 <= t < self._vocab.size for t in message.tokens):
            return None
        text = b"".join(self._vocab.piece(t) for t in message.tokens).decode("utf-8", "replace")
        tools = [{"name": call.name} for call in message.tool_calls]
        said = parse(self._template.format, text, tools=tools, after=after)
        same = said.content.strip() == message.content.strip()
        return message.tokens if same and [c.name for c in said.calls] == [c.name for c in message.tool_calls] else None

    def fitting(self, request: GenerateRequest) -> Prompt:
        """The prompt, where it leaves room for an answer. Raises `EngineError`, ``prompt_too_long`` with the count."""
        prompt = self.make(request, must_fit=True)
        if not prompt.tokens:
            raise EngineError("bad_request", "The prompt is empty.")
        self._check_fit(request, len(prompt.tokens))
        return prompt

    def _check_fit(self, request: GenerateRequest, n: int) -> None:
        if n + request.room > self.limit:
            raise EngineError(
                "prompt_too_long",
                f"The prompt has {n} tokens, but the context holds {self.limit}",
                "shorten it, start a new chat, or load the model with a larger context.",
                tokens=n,
                limit=self.limit,
            )

    def check_tokens(self, tokens: Iterable[int]) -> None:
        """Raises `EngineError` ``bad_request`` where one is none of the vocabulary's."""
        wrong = next((t for t in tokens if not 0 <= t < self._vocab.size), None)
        if wrong is not None:
            raise EngineError("bad_request", f"Token {wrong} is not in the vocabulary of {self._vocab.size} tokens.")

    def _of_tokens(self, tokens: list[int]) -> Prompt:
        self.check_tokens(tokens)
        return Prompt(tokens, None, self._last(tokens))

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

    def _turn(self, request: GenerateRequest, text: str, after: str, tokens: list[int]) -> int:
        """How many of a text's tokens stand before what its user says last; 0 where somebody else spoke last."""
        last = (request.messages or ())[-1]
        said = last.content.strip()
        at = text.removesuffix(after).rfind(said) if self._marks_wanted and last.role == "user" and said else -1
        return self._tokens_of(text, tokens, text[:at]) if at > 0 else 0

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


def _notices(messages: Sequence[ChatMessage], rendered: Rendered) -> tuple[str, ...]:
    """What became of messages that the template has no place for. Raises `EngineError` ``bad_request`` where the model
    would answer without something that it was told."""
    notices = []
    if rendered.system_merged:
        notices.append("This model's template has no place for a system prompt; it stands before the user's message.")
    for i in rendered.missing:
        if messages[i].role != "assistant":
            raise EngineError(
                "bad_request",
                f"This model's chat template has no place for message {i + 1} (role {messages[i].role[:40]}): the "
                "model wouldn't see it",
                "leave it out, or say the same in a message of the user.",
            )
    if rendered.missing:
        notices.append("This model's template leaves out the text of earlier answers; the model doesn't see it.")
    return tuple(notices)


def _agreeing(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
