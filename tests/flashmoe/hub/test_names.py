"""Names from outside: quants, split sets, hostile paths, references; the catalogue; which file a request means."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmoe.hub.address import parse_reference
from flashmoe.hub.catalogue import load_catalogue, user_path
from flashmoe.hub.errors import HubError
from flashmoe.hub.listing import HubFile, HubQuant, HubRepo, quants_of
from flashmoe.hub.names import (
    check_file_name,
    display_name,
    group_files,
    quant_of,
    show,
    split_of,
    target_path,
)  # fmt: skip
from flashmoe.hub.roles import is_chat_model
from flashmoe.hub.selection import choose


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Qwen3-30B-A3B-Q4_K_M.gguf", "Q4_K_M"),
        ("UD-Q4_K_XL/Qwen3.5-397B-A17B-UD-Q4_K_XL-00001-of-00006.gguf", "UD-Q4_K_XL"),
        ("gpt-oss-120b-mxfp4-00001-of-00003.gguf", "MXFP4"),
        ("gemma-4-26B-A4B-it-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("UD-IQ1_M/DeepSeek-V4-Flash-00001-of-00003.gguf", "UD-IQ1_M"),
        ("model-TQ1_0.gguf", "TQ1_0"),
        ("model.gguf", ""),
        ("Q2D2.gguf", ""),
    ],
)
def test_quant(path: str, quant: str) -> None:
    assert quant_of(path) == quant


def test_split_sets_group_and_absurd_ones_do_not() -> None:
    names = [f"d/m-Q4_0-0000{i}-of-00003.gguf" for i in (3, 1, 2)] + ["d/m-Q8_0.gguf"]
    assert list(group_files(names).values()) == [sorted(names[:3]), ["d/m-Q8_0.gguf"]]
    assert split_of("m-00004-of-00003.gguf") is None
    assert split_of("m-00001-of-99999.gguf") is None
    assert display_name("d/m-Q4_0-00001-of-00003.gguf") == "m-Q4_0"


@pytest.mark.parametrize(
    ("path", "yes"),
    [
        ("a-Q4_0.gguf", True),
        ("mmproj-F16.gguf", False),
        ("x.mmproj-Q8_0.gguf", False),
        ("a-imatrix.gguf", False),
        ("imatrix_unsloth.gguf", False),
        ("BF16/a-BF16-00001-of-00002.gguf", True),
        ("a.safetensors", False),
    ],
)
def test_what_is_a_chat_model(path: str, yes: bool) -> None:
    assert is_chat_model(path) is yes


HOSTILE = [
    "../../etc/cron.d/x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a//x.gguf", "./x.gguf", "x\0.gguf", "a\\..\\x.gguf",
    "~/x.gguf", "x\x1b]0;pwned\x07.gguf", "x\n.gguf", "x\u0085.gguf", "a" * 300 + ".gguf", "d/" * 600 + "x.gguf", "",
    ".hidden.gguf", "x.sh", "x.gguf/", "a/.flashmoe-hub.json", "x\ud800.gguf",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_names_are_refused(path: str, tmp_path: Path) -> None:
    root = tmp_path / "models"
    with pytest.raises(HubError) as caught:
        target_path(root, "a/b", path)
    assert caught.value.message.isprintable()
    assert not root.exists()


@given(st.text(max_size=60))
def test_any_name_stays_inside(path: str) -> None:
    for text in (path, path + ".gguf"):
        try:
            pure = check_file_name(text)
        except HubError:
            continue
        assert not pure.is_absolute()
        assert ".." not in pure.parts


@pytest.mark.parametrize(
    "repo", ["../x", "a/..", "a/b/c", "a", "/a/b", "a/b\0", "a--b/c", ".a/b", "a/b.git", "a/" + "b" * 200]
)
def test_hostile_repositories_are_refused(repo: str, tmp_path: Path) -> None:
    with pytest.raises(HubError):
        target_path(tmp_path, repo, "x.gguf")


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    outside.mkdir()
    (root / "a").mkdir(parents=True)
    (root / "a/b").symlink_to(outside)
    with pytest.raises(HubError, match="outside the models folder"):
        target_path(root, "a/b", "Q4_0/x.gguf")
    assert list(outside.iterdir()) == []
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    assert target_path(linked, "a/b", "x.gguf").parent.exists(), "the models folder itself may be a link"


@pytest.mark.parametrize(
    ("text", "repo", "rest"),
    [
        ("a/b", "a/b", None),
        ("a/b:Q4_K_M", "a/b", "Q4_K_M"),
        ("a/b:Q4/x-00001-of-00002.gguf", "a/b", "Q4/x-00001-of-00002.gguf"),
        ("https://huggingface.co/a/b", "a/b", None),
        ("https://huggingface.co/a/b/blob/main/Q4/x.gguf?download=true", "a/b", "Q4/x.gguf"),
        ("hf.co/a/b:Q8_0", "a/b", "Q8_0"),
    ],
)
def test_references(text: str, repo: str, rest: str | None) -> None:
    found = parse_reference(text)
    assert (found.repo, found.wanted) == (repo, rest)


def test_show_makes_text_harmless() -> None:
    assert show("a\x1b[31m\nb") == "a␛[31m␊b"
    assert len(show("x" * 500)) == 200


# ---- choosing


def repo_with(*sizes: tuple[str, int]) -> HubRepo:
    files = [HubFile(f"m-{label}.gguf", size) for label, size in sizes]
    return HubRepo("a/b", "c", tuple(quants_of(files)))


def test_default_is_four_bits_that_fit() -> None:
    repo = repo_with(("UD-Q2_K_XL", 10), ("Q4_K_M", 20), ("UD-Q4_K_XL", 21), ("Q8_0", 40))
    assert choose(repo, None, free=100)[0].label == "UD-Q4_K_XL"
    assert choose(repo, None, free=21)[0].label == "Q4_K_M"
    quant, why = choose(repo, None, free=15)
    assert quant.label == "UD-Q2_K_XL"
    assert "fits" in why
    assert choose(repo, None, free=1)[0].label == "UD-Q2_K_XL", "the smallest, where nothing fits: the check says so"


def test_named_quants_files_and_mistakes() -> None:
    repo = repo_with(("UD-Q4_K_XL", 21), ("Q8_0", 40))
    assert choose(repo, "q8_0")[0].label == "Q8_0"
    assert choose(repo, "Q4_K_XL")[0].label == "UD-Q4_K_XL"
    assert choose(repo, "m-Q8_0.gguf")[0].label == "Q8_0"
    with pytest.raises(HubError, match=r"it has UD-Q4_K_XL, Q8_0; did you mean UD-Q4_K_XL"):
        choose(repo, "UD-Q5_K_XL")


def test_quants_of_a_listing() -> None:
    files = [HubFile(f"Q4_0/m-Q4_0-0000{i}-of-00003.gguf", 5) for i in (1, 2)]
    files += [HubFile("m-Q8_0.gguf", 9), HubFile("other-Q8_0.gguf", 8), HubFile("m-BF16.gguf", 99)]
    quants = quants_of(files)
    expected = [("other-Q8_0", True), ("m-Q8_0", True), ("Q4_0", False), ("BF16", True)]
    assert [(q.label, q.complete) for q in quants] == expected
    assert quants[2].missing == ("Q4_0/m-Q4_0-00003-of-00003.gguf",)
    lacking = HubQuant("Q4_0", (HubFile("m-00001-of-00002.gguf", 5),), ("m-00002-of-00002.gguf",))
    with pytest.raises(HubError, match=r"1 part is missing of 2 \(m-00002-of-00002.gguf\)"):
        choose(HubRepo("a/b", "c", (lacking,)), None)
    with pytest.raises(HubError, match="no GGUF model"):
        choose(HubRepo("a/b", "c", ()), None)


# ---- the catalogue


def test_the_catalogue_is_sound() -> None:
    catalogue = load_catalogue()
    assert catalogue.problems == ()
    names = [m.name for m in catalogue.models]
    assert len(names) > 25
    assert "Qwen3.5-397B-A17B" in names
    big = next(m for m in catalogue.models if m.name == "Qwen3.5-397B-A17B")
    assert (big.n_experts, big.n_expert_used, big.default_quant().size) == (512, 10, 219216328992)
    assert all(m.n_experts and m.context >= 0 for m in catalogue.models)


def test_users_extend_and_mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path))
    user_path().parent.mkdir(parents=True)
    user_path().write_text(
        "models:\n"
        "- {name: gpt-oss-20b, repos: [me/mine-GGUF], quants: {Q4_0: 1 GiB}, shape: [2, 4, 1]}\n"
        "- {name: Own, repos: [me/own-GGUF], quants: {Q4_0: 5}}\n"
        "- {name: Bad, repos: [../x], quants: {Q4_0: 5}}\n"
        "- {name: Worse, repos: [a/b], quants: {Q4_0: lots}}\n"
        "- 7\n"
    )
    catalogue = load_catalogue()
    by_name = {m.name: m for m in catalogue.models}
    assert by_name["gpt-oss-20b"].repo == "me/mine-GGUF"
    assert by_name["Own"].own
    assert len(catalogue.problems) == 3
    user_path().write_text("models: [")
    assert "isn't YAML" in load_catalogue().problems[0]
    user_path().write_text("just text")
    assert load_catalogue().problems
