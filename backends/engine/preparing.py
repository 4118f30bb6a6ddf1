"""What comes before an answer, apart from the thread that decodes: requests are rendered, tokenised and checked by
threads of their own, so that a refused one is told at once, whatever batch is being computed."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct

from backends.engine import protocol as p
from backends.engine.outbox import Outbox
from backends.interface import EngineError, Failed, Model, PrefillProgress, Prepared, Prepares

THREADS = 2
Preparation = p.Generate | p.CountTokens | p.Tokenize | p.Detokenize
"""What needs a model and no decoding."""


class Ready(Struct, frozen=True):
    """A request that may be submitted to the model that prepared it."""

    prepared: Prepared
    model: Model

    @property
    def id(self) -> str:
        return self.prepared.request.id

    def drop(self) -> None:
        """Frees it: it won't be submitted."""
        assert isinstance(self.model, Prepares)
        self.model.drop(self.prepared)


class Preparer:
    """Takes what needs no decoding for models that can prepare (`backends.interface.Prepares`)."""

    def __init__(self, out: Outbox, ready: Callable[[Ready], None], refused: Callable[[str], None]) -> None:
        """`ready` and `refused` (with the command's id) are called from the threads."""
        self._out = out
        self._ready = ready
        self._refused = refused
        self._model: Model | None = None
        self._using = 0
        self._told: set[str] = set()
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(THREADS, "prepare")

    def take(self, model: Model | None) -> None:
        """The model that requests are for from now on; None: they wait for one."""
        with self._changed:
            self._model = model if isinstance(model, Prepares) else None
            self._told.clear()

    def release(self) -> None:
        """No request is for the model any more, and none is being prepared with it when this returns."""
        with self._changed:
            self._model = None
            self._changed.wait_for(lambda: not self._using)

    def start(self, command: Preparation) -> bool:
        """Begins to prepare; False where the loaded model can't, or there is none."""
        with self._changed:
            model = self._model
            if model is None:
                return False
            self._using += 1
        self._pool.submit(self._run, command, model)
        return True

    def _run(self, command: Preparation, model: Model) -> None:
        try:
            if isinstance(command, p.Generate):
                self._generate(command, model)
            else:
                self._tell(command, model)
        finally:
            with self._changed:
                self._using -= 1
                self._changed.notify_all()

    def _generate(self, command: p.Generate, model: Model) -> None:
        request_id = command.request.id
        assert isinstance(model, Prepares)
        try:
            prepared = model.prepare(command.request)
        except EngineError as error:
            self._out.put(Failed.of(request_id, error))
        except Exception as error:
            self._out.put(Failed.of(request_id, unforeseen(error)))
        else:
            self._out.put(PrefillProgress(id=request_id, done=0, total=prepared.n_tokens))  # it was taken
            self._notice(prepared.notices)
            self._ready(Ready(prepared, model))
            return
        self._refused(request_id)

    def _notice(self, sentences: tuple[str, ...]) -> None:
        for sentence in sentences:
            with self._changed:
                told = sentence in self._told
                self._told.add(sentence)
            if not told:
                self._out.put(p.Notice("info", sentence))

    def _tell(self, command: p.CountTokens | p.Tokenize | p.Detokenize, model: Model) -> None:
        assert isinstance(model, Prepares)
        try:
            match command:
                case p.CountTokens(id=command_id, request=request):
                    self._out.put(p.Counted(command_id, model.count_tokens(request)))
                case p.Tokenize(id=command_id, request=request, special=special):
                    self._out.put(p.Tokens(command_id, model.tokenize(request, special=special)))
                case p.Detokenize(id=command_id, tokens=tokens):
                    self._out.put(p.Text(command_id, model.detokenize(tokens)))
        except EngineError as error:
            self._out.put(p.Failure.of(command.id, error))
        except Exception as error:
            self._out.put(p.Failure.of(command.id, unforeseen(error)))
        self._refused(command.id)


def unforeseen(error: BaseException) -> EngineError:
    """What is told of an exception that no code expected; its traceback goes to the log."""
    if isinstance(error, MemoryError):
        return EngineError("no_memory", "There is not enough memory for this.")
    traceback.print_exc()
    return EngineError("internal", f"The engine failed: {type(error).__name__}: {error}", "the log has more.")
