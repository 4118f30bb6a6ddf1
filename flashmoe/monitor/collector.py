"""The collector: looks at the machine, joins in what the engine reports, and hands out `Sample`s.

It knows no screen. `Collector.sample` does the (blocking, sub-millisecond) reads; `Sampler` calls it from a thread of
its own a few times a second. `engine_started`, `model_loaded` and `telemetry` may be called from any thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from backends.interface import ModelInfo, Telemetry
from backends.system.cgroups import CgroupMemory
from flashmoe.monitor import procfs
from flashmoe.monitor.disk import Device, PageCacheMeter, split_files
from flashmoe.monitor.gpu import GpuMeter
from flashmoe.monitor.sample import Gpu, Sample

_GPU_EVERY_S = 1.0
_CGROUP_EVERY_S = 5.0
_CACHED_EVERY_S = 2.0
"""How much of a file is in the page cache moves slowly, and the kernel walks pages to tell."""


class Collector:
    """Reads the kernel's counters of one engine process, its model's disk and the machine."""

    def __init__(self, pid: int | None = None, model: Path | None = None) -> None:
        self._pid = pid
        self._telemetry: Telemetry | None = None
        self._lock = threading.Lock()
        self._gpu_meter = GpuMeter()
        self._gpus: tuple[tuple[Gpu, ...], str | None] = ((), None)
        self._gpu_t = -1e9
        self._cgroup: CgroupMemory | None = None
        self._cgroup_t = -1e9
        self._device: Device | None = None
        self._cache: PageCacheMeter | None = None
        self._cached: int | None = None
        self._cached_t = -1e9
        self._closed = False
        if model is not None:
            self.model_file(model)

    def engine_started(self, pid: int | None) -> None:
        """The engine runs as `pid` from now on; None: it is gone."""
        with self._lock:
            self._pid = pid
            self._telemetry = None
            self._cgroup_t = -1e9

    def model_file(self, path: Path | None) -> None:
        """The model's file (the first of a split set) whose disk and page cache are watched; None: no model."""
        device = Device(path) if path else None
        cache = PageCacheMeter(split_files(path)) if path else None
        with self._lock:
            old, self._cache, self._device = self._cache, cache, device
            self._telemetry = None
            self._cached = None
            if old is not None:
                old.close()

    def model_loaded(self, info: ModelInfo | None) -> None:
        """As `model_file`, from what the engine says it loaded. A model behind a URL has no file."""
        path = Path(info.path) if info is not None else None
        self.model_file(path if path is not None and path.is_file() else None)

    def telemetry(self, telemetry: Telemetry) -> None:
        """The engine's newest counters."""
        self._telemetry = telemetry

    def sample(self) -> Sample:
        """One look at everything; never raises for what this machine lacks."""
        with self._lock:
            now, pid = time.monotonic(), self._pid
            if now - self._gpu_t >= _GPU_EVERY_S:
                self._gpu_t = now
                self._gpus = self._gpu_meter.read(pid)
            if now - self._cgroup_t >= _CGROUP_EVERY_S:
                self._cgroup_t = now
                self._cgroup = CgroupMemory(pid)
            if self._cache is None:
                self._cached = None
            elif self._cached is None or now - self._cached_t >= _CACHED_EVERY_S:
                self._cached, self._cached_t = self._cache.read(), now
            return Sample(
                t=now,
                wall=time.time(),
                memory=procfs.memory(self._cgroup),
                process=procfs.process(pid) if pid else None,
                pressure=procfs.pressure(),
                disk=self._device.read() if self._device else None,
                gpus=self._gpus[0],
                gpu_note=self._gpus[1],
                model_cached=self._cached,
                telemetry=self._telemetry,
                cpus=procfs.usable_cpus(pid),
            )

    def close(self) -> None:
        """Frees what is held open."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._cache is not None:
                self._cache.close()
                self._cache = None
            self._gpu_meter.close()


class Sampler:
    """A thread that hands `callback` a sample every `interval_s`, so that no read ever waits in a user interface."""

    def __init__(self, collector: Collector, callback: Callable[[Sample], None], interval_s: float = 0.5) -> None:
        self._collector = collector
        self._callback = callback
        self.interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def _run(self) -> None:
        # Below the engine's threads where cores are few: a late sample harms nobody, a late token does.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
        due = time.monotonic()
        while not self._stop.is_set():
            try:
                self._callback(self._collector.sample())
            except RuntimeError:  # the loop that it is handed to has closed
                return
            except (OSError, ValueError):  # a counter that can't be read now: the next sample may have it
                pass
            due = max(due + self.interval_s, time.monotonic())
            self._stop.wait(due - time.monotonic())

    def stop(self) -> None:
        """Ends the thread and waits for it."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=2.0)
