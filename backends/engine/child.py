"""The engine's child process: one model, driven by commands on stdin, answering with events on what was stdout.

Threads: the main thread loads, steps and frees; the reader takes commands off the pipe, and handles by itself those
that must work while the main thread computes (cancel, watch, shutdown); a few prepare requests (`preparing`); the
watcher sends telemetry; the outbox writes.
"""

from __future__ import annotations

import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

import msgspec

from backends import registry
from backends.engine import protocol as p
from backends.engine.outbox import Outbox
from backends.engine.preparing import Preparation, Preparer, Ready, unforeseen
from backends.interface import EngineError, Failed, Finished, LoadProgress, Model, Prepares, Usage

MAX_COMMAND_BYTES = 64 << 20
EXIT_INTERNAL = 70
_EXIT_GRACE_S = 3.0
_IDLE_S = 0.005
"""So long nothing must come before the model does a little of what can wait."""
_PROGRESS_S = 0.5
"""How often it is told how far prompts are."""
_FOLLOWER_SHARE, _FOLLOWER_MAX_S = 0.01, 0.1
"""So long, as a share of the step before, the next step waits for the request that follows an answer that ended: one
that misses it leaves its place empty for a whole step, which takes seconds where many sequences stream."""


class Child:
    """The state of the process. `run` returns the exit code."""

    def __init__(self, commands: int, events: int) -> None:
        """File descriptors: where commands come from and where events go."""
        self._in = os.fdopen(commands, "rb")
        self._out = Outbox(events)
        self._queue: queue.SimpleQueue[p.Command | Ready | None] = queue.SimpleQueue()
        self._preparer = Preparer(self._out, self._queue.put, self._settled)
        self._model: Model | None = None
        self._model_lock = threading.Lock()
        self._idles = False
        self._active: set[str] = set()
        self._pending: set[str] = set()  # read, and not yet through `_handle`
        self._cancelled: set[str] = set()  # of the pending: a cancel that comes late must not meet a later request
        self._cancel_lock = threading.Lock()
        self._watch = p.Watch(interval_s=0.0)
        self._watch_changed = threading.Event()
        self._stopping = threading.Event()

    # -- threads -------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serves until shutdown or the end of the commands."""
        self._out.put(p.Hello(version=p.PROTOCOL_VERSION, pid=os.getpid(), backends=registry.names()))
        for target in (self._read, self._send_telemetry, self._send_progress):
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True).start()
        code = 0
        try:
            self._serve()
        except BaseException:
            traceback.print_exc()
            code = EXIT_INTERNAL
        self._free()
        self._out.close()
        return code

    def _read(self) -> None:
        while True:
            line = self._in.readline(MAX_COMMAND_BYTES)
            if not line.endswith(b"\n"):
                break  # the parent closed the pipe, or sends something that is no command
            try:
                command = p.command_decoder.decode(line)
            except msgspec.MsgspecError as error:
                self._out.put(p.Notice("warning", f"The engine was sent a command that it can't read: {error}."))
                continue
            if isinstance(command, p.Cancel | p.CancelLoad):
                self._cancel(command.id)
            elif isinstance(command, p.Watch):
                self._watch = command
                self._watch_changed.set()
            elif isinstance(command, p.Shutdown):
                break
            else:
                with self._cancel_lock:
                    self._pending.add(_id_of(command))
                if isinstance(command, p.Load | p.Unload):
                    self._preparer.take(None)  # what comes after it is for another model
                if not (isinstance(command, Preparation) and self._preparer.start(command)):
                    self._queue.put(command)
        self._stopping.set()
        with self._cancel_lock:
            model, active = self._model, set(self._active)
        if model is not None:
            for request_id in active:
                model.cancel(request_id)
        self._queue.put(None)
        time.sleep(_EXIT_GRACE_S)
        os._exit(0)  # the main thread is stuck in a load or a system call

    def _cancel(self, request_id: str) -> None:
        with self._cancel_lock:
            if request_id in self._pending:
                self._cancelled.add(request_id)
            model = self._model
        if model is not None:
            model.cancel(request_id)

    def _is_cancelled(self, request_id: str) -> bool:
        return request_id in self._cancelled or self._stopping.is_set()

    def _send_telemetry(self) -> None:
        last = last_map = 0.0
        while True:
            watch = self._watch
            waits = [s for s in (watch.interval_s, watch.map_interval_s) if s > 0]
            self._watch_changed.wait(max(0.02, min(waits)) if waits else None)
            self._watch_changed.clear()
            watch, now = self._watch, time.monotonic()
            with self._model_lock:
                if self._model is None:
                    continue
                if watch.interval_s > 0 and now - last >= watch.interval_s * 0.95:
                    self._out.put(self._model.telemetry())
                    last = now
                if watch.map_interval_s > 0 and now - last_map >= watch.map_interval_s * 0.95:
                    expert_map = self._model.expert_map()
                    if expert_map is not None:
                        self._out.put(expert_map)
                    last_map = now

    def _send_progress(self) -> None:
        """A pass over a long prompt takes up to minutes, in which the main thread says nothing."""
        while True:
            time.sleep(_PROGRESS_S)
            with self._model_lock:
                tell = getattr(self._model, "prefill_progress", None)
                if tell is not None and self._active:
                    tell(self._out.put)

    # -- the main thread -----------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        until = 0.0
        owed = 0
        while not self._stopping.is_set():
            busy = self._model is not None and self._model.busy()
            wait = max(0.0, until - time.monotonic()) if owed > 0 else 0.0
            try:
                command = self._queue.get(timeout=wait if busy else _IDLE_S if self._idles else None)
            except queue.Empty:
                if not busy:
                    self._idles = self._idle()
                    continue
                started, before = time.monotonic(), len(self._active)
                self._step()
                ended = time.monotonic()
                owed = before - len(self._active)
                until = ended + min(_FOLLOWER_MAX_S, (ended - started) * _FOLLOWER_SHARE)
                continue
            if command is None:
                return
            owed -= 1
            self._handle(command)
            self._idles = True

    def _idle(self) -> bool:
        """Lets the model do a little of what can wait; whether there is more of it."""
        idle = getattr(self._model, "idle", None)  # not every backend has something
        try:
            return idle is not None and bool(idle())
        except Exception:
            traceback.print_exc()
            return False

    def _step(self) -> None:
        assert self._model is not None
        try:
            events = self._model.step()
        except EngineError as error:
            for request_id in sorted(self._active):
                self._model.cancel(request_id)
                self._out.put(Failed.of(request_id, error))
                self._forget(request_id)
            return
        for event in events:
            if isinstance(event, Finished | Failed):
                if event.id not in self._active:
                    continue  # it was told to have failed already
                self._forget(event.id)
            self._out.put(event)

    def _forget(self, request_id: str) -> None:
        self._active.discard(request_id)

    def _handle(self, command: p.Command | Ready) -> None:
        match command:
            case Ready():
                self._submit(command.id, lambda: self._submit_ready(command), command.drop)
            case p.Generate(request=request):
                if not self._preparer.start(command):  # it came while a model was being loaded
                    self._submit(request.id, lambda: self._need().submit(request))
            case p.Load(id=request_id):
                self._guard(request_id, lambda: self._load(command))
            case p.Unload(id=request_id):
                self._guard(request_id, lambda: self._unload(request_id))
            case p.CountTokens(id=request_id, request=request) if not self._preparer.start(command):
                self._guard(request_id, lambda: self._counted(request_id, self._need().count_tokens(request)))
            case p.Tokenize(id=request_id) | p.Detokenize(id=request_id) if not self._preparer.start(command):
                self._guard(request_id, self._no_tokens)
            case p.Bench(id=request_id):
                self._guard(request_id, lambda: self._bench(command))
            case _:
                pass  # the reader has handled it

    def _guard(self, request_id: str, action: Callable[[], None]) -> None:
        """Runs a command; whatever it raises becomes a Failure that carries the command's id."""
        try:
            action()
        except EngineError as error:
            self._out.put(p.Failure.of(request_id, error))
        except OSError as error:  # a file that went or became unreadable while it was being loaded
            traceback.print_exc()
            code = "not_found" if isinstance(error, FileNotFoundError) else "io_error"
            what = error.filename if isinstance(error.filename, str) else "A file of the model"
            self._out.put(p.Failure(request_id, code, f"{what} can't be read: {error.strerror or error}."))
        except Exception as error:
            self._out.put(p.Failure.of(request_id, unforeseen(error)))
        finally:
            self._settled(request_id)

    def _settled(self, request_id: str) -> None:
        """A command was dealt with: a cancel that comes now is too late, or the model's affair."""
        with self._cancel_lock:
            self._pending.discard(request_id)
            self._cancelled.discard(request_id)

    def _need(self) -> Model:
        if self._model is None:
            raise EngineError("bad_request", "No model is loaded.")
        return self._model

    def _no_tokens(self) -> None:
        self._need()
        raise EngineError("unsupported", "This backend can't tokenise text.")

    def _counted(self, request_id: str, n: int) -> None:
        self._out.put(p.Counted(request_id, -1 if n is None else n))

    def _load(self, command: p.Load) -> None:
        self._free()

        def progress(event: LoadProgress) -> bool:
            self._out.put(p.Reply(command.id, event))
            return not self._is_cancelled(command.id)

        model = registry.load(command.request, progress)
        if self._is_cancelled(command.id):
            model.close()
            raise EngineError("cancelled", "Loading was cancelled.")
        with self._model_lock, self._cancel_lock:
            self._model = model
        self._preparer.take(model)
        self._out.put(p.Reply(command.id, model.info))

    def _free(self) -> None:
        with self._model_lock, self._cancel_lock:
            model, self._model = self._model, None
        for request_id in sorted(self._active):
            self._out.put(Failed(id=request_id, code="cancelled", what="The model was unloaded."))
            self._forget(request_id)
        if model is not None:
            self._preparer.release()
            model.close()

    def _unload(self, request_id: str) -> None:
        self._free()
        self._out.put(p.Done(request_id))

    def _bench(self, command: p.Bench) -> None:
        def progress(done: int, total: int) -> bool:
            self._out.put(p.BenchProgress(command.id, done, total))
            return not self._is_cancelled(command.id)

        self._out.put(p.Reply(command.id, self._need().bench(command.request, progress)))

    def _submit_ready(self, ready: Ready) -> None:
        if ready.model is not self._model:
            raise EngineError("cancelled", "The model was unloaded.")
        assert isinstance(ready.model, Prepares)
        ready.model.submit_prepared(ready.prepared)

    def _submit(self, request_id: str, submit: Callable[[], None], drop: Callable[[], None] | None = None) -> None:
        submitted = False
        try:
            if self._is_cancelled(request_id):
                usage = Usage(prompt_tokens=0, reused_tokens=0, completion_tokens=0, prefill_s=0.0, decode_s=0.0)
                self._out.put(Finished(id=request_id, reason="cancelled", usage=usage))
            else:
                submit()
                submitted = True
                self._active.add(request_id)
        except EngineError as error:
            self._out.put(Failed.of(request_id, error))
        except Exception as error:
            self._out.put(Failed.of(request_id, unforeseen(error)))
        if not submitted and drop is not None:
            drop()
        with self._cancel_lock:
            cancelled = request_id in self._cancelled
        self._settled(request_id)
        if cancelled and request_id in self._active:
            self._need().cancel(request_id)  # it came while the request was being submitted


def _id_of(command: p.Command) -> str:
    return command.request.id if isinstance(command, p.Generate) else getattr(command, "id", "")


def main() -> int:
    """Entry point: moves the protocol away from fd 0 and 1, so that nothing a library prints can get into it."""
    commands, events = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)  # the parent made stderr the log file
    os.close(null)
    sys.stdout = sys.stderr
    os.umask(0o077)  # a chat's saved state is as private as the chat
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a core as large as the model would fill the disk
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = Child(commands, events).run()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to free, and llama.cpp's static destructors may hang on a GPU
