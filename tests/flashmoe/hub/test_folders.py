"""Folders as they are: names that aren't UTF-8, links, loops, case, files that vanish, ten thousand of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import gguf
import pytest

from backends.gguf.file import read_gguf
from backends.interface import EngineError
from flashmoe.hub import facts as facts_module
from flashmoe.hub import scan as scan_module
from flashmoe.hub.errors import HubError
from flashmoe.hub.facts import FactsCache
from flashmoe.hub.library import Library, closest, resolve_model
from flashmoe.hub.names import readable
from flashmoe.hub.scan import MAX_DEPTH, Source, Walk
from tests.gguf_factory import make_gguf, split_paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "FLASHMOE_MODELS"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "home/data/models"
    root.mkdir(parents=True)
    return root


def library(root: Path, tmp_path: Path) -> Library:
    return Library([Source("library", root)], FactsCache(tmp_path / "facts.json"))


def command(*args: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "flashmoe.cli.main", *args], capture_output=True, timeout=300)


def test_a_name_that_is_not_utf8_is_listed_escaped(folder: Path, tmp_path: Path) -> None:
    odd = os.fsencode(folder) + b"/bad\xff.gguf"
    make_gguf(folder / "x.gguf").rename(os.fsdecode(odd))
    make_gguf(folder / "good name.gguf", seed=1)
    found = library(folder, tmp_path)
    entries = {e.name: e for e in found.scan()}
    assert set(entries) == {"bad\\xff", "good name"}
    assert "isn't UTF-8; rename it" in entries["bad\\xff"].problem
    assert os.fsencode(entries["bad\\xff"].path) == odd, "the path stays what it is"
    assert found.find("bad\\xff").path == entries["bad\\xff"].path
    assert {e.name for e in library(folder, tmp_path).scan()} == set(entries), "also when it is remembered"
    listed = command("ls")
    assert listed.returncode == 0, listed.stderr
    assert b"bad\\xff" in listed.stdout
    paths = command("ls", "--paths")
    assert odd in paths.stdout.splitlines(), "for scripts the path is its bytes"
    as_json = json.loads(command("ls", "--json").stdout)
    assert [m["name"] for m in as_json["models"]] == ["bad\\xff", "good name"]
    assert command("verify").returncode == 0


def test_links_to_folders_are_searched_once_each(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "disk2/models"
    outside.mkdir(parents=True)
    make_gguf(outside / "Far-Q4_0.gguf")
    make_gguf(folder / "Near-Q4_0.gguf", seed=1)
    (folder / "a-link").symlink_to(outside)
    (folder / "again").symlink_to(outside)
    (outside / "loop").symlink_to(folder)
    (folder / "self").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    entries = library(folder, tmp_path).scan()
    assert [e.name for e in entries] == ["Far-Q4_0", "Near-Q4_0"]
    assert entries[1].path == folder / "Near-Q4_0.gguf", "a real folder's path comes before a link's"


def test_case_blanks_and_extensions(folder: Path, tmp_path: Path) -> None:
    make_gguf(folder / "Model-Q4_0.gguf")
    make_gguf(folder / "model-q4_0.gguf", n_expert=16)
    make_gguf(folder / "LOUD-Q8_0.GGUF", seed=3)
    make_gguf(folder / "two  blanks.gguf", seed=4)
    found = library(folder, tmp_path)
    assert len(found.scan()) == 4
    assert found.find("Model-Q4_0").path.name == "Model-Q4_0.gguf", "the exact name counts first"
    assert found.find("model-q4_0").path.name == "model-q4_0.gguf"
    assert found.find("loud-q8_0").path.name == "LOUD-Q8_0.GGUF"
    assert found.find("two  blanks").path.name == "two  blanks.gguf"
    with pytest.raises(HubError, match="may be any of"):
        found.find("MODEL-Q4_0")


def test_a_repository_is_found_as_it_is_pasted(folder: Path) -> None:
    (folder / "acme/Tiny-GGUF").mkdir(parents=True)
    make_gguf(folder / "acme/Tiny-GGUF/Tiny-Q4_0.gguf")
    make_gguf(folder / "acme/Tiny-GGUF/Tiny-UD-Q8_K_XL.gguf", n_expert=16)
    for text, name in (
        ("hf.co/acme/Tiny-GGUF:Q4_0", "Tiny-Q4_0"),
        ("https://huggingface.co/acme/Tiny-GGUF/blob/main/Tiny-Q4_0.gguf", "Tiny-Q4_0"),
        ("acme/Tiny-GGUF:Q8_K_XL", "Tiny-UD-Q8_K_XL"),
    ):
        assert resolve_model(text).stem == name
    with pytest.raises(HubError, match="may be any of"):
        resolve_model("hf.co/acme/Tiny-GGUF")


def test_files_that_vanish_meanwhile(folder: Path, tmp_path: Path) -> None:
    kept = make_gguf(folder / "kept.gguf")
    stop = threading.Event()

    def churn() -> None:
        data, n = kept.read_bytes(), 0
        while not stop.is_set():
            n += 1
            fleeting = folder / f"fleeting-{n % 7}.gguf"
            fleeting.write_bytes(data)
            fleeting.rename(folder / f"moved-{n % 5}.gguf")
            (folder / f"moved-{(n + 2) % 5}.gguf").unlink(missing_ok=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            assert "kept" in {e.name for e in library(folder, tmp_path).scan()}
    finally:
        stop.set()
        thread.join()


def test_one_item_never_hides_the_others(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_gguf(folder / "good.gguf")
    make_gguf(folder / "odd.gguf", seed=1)
    real = facts_module.read_gguf

    def read(path: Path) -> object:
        if path.name == "odd.gguf":
            raise ZeroDivisionError("a header that nobody thought of")
        return real(path)

    monkeypatch.setattr(facts_module, "read_gguf", read)
    entries = {e.name: e for e in library(folder, tmp_path).scan()}
    assert not entries["good"].problem
    assert "can't be read: unexpected error (ZeroDivisionError" in entries["odd"].problem
    real_entries = scan_module.entry_of

    def entry(source: Source, files: list[Path], repo: str) -> object:
        if files[0].name == "odd.gguf":
            raise OverflowError
        return real_entries(source, files, repo)

    monkeypatch.setattr(scan_module, "entry_of", entry)
    broken = library(folder, tmp_path)
    assert broken.scan() == []
    assert "can't be listed (OverflowError)" in broken.notes[0]


def test_ten_thousand_files_are_all_listed(folder: Path, tmp_path: Path) -> None:
    for i in range(100):
        sub = folder / f"owner/repo-{i:02d}"
        sub.mkdir(parents=True)
        for k in range(100):
            (sub / f"m{k:02d}-Q4_0.gguf").write_bytes(b"GGUF" + bytes([i, k]))
    found = library(folder, tmp_path)
    entries = found.scan()
    assert len(entries) == 10_000
    assert all(e.problem for e in entries)
    assert found.notes == []
    assert len(found.scan()) == 10_000


def test_a_whole_disk_is_cut_and_that_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(20):
        (folder / f"m{i}.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(scan_module, "MAX_FILES", 10)
    found = library(folder, tmp_path)
    assert len(found.scan(facts=False)) <= 10
    assert "more than 10 files" in found.notes[0]
    deep = folder / "/".join("d" * (MAX_DEPTH + 2))
    assert list(Walk(deep)) == []


def test_a_thousand_links_to_one_file_are_refused_at_once(folder: Path, tmp_path: Path) -> None:
    """No set: each part would be read anew, and all of it kept."""
    small = make_gguf(tmp_path / "small.gguf")
    for name in split_paths(folder / "x.gguf", 1000):
        os.link(small, name)
    assert len(list(folder.iterdir())) == 1000
    reads = 0
    real = read_gguf.__globals__["_read_local"]

    def counted(path: Path) -> object:
        nonlocal reads
        reads += 1
        return real(path)

    read_gguf.__globals__["_read_local"] = counted
    try:
        with pytest.raises(EngineError, match="unlike its name"):
            read_gguf(folder / "x-00001-of-01000.gguf")
    finally:
        read_gguf.__globals__["_read_local"] = real
    assert reads == 1
    assert "unlike its name" in library(folder, tmp_path).scan()[0].problem


def test_of_a_sets_parts_only_what_counts_is_kept(folder: Path) -> None:
    """Every part brings a megabyte of text: the sum isn't kept."""
    n = 40
    for i, path in enumerate(split_paths(folder / "big.gguf", n)):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", n)
        writer.add_string("general.description", "x" * 900_000)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    tracemalloc.start()
    try:
        assert read_gguf(folder / f"big-00001-of-{n:05d}.gguf").missing == ()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20, f"{peak >> 20} MiB at most at once"


def test_ls_without_a_match_names_the_closest(folder: Path) -> None:
    for i in range(10):
        make_gguf(folder / f"Qwen3-{i}0B-Q4_K_M.gguf", seed=i)
    said = command("ls", "qwn3-30b").stderr.decode()
    assert "No model here is called “qwn3-30b”; the closest: Qwen3-30B-Q4_K_M" in said
    assert "No models here yet" not in said
    said = command("ls", "zzzz").stderr.decode()
    assert "None of the 10 models here is called anything like “zzzz”" in said
    assert command("ls", "30b").stdout.decode().count("Qwen3-30B") == 1
    entries = Library().scan(facts=False)
    assert closest("30B-Q4", entries)[0] == "Qwen3-30B-Q4_K_M"


def test_readable_names_can_be_printed() -> None:
    assert readable("a\udcff\udc80b") == "a\\xff\\x80b"
    assert readable("ünï") == "ünï"
