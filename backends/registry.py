"""Backends by name, through the entry-point group ``flashmoe.backends``. Nothing is imported before it is asked for.

A third party's package registers a class that implements `backends.interface.Backend`:

    [project.entry-points."flashmoe.backends"]
    mine = "my_package.backend:MyBackend"
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import msgspec

from backends.interface import Backend, EngineError, LoadRequest, Model, ProgressCallback

GROUP = "flashmoe.backends"
_BUILT_IN = {
    "mmap": "backends.llamacpp.backend:MmapBackend",
    "stream": "backends.streaming.backend:StreamBackend",
}
"""Known also where the package's metadata isn't installed (a source tree on the path)."""


def _found() -> dict[str, EntryPoint]:
    known = {name: EntryPoint(name, value, GROUP) for name, value in _BUILT_IN.items()}
    return known | {point.name: point for point in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """Registered backends, sorted; they may still fail to import."""
    return tuple(sorted(_found()))


def get(name: str) -> Backend:
    """The backend `name`, created. Raises `EngineError` ``unsupported`` where there is none or its import fails."""
    point = _found().get(name)
    if point is None:
        raise EngineError("unsupported", f"There is no backend '{name}'", f"there are {', '.join(names())} and auto.")
    try:
        made = point.load()()
    except Exception as error:  # a third party's module may raise anything
        raise EngineError(
            "unsupported", f"The backend '{name}' can't be used: {type(error).__name__} in {point.value} ({error})."
        ) from error
    if not isinstance(made, Backend):
        raise EngineError("unsupported", f"The backend '{name}' ({point.value}) lacks name, why_not or load.")
    return made


def load(request: LoadRequest, progress: ProgressCallback) -> Model:
    """Loads a model with the backend that was asked for; ``auto`` takes `stream` where it runs, else `mmap`, and says
    why in ``ModelInfo.backend_reason``. Raises `EngineError`."""
    if request.backend != "auto":
        backend = get(request.backend)
        obstacle = backend.why_not(request)
        if obstacle is not None and request.backend not in ("mmap",):
            raise EngineError("unsupported", obstacle)
        return backend.load(request, progress)
    if request.path.startswith(("http://", "https://")):
        return load(msgspec.structs.replace(request, backend="remote"), progress)
    try:
        stream = get("stream")
        obstacle = stream.why_not(request)
        if obstacle is None:
            better = getattr(stream, "why_mmap", None)  # a third party's `stream` may not know the question
            faster = better(request) if better is not None else None
            if faster is None:
                return stream.load(request, progress)
            model = get("mmap").load(request, progress)
            model.info = msgspec.structs.replace(model.info, backend_reason=faster)
            return model
    except EngineError as error:
        if error.code != "unsupported":
            raise
        obstacle = error.message
    model = get("mmap").load(request, progress)
    if model.info.n_experts:
        reason = f"mmap, because streaming can't run here: {obstacle}"
        model.info = msgspec.structs.replace(model.info, backend_reason=reason)
    return model
