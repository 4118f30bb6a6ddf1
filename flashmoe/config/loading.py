"""From the configuration to what is loaded: the one place where the section `backend` becomes a `LoadRequest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.interface import LoadRequest
from flashmoe import paths
from flashmoe.config.schema import BackendConfig, KvCacheConfig, auto_to_none

GIB = 1 << 30


def is_server(path: str | Path) -> bool:
    """Whether it is a server's address and no file."""
    return str(path).startswith(("http://", "https://"))


def load_request(path: str | Path, config: BackendConfig, **given: Any) -> LoadRequest:
    """What to load: as configured, except for what is `given` (fields of `LoadRequest`; None there means auto)."""
    ram_gib, vram_gib = auto_to_none(config.ram), auto_to_none(config.vram_experts)
    fields: dict[str, Any] = {
        "backend": "auto" if is_server(path) else config.backend,  # the configured one is for files
        "ram_bytes": None if ram_gib is None else int(ram_gib * GIB),
        "n_gpu_layers": auto_to_none(config.gpu_layers),
        "vram_expert_bytes": None if vram_gib is None else int(vram_gib * GIB),
        "n_ubatch": auto_to_none(config.ubatch),
        "max_stall_s": config.max_stall or None,
        "n_threads": auto_to_none(config.threads),
        "n_ctx": auto_to_none(config.ctx),
        "kv_type": config.kv_type,
        "repack": config.repack,
        "repack_file": str(paths.repack_file()),
        "heat_folder": str(paths.heat_dir()) if config.warm else "",
    } | given
    # 0 threads or 0 tokens of context mean "you choose" elsewhere; here auto says that.
    for name in ("n_threads", "n_ctx"):
        fields[name] = fields[name] or None
    return LoadRequest(path=str(path), **fields)


def kept_prompts(config: KvCacheConfig, folder: str | None = None) -> dict[str, Any]:
    """The fields of `LoadRequest` that say what is kept of prompts for the next start; `folder` None for the usual
    one."""
    if config.max_gib <= 0:
        return {"kv_dir": None}
    return {
        "kv_dir": folder or str(paths.prompts_dir()),
        "kv_dir_bytes": int(config.max_gib * GIB),
        "kv_min_tokens": config.min_tokens,
    }
