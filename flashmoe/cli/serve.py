"""``serve``: an OpenAI-compatible endpoint over the same engine."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.cli.common import (
    EXIT_OK,
    CliError,
    ProgressLine,
    UsageError,
    add_load_flags,
    load_request,
    log_file,
    note,
    out,
    positive_int,
    settings_of,
)
from flashmoe.cli.launch import Launched, find
from flashmoe.cli.models import resolve_model
from flashmoe.config.loading import kept_prompts
from flashmoe.config.schema import KvCacheConfig
from flashmoe.figures import GIB
from flashmoe.remote.address import is_loopback
from flashmoe.serve.clients import CLIENTS, Place, lines_for

if TYPE_CHECKING:
    from backends.interface import LoadRequest

KEY_VARIABLE = "FLASHMOE_API_KEY"

DESCRIPTION = """\
Serves one model to any client of OpenAI's or Anthropic's API. Requests that come together are decoded together, and
share each read of an expert. What was read of a prompt once isn't read again. A client that goes away has its answer
stopped within a layer; an engine that dies or gets stuck is restarted."""

EPILOG = f"""\
routes:
  GET  /v1/models             the model
  POST /v1/chat/completions   OpenAI's: tools, response_format, logprobs, n, also streamed (server-sent events)
  POST /v1/responses          OpenAI's: input items, functions, reasoning, previous_response_id
  POST /v1/messages           Anthropic's: tools, thinking, blocks; and /v1/messages/count_tokens
  POST /v1/completions        prompts as they are, text or token ids; echo, logprobs
  POST /tokenize, /detokenize token ids of a text, and back; GET /tokenizer_info
  GET  /health                200 while answers can be had, 503 otherwise; needs no key
  GET  /metrics               Prometheus: tokens, hit rate, bytes read, seconds waited for reads, requests in flight
What isn't supported (images, audio, tools that run on a provider's servers) is refused by name. docs/agents.md has the
lines for each agent; --for prints them filled in.

On a loopback address no key is needed. To listen elsewhere set {KEY_VARIABLE}; the connection itself is plain HTTP:
put a TLS proxy in front of it, or use an SSH tunnel (ssh -L 8080:127.0.0.1:8080 host).

At temperature 0 an answer is the one that the prompt gets alone, up to llama.cpp's rounding at another batch width.
Bodies may have 16 MiB; a request's head must arrive within 20 s, its body within 60 s; 256 requests may wait.

examples:
  flashmoe-tui serve qwen3.gguf
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Hello"}}]}}'
  {KEY_VARIABLE}=sesame flashmoe-tui serve qwen3.gguf --host 0.0.0.0 --parallel 16
  flashmoe-tui serve qwen3.gguf --for codex --launch -- exec "What does this folder hold?"

exit codes: 0 ended by Ctrl-C or SIGTERM, 1 the model can't be loaded or the port is taken, 2 wrong usage, 130
interrupted while loading; with --launch the agent's own
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
    _add_flags(parser)
    add_load_flags(parser)
    parser.set_defaults(main=main)


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--strict-model", action="store_true", help="refuse requests that name another model")
    parser.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[],
        help="answer to this host name too (host.docker.internal); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--cors", metavar="ORIGIN", action="append", default=[],
        help="allow web pages of this origin (http://localhost:3000); repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--kv-budget", metavar="GIB", type=_kv_budget, default=None,
        help="memory for prompts beside the KV cache, so that none is read twice; auto is a sixteenth of the machine's",
    )  # fmt: skip
    parser.add_argument(
        "--kv-dir", metavar="DIR",
        help="where prompts are kept for the next start (default: in the cache folder; none: nowhere)",
    )  # fmt: skip
    parser.add_argument(
        "--stuck-after", metavar="SECONDS", type=float, default=None,
        help="restart an engine that has work but makes no progress for this long; 0 never (default: from how "
        "long batches take)",
    )  # fmt: skip
    parser.add_argument(
        "--for", dest="client", choices=sorted(CLIENTS), help="print how to point this agent at the server"
    )
    parser.add_argument(
        "--launch", action="store_true",
        help="with --for: start the agent in this terminal, and end with it; what stands after -- is given to it",
    )  # fmt: skip
    parser.add_argument("agent_arguments", metavar="ARGUMENT", nargs="*", help="after --: for the agent of --launch")


def main(args: argparse.Namespace) -> int:
    key = _key()
    if not is_loopback(args.host) and key is None:
        raise UsageError(f"{args.host} can be reached from other machines: set {KEY_VARIABLE} to a key of your choice")
    if args.parallel > 250:
        raise UsageError("--parallel: at most 250 requests are decoded together")
    for origin in args.cors:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UsageError(f"--cors {origin}: an origin is http://HOST or https://HOST, with a port where it has one")
    if args.launch and args.client is None:
        raise UsageError("--launch needs --for: name the agent to start.")
    if args.agent_arguments and not args.launch:
        raise UsageError("What stands after -- is for the agent: add --for and --launch.")
    if args.launch:
        find(args.client)
    path = resolve_model(args.model, args)
    request = load_request(
        args, path, n_seq_max=args.parallel, kv_budget_bytes=args.kv_budget, expects_schemas=True, **_kept(args)
    )
    return asyncio.run(_serve(args, request, key))


def _kv_budget(text: str) -> int | None:
    """Bytes; None: the engine chooses."""
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of GiB nor auto")
    return int(value * GIB)


def _kept(args: argparse.Namespace) -> dict[str, Any]:
    """Where prompts are kept: as --kv-dir says, else as configured."""
    given = args.kv_dir
    if given is not None and given.lower() in ("none", "off", ""):
        return {"kv_dir": None}
    folder = str(Path(given).expanduser().absolute()) if given is not None else None
    config = settings_of(args).config.kv_cache
    if folder is not None and config.max_gib <= 0:
        config = KvCacheConfig()
    return {**kept_prompts(config, folder), "kv_min_tokens": 0}


def _key() -> str | None:
    """The API key, None where none is set. Raises `UsageError` for one that no client could send."""
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return None
    if not key.strip():
        raise UsageError(f"{KEY_VARIABLE} holds nothing but spaces; set it to a key of your choice, or unset it")
    if key != key.strip() or not key.isprintable():
        raise UsageError(
            f"{KEY_VARIABLE} begins or ends with a space, or holds a line break or another control character, which no "
            "client can send; set another key"
        )
    return key


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
    engine = Engine(request, log_file("serve.log"), args.name, stuck_s=args.stuck_after)
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
    hosts = ["*"] if key else ["localhost", "127.0.0.1", "[::1]", "::1", args.host, *args.allow_host]
    app = create_app(engine, api_key=key, allowed_hosts=hosts, cors=args.cors, strict_model=args.strict_model)
    server = uvicorn.Server(config(app))
    for number in (signal.SIGINT, signal.SIGTERM):  # until uvicorn takes them itself
        loop.add_signal_handler(number, setattr, server, "should_exit", True)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    stop = f"ends with {args.client}" if args.launch else "press Ctrl+C to stop"
    note(f"{engine.model_id} ({info.backend}) at http://{shown}:{port}/v1 — {stop}")
    if info.lossy:
        note(info.lossy)
    reached = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(shown, shown)
    place = Place(f"http://{reached}:{port}", engine.model_id, engine.request_ctx, key)
    agent = Launched(args.client, place, args.agent_arguments) if args.launch else None
    launched = asyncio.create_task(agent.run(server)) if agent is not None else None
    if args.client is not None and agent is None:
        out("\n".join(lines_for(args.client, place)))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            await server.serve(sockets=[listener])
    finally:
        if launched is not None:
            launched.cancel()
            await asyncio.gather(launched, return_exceptions=True)
        await engine.stop()
        listener.close()
    return EXIT_OK if agent is None else agent.result()
