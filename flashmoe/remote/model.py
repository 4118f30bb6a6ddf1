"""A remote server's model: one thread a request reads its stream, `step` hands the events on."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import msgspec

from backends.interface import (
    BenchRequest,
    BenchResult,
    Delta,
    EngineError,
    Event,
    ExpertMap,
    Failed,
    Finished,
    GenerateRequest,
    ModelInfo,
    PrefillProgress,
    Telemetry,
    Usage,
)
from flashmoe.remote.address import host_of
from flashmoe.remote.http import network_error, status_error
from flashmoe.remote.stream import objects_of
from flashmoe.remote.think_tag import Piece, ThinkTag

STEP_S = 0.1
_Reason = Literal["stop", "length", "context", "cancelled"]
_REASONS: dict[str, _Reason] = {"stop": "stop", "length": "length", "content_filter": "stop", "eos": "stop"}


@dataclass
class _Running:
    """A request on its way."""

    request: GenerateRequest
    answer: _Answer
    start: float
    cancelled: bool = False
    socket: socket.socket | None = None
    """The connection, from the moment that it is there."""


class RemoteModel:
    """Implements `backends.interface.Model` over HTTP."""

    def __init__(self, client: httpx2.Client, info: ModelInfo) -> None:
        self.info = info
        self._client = client
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._running: dict[str, _Running] = {}
        self._lock = threading.RLock()
        self._prefill_tokens = self._decode_tokens = 0
        self._prefill_s = self._decode_s = 0.0

    # ---- the interface ------------------------------------------------------------------------------------------

    def count_tokens(self, request: GenerateRequest) -> int:
        raise EngineError("unsupported", "A remote server's tokens can't be counted before they are sent.")

    def submit(self, request: GenerateRequest) -> None:
        if request.messages is None and request.prompt is None and request.tokens is None:
            raise EngineError("bad_request", "The request has neither messages nor a prompt.")
        running = _Running(request, _Answer(request.id, self._events.put), time.monotonic())
        with self._lock:
            self._running[request.id] = running
            self._events.put(PrefillProgress(id=request.id, done=0, total=0))
        threading.Thread(target=self._run, args=(running,), name=f"remote-{request.id}", daemon=True).start()

    def cancel(self, request_id: str) -> None:
        """It ends here and now, whatever its thread waits for: a connection, the first byte, the next one."""
        with self._lock:
            running = self._running.get(request_id)
            if running is None:
                return
            running.cancelled = True
            self._finish(running)
            if running.socket is not None:
                with contextlib.suppress(OSError):  # gone already; a reader on it wakes up
                    running.socket.shutdown(socket.SHUT_RDWR)

    def step(self) -> list[Event]:
        """Waits up to 0.1 s for something to happen."""
        out: list[Event] = []
        with contextlib.suppress(queue.Empty):
            out.append(self._events.get(timeout=STEP_S))
            while True:
                out.append(self._events.get_nowait())
        return out

    def busy(self) -> bool:
        return bool(self._running) or not self._events.empty()

    def telemetry(self) -> Telemetry:
        with self._lock:
            now = time.monotonic()
            taken = [running.answer.seconds(running.start, now) for running in self._running.values()]
            return Telemetry(
                t=now,
                prefill_tokens=self._prefill_tokens,
                decode_tokens=self._decode_tokens + sum(r.answer.pieces for r in self._running.values()),
                prefill_s=self._prefill_s + sum(waited for waited, _ in taken),
                decode_s=self._decode_s + sum(wrote for _, wrote in taken),
                n_active=len(self._running),
            )

    def expert_map(self) -> ExpertMap | None:
        return None

    def bench(self, request: BenchRequest, progress: Callable[[int, int], bool]) -> BenchResult:
        raise EngineError(
            "unsupported", "bench measures this machine", "a remote server takes no teacher-forced tokens."
        )

    def close(self) -> None:
        for request_id in list(self._running):
            self.cancel(request_id)
        self._client.close()

    # ---- one request --------------------------------------------------------------------------------------------

    def _run(self, running: _Running) -> None:
        request, host = running.request, host_of(self.info.path)

        def connected(event: str, info: dict[str, Any]) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):
                with self._lock:
                    running.socket = info["return_value"].get_extra_info("socket")
                    if running.cancelled:
                        raise EngineError("cancelled", "cancelled")

        try:
            route, body = _body(request, self.info.name)
            with self._client.stream("POST", route, json=body, extensions={"trace": connected}) as response:
                if response.status_code != 200:
                    raise status_error(response.status_code, response.read(), self.info.path, response.headers)
                for chunk in objects_of(response.iter_bytes(), host):
                    with self._lock:
                        if running.cancelled:
                            return
                        running.answer.take(chunk)
            if running.answer.reason is None:
                if running.answer.first is None:
                    raise EngineError("network", f"{host} ended the answer before its first word", "try again.")
                raise EngineError("network", f"{host} ended the answer in the middle", "what came so far is kept.")
            with self._lock:
                self._finish(running)
        except EngineError as e:
            self._fail(running, e)
        except httpx2.HTTPError as e:
            self._fail(running, network_error(e, self.info.path, begun=running.answer.first is not None))
        except Exception as e:  # a thread must never end silently
            self._fail(running, EngineError("network", f"The answer can't be read ({e})."))

    def _finish(self, running: _Running) -> None:
        """Under the lock; nothing where it ended already."""
        if not self._left(running):
            return
        end, answer = time.monotonic(), running.answer
        answer.end()
        waited, wrote = answer.seconds(running.start, end)
        usage = Usage(
            prompt_tokens=answer.prompt_tokens,
            reused_tokens=answer.reused_tokens,
            completion_tokens=answer.completion_tokens,
            thinking_tokens=answer.thinking_tokens,
            prefill_s=waited,
            decode_s=wrote,
            seed=running.request.sampling.seed,
        )
        reason: _Reason = "cancelled" if running.cancelled else _REASONS.get(answer.reason or "", "stop")
        self._events.put(Finished(id=running.request.id, reason=reason, usage=usage))

    def _fail(self, running: _Running, e: EngineError) -> None:
        with self._lock:
            if self._left(running):
                self._events.put(Failed.of(running.request.id, e))

    def _left(self, running: _Running) -> bool:
        """Whether it runs until now: its id may be another request's since."""
        if self._running.get(running.request.id) is not running:
            return False
        del self._running[running.request.id]
        answer = running.answer
        waited, wrote = answer.seconds(running.start, time.monotonic())
        self._prefill_tokens += answer.prompt_tokens or 0
        self._decode_tokens += max(answer.completion_tokens or 0, answer.pieces)  # a counter never goes back
        self._prefill_s += waited
        self._decode_s += wrote
        return True


class _Answer:
    """Puts a stream's chunks together: text to the events, figures into fields (None while unknown)."""

    def __init__(self, request_id: str, emit: Callable[[Event], None]) -> None:
        self._id = request_id
        self._emit = emit
        self.first: float | None = None
        self.reason: str | None = None
        self.prompt_tokens: int | None = None
        self.reused_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.thinking_tokens = 0
        self.pieces = 0
        """Of text: as good as tokens while the server hasn't counted them."""
        self._whole = False
        self._tag = ThinkTag()

    def take(self, chunk: dict[str, Any]) -> None:
        """One decoded event of the stream. Raises `EngineError` where the server reports a failure."""
        error = chunk.get("error") or (chunk if chunk.get("object") == "error" else None)
        if error:
            said = str(error.get("message") if isinstance(error, dict) else error)[:300].strip().rstrip(".")
            raise EngineError("network", f"The server failed: {said}.")
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if not isinstance(choice, dict):
                continue
            delta = choice.get("delta")
            if isinstance(whole := choice.get("message"), dict):  # of a server that doesn't stream
                delta, self._whole = whole, True
            if isinstance(delta, dict):
                self._text(delta.get("reasoning_content") or delta.get("reasoning"), thinking=True)
                self._text(delta.get("content"), thinking=False)
            self._text(choice.get("text"), thinking=False)
            if isinstance(reason := choice.get("finish_reason"), str):
                self.reason = reason
        if isinstance(usage := chunk.get("usage"), dict):
            self.prompt_tokens = _count(usage, "prompt_tokens")
            self.completion_tokens = _count(usage, "completion_tokens")
            self.reused_tokens = _count(usage.get("prompt_tokens_details"), "cached_tokens")
            self.thinking_tokens = _count(usage.get("completion_tokens_details"), "reasoning_tokens") or 0

    def _text(self, text: Any, *, thinking: bool) -> None:
        if isinstance(text, str) and text:
            if self.first is None and not self._whole:  # what comes whole tells nothing about the speed
                self.first = time.monotonic()
            self.pieces += not self._whole
            if thinking:
                self._emit(Delta(id=self._id, text=text, kind="thinking"))
            else:
                self._pieces(self._tag.feed(text))

    def seconds(self, start: float, now: float) -> tuple[float, float]:
        """How long the first word was waited for, and how long it has been written since."""
        first = self.first or now
        return first - start, now - first

    def end(self) -> None:
        """The stream ended: what was held back as the possible beginning of a tag is text."""
        self._pieces(self._tag.end())

    def _pieces(self, pieces: list[Piece]) -> None:
        for kind, piece in pieces:
            self._emit(Delta(id=self._id, text=piece, kind=kind))


def _count(holder: Any, name: str) -> int | None:
    value = holder.get(name) if isinstance(holder, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _body(request: GenerateRequest, model: str) -> tuple[str, dict[str, Any]]:
    """The route and the JSON body; settings that OpenAI doesn't know go only where they were set."""
    s = request.sampling
    body: dict[str, Any] = {
        "model": model, "stream": True, "stream_options": {"include_usage": True},
        "temperature": s.temperature, "top_p": s.top_p,
    }  # fmt: skip
    extra = {
        "max_tokens": s.max_tokens, "seed": s.seed, "stop": list(s.stop) or None,
        "presence_penalty": s.presence_penalty or None, "frequency_penalty": s.frequency_penalty or None,
        "top_k": s.top_k or None, "min_p": s.min_p or None, "grammar": s.grammar,
        "repeat_penalty": s.repeat_penalty if s.repeat_penalty != 1.0 else None,
    }  # fmt: skip
    body.update({k: v for k, v in extra.items() if v is not None})
    if s.json_schema is not None:
        schema = {"name": "answer", "schema": msgspec.json.decode(s.json_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    kwargs: dict[str, Any] = dict(request.template_args)
    if request.enable_thinking is not None:
        kwargs["enable_thinking"] = request.enable_thinking
    if kwargs:
        body["chat_template_kwargs"] = kwargs
    if request.messages is None:
        body["prompt"] = request.prompt if request.prompt is not None else list(request.tokens or ())
        return "completions", body
    if request.continue_final:
        raise EngineError("unsupported", "A remote server can't continue an answer", "regenerate it instead.")
    body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
    return "chat/completions", body
