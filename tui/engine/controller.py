"""The one owner of the engine's client: loads, asks, stops, and survives the child's death.

It runs on Textual's event loop and only posts messages (`tui.engine.messages`); widgets change in their handlers.
Answers are coalesced to the repaint rate: at most one `AnswerNews` per answer is under way, and the next is posted no
sooner than a frame after it was taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from textual.message import Message

from backends.interface import (
    ChatMessage,
    Delta,
    EngineError,
    Event,
    ExpertMap,
    Finished,
    GenerateRequest,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    PrefillProgress,
)
from tui.engine import messages
from tui.engine.answer import Answer, Taken

if TYPE_CHECKING:
    from backends.engine import client
    from backends.engine.protocol import ChildEvent
    from flashmoe.monitor.engine import MonitoredEngine
    from flashmoe.monitor.sample import Sample

FRAME_S = 1 / 8
CALM_FRAME_S = 1 / 6
SAMPLE_S, CALM_SAMPLE_S = 0.5, 1.0
"""Seconds between two looks at the machine."""
ENGINE_NICE = 1

EngineState = Literal["none", "loading", "ready", "dead"]


class EngineController:
    """Drives one engine child for the app. All methods run on the event loop."""

    def __init__(
        self,
        post: Callable[[Message], object],
        *,
        log_path: Path,
        calm: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._post = post
        self._log_path = log_path
        self._env = env
        self._engine: MonitoredEngine | None = None
        self._load_task: asyncio.Task[ModelInfo] | None = None
        self._answers: dict[str, Answer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._intervals = (0.5, 0.0)
        self._closed = False
        self._calm = calm
        self.frame_s = CALM_FRAME_S if calm else FRAME_S
        self.request: LoadRequest | None = None
        """What was loaded last (or is being loaded): a dead engine loads it again for the next question."""

    # ---- state ----------------------------------------------------------------------------------------------------

    @property
    def model(self) -> ModelInfo | None:
        """The loaded model."""
        return self._engine.model if self._engine is not None and self._engine.alive else None

    @property
    def loads(self) -> int:
        """How many loads there were: a new one knows nothing of earlier chats."""
        return self._engine.loads if self._engine is not None else 0

    @property
    def pid(self) -> int | None:
        """The child's process id while it lives."""
        return self._engine.pid if self._engine is not None and self._engine.alive else None

    @property
    def state(self) -> EngineState:
        """none: nothing chosen; loading; ready; dead: it will start again with the next question."""
        if self._load_task is not None and not self._load_task.done():
            return "loading"
        if self.model is not None:
            return "ready"
        return "none" if self.request is None else "dead"

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return bool(self._answers)

    # ---- loading --------------------------------------------------------------------------------------------------

    def load(self, request: LoadRequest) -> None:
        """Starts to load a model in the background; `ModelLoaded` or `LoadFailed` follows."""
        self._spawn(self._load_and_report(request))

    async def _load_and_report(self, request: LoadRequest) -> None:
        with contextlib.suppress(EngineError):  # reported by _load as LoadFailed
            await self._load(request)

    async def _load(self, request: LoadRequest) -> ModelInfo:
        """Loads, posting progress; one load at a time. Raises `EngineError` after `LoadFailed` was posted."""
        if self._load_task is not None and not self._load_task.done():
            await self.cancel_load()
            await asyncio.wait({self._load_task})
        previous = self.request
        self.request = request
        self._load_task = asyncio.create_task(self._start_and_load(request))
        self._post(messages.LoadStarted(request))
        try:
            info = await self._load_task
        except EngineError as error:
            if error.code != "engine_died":
                self.request = previous if self.model is not None else None
            self._post(messages.LoadFailed(error.code, error.message, request))
            raise
        except asyncio.CancelledError:
            self.request = None
            raise
        self._post(messages.ModelLoaded(info, request))
        with contextlib.suppress(EngineError):
            await self.engine.watch(*self._intervals)
        return info

    async def _start_and_load(self, request: LoadRequest) -> ModelInfo:
        engine = self.engine
        await engine.start()
        # Computing takes every core; the few milliseconds of a keypress go first. Threads inherit it.
        if engine.pid is not None:
            _be_nice(engine.pid)
        return await engine.load(request, self._progress)

    def _progress(self, progress: LoadProgress) -> None:
        self._post(messages.LoadProgressed(progress))

    async def cancel_load(self) -> None:
        """Cancels a running load; `LoadFailed` with the code ``cancelled`` follows."""
        if self._engine is not None:
            with contextlib.suppress(EngineError):
                await self._engine.cancel_load()

    async def watch(self, interval_s: float, map_interval_s: float) -> None:
        """How often telemetry and expert maps come, in seconds; 0 stops either."""
        if (interval_s, map_interval_s) == self._intervals:
            return
        self._intervals = (interval_s, map_interval_s)
        if self.model is not None and self._engine is not None:
            with contextlib.suppress(EngineError):
                await self._engine.watch(interval_s, map_interval_s)

    @property
    def engine(self) -> MonitoredEngine:
        """The engine's owner, made when it is first needed: what it imports takes longer than the first paint."""
        if self._engine is None:
            from flashmoe.monitor.engine import MonitoredEngine

            self._engine = MonitoredEngine(
                log_path=self._log_path,
                on_event=self._on_event,
                on_sample=self._on_sample,
                env=self._env,
                sample_s=CALM_SAMPLE_S if self._calm else SAMPLE_S,
                monitored=False,
            )
        return self._engine

    def _on_sample(self, sample: Sample) -> None:
        self._post(messages.SampleTaken(sample))

    def _on_event(self, event: ChildEvent | client.Died) -> None:
        from backends.engine.client import Died
        from backends.engine.protocol import Notice

        if isinstance(event, ExpertMap):
            self._post(messages.ExpertMapArrived(event))
        elif isinstance(event, Notice):
            self._post(messages.EngineNotice(event.level, event.message))
        elif isinstance(event, Died) and not self._closed:
            self._post(messages.EngineDied(event.message))

    # ---- answers --------------------------------------------------------------------------------------------------

    async def begin(self, request: GenerateRequest) -> Answer:
        """Starts an answer and returns once the engine has taken the request; `AnswerNews` comes from `show` on. Loads
        the last model again first where the engine is dead. Raises `EngineError` where the request was refused,
        ``cancelled`` where it was stopped before it began."""
        answer = Answer(request.id, held=True)
        self._answers[request.id] = answer
        answer.task = self._spawn(self._answer(answer, request))
        await answer.begun.wait()
        stopped = answer.finished is not None and answer.finished.reason == "cancelled" and not answer.parts
        if answer.error is None and not stopped:
            return answer
        del self._answers[request.id]
        if answer.error is not None:
            raise answer.error
        raise EngineError("cancelled", "The answer was stopped before it began.")

    def show(self, answer: Answer) -> None:
        """The news of an answer that `begin` began may come now."""
        answer.held = False
        self._announce(answer)

    async def _answer(self, answer: Answer, request: GenerateRequest) -> None:
        try:
            await self.ensure_loaded()
            answer.started = time.monotonic()
            async for event in self.engine.generate(request):
                if isinstance(event, Delta):
                    answer.add(event)
                elif isinstance(event, PrefillProgress):
                    answer.prefill = event
                elif isinstance(event, Finished):
                    answer.finished = event
                    self._remember_speed(answer, event)
                answer.begun.set()
                self._announce(answer)
        except EngineError as error:
            answer.error = error
        finally:
            if not answer.ended:
                answer.error = EngineError("engine_died", "The engine ended the answer without saying why.")
            answer.begun.set()
            self._announce(answer)

    def _remember_speed(self, answer: Answer, finished: Finished) -> None:
        """Plans rest on how fast a model really ran here; only an answer that ran alone tells that."""
        from flashmoe.plans.measurements import record_answer

        alone = all(other is answer or other.ended for other in self._answers.values())
        if alone and self.model is not None:
            asyncio.get_running_loop().run_in_executor(None, record_answer, self.model, finished.usage)

    async def ensure_loaded(self) -> None:
        """Waits for a running load, or loads the last model again. Raises `EngineError`."""
        if self._load_task is not None and not self._load_task.done():
            await asyncio.shield(self._load_task)
            return
        if self.model is not None:
            return
        if self.request is None:
            raise EngineError("bad_request", "No model is loaded yet", "choose one first.")
        await self._load(self.request)

    async def reload(self, *, n_ctx: int, like: LoadRequest) -> None:
        """Loads the model again with another context; raises `EngineError`, then the old one is loaded again."""
        import msgspec

        try:
            await self._load(msgspec.structs.replace(like, n_ctx=n_ctx))
        except EngineError:
            if like.path:
                with contextlib.suppress(EngineError):
                    await self._load(like)
            raise

    async def complete(self, request: GenerateRequest, follow: Callable[[Event], None]) -> str:
        """A whole answer for the app's own questions; `follow` sees it grow. Cancelling it stops the engine, too.

        Raises `EngineError`.
        """
        await self.ensure_loaded()
        pieces: list[str] = []
        async for event in self.engine.generate(request):
            if isinstance(event, Delta) and event.kind == "answer":
                pieces.append(event.text)
            follow(event)
        return "".join(pieces).strip()

    def _announce(self, answer: Answer) -> None:
        if answer.announced or answer.held:
            return
        answer.announced = True
        wait = answer.last_taken + self.frame_s - time.monotonic()
        if wait <= 0:
            self._post(messages.AnswerNews(answer.id))
        else:
            asyncio.get_running_loop().call_later(wait, self._post, messages.AnswerNews(answer.id))

    def take(self, answer_id: str) -> Taken | None:
        """The answer and the text that has gathered since the last call; None where it is unknown or done with."""
        answer = self._answers.get(answer_id)
        if answer is None:
            return None
        parts, answer.parts = answer.parts, []
        if answer.ended:
            del self._answers[answer_id]
        return Taken(answer, parts, answer.ended)

    def taken(self, answer: Answer) -> None:
        """Says that what `take` returned is on the screen: the next news may come, a frame from now."""
        answer.announced = False
        answer.last_taken = time.monotonic()
        if (answer.parts or answer.ended) and answer.id in self._answers:
            self._announce(answer)

    async def stop(self, answer_id: str) -> None:
        """Stops an answer within a layer; what is there stays."""
        answer = self._answers.get(answer_id)
        if answer is None:
            return
        if self.state == "loading":
            await self.cancel_load()
        elif self._engine is not None:
            with contextlib.suppress(EngineError):
                await self._engine.cancel(answer_id)

    async def count_tokens(self, request: GenerateRequest) -> int | None:
        """Tokens of a prompt, None where no model is ready to count. Far above the context it is an estimate."""
        if self.model is None or self._engine is None:
            return None
        try:
            return await self._engine.count_tokens(request)
        except EngineError as error:
            return None if error.code != "prompt_too_long" else await self.estimate_tokens(request)

    async def estimate_tokens(self, request: GenerateRequest) -> int | None:
        """About how many tokens a prompt has that is far above the context; None where nothing can be counted."""
        if self.model is None or self._engine is None:
            return None
        # The engine doesn't tokenise what can't fit by far: count pieces, evenly spread, and scale up.
        text = "\n".join(message.content for message in request.messages or ())
        piece = max(256, self.model.n_ctx)
        starts = range(0, len(text), piece)
        chosen = [starts[i * len(starts) // 32] for i in range(32)] if len(starts) > 32 else list(starts)
        counted = 0
        try:
            for start in chosen:
                part = ChatMessage("user", text[start : start + piece])
                counted += await self._engine.count_tokens(GenerateRequest(id=request.id, messages=(part,)))
        except EngineError:
            return None
        return max(self.model.n_ctx + 1, counted * len(starts) // len(chosen))

    # ---- end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Stops the child. No message is posted any more."""
        self._closed = True
        if self._engine is not None:
            with contextlib.suppress(EngineError, OSError):
                await self._engine.stop()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2)

    def kill(self) -> None:
        """Kills the child at once: for the end of a process that has no loop any more."""
        self._closed = True
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def _spawn(self, coroutine: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _be_nice(pid: int) -> None:
    """Gives every thread of a process, and those that they start, a little less priority than this one has."""
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, ValueError):
                os.setpriority(os.PRIO_PROCESS, int(task.name), ENGINE_NICE)
