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
)
from flashmoe.cli.models import resolve_model

if TYPE_CHECKING:
    from backends.interface import LoadRequest

KEY_VARIABLE = "FLASHMOE_API_KEY"

DESCRIPTION = """\
Serves one model to any OpenAI client. Requests that come together are decoded together, and share each read of an
expert. A client that goes away has its answer stopped within a layer; an engine that dies is started again."""

EPILOG = f"""\
routes:
  GET  /v1/models             the model
  POST /v1/chat/completions   also streamed (server-sent events); response_format json_schema, seed, stop, grammar …
  POST /v1/completions        the prompt as it is: text, or a list of token ids
  GET  /health                200 while answers can be had, 503 otherwise; needs no key
  GET  /metrics               Prometheus: tokens, hit rate, bytes read, seconds waited for reads, requests in flight
What isn't supported (tools, logprobs, images, n above 1) is refused with status 400 and the field's name.

On a loopback address no key is needed. To listen elsewhere set {KEY_VARIABLE}; the connection itself is plain HTTP:
put a TLS proxy in front of it, or use an SSH tunnel (ssh -L 8080:127.0.0.1:8080 host).

At temperature 0 an answer is the one that the prompt gets alone, up to llama.cpp's rounding at another batch width.
Bodies may have 4 MiB; a request's head must arrive within 20 s, its body within 60 s; 256 requests may wait.

examples:
  flashmoe-tui serve qwen3.gguf
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Hello"}}]}}'
  {KEY_VARIABLE}=sesame flashmoe-tui serve qwen3.gguf --host 0.0.0.0 --parallel 16

exit codes: 0 ended by Ctrl-C or SIGTERM, 1 the model can't be loaded or the port is taken, 2 wrong usage, 130
interrupted while loading
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
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, a name in the library, or demo")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=_port, default=8080, help="port; 0 takes a free one (default 8080)")
    parser.add_argument(
        "--parallel", metavar="N", type=positive_int, default=8, help="requests decoded together, 1 to 250 (default 8)"
    )
    parser.add_argument("--name", help="the model's name in the API (default: the one in its file)")
    add_load_flags(parser)
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    key = _key()
    if not _is_loopback(args.host) and key is None:
        raise UsageError(f"{args.host} can be reached from other machines: set {KEY_VARIABLE} to a key of your choice")
    if args.parallel > 250:
        raise UsageError("--parallel: at most 250 requests are decoded together")
    path = resolve_model(args.model, args)
    request = load_request(args, path, n_seq_max=args.parallel)
    return asyncio.run(_serve(args, request, key))


def _key() -> str | None:
    """The API key, None where none is set. Raises `UsageError` for one that no client could send."""
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return None
    if not key.strip():
        raise UsageError(f"{KEY_VARIABLE} holds nothing but blanks; set it to a key of your choice, or unset it")
    if key != key.strip() or not key.isprintable():
        raise UsageError(
            f"{KEY_VARIABLE} begins or ends with a blank, or holds a line break or another control character, which no "
            "client can send; set another key"
        )
    return key


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
    from flashmoe.serve.bind import bind
    from flashmoe.serve.engine import Engine
    from flashmoe.serve.patience import config

    try:
        listener = bind(args.host, args.port)
    except OSError as e:
        raise CliError(f"can't listen on {args.host} port {args.port}: {e.strerror}", "choose another --port") from None
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
    note(f"{engine.model_id} ({info.backend}) at http://{shown}:{port}/v1 — press Ctrl+C to stop")
    if info.lossy:
        note(info.lossy)
    hosts = ["*"] if key else ["localhost", "127.0.0.1", "[::1]", "::1", args.host]
    app = create_app(engine, api_key=key, allowed_hosts=hosts)
    server = uvicorn.Server(config(app))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            await server.serve(sockets=[listener])
    finally:
        await engine.stop()
        listener.close()
    return EXIT_OK
