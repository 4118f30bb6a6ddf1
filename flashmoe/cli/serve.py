"""``serve``: an OpenAI-compatible endpoint over the same engine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import os
import signal
from typing import TYPE_CHECKING

from flashmoe.cli.common import (
    EXIT_OK,
    CliError,
    ProgressLine,
    UsageError,
    add_load_flags,
    load_request,
    log_file,
    note,
    positive_int,
    resolve_model,
)

if TYPE_CHECKING:
    from backends.interface import LoadRequest

KEY_VARIABLE = "FLASHMOE_API_KEY"

EPILOG = f"""\
Routes: /v1/models, /v1/chat/completions (also streamed), /v1/completions, /health, /metrics (Prometheus).

On a loopback address no key is needed. To listen elsewhere set {KEY_VARIABLE}; the connection itself is plain HTTP:
put a TLS proxy in front of it, or use an SSH tunnel (ssh -L 8080:127.0.0.1:8080 host).

Examples:
  flashmoe-tui serve qwen3.gguf
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Hello"}}]}}'
"""


def _port(text: str) -> int:
    value = int(text) if text.isdigit() else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return value


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="an OpenAI-compatible endpoint on this machine",
        description="Serves one model to any OpenAI client. Requests that come together are decoded together.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, a name in the library, or demo")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8080, help="port; 0 takes a free one (default 8080)")
    parser.add_argument(
        "--parallel", metavar="N", type=positive_int, default=8, help="requests decoded together (default 8)"
    )
    parser.add_argument("--name", help="the model's name in the API (default: the one in its file)")
    add_load_flags(parser)
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    key = os.environ.get(KEY_VARIABLE) or None
    if not _is_loopback(args.host) and key is None:
        raise UsageError(f"{args.host} can be reached from other machines: set {KEY_VARIABLE} to a key of your choice")
    if args.parallel > 250:
        raise UsageError("--parallel: at most 250 requests are decoded together")
    path = resolve_model(args.model)
    request = load_request(args, path, n_seq_max=args.parallel)
    return asyncio.run(_serve(args, request, key))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _serve(args: argparse.Namespace, request: LoadRequest, key: str | None) -> int:
    import uvicorn

    from flashmoe.serve.app import create_app
    from flashmoe.serve.engine import Engine
    from flashmoe.serve.socket import bind

    try:
        listener = bind(args.host, args.port)
    except OSError as e:
        raise CliError(f"can't listen on {args.host} port {args.port}: {e.strerror}; choose another --port") from None
    engine = Engine(request, log_file("serve.log"), args.name)
    progress = ProgressLine()
    progress.update(f"loading {args.model}", force=True)
    loop = asyncio.get_running_loop()
    loading = asyncio.ensure_future(engine.start())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, loading.cancel)
    try:
        info = await loading
    except asyncio.CancelledError:
        return 130
    finally:
        progress.clear()
        if not loading.done() or loading.cancelled() or loading.exception() is not None:
            listener.close()
            await engine.stop()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    note(f"{engine.model_id} ({info.backend}) at http://{shown}:{port}/v1 — Ctrl+C ends it")
    if info.lossy:
        note(info.lossy)
    hosts = ["*"] if key else ["localhost", "127.0.0.1", "[::1]", "::1", args.host]
    app = create_app(engine, api_key=key, allowed_hosts=hosts)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=3,
        timeout_keep_alive=30, server_header=False, h11_max_incomplete_event_size=64 * 1024,
    )  # fmt: skip
    server = uvicorn.Server(config)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            await server.serve(sockets=[listener])
    finally:
        await engine.stop()
        listener.close()
    return EXIT_OK
