"""Which file of a repository is meant: two hundred lists of public shape, and the odd ones."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from msgspec import structs

from backends.gguf.header import Value
from flashmoe.hub.client import HubClient
from flashmoe.hub.errors import HubError
from flashmoe.hub.listing import read_listing
from flashmoe.hub.lookup import check_header, look_up, read_reference
from flashmoe.hub.roles import role_of_header, role_of_name
from flashmoe.hub.selection import choose, usual
from tests.flashmoe.hub.file_lists import Case, cases, listing
from tests.gguf_factory import make_gguf
from tests.hub_place import REPO, Place
from tests.hub_server import HubServer

CASES = list(cases())


def test_there_are_two_hundred() -> None:
    assert len({case.id for case in CASES}) == 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_right_file_of_a_public_list(case: Case) -> None:
    shuffled = list(case.repo.quants)
    random.Random(case.id).shuffle(shuffled)
    for wanted, first in [(None, case.usual), *case.quants.items()]:
        quant, why = choose(structs.replace(case.repo, quants=tuple(shuffled)), wanted)
        assert quant.files[0].path == first, f"{case.repo.repo}:{wanted} is {first}"
        assert bool(why) is (wanted is None)
        numbers = [f.path for f in quant.files]
        assert numbers == sorted(numbers)
    for quant in case.repo.quants:
        assert not any(word in quant.label.lower() for word in ("mmproj", "imatrix", "draft", "eagle", "lora"))


ROLES = {
    "mmproj-F16.gguf": "projector", "Gemma4_26B.BF16-mmproj.gguf": "projector", "x.mmproj-Q8_0.gguf": "projector",
    "imatrix_unsloth.gguf": "imatrix", "a-imatrix.gguf": "imatrix", "a.imatrix.gguf": "imatrix",
    "mtp-gemma-4-12B-it.gguf": "drafter", "MTP/gemma-4-E2B-it-Q8_0-MTP.gguf": "drafter",
    "gemma-4-12B-it-qat-assistant-MTP-Q8_0.gguf": "drafter", "eagle3-gpt-oss-120b-BF16.gguf": "drafter",
    "draft/small-Q4_0.gguf": "drafter", "DeepSeek-R1-DRAFT-0.6B-Q4_0.gguf": "drafter",
    "speculator-x-Q8_0.gguf": "drafter", "Qwen3-8B-speculator.eagle3-Q8_0.gguf": "drafter",
    "dflash-gemma-Q8_0.gguf": "drafter", "dspark-gemma-Q8_0.gguf": "drafter", "X-Q8_0-MTP.gguf": "drafter",
    "Qwythos-9B-MTP-Q6_K.gguf": "model", "ornith-9b-mtp-kl-Q4_K_M.gguf": "model", "v5-Eagle-7B-Q4_0.gguf": "model",
    "OpenAssistant-Llama-Q4_0.gguf": "model", "Assistant-7B-Q8_0/Assistant-7B-Q8_0.gguf": "model",
    "x-lora-F16.gguf": "adapter", "lora/x-F16.gguf": "adapter", "x-lora-merged-Q4_K_M.gguf": "model",
    "ggml-vocab-llama-bpe.gguf": "vocabulary", "vocoder-LFM2-Audio-Q8_0.gguf": "voice",
    "BF16/a-BF16-00001-of-00002.gguf": "model", "Model-F16.gguf": "model", "a-control-vector-Q8_0.gguf": "adapter",
}  # fmt: skip


@pytest.mark.parametrize("path", ROLES)
def test_what_a_name_says(path: str) -> None:
    assert role_of_name(path) == ROLES[path]


@pytest.mark.parametrize(
    ("kv", "n_tensors", "first", "role"),
    [
        ({"general.architecture": "qwen3moe"}, 100, None, "model"),
        ({"general.architecture": "clip"}, 100, None, "projector"),
        ({"general.architecture": "qwen3moe", "general.type": "mmproj"}, 100, None, "projector"),
        ({"general.architecture": "llama", "general.type": "adapter"}, 100, None, "adapter"),
        ({"general.architecture": "imatrix", "general.type": "imatrix"}, 100, None, "imatrix"),
        ({"general.architecture": "eagle3"}, 20, None, "drafter"),
        ({"general.architecture": "gemma4-assistant"}, 20, None, "drafter"),
        ({"general.architecture": "bert"}, 20, None, "other"),
        ({"general.architecture": "llama"}, 0, None, "vocabulary"),
        ({"general.architecture": "llama"}, None, None, "model"),
        ({"general.architecture": "qwen35moe", "qwen35moe.block_count": 41}, 20, False, "drafter"),
        ({"general.architecture": "qwen35moe", "qwen35moe.block_count": 41}, 700, True, "model"),
    ],
)
def test_what_a_header_says(kv: dict[str, Value], n_tensors: int | None, first: bool | None, role: str) -> None:
    assert role_of_header(kv, n_tensors, first) == role


STEPS = ["Step-Compact-Q4_K_M.gguf", "Step-Full-Q4_K_M.gguf", "Step-Mini-Q4_K_M.gguf", "other-Q4_K_M.gguf"]


def test_an_ambiguous_quant_lists_what_matches() -> None:
    with pytest.raises(HubError) as caught:
        choose(listing("a/Steps-GGUF", STEPS), "Q4_K_M")
    assert caught.value.code == "ambiguous"
    assert "matches 4 files" in caught.value.message
    assert all(name.removesuffix(".gguf") in caught.value.message for name in STEPS)
    with pytest.raises(HubError, match="holds several models"):
        choose(listing("a/Steps-GGUF", STEPS))
    assert choose(listing("a/Step-Mini-GGUF", STEPS))[0].files[0].path == "Step-Mini-Q4_K_M.gguf", "its name decides"
    assert choose(listing("a/Steps-GGUF", STEPS), "step-mini-q4_k_m.GGUF")[0].files[0].path == STEPS[2]


@pytest.mark.parametrize(
    ("repo", "paths", "wanted", "first"),
    [
        ("e/X-GGUF", ["X-Q6_K.gguf", "X-MTP-Q6_K.gguf", "X-MTP-Q4_K_M.gguf", "X-Q4_K_M.gguf"], None, "X-Q4_K_M.gguf"),
        ("e/X-GGUF", ["X-Q6_K.gguf", "X-MTP-Q6_K.gguf"], "Q6_K", "X-Q6_K.gguf"),
        ("e/Y-GGUF", ["y-mtp-Q4_K_M.gguf", "mtp-y-mtp-Q8_0.gguf"], None, "y-mtp-Q4_K_M.gguf"),
        ("e/X-GGUF", ["Model-F16.gguf"], None, "Model-F16.gguf"),
        ("e/X-GGUF", ["X-F16.gguf"], "X-F16.gguf", "X-F16.gguf"),
        ("e/X-GGUF", ["X-FP16.gguf", "X-Q8_0.gguf"], None, "X-Q8_0.gguf"),
        ("e/X-GGUF", ["X-Q4_0_4_4.gguf", "X-Q4_0.gguf"], "Q4_0", "X-Q4_0.gguf"),
        ("e/X-GGUF", ["X.gguf"], None, "X.gguf"),
        ("e/X-GGUF", ["a b/X Q8_0.gguf"], "Q8_0", "a b/X Q8_0.gguf"),
        ("e/X-GGUF", ["Q8_0/X-Q8_0-00001-of-00002.gguf", "Q8_0/X-Q8_0-00002-of-00002.gguf", "X-Q8_0.gguf"], "Q8_0",
         "X-Q8_0.gguf"),
    ],
)  # fmt: skip
def test_odd_lists(repo: str, paths: list[str], wanted: str | None, first: str) -> None:
    sizes = {path: 16 if "16" in path else 8 for path in paths}
    assert choose(listing(repo, paths, sizes.__getitem__), wanted)[0].files[0].path == first


def test_folders_revisions_and_parts_missing() -> None:
    parts = [f"Q4_K_M/m-Q4_K_M-0000{i}-of-00003.gguf" for i in (1, 3)]
    repo = listing("a/b", ["Q2_K/m-Q2_K.gguf", *parts])
    assert choose(repo, read_reference("https://huggingface.co/a/b/tree/main/Q2_K"))[0].quant == "Q2_K"
    with pytest.raises(HubError, match="its folders are Q2_K, Q4_K_M"):
        choose(repo, read_reference("a/b/tree/main/Q5"))
    for wanted in ("Q4_K_M", "m-Q4_K_M-00001-of-00003.gguf", None):
        reference = read_reference(f"a/b:{wanted}" if wanted else "a/b/tree/main/Q4_K_M")
        with pytest.raises(HubError, match=r"1 part is missing of 3 \(m-Q4_K_M-00002-of-00003.gguf\)") as caught:
            choose(repo, reference)
        assert caught.value.code == "incomplete"
    assert choose(repo)[0].quant == "Q2_K", "what can be pulled whole"


FORBIDDEN = [
    "../evil-Q4_0.gguf", ".hidden/m-Q4_0.gguf", "a/../../m.gguf", "/etc/m.gguf", "m\x1b[31m-Q4_0.gguf",
    "m-\u202efugg.4_Q.gguf", "x" * 300 + ".gguf", "~/m.gguf", "m\u200b-Q4_0.gguf",
]  # fmt: skip


def test_forbidden_names_are_not_offered() -> None:
    siblings = [{"rfilename": name, "size": 5, "lfs": {"sha256": "0" * 64}} for name in [*FORBIDDEN, "m-Q4_0.gguf"]]
    repo = read_listing({"id": "a/b", "sha": "0" * 40, "siblings": siblings}, "a/b")
    assert [q.label for q in repo.quants] == ["Q4_0"]
    assert repo.other == ()


def test_what_a_repository_without_models_has_is_said() -> None:
    with pytest.raises(HubError, match=r"no GGUF model to chat with, only a projector for images or sound \(2 files\)"):
        choose(listing("a/b", ["mmproj-F16.gguf", "mmproj-BF16.gguf"]))


def test_the_usual_of_what_fits() -> None:
    labels = [("Q2_K", 10), ("Q5_K_M", 25), ("Q8_0", 40)]
    assert usual(labels, 100) == (1, "the smallest with four bits a weight or more")
    assert usual(labels, 20) == (0, "the best that fits on the disk")
    assert usual(labels, 5)[1].startswith("the smallest that it has; even that")
    assert usual([("", 5), ("odd", 6)], None) == (0, "the smallest that it has")


# ---- the header has the last word


@pytest.fixture
def unmasked(tmp_path: Path) -> HubServer:
    """A repository whose usual file is a projector in disguise, and one that is no GGUF at all."""
    import gguf

    folder = tmp_path / "srv/acme/Masked-GGUF"
    folder.mkdir(parents=True)
    writer = gguf.GGUFWriter(folder / "Masked-Q4_K_M.gguf", "clip")
    writer.add_type("mmproj")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (folder / "Masked-MXFP4.gguf").write_bytes(b"<!doctype html>" + b"x" * 5000)
    make_gguf(folder / "Masked-Q8_0.gguf", quant="q8_0")
    return HubServer(tmp_path / "srv")


def test_a_projector_in_disguise_is_passed_over(unmasked: HubServer, tmp_path: Path) -> None:
    with unmasked as hub:
        client = HubClient(hub.endpoint)
        found = look_up(client, read_reference("acme/Masked-GGUF"), models=tmp_path)
        assert found.quant.label == "Q8_0"
        assert hub.stats.body_bytes < 3 * 65536, "a header's start tells it"
        for wanted, words in (("Q4_K_M", "is a projector for images or sound"), ("MXFP4", "can't be used")):
            with pytest.raises(HubError, match=words) as caught:
                look_up(client, read_reference(f"acme/Masked-GGUF:{wanted}"), models=tmp_path)
            assert caught.value.code == "not_a_model"


def test_the_header_of_a_set_is_that_of_its_first_part(place: Place) -> None:
    client = HubClient(place.hub.endpoint)
    repo = client.repo(REPO)
    check_header(client, repo, repo.quants[0])
    assert place.hub.stats.body_bytes <= 65536
