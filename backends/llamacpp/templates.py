"""Chat messages to a prompt, with the template that the model file brings.

The template is a program by whoever made the file. It runs in a process of its own (`template_env`), which is killed
when it takes too long; nothing of it reaches this process but the text.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import threading
import time
from typing import Any

from backends.interface import ChatMessage, EngineError, GenerateRequest
from backends.llamacpp.thinking import TAGS
from backends.system.python import start_python

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

TIME_LIMIT_S = 5.0
MAX_TEMPLATE = 1 << 20
_CUT = "\ue000flashmoe-cut\ue001"


class Renderer:
    """Renders templates in a child process, which starts on first use (or by `warm_up`) and again after it was
    killed."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._limit = time_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts the process without waiting for it."""
        with self._lock:
            self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            start = start_python("backends.llamacpp.template_env")
            self._process = subprocess.Popen(
                start.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=start.env, cwd=start.folder,
            )  # fmt: skip
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
        return self._process

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """The text; raises `EngineError` ``bad_template`` where the template fails, refuses, or takes too long."""
        if len(template) > MAX_TEMPLATE:
            raise _bad(f"it has {len(template)} characters")
        with self._lock:
            answer = self._exchange(json.dumps({"template": template, "variables": variables}).encode() + b"\n")
        if "text" in answer:
            return answer["text"]
        if "refused" in answer:
            raise EngineError("bad_template", f"The model's chat template refuses these messages: {answer['refused']}")
        raise _bad(answer.get("error", "no answer"))

    def _exchange(self, job: bytes) -> dict[str, str]:
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + self._limit + 1.0  # a cold start of the process counts, too
        answer, sent, receive, send = bytearray(), 0, process.stdout.fileno(), process.stdin.fileno()
        try:
            while not answer.endswith(b"\n"):
                left = deadline - time.monotonic()
                readable, writable, _ = select.select([receive], [send] if sent < len(job) else [], [], max(0.0, left))
                if not readable and not writable:
                    self._kill()
                    return {"error": f"it took longer than {self._limit:g} s"}
                if writable:
                    sent += os.write(send, job[sent : sent + (1 << 16)])
                if readable:
                    data = os.read(receive, 1 << 20)
                    if not data:
                        raise BrokenPipeError
                    answer += data
            decoded: dict[str, str] = json.loads(answer)
            return decoded
        except (OSError, ValueError):
            self._kill()
            return {"error": "it ended the process that rendered it"}

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def close(self) -> None:
        """Ends the process; a later `render` starts another."""
        with self._lock:
            self._kill()


def _bad(reason: str) -> EngineError:
    return EngineError(
        "bad_template",
        f"The chat template in the model file can't be used ({reason[:300]})",
        "use another file of this model.",
    )


def fallback_template(knows_chatml: bool) -> str:
    """The template for a file without one: ChatML where the vocabulary has its tokens, else a plain dialogue."""
    return CHATML if knows_chatml else PLAIN


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, *, bos: str, eos: str, renderer: Renderer) -> None:
        self.source = source
        self._bos, self._eos = bos, eos
        self._renderer = renderer

    def prompt(self, request: GenerateRequest) -> str:
        """The text that the model goes on from. Raises `EngineError` ``bad_template`` or ``bad_request``."""
        messages = request.messages or ()
        if not messages:
            raise EngineError("bad_request", "There is no message to answer.")
        if not request.continue_final:
            return self._render(request, messages, opens=True)
        last = messages[-1]
        if last.role != "assistant":
            raise EngineError("bad_request", "Only an answer of the assistant can be continued.")
        if last.thinking and not last.content:
            return self._reopen_thinking(request, messages)
        cut = ChatMessage("assistant", last.content + _CUT, last.thinking)
        text = self._render(request, (*messages[:-1], cut), opens=False)
        head, mark, _ = text.rpartition(_CUT)
        if not mark:
            raise _bad("it drops the last message, so that an answer can't be continued")
        return head

    def stable_text(self, request: GenerateRequest) -> str | None:
        """What later prompts of this chat will begin with as well: the messages without what opens the answer."""
        if request.continue_final or not request.messages:
            return None
        try:
            return self._render(request, request.messages, opens=False)
        except EngineError:
            return None

    def preamble_key(self, request: GenerateRequest) -> tuple[object, ...] | None:
        """What the beginning of a prompt depends on before the first message of a user; None: there is nothing."""
        system = _instructions(request)
        if not system:
            return None
        return (*((m.role, m.content) for m in system), request.enable_thinking, tuple(request.template_args.items()))

    def preamble_text(self, request: GenerateRequest) -> str | None:
        """A prompt that begins as this one as far as the instructions go: with another question."""
        try:
            return self._render(request, (*_instructions(request), ChatMessage("user", _CUT)), opens=False)
        except EngineError:
            return None

    def _reopen_thinking(self, request: GenerateRequest, messages: tuple[ChatMessage, ...]) -> str:
        text = self._render(request, messages[:-1], opens=True)
        if "<|channel|>" in self.source and "<|message|>" in self.source:
            return text + "<|channel|>analysis<|message|>" + messages[-1].thinking
        start = next((s for s, _ in TAGS if s in self.source), TAGS[0][0])
        opened = text.rstrip().endswith(start)
        return text + ("" if opened else start + "\n") + messages[-1].thinking

    def _render(self, request: GenerateRequest, messages: tuple[ChatMessage, ...], *, opens: bool) -> str:
        variables: dict[str, Any] = {
            **request.template_args,
            "messages": [_plain(m) for m in messages],
            "add_generation_prompt": opens,
            "bos_token": self._bos,
            "eos_token": self._eos,
            "tools": None,
            "documents": None,
        }
        if request.enable_thinking is not None:
            variables["enable_thinking"] = request.enable_thinking
            variables["thinking"] = request.enable_thinking  # DeepSeek's and Granite's name for it
        return self._renderer.render(self.source, variables)


def _instructions(request: GenerateRequest) -> tuple[ChatMessage, ...]:
    messages = request.messages or ()
    n = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    return messages[:n]


def _plain(message: ChatMessage) -> dict[str, str]:
    plain = {"role": message.role, "content": message.content}
    if message.thinking:
        plain["reasoning_content"] = message.thinking  # Qwen, GLM, DeepSeek
        plain["thinking"] = message.thinking  # gpt-oss
    return plain
