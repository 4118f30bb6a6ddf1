"""Expert maps in few bytes: differences to the map before, since a token changes few of the experts.

`uses`, `last_used` and `residency` come back exactly. `heat` is kept in 255 logarithmic steps (within 3 %).
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from backends.interface import ExpertMap

KEYFRAME_EVERY = 30
_HEAT_STEPS = 16
_HEAT_OF_STEP: npt.NDArray[np.float32] = np.array(
    [(2 ** (step / _HEAT_STEPS) - 1) / 16 for step in range(256)], np.float32
)
_STEP_EDGES: npt.NDArray[np.float64] = np.array(
    [(2 ** ((step + 0.5) / _HEAT_STEPS) - 1) / 16 for step in range(255)], np.float64
)
"""Tables, not numpy's log2 and exp2: those round otherwise on other processors, and a recording must read the same."""

_PLANES: tuple[tuple[str, str], ...] = (("uses", "<u4"), ("last_used", "<u4"), ("heat", "u1"), ("residency", "u1"))


class MapFrame(msgspec.Struct, kw_only=True, frozen=True):
    """A map as it is stored: `planes` are XOR-ed with those of the map before unless it is a keyframe."""

    keyframe: bool
    n_layers: int
    n_experts: int
    layers: tuple[int, ...] = ()
    expert_bytes: tuple[int, ...] = ()
    planes: dict[str, bytes] = {}
    rows: dict[str, bytes] = {}
    """Figures per row (hits, misses, next_token_reuse), as they are."""


class MapEncoder:
    """Turns maps into `MapFrame`s."""

    def __init__(self) -> None:
        self._previous: dict[str, npt.NDArray[Any]] = {}
        self._shape = (0, 0)
        self._since_key = 0

    def encode(self, source: ExpertMap, *, keyframe: bool = False) -> MapFrame:
        """The next map; `keyframe` forces one that can be read alone."""
        shape = (source.n_layers, source.n_experts)
        if shape != self._shape or self._since_key >= KEYFRAME_EVERY or keyframe:
            self._previous, self._since_key = {}, 0
        self._shape = shape
        key = self._since_key == 0
        self._since_key += 1
        planes: dict[str, bytes] = {}
        for name, kind in _PLANES:
            data = getattr(source, name)
            if data is None:
                continue
            values = _quantise(np.frombuffer(data, "<f4")) if name == "heat" else np.frombuffer(data, kind)
            before = self._previous.get(name)
            stored = values ^ before if before is not None and before.shape == values.shape else values
            # Bytes of equal weight side by side: the high ones are nearly all zero and pack to nothing.
            planes[name] = stored.view("u1").reshape(-1, values.itemsize).T.tobytes()
            self._previous[name] = values
        rows = {name: data for name in ("hits", "misses", "next_token_reuse") if (data := getattr(source, name))}
        return MapFrame(
            keyframe=key,
            n_layers=source.n_layers,
            n_experts=source.n_experts,
            layers=source.layers if key else (),
            expert_bytes=source.expert_bytes if key else (),
            planes=planes,
            rows=rows,
        )


class MapDecoder:
    """Turns `MapFrame`s back into maps; needs them in order from a keyframe on."""

    def __init__(self) -> None:
        self._previous: dict[str, npt.NDArray[Any]] = {}
        self._layers: tuple[int, ...] = ()
        self._expert_bytes: tuple[int, ...] = ()
        self._ready = False

    def decode(self, frame: MapFrame) -> ExpertMap | None:
        """The map, None before the first keyframe. Raises ValueError on planes that don't fit the shape."""
        if frame.keyframe:
            self._previous, self._ready = {}, True
            self._layers, self._expert_bytes = frame.layers, frame.expert_bytes
        if not self._ready:
            return None
        cells = frame.n_layers * frame.n_experts
        fields: dict[str, bytes] = {}
        for name, kind in _PLANES:
            stored = frame.planes.get(name)
            if stored is None:
                continue
            size = np.dtype(kind).itemsize
            if cells <= 0 or len(stored) != cells * size:
                raise ValueError("an expert map's planes don't fit its shape")
            values = np.ascontiguousarray(np.frombuffer(stored, "u1").reshape(size, cells).T).view(kind).reshape(-1)
            before = self._previous.get(name)
            if not frame.keyframe and before is not None and before.shape == values.shape:
                values = values ^ before
            self._previous[name] = values
            fields[name] = _heat(values).tobytes() if name == "heat" else values.tobytes()
        known = ("hits", "misses", "next_token_reuse")
        optional: dict[str, Any] = {**fields, **{name: data for name, data in frame.rows.items() if name in known}}
        return ExpertMap(
            n_layers=frame.n_layers,
            n_experts=frame.n_experts,
            layers=self._layers,
            expert_bytes=self._expert_bytes,
            **optional,
        )


def _quantise(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    clean = np.nan_to_num(heat, nan=0.0, posinf=0.0, neginf=0.0).clip(0)
    return np.searchsorted(_STEP_EDGES, clean, side="left").astype(np.uint8)


def _heat(steps: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return _HEAT_OF_STEP[steps].astype("<f4")
