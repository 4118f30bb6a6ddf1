"""What people paste for a repository, and what of it is meant."""

from __future__ import annotations

import pytest

from flashmoe.hub.address import Reference, looks_like_reference, parse_reference
from flashmoe.hub.errors import HubError

MEANT = {
    "a/b": Reference("a/b"),
    " a/b ": Reference("a/b"),
    "“a/b”": Reference("a/b"),
    "a/b:Q4_K_M": Reference("a/b", "Q4_K_M"),
    "a/b:latest": Reference("a/b"),
    "a/b:": Reference("a/b"),
    "a/b:Q4/x-00001-of-00002.gguf": Reference("a/b", "Q4/x-00001-of-00002.gguf"),
    "a/b@v1.2": Reference("a/b", revision="v1.2"),
    "a/b@main": Reference("a/b"),
    "a/b@refs/pr/3": Reference("a/b", revision="refs/pr/3"),
    "a/b@v1:Q8_0": Reference("a/b", "Q8_0", revision="v1"),
    "a/b:Q8_0@v1": Reference("a/b", "Q8_0", revision="v1"),
    "a/b/m-Q4_0.gguf": Reference("a/b", "m-Q4_0.gguf"),
    "a/b/Q4_K_M": Reference("a/b", folder="Q4_K_M"),
    "a/b/tree/main/Q2_K": Reference("a/b", folder="Q2_K"),
    "hf.co/a/b:Q8_0": Reference("a/b", "Q8_0", host="hf.co"),
    "ollama run hf.co/a/b:Q8_0": Reference("a/b", "Q8_0", host="hf.co"),
    "huggingface.co/a/b": Reference("a/b", host="huggingface.co"),
    "hf://a/b": Reference("a/b"),
    "hf://models/a/b@v1/Q4/m.gguf": Reference("a/b", "Q4/m.gguf", revision="v1"),
    "https://huggingface.co/a/b": Reference("a/b", host="huggingface.co"),
    "https://huggingface.co/a/b/": Reference("a/b", host="huggingface.co"),
    "http://www.huggingface.co/a/b?library=x#top": Reference("a/b", host="www.huggingface.co"),
    "https://huggingface.co/models/a/b": Reference("a/b", host="huggingface.co"),
    "https://huggingface.co/a/b/tree/main": Reference("a/b", host="huggingface.co"),
    "https://huggingface.co/a/b/tree/main/Q2_K": Reference("a/b", folder="Q2_K", host="huggingface.co"),
    "https://huggingface.co/a/b/tree/refs%2Fpr%2F1/x%20y": Reference(
        "a/b", folder="x y", revision="refs/pr/1", host="huggingface.co"
    ),
    "https://huggingface.co/a/b/blob/main/Q4/x.gguf?download=true": Reference(
        "a/b", "Q4/x.gguf", host="huggingface.co"
    ),
    "https://huggingface.co/a/b/resolve/0123abc/x.gguf": Reference(
        "a/b", "x.gguf", revision="0123abc", host="huggingface.co"
    ),
    "https://huggingface.co/a/b/discussions/4": Reference("a/b", revision=None, host="huggingface.co"),
    "https://hub.example:8443/a/b:Q4_0": Reference("a/b", "Q4_0", host="hub.example:8443"),
    "hub.example:8443/a/b": Reference("a/b", host="hub.example:8443"),
    "https://hf-mirror.com/a/b/tree/main/Q8_0": Reference("a/b", folder="Q8_0", host="hf-mirror.com"),
    "https://some.mirror/a/b/resolve/main/m.gguf": Reference("a/b", "m.gguf", host="some.mirror"),
    "<https://huggingface.co/a/b>": Reference("a/b", host="huggingface.co"),
}


@pytest.mark.parametrize("text", MEANT)
def test_what_is_pasted_is_understood(text: str) -> None:
    assert parse_reference(text, endpoint="https://hub.example:8443") == MEANT[text]


REFUSED = {
    "": "nothing is named",
    "a": "the name of the repository is missing",
    "https://huggingface.co/": "nothing is named",
    "https://huggingface.co/unsloth": "the name of the repository is missing",
    "https://huggingface.co/datasets/a/b": "a data set",
    "https://huggingface.co/spaces/a/b": "a space",
    "https://huggingface.co/models?search=qwen": "a list of models",
    "https://github.com/ggml-org/llama.cpp": "set HF_ENDPOINT=https://github.com",
    "ftp://huggingface.co/a/b": "isn't an address of a model hub",
    "https://huggingface.co/a/b/blob/main/README.md": "isn't a .gguf file",
    "a/b@../../etc": "isn't a branch, a tag or a commit",
    "../a": "isn't a repository",
    "a/b c": "isn't a repository",
    "a/b\x1b[31m": "isn't a repository",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_meant_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(HubError) as caught:
        parse_reference(text)
    assert REFUSED[text] in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.advice


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("a/b", True), ("a/b:Q4_0", True), ("https://huggingface.co/a/b/tree/main/Q4", True), ("hf://a/b", True),
        ("models/sub/x.gguf", False), ("http://127.0.0.1:8080/v1", False), ("http://127.0.0.1:8080", False),
        ("qwen3", False), ("./a/b", False), ("/a/b", False), ("https://api.example.com/v1/models", False),
    ],
)  # fmt: skip
def test_servers_and_paths_are_no_references(text: str, yes: bool) -> None:
    assert looks_like_reference(text) is yes
