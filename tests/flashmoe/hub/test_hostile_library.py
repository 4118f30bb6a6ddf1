"""Nothing in a models folder ends a listing: what can't be read is named, the rest is listed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.engine.client import EngineClient
from backends.gguf.file import read_gguf
from backends.interface import EngineError, LoadRequest
from flashmoe.cli import main as cli
from flashmoe.hub.facts import ModelFacts
from flashmoe.hub.library import Library, Source
from flashmoe.plans import measurements, model_list
from flashmoe.plans.planning import plan_facts
from tests.gguf_factory import make_gguf
from tests.places import ROOT


def without_dimensions(target: Path) -> Path:
    """A model whose token embeddings are a single number."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    kv = text(b"general.architecture") + struct.pack("<I", 8) + text(b"qwen3moe")
    kv += text(b"qwen3moe.block_count") + struct.pack("<II", 4, 1)
    tensor = text(b"token_embd.weight") + struct.pack("<IIQ", 0, 0, 0)  # no dimensions, F32, offset 0
    target.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + kv + tensor + bytes(64))
    return target


def odd_name(folder: Path, source: Path) -> Path:
    target = os.fsencode(folder) + b"/bad\xff.gguf"
    Path(os.fsdecode(target)).write_bytes(source.read_bytes())
    return Path(os.fsdecode(target))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models folder of a clean home: one good model, one without dimensions, one whose name isn't UTF-8."""
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("FLASHMOE_MODELS", raising=False)
    folder = tmp_path / "home/data/models"
    folder.mkdir(parents=True)
    good = make_gguf(folder / "good.gguf")
    without_dimensions(folder / "scalar.gguf")
    odd_name(folder, good)
    return folder


def test_embeddings_without_dimensions_are_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="no dimensions") as caught:
        read_gguf(folder / "scalar.gguf")
    assert caught.value.code == "bad_model"


def test_each_is_listed_and_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {entry.name: entry for entry in Library([Source("library", folder)]).scan()}
    assert set(found) == {"good", "scalar", r"bad\xff"}
    assert found["good"].problem == ""
    assert "no dimensions" in found["scalar"].problem
    assert found[r"bad\xff"].problem == r"The name of bad\xff.gguf isn't UTF-8; rename it to load it."

    assert cli.main(["ls"]) == 0
    text = capsys.readouterr().out
    assert "good " in text
    assert r"bad\xff" in text
    assert cli.main(["ls", "--json"]) == 0
    paths = [row["path"] for row in json.loads(capsys.readouterr().out)["models"]]
    assert Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.gguf")) in map(Path, paths)


def test_a_pipe_gets_the_bytes_of_a_name(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "flashmoe.cli.main", "ls", "--paths"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert os.fsencode(folder) + b"/bad\xff.gguf" in done.stdout.splitlines()


async def test_the_engine_refuses_a_name_that_cannot_be_told(folder: Path) -> None:
    path = os.fsdecode(os.fsencode(folder) + b"/bad\xff.gguf")
    client = EngineClient(log_path=folder.parent / "engine.log")
    with pytest.raises(EngineError, match=r"bad\\xff.gguf isn't UTF-8; rename it"):
        await client.load(LoadRequest(path=path))
    await client.stop()


def test_an_error_that_nobody_foresaw_names_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> object:
        if path.name == "good.gguf":
            raise ZeroDivisionError("by zero")
        return read_gguf(path)

    monkeypatch.setattr("flashmoe.hub.facts.read_gguf", read)
    found = {entry.name: entry for entry in Library([Source("library", folder)]).scan()}
    assert found["good"].problem == "good.gguf can't be read: unexpected error (ZeroDivisionError: by zero)."
    assert found[r"bad\xff"].facts.n_layers
    log = folder.parents[1] / "state/log/errors.log"
    assert "ZeroDivisionError" in log.read_text()


def test_a_model_that_cannot_be_planned_is_a_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(facts: ModelFacts, *more: Any) -> object:
        if facts.n_layers == 2:
            raise OverflowError("too large")
        return plan_facts(facts, *more)

    monkeypatch.setattr(model_list, "plan_facts", plan)
    here = measurements.machine(measure=False)
    rows = {row.name: row for row in model_list.local_rows(Library([Source("library", folder)]), here)}
    assert rows["good"].fit == "unsupported"
    assert rows["good"].entry is not None
    assert "can't be planned" in rows["good"].entry.problem
    assert cli.main(["ls"]) == 0
    assert "good can't be planned: unexpected error (OverflowError: too large)." in capsys.readouterr().out


def test_doctor_tells_of_models_that_cannot_be_loaded(folder: Path) -> None:
    from flashmoe.doctor import software

    found = software.models()
    assert found["count"] == 3
    assert {each["name"] for each in found["problems"]} == {"scalar", r"bad\xff"}
