"""backends.gguf.file: what a model consists of, agreed with the gguf package's reader; partial files; split sets."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from backends.gguf.cursor import BytesSource, FetchSource, FileSource, IncompleteHeader
from backends.gguf.file import from_headers, read_gguf
from backends.gguf.header import read_header
from backends.gguf.names import part_names, quant_label
from backends.gguf.types import TENSOR_TYPES, tensor_bytes
from backends.interface import EngineError
from tests.gguf_factory import CHATML, make_gguf, truncated
from tests.gguf_shapes import ARCHITECTURES, MIN_LAYERS, Dims, describe


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_agrees_with_the_reference_reader(tmp_path: Path, arch: str) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", arch=arch)
    model, reference = read_gguf(path), gguf.GGUFReader(path)
    ours = [(t.name, t.type, t.dims, t.offset, t.nbytes) for t in model.tensors]
    theirs = [
        (t.name, int(t.tensor_type), tuple(int(n) for n in t.shape), int(t.data_offset), int(t.n_bytes))
        for t in reference.tensors
    ]
    assert ours == theirs
    assert model.bytes.total == sum(t[4] for t in theirs)
    assert model.architecture == arch
    assert model.n_vocab == 512
    assert model.chat_template == CHATML
    assert model.n_layers == max(2, MIN_LAYERS.get(arch, 2))
    assert not model.problems


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_experts_are_told_from_the_rest(tmp_path: Path, arch: str) -> None:
    model = read_gguf(make_gguf(tmp_path / "tiny.gguf", arch=arch))
    specs = {t.name: t for t in describe(arch, Dims(n_layer=model.n_layers)).tensors}
    experts = sum(t.nbytes for t in model.tensors if specs[t.name].is_expert)
    assert model.bytes.experts == experts == sum(layer.nbytes for layer in model.expert_layers)
    if experts:
        assert (model.n_experts, model.n_expert_used) == (8, 2)
        assert model.expert_bytes_per_token == experts // 4
        assert all(layer.expert_bytes * 8 == layer.nbytes for layer in model.expert_layers)


def test_prediction_layers_count_neither_as_layers_nor_as_experts(tmp_path: Path) -> None:
    plain = read_gguf(make_gguf(tmp_path / "a.gguf", arch="glm4moe", n_layer=3))
    nextn = read_gguf(make_gguf(tmp_path / "b.gguf", arch="glm4moe", n_layer=3, n_nextn=1))
    assert (nextn.n_layers, nextn.n_nextn) == (3, 1)
    assert nextn.bytes.experts == plain.bytes.experts
    assert nextn.bytes.dense == plain.bytes.dense
    assert nextn.bytes.nextn == nextn.bytes.total - plain.bytes.total > 0


def test_the_type_table_is_ggmls() -> None:
    import ctypes

    import llama_cpp

    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    lib.ggml_type_name.restype, lib.ggml_type_size.restype = ctypes.c_char_p, ctypes.c_size_t
    lib.ggml_blck_size.restype = ctypes.c_int64
    for kind in range(43):
        if lib.ggml_type_size(kind):
            name, block, size = TENSOR_TYPES[kind]
            assert (lib.ggml_type_name(kind).decode().upper(), lib.ggml_blck_size(kind), lib.ggml_type_size(kind)) == (
                name.upper(),
                block,
                size,
            )
        else:
            assert kind not in TENSOR_TYPES
    assert tensor_bytes(12, (512, 3, 2)) == 2 * 144 * 6


# ---- partial files and other sources -------------------------------------------------------------------------------


def test_a_partial_download_says_how_many_bytes_are_needed(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", n_vocab=3000)
    data, whole = path.read_bytes(), read_header(FileSource(path))
    have, header = 0, None
    while header is None:
        try:
            header = read_header(BytesSource("tiny.gguf", data[:have], len(data)))
        except IncompleteHeader as error:
            needed = error.needed
            assert have < needed <= whole.data_offset
            have = needed
    assert header == whole
    with FileSource(path, available=whole.data_offset, size=len(data)) as source:
        assert read_header(source) == whole
    with FileSource(path, available=100, size=len(data)) as source, pytest.raises(IncompleteHeader):
        read_header(source)


def test_a_remote_header_moves_little_more_than_itself(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "big.gguf", n_vocab=20_000, n_embd=256)
    data = path.read_bytes()
    source = FetchSource("big.gguf", len(data), lambda offset, length: data[offset : offset + length])
    header = read_header(source)
    assert header == read_header(FileSource(path))
    assert source.fetched <= header.data_offset + (1 << 20)
    assert len(data) > 10 * source.fetched


# ---- split sets ----------------------------------------------------------------------------------------------------


def test_a_split_set_reads_as_one_model(tmp_path: Path) -> None:
    whole = read_gguf(make_gguf(tmp_path / "whole.gguf"))
    first = make_gguf(tmp_path / "set.gguf", split=3)
    model = read_gguf(first)
    assert model.bytes == whole.bytes
    assert model.expert_layers == whole.expert_layers
    assert [Path(f).name for f in model.files] == [f"set-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert model.file_bytes == sum(Path(f).stat().st_size for f in model.files)
    assert {t.file for t in model.tensors} == {0, 1, 2}
    assert read_gguf(model.files[2]) == model  # any part names the set
    for tensor in model.tensors:
        assert tensor.offset + tensor.nbytes <= Path(model.files[tensor.file]).stat().st_size


def test_missing_parts_are_named(tmp_path: Path) -> None:
    first = make_gguf(tmp_path / "set.gguf", split=3)
    first.with_name("set-00002-of-00003.gguf").unlink()
    model = read_gguf(first)
    assert model.missing == ("set-00002-of-00003.gguf",)
    with pytest.raises(EngineError, match=r"1 of 3 parts are missing \(set-00002-of-00003\.gguf\)"):
        model.require_complete()
    first.unlink()
    with pytest.raises(EngineError, match=r"set-00001-of-00003\.gguf, the first part of the set, is missing"):
        read_gguf(tmp_path / "set-00003-of-00003.gguf")


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first = make_gguf(tmp_path / "set.gguf", split=3)
    second, third = (first.with_name(f"set-0000{i}-of-00003.gguf") for i in (2, 3))
    second.rename(tmp_path / "x")
    third.rename(second)
    (tmp_path / "x").rename(third)
    with pytest.raises(EngineError, match="mixed up"):
        read_gguf(first)
    with pytest.raises(EngineError, match="give it back its name ending in -00001-of-00003"):
        read_gguf(first.rename(tmp_path / "renamed.gguf"))


def test_names_of_parts_stay_in_their_folder() -> None:
    assert part_names("m-00002-of-00003.gguf") == tuple(f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3))
    for odd in (
        "m.gguf",
        "m-00000-of-00003.gguf",
        "m-00004-of-00003.gguf",
        "m-00001-of-99999.gguf",
        "m-٠٠٠٠١-of-00003.gguf",
    ):
        assert part_names(odd) == (odd,)


def test_headers_from_elsewhere_make_the_same_model(tmp_path: Path) -> None:
    local = read_gguf(make_gguf(tmp_path / "set.gguf", split=2))
    headers = [read_header(FileSource(f)) for f in local.files]
    assert from_headers(local.files, headers, local.file_bytes) == local


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Qwen3.5-397B-A17B-UD-IQ2_XXS-00001-of-00004.gguf", "UD-IQ2_XXS"),
        ("Qwen_Qwen3.6-35B-A3B-Q4_K_M.gguf", "Q4_K_M"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("GLM-4.7-Flash-Q4_K.gguf", "Q4_K"),
        ("mixtral-8x7b-instruct-v0.1.Q4_0.gguf", "Q4_0"),
        ("Kimi-K2-UD-TQ1_0-00001-of-00005.gguf", "UD-TQ1_0"),
        ("model.gguf", None),
    ],
)
def test_quant_labels(name: str, label: str | None) -> None:
    assert quant_label(name) == label


# ---- errors --------------------------------------------------------------------------------------------------------


def test_every_error_names_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    good = make_gguf(tmp_path / "good.gguf")
    web = tmp_path / "web.gguf"
    web.write_text("<html>")
    empty = tmp_path / "empty.gguf"
    empty.touch()
    tiny = truncated(good, tmp_path / "two.gguf", 2)
    half = truncated(good, tmp_path / "half.gguf", -1000)
    header = truncated(good, tmp_path / "header.gguf", 900)
    for path, code, text in (
        (tmp_path / "none.gguf", "not_found", "does not exist"),
        (tmp_path, "not_a_file", "is a folder"),
        (Path("/dev/null"), "not_a_file", "not a regular file"),
        (web, "not_gguf", "web page"),
        (empty, "not_gguf", "empty"),
        (tiny, "not_gguf", "only 2 bytes"),
        (half, "truncated", "is cut off"),
        (header, "truncated", "the file ends at byte 900"),
    ):
        with pytest.raises(EngineError, match=text) as caught:
            read_gguf(path)
        assert caught.value.code == code
        assert path.name in caught.value.message


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("qwen3moe.block_count", 100_000, "block_count' must be a whole number from 0 to 512, but it is 100000"),
        ("qwen3moe.expert_count", 1 << 20, "expert_count"),
        ("qwen3moe.expert_count", 4, "doesn't hold 4 experts"),
        ("qwen3moe.expert_used_count", 9, "expert_used_count"),
        ("qwen3moe.context_length", "long", "context_length"),
        ("qwen3moe.block_count", 0, "no layers"),
    ],
)
def test_metadata_that_makes_no_sense(tmp_path: Path, key: str, value: object, text: str) -> None:
    path = make_gguf(tmp_path / "tiny.gguf", extra_kv={key: value})
    with pytest.raises(EngineError, match=text) as caught:
        read_gguf(path)
    assert caught.value.code == "bad_model"


def test_models_that_cannot_chat_say_so(tmp_path: Path) -> None:
    path = tmp_path / "projector.gguf"
    for arch, text in (("clip", "doesn't generate text"), ("future-moe", "doesn't know the architecture")):
        writer = gguf.GGUFWriter(path, arch)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert text in read_gguf(path).problems[0]
    hostile = make_gguf(tmp_path / "h.gguf", name="\x1b[2Jgone\nline")
    assert read_gguf(hostile).name == "[2Jgone line"
