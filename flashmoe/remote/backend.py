"""The adapter `remote`: any OpenAI-compatible server (llama-server, vLLM, our own `serve`) behind the interface.

For those who outgrow one machine. The server computes; what it doesn't tell (bytes read, hit rates, its memory) is
None here and shown as unknown. It lives in `flashmoe` and not in `backends` because it needs the network.
"""

from __future__ import annotations

from typing import Any

import httpx2

from backends.interface import (
    EngineError,
    LoadProgress,
    LoadRequest,
    Model,
    ModelInfo,
    ProgressCallback,
)
from flashmoe.remote.address import host_of, origin_of
from flashmoe.remote.http import CONNECT_S, make_client, network_error, status_error
from flashmoe.remote.model import RemoteModel


class RemoteBackend:
    """Registered as ``remote``. MODEL is the server's base URL, ``http://host:8080/v1``, with ``#name`` to pick a
    model where it serves several."""

    name = "remote"

    def why_not(self, request: LoadRequest) -> str | None:
        """None for an http(s) URL."""
        if origin_of(request.path) is None:
            return f"{request.path} is not a server's address, such as http://127.0.0.1:8080/v1."
        return None

    def load(self, request: LoadRequest, progress: ProgressCallback) -> Model:
        """Asks the server what it serves; raises `EngineError`."""
        if (why := self.why_not(request)) is not None:
            raise EngineError("bad_request", why)
        base, _, wanted = request.path.partition("#")
        client = make_client(base)
        try:
            if not progress(LoadProgress(stage=f"asking {host_of(base)}")):
                raise EngineError("cancelled", "Loading was cancelled.")
            listed = _models(client, base)
            chosen = _choose(listed, wanted, base)
            return RemoteModel(client, _info(chosen, base, request))
        except BaseException:
            client.close()
            raise


def _models(client: httpx2.Client, base: str) -> list[dict[str, Any]]:
    try:
        response = client.get("models", timeout=CONNECT_S)
    except httpx2.HTTPError as e:
        raise network_error(e, base) from None
    if response.status_code != 200:
        raise status_error(response.status_code, response.content, base, response.headers)
    try:
        listed = response.json()["data"]
        return [m for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)]
    except (ValueError, KeyError, TypeError):
        said = f"{host_of(base)} doesn't speak OpenAI's API at this address (no list of models)."
        raise EngineError("network", said) from None


def _choose(listed: list[dict[str, Any]], wanted: str, base: str) -> dict[str, Any]:
    host = host_of(base)
    if not listed:
        raise EngineError("not_found", f"{host} serves no model at the moment.")
    if not wanted:
        return listed[0]
    for model in listed:
        if model["id"] == wanted:
            return model
    names = ", ".join(m["id"][:80] for m in listed[:8])
    raise EngineError("not_found", f"{host} doesn't serve {wanted}", f"it serves {names}.")


def _info(model: dict[str, Any], base: str, request: LoadRequest) -> ModelInfo:
    meta = model.get("meta") if isinstance(model.get("meta"), dict) else {}
    assert isinstance(meta, dict)

    def number(*names: str) -> int:
        for name in names:
            value = meta.get(name, model.get(name))
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40:
                return value
        return 0

    lossy = meta.get("lossy")
    host = host_of(base)
    return ModelInfo(
        name=model["id"][:200],
        path=request.path,
        architecture=str(meta.get("architecture") or "unknown")[:64],
        quant=str(meta.get("quant") or "unknown")[:64],
        backend="remote",
        backend_reason=f"{host} computes the answers: what you type is sent there",
        n_layers=0,
        n_vocab=number("n_vocab"),
        n_ctx=number("n_ctx", "max_model_len", "context_length", "n_ctx_train"),
        n_ctx_train=number("n_ctx_train", "max_model_len", "context_length"),
        n_seq_max=max(request.n_seq_max, 1),
        file_bytes=number("size"),
        can_think=True,
        lossy=str(lossy)[:300] if lossy else None,
    )
