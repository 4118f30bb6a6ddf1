"""The command `plan`: local models, models on the hub, its figures as JSON, its errors as sentences."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gguf_factory import make_gguf, truncated
from tests.hub_server import HubServer
from tests.hub_sparse import make_sparse
from tests.places import ROOT


def run(tmp_path: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from flashmoe.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", code, "plan", *args],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "FLASHMOE_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", **env},
    )  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_gguf(tmp_path / "tiny-Q8_0.gguf", quant="q8_0", n_ctx_train=2_000_000_000)


def test_a_local_model_as_text(tmp_path: Path, model: Path) -> None:
    done = run(tmp_path, str(model))
    assert done.returncode == 0, done.stderr
    assert "Runs here. All of its experts stay in memory" in done.stdout
    assert "tokens/s, estimated (range" in done.stdout
    assert "context of 8,192 tokens" in done.stdout
    disk = " ".join(done.stdout.partition("SSD")[2].split())  # the line may be wrapped
    assert re.search(r"disk [\d.]+ [kMG]B/s \(measured just now\)", disk), disk[:200]
    assert "Traceback" not in done.stderr
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_json_has_the_whole_plan(tmp_path: Path, model: Path) -> None:
    done = run(tmp_path, str(model), "--json", "--no-probe", "--ctx", "4096", "--ram", "1")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    plan = got["plan"]
    assert plan["verdict"] == "fits"
    assert plan["quant"] == "Q8_0"
    assert plan["n_ctx"] == 4096
    assert plan["budgets"]["here"] == 1 << 30
    assert plan["place"]["kv_ram"] == 4096 * plan["kv_bytes_per_token"]
    assert plan["speed"]["source"] == "formula"
    assert got["machine"]["disk_bytes_s"] is None
    assert any("not measured" in note for note in plan["notes"])
    assert got["request"]["ram_bytes"] == 1 << 30


def test_what_does_not_run_exits_1_with_the_reason(tmp_path: Path, model: Path) -> None:
    done = run(tmp_path, str(model), "--no-probe", "--ctx", "2000000000")
    assert done.returncode == 1
    text = " ".join(done.stdout.split())
    assert "Does not run here. It needs" in text
    assert "tokens fits" in text
    done = run(tmp_path, str(model), "--no-probe", "--experts", "99")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the model has 8 experts" in done.stderr


def test_bad_files_are_one_sentence(tmp_path: Path, model: Path) -> None:
    half = truncated(model, tmp_path / "half.gguf", -500)
    for name, text in ((str(half), "is cut off"), (str(tmp_path / "no.gguf"), "does not exist")):
        done = run(tmp_path, name, "--no-probe")
        assert done.returncode in (1, 2)
        assert text in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_200_gb_set_on_the_hub_is_planned_from_its_header(tmp_path: Path) -> None:
    folder = tmp_path / "srv/acme/Huge-A22B-GGUF/Q4_K_M"
    folder.mkdir(parents=True)
    size = make_sparse(
        folder / "Huge-A22B-Q4_K_M.gguf", parts=6, n_layer=60, n_embd=4096, n_expert=512, n_expert_used=10,
        n_ff_exp=1024,
    )  # fmt: skip
    with HubServer(tmp_path / "srv") as hub:
        done = run(tmp_path, "acme/Huge-A22B-GGUF:Q4_K_M", "--json", "--no-probe", HF_ENDPOINT=hub.endpoint)
        assert hub.stats.body_bytes < 32 << 20
    plan = json.loads(done.stdout)["plan"]
    assert plan["to_download"] == plan["file_bytes"] == size > 200e9
    assert (plan["n_experts"], plan["n_expert_used"], plan["n_layers"]) == (512, 10, 60)
    assert plan["download_s"] > 3600
    assert done.returncode == (0 if plan["verdict"] in ("fits", "streams") else 1)
    assert plan["budgets"]["least"] < plan["budgets"]["advised"] < plan["budgets"]["best"]


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "srv").mkdir()
    with HubServer(tmp_path / "srv") as hub:
        done = run(tmp_path, "acme/Nothing-GGUF:Q4_K_M", "--no-probe", HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 1
    assert "acme/Nothing-GGUF" in done.stderr
    assert "Traceback" not in done.stderr
