"""Runs a batch: keeps the engine full, writes each answer when it is done, starts the engine again if it dies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from backends.interface import Delta, EngineError, Finished, LoadRequest, ModelInfo, Telemetry
from flashmoe.batch.energy import EnergyMeter
from flashmoe.batch.lines import Item
from flashmoe.batch.order import admission_order
from flashmoe.batch.output import Output
from flashmoe.batch.width import START_STREAMING, WidthSearch
from flashmoe.monitor.engine import MonitoredEngine
from flashmoe.openai.responses import Shape, finish_reason, usage_of
from flashmoe.openai.said import Said
from flashmoe.retry import PASSING, Backoff

MAX_DEATHS = 3
"""An item that was in flight when the engine died this often is reported as failed: it may be what kills it."""


ASK_AGAIN = Backoff(first_s=1.0, most_s=16.0, attempts=6)
"""A server that can't answer is asked again after these pauses."""


class Progress(Struct, kw_only=True, frozen=True):
    """Where a batch stands. Rates are over the last window; None while unknown."""

    done: int
    failed: int
    total: int
    active: int
    width: int
    tokens: int
    tok_s: float | None
    eta_s: float | None
    hit_rate: float | None
    read_bytes_per_token: float | None


class Summary(Struct, kw_only=True):
    """The end of a batch. `tokens` counts generated ones of this call. None: can't be known here."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    """Answered by an earlier call."""
    failed_before: int = 0
    """Failed in an earlier call, and not run again."""
    bad_lines: int = 0
    remaining: int = 0
    width: int = 1
    measured_tok_s: dict[int, float] = msgspec.field(default_factory=dict)
    """Tokens per second at each number of sequences that `auto` tried."""
    seconds: float = 0.0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    tokens: int = 0
    tokens_per_hour: float | None = None
    hit_rate: float | None = None
    read_bytes_per_token: float | None = None
    energy_kwh: float | None = None
    cost_per_million_tokens: float | None = None
    stopped: str | None = None
    """Why the batch ended before its work did."""
    retry: bool = False
    """It was stopped by what may go away by itself: a server that can't be reached."""


class Batch:
    """One call of ``batch``. Drive it with `run`; `stop` lets what is in flight go and returns soon."""

    def __init__(
        self,
        load: LoadRequest,
        items: Sequence[Item],
        output: Output,
        *,
        log_path: Path,
        width: int | None,
        on_progress: Callable[[Progress], None],
        on_note: Callable[[str], None],
        per_sequence_ctx: int,
        price_kwh: float | None = None,
    ) -> None:
        self._load = load
        self._queue = deque(admission_order(i for i in items if i.id not in output.done and i.id not in output.failed))
        self._output = output
        self._total = len(items)
        self._skipped = len(items) - len(self._queue)
        self._client = MonitoredEngine(log_path=log_path, on_event=self._on_event)
        self._search = WidthSearch(width or load.n_seq_max)
        if width is not None:
            self._search.width, self._search.settled = width, True
        self._on_progress = on_progress
        self._on_note = on_note
        self._ctx = per_sequence_ctx
        self._price = price_kwh
        self._active: dict[str, asyncio.Task[None]] = {}
        self._prefilling: set[str] = set()
        self._deaths: dict[str, int] = {}
        self._outgrown: deque[Item] = deque()
        """Items that a KV cache of their own was too small for: they run at the end, in one that all share."""
        self._refused: dict[str, list[int]] = {}
        """Of an item that a server couldn't answer: how many answers there were each time."""
        self._tokens = 0
        self._window: deque[tuple[float, int]] = deque()
        self._first_telemetry: Telemetry | None = None
        self._telemetry: Telemetry | None = None
        self._stopping: str | None = None
        self._started: float | None = None
        self._unsynced = False
        self._wake = asyncio.Event()
        self._energy = EnergyMeter()
        failed = sum(item.id in output.failed for item in items)
        self.summary = Summary(skipped=self._skipped - failed, failed_before=failed)
        self.info: ModelInfo | None = None

    # ---- the outside --------------------------------------------------------------------------------------------

    def stop(self, why: str = "interrupted") -> None:
        """Ends the batch: nothing new is started, what is in flight is dropped (the next call runs it again)."""
        self._stopping = self._stopping or why
        self._wake.set()

    async def run(self) -> Summary:
        """Runs until everything is done or `stop`. Raises `EngineError` where the model can't be loaded."""
        try:
            if self._queue:
                await self._start_engine()
                assert self.info is not None
                if self.info.budget_bytes is not None and self.info.budget_bytes < self.info.expert_bytes:
                    # with a cache each, wider is better as far as memory goes: no token's attention costs more for it
                    self._search.begin_at(self._search.limit if self._load.own_caches else START_STREAMING)
                self._started = time.monotonic()
                await self._pump()
                if self._outgrown and not self._stopping:
                    self._queue, self._outgrown = self._outgrown, deque()
                    n_ctx = max(self._load.n_ctx or 0, self._ctx)
                    self._load = msgspec.structs.replace(self._load, own_caches=False, n_ctx=n_ctx)
                    self._on_note(f"{len(self._queue)} prompts outgrew their own context; running them in a shared one")
                    await self._start_engine()
                    await self._pump()
        finally:
            for task in self._active.values():
                task.cancel()
            await asyncio.gather(*self._active.values(), return_exceptions=True)
            await self._sync()
            await self._client.stop()
        return self._finish_summary()

    def interrupted(self) -> Summary:
        """The figures after `run` was cancelled from outside."""
        self.stop("interrupted; run the same command again to resume")
        return self._finish_summary()

    # ---- the engine's side --------------------------------------------------------------------------------------

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Telemetry):
            if self._first_telemetry is None or event.t < self._first_telemetry.t:
                self._first_telemetry = event
            self._telemetry = event

    async def _pump(self) -> None:
        self._fill()
        while (self._queue or self._active) and not self._stopping:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 0.5)
            self._wake.clear()
            self._fill()  # before the disk is waited for: the engine's next step begins in a moment
            await self._sync()
            self._fill()  # a place that an answer left meanwhile is no narrower width
            now = time.monotonic()
            self._search.observe(self._tokens, len(self._active), len(self._prefilling), len(self._queue), now)
            self._report(now)
            if not self._client.alive and not self._stopping:
                await self._revive()
                self._fill()

    def _fill(self) -> None:
        """As many items in flight as the width wants."""
        if self._stopping or not self._client.alive:
            return  # what is sent to a dead engine would count as killed by it
        while self._queue and len(self._active) < self._search.width:
            item = self._queue.popleft()
            self._prefilling.add(item.id)
            self._active[item.id] = asyncio.create_task(self._one(item))

    async def _sync(self) -> None:
        """What was written goes to the disk, all lines of a step together: beside reads of experts one fsync takes
        milliseconds, and a place whose next prompt waits for it stays empty for a whole step."""
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            await asyncio.to_thread(self._output.sync)
        except OSError as e:
            self._cant_write(e)

    async def _revive(self) -> None:
        """Starts the engine again; what was in flight has gone back to the queue by itself."""
        await asyncio.gather(*self._active.values(), return_exceptions=True)
        if not self._queue:
            return
        self._on_note("the engine died; restarting it")
        await self._start_engine()

    async def _start_engine(self) -> None:
        self._first_telemetry = self._telemetry = None
        self.info = await self._client.load(self._load)
        await self._client.watch(0.5)

    async def _one(self, item: Item) -> None:
        said = Said()
        limit = item.request.sampling.max_tokens
        request = item.request
        if limit is None or limit > self._ctx:
            sampling = msgspec.structs.replace(request.sampling, max_tokens=self._ctx)
            request = msgspec.structs.replace(request, sampling=sampling)
        try:
            async for event in self._client.generate(request):
                if isinstance(event, Delta):
                    said.hear(event)
                    self._tokens += event.n_tokens
                    self._prefilling.discard(item.id)
                elif isinstance(event, Finished) and event.reason == "context" and self._too_small():
                    self._outgrown.append(item)
                elif isinstance(event, Finished) and event.reason != "cancelled":
                    said.finished = event
                    self._answer(item, said, event)
        except EngineError as e:
            if e.code in PASSING:
                await self._ask_again(item, e)
            elif e.code == "prompt_too_long" and self._too_small():
                self._outgrown.append(item)
            elif e.code == "unauthorized":
                self.stop(e.message)  # it would be every line's
            elif e.code != "engine_died" or (deaths := self._deaths.get(item.id, 0) + 1) >= MAX_DEATHS:
                self._write(self._error_line(item, e))
            else:
                self._deaths[item.id] = deaths
                self._queue.appendleft(item)
        finally:
            self._active.pop(item.id, None)
            self._prefilling.discard(item.id)
            self._wake.set()

    def _too_small(self) -> bool:
        """Whether a sequence's own cache holds less than the user grants a sequence."""
        load, info = self._load, self.info
        return load.own_caches and info is not None and info.n_ctx // load.n_seq_max < self._ctx

    async def _ask_again(self, item: Item, e: EngineError) -> None:
        """After a pause; an item that keeps failing while others are answered fails, and where none is answered the
        batch ends: a server that went away for the night must not turn thousands of lines into failures."""
        refused = self._refused.setdefault(item.id, [])
        refused.append(self.summary.done)
        if len(refused) == 1 and len(self._refused) == 1:
            self._on_note(f"{item.id}: {e.message}; trying again")
        if not ASK_AGAIN.over(len(refused)):
            await asyncio.sleep(ASK_AGAIN.pause_s(len(refused)))
            self._queue.appendleft(item)
        elif refused[-2] < self.summary.done:
            self._write(self._error_line(item, e))
        else:
            self.summary.retry = True
            self.stop(f"{e.message}; run the same command again to resume")

    # ---- results ------------------------------------------------------------------------------------------------

    def _answer(self, item: Item, said: Said, event: Finished) -> None:
        assert self.info is not None
        self._refused.pop(item.id, None)
        self.summary.prompt_tokens += event.usage.prompt_tokens or 0
        self.summary.reused_tokens += event.usage.reused_tokens or 0
        self.summary.tokens += event.usage.completion_tokens or 0
        name = self.info.name
        if item.openai:
            request_id = f"req-{item.line}"
            top = item.request.sampling.logprobs
            shape = Shape(chat=item.chat, id=request_id, created=int(time.time()), model=name, top_logprobs=top)
            shape.said = [said]
            response = {"status_code": 200, "request_id": request_id, "body": shape.whole()}
            line: dict[str, Any] = {
                "id": f"batch-{item.line}",
                "custom_id": item.id,
                "response": response,
                "error": None,
            }
        else:
            line = {"id": item.id, "answer": said.answer, "finish_reason": finish_reason(event, said), "model": name}
            if said.thinking:
                line["thinking"] = said.thinking
            if said.calls:
                line["tool_calls"] = [{"name": c.name, "arguments": c.text} for c in said.calls]
            if self.info.lossy:
                line["lossy"] = self.info.lossy
            line["usage"] = usage_of(event.usage)
        self._write(line)

    @staticmethod
    def _error_line(item: Item, e: EngineError) -> dict[str, Any]:
        error = {"code": e.code, "message": e.message}
        if item.openai:
            return {"id": f"batch-{item.line}", "custom_id": item.id, "response": None, "error": error}
        return {"id": item.id, "error": error}

    def _cant_write(self, e: OSError) -> None:
        self.stop(f"{self._output.path} can't be written: {e.strerror}; make room and run the same command again")

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._output.write(line)
        except OSError as e:
            self._cant_write(e)
            return
        self._unsynced = True
        if line.get("error"):
            self.summary.failed += 1
            self._on_note(f"{line.get('custom_id', line['id'])}: {line['error']['message']}")
        else:
            self.summary.done += 1

    # ---- figures ------------------------------------------------------------------------------------------------

    def _rates(self) -> tuple[float | None, float | None]:
        """Hit rate, and bytes read a token, since the model was loaded."""
        a, b = self._first_telemetry, self._telemetry
        if a is None or b is None:
            return None, None
        hit = per_token = None
        if b.expert_hits is not None and b.expert_misses is not None and a.expert_hits is not None:
            chosen = b.expert_hits + b.expert_misses - a.expert_hits - (a.expert_misses or 0)
            hit = (b.expert_hits - a.expert_hits) / chosen if chosen else None
        made = b.decode_tokens - a.decode_tokens
        if b.read_bytes is not None and made:
            per_token = (b.read_bytes - (a.read_bytes or 0)) / made
        return hit, per_token

    def _report(self, now: float) -> None:
        self._energy.joules()
        self._window.append((now, self._tokens))
        while len(self._window) > 2 and now - self._window[0][0] > 20:
            self._window.popleft()
        seconds, made = now - self._window[0][0], self._tokens - self._window[0][1]
        rate = made / seconds if seconds > 1 and made else None
        ended = self.summary.done + self.summary.failed
        eta = None
        if self.summary.done and self.summary.tokens and rate:
            each = self.summary.tokens / self.summary.done
            eta = (len(self._queue) + len(self._active) + len(self._outgrown)) * each / rate
        hit, per_token = self._rates()
        self._on_progress(
            Progress(
                done=ended - self.summary.failed + self._skipped, failed=self.summary.failed, total=self._total,
                active=len(self._active), width=self._search.width, tokens=self._tokens, tok_s=rate, eta_s=eta,
                hit_rate=hit, read_bytes_per_token=per_token,
            )
        )  # fmt: skip

    def _finish_summary(self) -> Summary:
        s = self.summary
        s.stopped = self._stopping
        if self._started is not None:
            s.seconds = time.monotonic() - self._started
        s.width = self._search.width
        s.measured_tok_s = {w: round(r, 2) for w, r in sorted(self._search.rates.items())}
        s.remaining = self._total - self._skipped - s.done - s.failed
        s.hit_rate, s.read_bytes_per_token = self._rates()
        if s.seconds and s.tokens:
            s.tokens_per_hour = s.tokens / s.seconds * 3600
        joules = self._energy.joules()
        if joules is not None and s.seconds:
            s.energy_kwh = joules / 3.6e6
            if self._price is not None and s.tokens:
                s.cost_per_million_tokens = s.energy_kwh * self._price / s.tokens * 1e6
        return s
