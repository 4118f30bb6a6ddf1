"""From the configuration to what is loaded: one way, and the file is read once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.interface import LoadRequest
from flashmoe import paths
from flashmoe.cli.answer import add_sampling_flags, sampling_of
from flashmoe.cli.common import add_load_flags
from flashmoe.cli.common import load_request as from_flags
from flashmoe.config import load
from flashmoe.config.loading import kept_prompts, load_request
from flashmoe.config.schema import BackendConfig, Config, LoadedConfig
from tui.app import AppOptions, FlashmoeApp

CONFIG = BackendConfig(backend="stream", ram=2.5, threads=3, ctx=4096, gpu_layers=7, warm=False)


def as_configured() -> LoadRequest:
    return LoadRequest(
        path="m.gguf", backend="stream", ram_bytes=5 << 29, n_threads=3, n_ctx=4096, n_gpu_layers=7, repack="auto",
        repack_file=str(paths.repack_file()),
    )  # fmt: skip


def parsed(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_load_flags(parser)
    add_sampling_flags(parser)
    return parser.parse_args(argv, argparse.Namespace(schema=None, grammar=None))


def test_the_configuration_holds_where_nothing_else_is_given() -> None:
    assert load_request("m.gguf", CONFIG) == as_configured()
    plain = load_request("m.gguf", BackendConfig())
    assert plain == LoadRequest(
        path="m.gguf", heat_folder=str(paths.heat_dir()), repack="auto", repack_file=str(paths.repack_file())
    )


def test_what_is_given_wins_and_none_or_0_mean_auto() -> None:
    request = load_request("m.gguf", CONFIG, n_ctx=0, n_threads=None, ram_bytes=None, n_seq_max=4)
    assert (request.n_ctx, request.n_threads, request.ram_bytes, request.n_seq_max) == (None, None, None, 4)
    assert (request.backend, request.n_gpu_layers) == ("stream", 7)


def test_the_app_and_the_commands_load_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path))
    loaded = LoadedConfig(Config(backend=CONFIG), tmp_path / "config.yaml", True)
    monkeypatch.setattr(load, "load_config", lambda: loaded)
    assert from_flags(parsed(), "m.gguf") == as_configured()
    kept = kept_prompts(loaded.config.kv_cache)  # the app keeps what was read of its chats
    app = FlashmoeApp(AppOptions(measure=False), loaded)
    assert app.with_defaults("m.gguf") == msgspec.structs.replace(as_configured(), **kept)
    flags = parsed("--ram", "auto", "--ctx", "512")
    assert (from_flags(flags, "m.gguf").ram_bytes, from_flags(flags, "m.gguf").n_ctx) == (None, 512)


def test_a_command_reads_the_configuration_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path))
    reads: list[Any] = []
    read = load.load_config

    def counted() -> LoadedConfig:
        reads.append(1)
        return read()

    monkeypatch.setattr(load, "load_config", counted)
    args = parsed("--preset", "auto")
    from_flags(args, "m.gguf")
    sampling_of(args, "m")
    assert len(reads) == 1


def test_a_configured_backend_is_for_files_and_not_for_servers() -> None:
    assert load_request("http://127.0.0.1:8080/v1", CONFIG).backend == "auto"
    assert load_request("http://127.0.0.1:8080/v1", CONFIG, backend="stream").backend == "stream"
