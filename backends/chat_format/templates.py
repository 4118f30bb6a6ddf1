"""Chat messages to a prompt, with the template that the model file brings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from backends.chat_format.format import ChatFormat
from backends.chat_format.history import SYSTEM_ROLES as _SYSTEM
from backends.chat_format.history import alternating, plain_types, simple_types
from backends.chat_format.learn import learn
from backends.chat_format.probe import common
from backends.chat_format.rendering import Renderer, bad_template
from backends.chat_format.variables import messages_for, variables_for
from backends.interface import ChatMessage, EngineError, GenerateRequest

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
    "{% else %}{{ message.role.capitalize() + ': ' + message.content + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For models without a template: a dialogue that a base model goes on with."""

_CUT = "\ue000flashmoe-cut\ue001"
_KEPT_FORMATS = 32
_formats: dict[str, ChatFormat] = {}


@dataclass(frozen=True)
class Rendered:
    """A prompt."""

    text: str
    after: str
    """Its end, which opens the answer: what `Parser` needs to know of it."""
    head: str | None = None
    """What later prompts of this chat will begin with as well: the messages without what opens the answer."""
    system_merged: bool = False
    """The template has no place for the system message, which stands in the first user message instead."""
    missing: tuple[int, ...] = ()
    """Messages that the template has no place for: their text isn't in the prompt."""


def fallback_template(knows_chatml: bool) -> str:
    """The template for a file without one: ChatML where the vocabulary has its tokens, else a plain dialogue."""
    return CHATML if knows_chatml else PLAIN


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, *, bos: str, eos: str, renderer: Renderer) -> None:
        self.source = source
        self._bos, self._eos = bos, eos
        self._renderer = renderer
        self._merges_late = False
        """The template has a place for a system message at the beginning only."""

    @cached_property
    def format(self) -> ChatFormat:
        """How the model writes, as far as the template shows; learnt once for each template."""
        key = hashlib.sha256("\0".join((self.source, self._bos, self._eos)).encode("utf-8", "replace")).hexdigest()
        found = _formats.get(key)
        if found is None:
            found = learn(self.source, self._probe)
            if len(_formats) >= _KEPT_FORMATS:
                _formats.clear()
            _formats[key] = found
        return found

    def _probe(self, variables: dict[str, Any]) -> str:
        request = GenerateRequest(id="probe", messages=())
        given = variables_for(request, [], self.source, opens=False, bos=self._bos, eos=self._eos)
        return self._renderer.render(self.source, {**given, **variables})

    def prompt(self, request: GenerateRequest) -> str:
        """The text that the model goes on from. Raises `EngineError` ``bad_template`` or ``bad_request``."""
        return self.rendered(request).text

    def rendered(
        self, request: GenerateRequest, *, opens: bool = True, check: Callable[[str], None] | None = None
    ) -> Rendered:
        """The prompt and what is to know about it; `opens`: with what opens an answer. `check` is given the prompt
        before more is found out, and may raise. Raises as `prompt`."""
        messages = request.messages or ()
        if not messages:
            raise EngineError("bad_request", "There is no message to answer.")
        if request.continue_final:
            return self._continued(request, messages)
        text = self._render(request, messages, opens=opens)
        if check is not None:
            check(text)
        after, head = "", None
        if opens:
            head = self._stable_text(request)
            if messages[-1].role == "assistant" and not text.startswith(head or "\0"):
                # closed in another way where no answer follows (<|return|> for <|end|>): that is no part of the opening
                opening = self._opening(request)
                head = text.removesuffix(opening) if opening else head
            after = text[len(common(head or "", text)) :] or _after_last(text, messages[-1].content)
        systems = [i for i, m in enumerate(messages) if m.role in _SYSTEM]
        merged = bool(systems) and (self.format.system == "merge" or (self._merges_late and systems[-1] > 0))
        return Rendered(text, after, head, merged, self._missing(request, messages, text))

    def _missing(self, request: GenerateRequest, messages: tuple[ChatMessage, ...], text: str) -> tuple[int, ...]:
        """The messages that the template leaves out. One that it rewrites (its own switches and tags in a text) isn't:
        a word in the text's place shows whether there is a place."""
        bare = _bare(text)
        doubtful = [i for i, m in enumerate(messages) if _bare(m.content) not in bare]
        if not doubtful:
            return ()
        marked = list(messages)
        for i in doubtful:
            marked[i] = msgspec.structs.replace(messages[i], content=f"\ue000{i}\ue001")
        try:
            seen = self._render(request, tuple(marked), opens=True)
        except EngineError:
            return tuple(doubtful)
        return tuple(i for i in doubtful if marked[i].content not in seen)

    def around(self, request: GenerateRequest, kept: Sequence[int], after: str) -> list[str] | None:
        """The prompt without some of its answers (indices of messages, in order), as the texts between them: each
        answer comes after what opened it, `after`, as when it was made. None: the template doesn't let that be seen."""
        messages = list(request.messages or ())
        if self.format.single_calls and any(len(messages[i].tool_calls) > 1 for i in kept):
            return None
        marks = [f"\ue000kept{i}\ue001" for i in kept]
        for i, mark in zip(kept, marks, strict=True):
            messages[i] = msgspec.structs.replace(messages[i], content=mark, thinking="")
        try:
            rest = self._render(request, tuple(messages), opens=True)
        except EngineError:
            return None
        head, end = common(after, self.format.answer_head), self.format.answer_end
        pieces = []
        for i, mark in zip(kept, marks, strict=True):
            before, found, rest = rest.partition(mark)
            bare = self._without_empty_thinking(after)
            if bare and before.endswith(bare):  # history leaves out that nothing was thought
                cut = len(before) - len(bare)
            else:
                cut = before.rfind(head) if head else len(before)
            if not found or cut < 0:
                return None
            pieces.append(before[:cut] + after)
            if messages[i].tool_calls:  # they are among the answer's tokens
                over = rest.find(end) if end.strip() else -1
                if over < 0:
                    return None
                rest = rest[over:]
        return [*pieces, rest]

    def _without_empty_thinking(self, opening: str) -> str:
        """What opens an answer, without the thinking that is over before it begins; "" where there is none."""
        thinking = self.format.thinking
        if thinking is None or not thinking.start or not thinking.end:
            return ""
        bare, found, rest = opening.partition(thinking.start.strip())
        return bare if found and rest.strip() == thinking.end.strip() else ""

    def _continued(self, request: GenerateRequest, messages: tuple[ChatMessage, ...]) -> Rendered:
        last = messages[-1]
        if last.role != "assistant":
            raise EngineError("bad_request", "Only an answer of the assistant can be continued.")
        if last.thinking and not last.content:
            text = self._reopen_thinking(request, messages)
        else:
            cut = ChatMessage("assistant", last.content + _CUT, last.thinking)
            whole = self._render(request, (*messages[:-1], cut), opens=False)
            text, mark, _ = whole.rpartition(_CUT)
            if not mark:
                raise bad_template("it drops the last message, so that an answer can't be continued")
        if last.content and self.format.protocol == "tags":
            return Rendered(text, "")  # in the middle of its text: no thinking is open, whatever the template shows
        if len(messages) == 1:
            return Rendered(text, text)
        try:
            head = self._render(request, messages[:-1], opens=False)
        except EngineError:
            head = ""
        return Rendered(text, text[len(common(head, text)) :])

    def _stable_text(self, request: GenerateRequest) -> str | None:
        try:
            return self._render(request, request.messages or (), opens=False)
        except EngineError:
            return None

    def _opening(self, request: GenerateRequest) -> str:
        """What opens an answer to a question; "" where that can't be seen."""
        question = (ChatMessage("user", _CUT),)
        try:
            opened, closed = (self._render(request, question, opens=opens) for opens in (True, False))
        except EngineError:
            return ""
        return opened.removeprefix(closed) if opened.startswith(closed) else ""

    def preamble_key(self, request: GenerateRequest) -> tuple[object, ...] | None:
        """What the beginning of a prompt depends on before the first message of a user; None: there is nothing."""
        system = _instructions(request)
        if not system and not request.tools:
            return None
        arguments = tuple(request.template_args.items())
        tools = msgspec.json.encode(request.tools)
        return (*((m.role, m.content) for m in system), request.enable_thinking, request.effort, tools, arguments)

    def preamble_text(self, request: GenerateRequest) -> str | None:
        """A prompt that begins as this one as far as the instructions go: with another question."""
        try:
            return self._render(request, (*_instructions(request), ChatMessage("user", _CUT)), opens=False)
        except EngineError:
            return None

    def _reopen_thinking(self, request: GenerateRequest, messages: tuple[ChatMessage, ...]) -> str:
        text = self._render(request, messages[:-1], opens=True)
        if self.format.protocol == "harmony":
            return text + "<|channel|>analysis<|message|>" + messages[-1].thinking
        start = self.format.thinking.start if self.format.thinking else "<think>"
        opened = text.rstrip().endswith(start)
        return text + ("" if opened else start + "\n") + messages[-1].thinking

    def _render(self, request: GenerateRequest, messages: tuple[ChatMessage, ...], *, opens: bool) -> str:
        late = [m.content for i, m in enumerate(messages) if i and m.role in _SYSTEM and m.content.strip()]
        if late and not self._merges_late:
            refusal: EngineError | None = None
            try:
                text = self._rendered_as(request, messages, opens=opens)
                if all(_bare(m.content) in _bare(text) for m in messages if m.role in _SYSTEM):
                    return text
            except EngineError as error:
                refusal = error
            try:
                text = self._rendered_as(request, messages, opens=opens, merge_late=True)
            except EngineError:
                raise refusal or bad_template("it refuses a system message within a chat") from None
            self._merges_late = True
            return text
        return self._rendered_as(request, messages, opens=opens, merge_late=bool(late))

    def _rendered_as(
        self, request: GenerateRequest, messages: tuple[ChatMessage, ...], *, opens: bool, merge_late: bool = False
    ) -> str:
        plain = messages_for(messages, self.format, self.source, request.tools, merge_late=merge_late)
        variables = variables_for(request, plain, self.source, opens=opens, bos=self._bos, eos=self._eos)
        try:
            return self._renderer.render(self.source, variables)
        except EngineError as refusal:
            for other in _other_ways(variables):
                try:
                    return self._renderer.render(self.source, other)
                except EngineError:
                    continue
            raise refusal from None


def _other_ways(variables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same for a template that refuses it: without two messages of the user in a row, or with plainer types."""
    messages, tools = variables["messages"], variables.get("tools")
    turns = [messages, *([other] if (other := alternating(messages)) != messages else [])]
    kinds: list[Any] = [tools]
    for plainer in (plain_types(tools), simple_types(tools)) if tools else ():
        kinds += [plainer] if plainer not in kinds else []
    for kind in kinds:
        for turn in turns:
            if kind is not tools or turn is not messages:
                yield {**variables, "messages": turn, **({"tools": kind} if tools else {})}


def _instructions(request: GenerateRequest) -> tuple[ChatMessage, ...]:
    messages = request.messages or ()
    n = next((i for i, m in enumerate(messages) if m.role not in _SYSTEM), len(messages))
    return messages[:n]


def _after_last(text: str, content: str) -> str:
    """What stands behind the last message: templates that open an answer whether they are asked to or not."""
    at = text.rfind(content.strip()) if content.strip() else -1
    return text[at + len(content.strip()) :] if at >= 0 else ""


def _bare(text: str) -> str:
    return "".join(text.split())
