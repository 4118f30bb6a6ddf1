"""A model's header read from the hub before any download."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from backends.gguf.file import read_gguf
from backends.interface import EngineError
from flashmoe.hub.client import HubClient
from flashmoe.hub.errors import HubError
from flashmoe.hub.facts import facts_of
from flashmoe.hub.remote_header import read_remote
from tests.gguf_factory import make_gguf
from tests.hub_server import Faults, HubServer
from tests.hub_sparse import make_sparse

MIB = 1 << 20


def test_a_200_gb_set_moves_few_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "srv/acme/Huge-A22B-GGUF/Q4_K_M"
    folder.mkdir(parents=True)
    size = make_sparse(
        folder / "Huge-A22B-Q4_K_M.gguf",
        parts=6,
        n_layer=60,
        n_embd=4096,
        n_expert=512,
        n_expert_used=10,
        n_ff_exp=1024,
    )
    assert size > 200e9
    with HubServer(tmp_path / "srv") as hub:
        client = HubClient(hub.endpoint)
        repo = client.repo("acme/Huge-A22B-GGUF")
        moved: list[int] = []
        before = time.monotonic()
        model = read_remote(client, repo.repo, repo.commit, repo.quants[0], moved.append)
        print(f"{sum(moved) / MIB:.1f} MiB in {time.monotonic() - before:.2f} s of {size / 1e9:.0f} GB")
        assert hub.stats.body_bytes < 32 * MIB
        assert sum(moved) < 32 * MIB
    local = read_gguf(folder / "Huge-A22B-Q4_K_M-00001-of-00006.gguf")
    assert facts_of(model) == facts_of(local)
    assert model.n_experts == 512
    assert model.n_layers == 60
    assert model.file_bytes == size


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "srv/acme/Tiny-GGUF"
    folder.mkdir(parents=True)
    make_gguf(folder / "Tiny-Q8_0.gguf", quant="q8_0", split=2)
    return tmp_path / "srv"


def test_survives_drops_expiry_and_errors(small: Path) -> None:
    faults = Faults(status={"cdn": [503, 500], "resolve": [502]}, expire_after=1)
    with HubServer(small, faults=faults) as hub:
        client = HubClient(hub.endpoint)
        repo = client.repo("acme/Tiny-GGUF")
        model = read_remote(client, repo.repo, repo.commit, repo.quants[0])
        assert facts_of(model) == facts_of(read_gguf(small / "acme/Tiny-GGUF/Tiny-Q8_0-00001-of-00002.gguf"))
        assert hub.stats.tokens_at_cdn == 0


def test_garbage_is_refused_with_a_sentence(small: Path) -> None:
    with HubServer(small, faults=Faults(garbage=1.0)) as hub:
        client = HubClient(hub.endpoint)
        repo = client.repo("acme/Tiny-GGUF")
        with pytest.raises(EngineError, match="not a GGUF model"):
            read_remote(client, repo.repo, repo.commit, repo.quants[0])


def test_gone_network_is_one_sentence(small: Path) -> None:
    with HubServer(small) as hub:
        client = HubClient(hub.endpoint)
        repo = client.repo("acme/Tiny-GGUF")
        hub.faults.status = {"resolve": [404] * 20}
        with pytest.raises(HubError) as caught:
            read_remote(client, repo.repo, repo.commit, repo.quants[0])
    assert "\n" not in caught.value.message
