"""The made-up engine of benchmarks/demo_samples.py, for tests of what is drawn and said."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from flashmoe.monitor.feed import MonitorFeed

_PATH = Path(__file__).parent.parent / "benchmarks" / "demo_samples.py"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("demo_samples", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_samples"] = module
    spec.loader.exec_module(module)
    return module


demo = _load()
DemoEngine = demo.DemoEngine

GUIDE: dict[str, Any] = {"layers": 8, "experts": 32, "used": 4, "expert_bytes": 60_000}
"""The shape of the model that comes with the project."""


def feed_of(case: str, seconds: float = 60.0, **shape: Any) -> tuple[Any, MonitorFeed]:
    """(engine, feed) after so many seconds."""
    engine = DemoEngine(case, **shape)
    feed = MonitorFeed()
    feed.set_model(engine.info)
    for _ in range(int(seconds * 2)):
        feed.push(engine.step())
    feed.push_map(engine.map())
    return engine, feed


@cache
def shared_feed(case: str, guide: bool = False) -> MonitorFeed:
    """A feed that several tests look at; none may change it."""
    return feed_of(case, 60.0 if case != "warm" else 40.0, **(GUIDE if guide else {}))[1]
