"""Backends by name: a third party's, one that can't be imported, and what `auto` takes."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from backends import registry
from backends.engine.client import EngineClient
from backends.interface import Delta, EngineError, Finished, GenerateRequest, LoadRequest
from tests.gguf_factory import make_gguf
from tests.places import ROOT

ECHO = """
import time
from backends.interface import *

class EchoModel:
    def __init__(self, request):
        self.info = ModelInfo(
            name="echo", path=request.path, architecture="echo", quant="none", backend="echo",
            backend_reason="It was asked for.", n_layers=0, n_vocab=0, n_ctx=100, n_ctx_train=100, file_bytes=0)
        self.queue = []
    def count_tokens(self, request): return len(request.prompt.split())
    def submit(self, request): self.queue.append(request)
    def cancel(self, request_id): pass
    def busy(self): return bool(self.queue)
    def step(self):
        request = self.queue.pop()
        usage = Usage(prompt_tokens=1, reused_tokens=0, completion_tokens=1, prefill_s=0.0, decode_s=0.0)
        return [Delta(id=request.id, text=request.prompt[::-1]), Finished(id=request.id, reason="stop", usage=usage)]
    def telemetry(self): return Telemetry(t=time.monotonic())
    def expert_map(self): return None
    def bench(self, request, progress): raise EngineError("unsupported", "Echo has no benchmark.")
    def close(self): print("closed")

class EchoBackend:
    name = "echo"
    def why_not(self, request):
        return None if request.path.startswith("echo:") else "Echo loads echo: only."
    def load(self, request, progress):
        progress(LoadProgress(stage="warming up"))
        return EchoModel(request)
"""


def install(folder: Path, name: str, target: str, **modules: str) -> Path:
    """What an installer leaves behind: a dist-info with an entry point, and the modules."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[flashmoe.backends]\n{name} = {target}\n")
    for module, source in modules.items():
        (folder / f"{module}.py").write_text(source)
    return folder


async def test_a_third_partys_backend_answers_through_the_engine(tmp_path: Path) -> None:
    site = install(tmp_path / "site", "echo", "echo_backend:EchoBackend", echo_backend=ECHO)
    client = EngineClient(log_path=tmp_path / "engine.log", env={"PYTHONPATH": str(site)})
    info = await client.load(LoadRequest(path="echo:1", backend="echo"))
    assert "echo" in client.backends
    assert info.backend == "echo"
    events = [e async for e in client.generate(GenerateRequest(id="1", prompt="abc"))]
    assert [type(e) for e in events] == [Delta, Finished]
    assert isinstance(events[0], Delta)
    assert events[0].text == "cba"
    with pytest.raises(EngineError, match="echo: only"):
        await client.load(LoadRequest(path="x.gguf", backend="echo"))
    await client.stop()


async def test_the_backend_of_the_docs_works_as_typed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    source = page.split("```python\n")[1].split("```")[0]
    site = install(tmp_path / "site", "echo", "echo_backend:EchoBackend", echo_backend=source)
    client = EngineClient(log_path=tmp_path / "engine.log", env={"PYTHONPATH": str(site)})
    await client.load(LoadRequest(path="echo:1", backend="echo"))
    events = [e async for e in client.generate(GenerateRequest(id="1", prompt="hello"))]
    await client.stop()
    assert [e.text for e in events if isinstance(e, Delta)] == ["olleh"]


def test_unknown_and_broken_backends_are_told_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install(tmp_path, "broken", "broken_backend:Backend", broken_backend="raise RuntimeError('no luck')")
    install(tmp_path, "hollow", "hollow_backend:Hollow", hollow_backend="class Hollow: pass")
    monkeypatch.syspath_prepend(str(site))
    assert {"broken", "hollow", "mmap", "stream"} <= set(registry.names())
    for name, words in (("broken", "no luck"), ("hollow", "lacks"), ("nonsense", "no backend")):
        with pytest.raises(EngineError, match=words) as raised:
            registry.load(LoadRequest(path="x", backend=name), lambda _: True)
        assert raised.value.code == "unsupported"


def test_auto_falls_back_to_mmap_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_gguf(tmp_path / "tiny.gguf")
    points = {name: EntryPoint(name, value, registry.GROUP) for name, value in registry._BUILT_IN.items()}
    points["stream"] = EntryPoint("stream", "no_such_module:Backend", registry.GROUP)
    monkeypatch.setattr(registry, "_found", lambda: points)
    model = registry.load(LoadRequest(path=str(path), n_threads=1), lambda _: True)
    assert model.info.backend == "mmap"
    assert "streaming" in model.info.backend_reason
    model.close()


def test_auto_streams_a_moe_and_maps_a_dense_model(tmp_path: Path) -> None:
    moe = registry.load(LoadRequest(path=str(make_gguf(tmp_path / "m.gguf")), n_threads=1), lambda _: True)
    assert moe.info.backend == "stream"
    moe.close()
    dense = registry.load(
        LoadRequest(path=str(make_gguf(tmp_path / "d.gguf", dense=True)), n_threads=1), lambda _: True
    )
    assert (dense.info.backend, dense.info.n_experts) == ("mmap", 0)
    dense.close()


def test_auto_maps_where_a_gpu_and_memory_leave_nothing_to_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backends.streaming import backend as streaming

    path = str(make_gguf(tmp_path / "tiny.gguf"))
    why = streaming.StreamBackend().why_mmap
    assert why(LoadRequest(path=path)) is None  # no GPU here
    monkeypatch.setattr(streaming, "gpu_devices", lambda: [1])
    monkeypatch.setattr(streaming, "choose_gpu_layers", lambda _: 99)
    assert "nothing to stream" in (why(LoadRequest(path=path)) or "")
    assert why(LoadRequest(path=path, ram_bytes=1 << 30)) is None
    assert why(LoadRequest(path=path, store="pagecache")) is None
    with monkeypatch.context() as inner:
        inner.setattr(streaming, "memory_for_experts", lambda *_: 0)
        assert why(LoadRequest(path=path)) is None
    model = registry.load(LoadRequest(path=path), lambda _: True)
    try:
        assert model.info.backend == "mmap"
        assert "nothing to stream" in model.info.backend_reason
    finally:
        model.close()
