"""The real server on a free loopback port: uvicorn in a thread, a real engine child, a tiny model."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from backends.interface import LoadRequest
from flashmoe.serve.app import create_app
from flashmoe.serve.bind import bind
from flashmoe.serve.engine import Engine
from flashmoe.serve.patience import config


class Running:
    """A running server; `engine` may be looked at, `call` runs a coroutine function on its loop."""

    def __init__(self, url: str, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self.engine = engine
        self.loop = loop


@contextmanager
def serving(
    model: Path,
    log: Path,
    *,
    key: str | None = None,
    parallel: int = 4,
    n_ctx: int = 2048,
    stuck_s: float | None = None,
    allow: tuple[str, ...] = (),
    cors: tuple[str, ...] = (),
    strict_model: bool = False,
    **load: Any,
) -> Iterator[Running]:
    """Starts the server and yields it when it answers."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    started = threading.Event()
    box: dict[str, object] = {}

    async def main() -> None:
        try:
            request = LoadRequest(path=str(model), backend="mmap", n_seq_max=parallel, n_ctx=n_ctx, **load)
            engine = Engine(request, log, stuck_s=stuck_s)
            await engine.start()
            hosts = ["*"] if key else ["127.0.0.1", "localhost", *allow]
            app = create_app(engine, api_key=key, allowed_hosts=hosts, cors=cors, strict_model=strict_model)
            server = uvicorn.Server(config(app, graceful_s=1))
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
            box.update(engine=engine, server=server, loop=asyncio.get_running_loop())
            started.set()
            await server.serve(sockets=[listener])
            await engine.stop()
        except BaseException as e:
            box["error"] = e
            started.set()
            raise

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert started.wait(300)
    if "error" in box:
        raise RuntimeError("the server did not start") from box["error"]  # type: ignore[misc]
    end = time.monotonic() + 300
    while time.monotonic() < end:  # uvicorn listens a moment later
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
            break
        except OSError:
            time.sleep(0.02)
    try:
        yield Running(f"http://127.0.0.1:{port}", box["engine"], box["loop"])  # type: ignore[arg-type]
    finally:
        box["server"].should_exit = True  # type: ignore[attr-defined]
        thread.join(300)
        listener.close()
