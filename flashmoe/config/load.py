"""The configuration of this machine: its file and its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flashmoe import paths
from flashmoe.config.schema import Config, LoadedConfig


def load_config(path: Path | None = None, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """Reads the file (the default one for None) and the environment. Never raises on what they hold."""
    path = path or paths.config_file()
    environ = os.environ if environ is None else environ
    if not path.exists() and not any(name.startswith("FLASHMOE_") and "__" in name for name in environ):
        return LoadedConfig(Config(), path, False)  # the common case needs no YAML
    from flashmoe.config.reader import read  # it imports YAML, which costs a start 20 ms

    return read(path, environ)
