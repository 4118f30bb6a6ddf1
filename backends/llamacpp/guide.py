"""The model's vocabulary as llguidance reads it: made once a load, on first use."""

from __future__ import annotations

import ctypes as C
import threading
from typing import Any

import msgspec

from backends.chat_format.constraint import Constraint, Matcher, grammar_kind
from backends.chat_format.forcing import alone, begun_calls, calls_or_answer, forced_calls, loosened
from backends.chat_format.format import ChatFormat
from backends.chat_format.trial import Trial
from backends.interface import EngineError, GenerateRequest, ToolSpec
from backends.llamacpp.held_calls import HeldCalls
from backends.llamacpp.vocab import Vocab


class Guide:
    """Makes the tokenizer of a vocabulary when the first constrained answer asks for it. Thread-safe."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._trial = Trial()

    def warm_up(self) -> None:
        """Starts the process that schemas are tried in, without waiting for it."""
        self._trial.warm_up()

    @property
    def tokenizer(self) -> Any:
        """An ``llguidance.LLTokenizer``; about 1.5 s for 150,000 tokens, the first time."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self._make()
            return self._tokenizer

    def matcher(self, request: GenerateRequest, fmt: ChatFormat) -> Matcher | None:
        """What holds an answer to a schema, a grammar or a call; None where nothing does. Raises `EngineError` that
        names what can't be held."""
        sampling = request.sampling
        bound = sampling.json_schema is not None or bool(sampling.grammar)
        if sampling.json_schema is not None and sampling.grammar is not None:
            raise EngineError("bad_request", "An answer can follow a grammar or a JSON schema, not both.")
        if request.tools and request.tool_choice == "required":
            if bound:
                raise EngineError("bad_request", "An answer that must call a tool can't follow a schema as well.")
            tools = [t for t in request.tools if request.forced_tool in (None, t.name)]
            # a tool that is named is called once, as OpenAI's and Anthropic's own models do
            parallel = request.parallel_tool_calls and request.forced_tool is None
            lark = forced_calls(fmt, tools, self._vocab.marker_parts, parallel=parallel)
            constraint = self._trial.compile("lark", lark)
        elif sampling.json_schema is not None:
            constraint = self._trial.compile("json_schema", sampling.json_schema)
            if request.tools and request.tool_choice == "auto":
                constraint = self._or_calls(request, fmt, sampling.json_schema) or constraint
        elif sampling.grammar:
            constraint = self._trial.compile(grammar_kind(sampling.grammar), sampling.grammar)
        else:
            return None
        return Matcher(self.tokenizer, constraint)

    def _or_calls(self, request: GenerateRequest, fmt: ChatFormat, schema: str) -> Constraint | None:
        """An answer by the schema, or calls instead of it; None where calls can't be held in this format."""
        try:
            tools = [self._holdable(fmt, tool) for tool in request.tools]
            calls = forced_calls(fmt, tools, self._vocab.marker_parts, parallel=request.parallel_tool_calls)
            constraint = self._trial.compile("lark", calls_or_answer(calls, schema))
        except EngineError:
            return None
        return msgspec.structs.replace(constraint, schema=schema)

    def held_calls(self, request: GenerateRequest, fmt: ChatFormat) -> HeldCalls | None:
        """What holds the calls that the model makes of its own accord; None where it can't be done in its format, or
        nothing is to be held. Raises `EngineError` that names a strict tool whose schema can't be held."""
        if not request.tools or request.tool_choice != "auto":
            return None
        tools = [self._holdable(fmt, tool) for tool in request.tools]
        try:
            found = begun_calls(fmt, tools, self._vocab.marker_parts)
            constraints = {name: self._trial.compile("lark", lark) for name, lark in found.items()}
            return HeldCalls(self.tokenizer, constraints) if constraints else None
        except EngineError:
            if any(tool.strict for tool in tools):
                raise
            return None  # so many tools that they cost too much together

    def _holdable(self, fmt: ChatFormat, tool: ToolSpec) -> ToolSpec:
        """The tool; where its schema can't be held and needn't, with any value for the parameters that can't, or any
        object as its arguments."""
        try:
            self._try(fmt, tool)
            return tool
        except EngineError as error:
            if tool.strict:
                what = f"The arguments of the tool {tool.name[:64]} can't be held to its schema ({error.what})"
                raise EngineError("bad_request", what, "change its parameters, or leave strict out.") from None
        properties = dict(tool.parameters.get("properties") or {})
        for part in loosened(tool):
            if not self._can(fmt, msgspec.structs.replace(tool, parameters=part)):
                properties.update({key: {} for key in part["properties"]})
        looser = msgspec.structs.replace(tool, parameters={**tool.parameters, "properties": properties})
        if self._can(fmt, looser):
            return looser
        return msgspec.structs.replace(tool, parameters={"type": "object"})

    def _can(self, fmt: ChatFormat, tool: ToolSpec) -> bool:
        try:
            self._try(fmt, tool)
        except EngineError:
            return False
        return True

    def _try(self, fmt: ChatFormat, tool: ToolSpec) -> None:
        """Raises `EngineError` where a tool's schema can't be held in a format."""
        for lark in alone(fmt, tool):
            self._trial.compile("lark", lark)

    def close(self) -> None:
        """Ends the process that constraints are tried in."""
        self._trial.close()

    def _make(self) -> Any:
        from llguidance import LLTokenizer

        from backends.llamacpp import native

        vocab, library = self._vocab, native.lib()._lib
        tokens = []
        for token, piece in enumerate(vocab.all_pieces()):
            # a byte that UTF-8 doesn't have marks tokens that are none of the text's own
            tokens.append(b"\xff" + piece if vocab.is_special(token) else piece)
        ends = sorted(vocab.ends - {vocab.eos})
        make: Any = LLTokenizer.from_llamacpp  # type: ignore[attr-defined]
        return make(
            tokens=tokens,
            vocab_ptr=vocab.pointer,
            tokenize_fptr=C.cast(library.llama_tokenize, C.c_void_p).value,
            eos_token=[vocab.eos if vocab.eos >= 0 else 0, *ends],
            slices=None,
        )
