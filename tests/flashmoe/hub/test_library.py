"""The library: what is found where, under which names, what may be deleted, what verify says; and the commands."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe.cli.common import UsageError
from flashmoe.cli.pull import _sure
from flashmoe.hub.errors import HubError
from flashmoe.hub.inuse import InUse, holder
from flashmoe.hub.library import Library, find_entry, resolve_model
from flashmoe.hub.scan import Source
from flashmoe.hub.verify import verify
from flashmoe.retry import patiently
from tests.gguf_factory import make_gguf
from tests.hub_files import grow
from tests.hub_server import HubServer


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder, a folder of the user's, a Hugging Face cache and LM Studio's folder."""
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "FLASHMOE_MODELS", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    models = tmp_path / "home/data/models/acme/Tiny-GGUF/Q8_0"
    models.mkdir(parents=True)
    make_gguf(models / "Tiny-Q8_0.gguf", quant="q8_0", split=3)
    make_gguf(models.parent / "mmproj-F16.gguf")
    own = tmp_path / "own"
    own.mkdir()
    make_gguf(own / "Mine-F16.gguf", seed=1)
    (own / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    (own / "Half-Q4_0-00002-of-00003.gguf").write_bytes(b"GGUF")
    config = tmp_path / "home/config/config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"models: {{extra_folders: [{own}]}}\n")
    blob_source = make_gguf(tmp_path / "blob.gguf", seed=2)
    digest = hashlib.sha256(blob_source.read_bytes()).hexdigest()
    cache = tmp_path / "hf/hub/models--acme--Cached-GGUF"
    (cache / "blobs").mkdir(parents=True)
    shutil.move(blob_source, cache / "blobs" / digest)
    for commit in ("old", "new"):
        snapshot = cache / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "Cached-F16.gguf").symlink_to(cache / "blobs" / digest)
    studio = tmp_path / "user/.lmstudio/models/pub/Studio-GGUF"
    studio.mkdir(parents=True)
    make_gguf(studio / "Studio-F16.gguf", seed=3)
    return tmp_path


def test_every_place_is_searched(places: Path) -> None:
    entries = {e.name: e for e in Library().scan()}
    assert set(entries) == {"Tiny-Q8_0", "Mine-F16", "broken", "Half-Q4_0", "Cached-F16", "Studio-F16"}
    tiny = entries["Tiny-Q8_0"]
    assert (len(tiny.files), tiny.reference, tiny.source, tiny.problem) == (3, "acme/Tiny-GGUF:Q8_0", "library", "")
    assert (tiny.facts.n_layers, tiny.facts.n_experts, tiny.facts.n_expert_used) == (2, 8, 2)
    assert entries["Cached-F16"].repo == "acme/Cached-GGUF"
    assert entries["Studio-F16"].source == "lm-studio"
    assert "GGUF" in entries["broken"].problem or entries["broken"].problem
    half = entries["Half-Q4_0"]
    assert half.missing == ("Half-Q4_0-00001-of-00003.gguf", "Half-Q4_0-00003-of-00003.gguf")
    assert "2 of 3 parts are missing" in half.problem
    assert half.path.name == "Half-Q4_0-00001-of-00003.gguf"


def test_facts_are_remembered_and_noticed_when_stale(places: Path) -> None:
    first = {e.name: e.facts for e in Library().scan()}
    cache = places / "home/cache/library.json"
    assert cache.exists()
    assert {e.name: e.facts for e in Library().scan()} == first
    make_gguf(places / "own/Mine-F16.gguf", n_expert=16)
    assert {e.name: e.facts.n_experts for e in Library().scan()}["Mine-F16"] == 16
    cache.write_text("{broken")
    assert len(Library().scan()) == len(first)


@pytest.mark.parametrize(
    "name", ["Tiny-Q8_0", "tiny-q8_0", "acme/Tiny-GGUF:Q8_0", "acme/Tiny-GGUF", "Tiny-Q8_0-00001-of-00003.gguf"]
)
def test_names_lead_to_the_first_part(places: Path, name: str) -> None:
    assert resolve_model(name).name == "Tiny-Q8_0-00001-of-00003.gguf"


def test_wrong_names_get_a_hint(places: Path) -> None:
    with pytest.raises(HubError, match="did you mean Tiny-Q8_0"):
        resolve_model("Tiny-Q8")
    with pytest.raises(HubError, match="parts are missing"):
        resolve_model("Half-Q4_0")
    make_gguf(places / "own/other.gguf", seed=9)
    (places / "own/deep").mkdir()
    make_gguf(places / "own/deep/Tiny-Q8_0.gguf", n_expert=16)
    with pytest.raises(HubError, match="may be any of"):
        resolve_model("Tiny-Q8_0")


def test_delete_frees_all_parts_and_only_there(places: Path) -> None:
    library = Library()
    entry = library.find("Tiny-Q8_0")
    with InUse(entry.path):
        assert holder(entry.path) == os.getpid()
        with pytest.raises(HubError, match="is loaded by this app"):
            library.delete(entry)
    assert holder(entry.path) is None
    assert library.delete(entry) >= entry.size
    assert not (places / "home/data/models/acme/Tiny-GGUF/Q8_0").exists()
    for name, words in (("Mine-F16", "your own folders"), ("Cached-F16", "hf cache"), ("Studio-F16", "LM Studio")):
        other = library.find(name)
        with pytest.raises(HubError, match=words):
            library.delete(other)
        assert other.path.exists()


def test_a_model_held_by_another_process_stays(places: Path) -> None:
    entry = Library().find("Tiny-Q8_0")
    code = (
        f"import sys; from flashmoe.hub.inuse import InUse; held = InUse({str(entry.path)!r});"
        "print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(HubError, match=f"is loaded by process {child.pid}"):
            Library().delete(entry)
        child.communicate("")
    Library().delete(entry)


def test_verify_tells_damage(places: Path) -> None:
    library = Library()
    assert [c.status for c in verify(library.find("Cached-F16"), library)] == ["ok"]
    assert [c.status for c in verify(library.find("Mine-F16"), library)] == ["unknown"]
    blob = library.find("Cached-F16").path.resolve()
    with blob.open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    check = next(iter(verify(library.find("Cached-F16"), library)))
    assert check.status == "damaged"
    assert "pull it again" in check.message


def test_a_folder_with_links_in_circles_ends(tmp_path: Path) -> None:
    make_gguf(tmp_path / "a.gguf")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "same.gguf").symlink_to(tmp_path / "a.gguf")
    (tmp_path / "gone.gguf").symlink_to(tmp_path / "nowhere")
    assert [e.name for e in Library([Source("folder", tmp_path)]).scan()] == ["a"]


def test_any_part_of_a_set_is_found_by_path(places: Path) -> None:
    part = places / "home/data/models/acme/Tiny-GGUF/Q8_0/Tiny-Q8_0-00002-of-00003.gguf"
    assert find_entry(Library(), str(part)).name == "Tiny-Q8_0"
    outside = make_gguf(places / "lonely.gguf")
    assert find_entry(Library(), str(outside)).source == "folder"


def test_patience_has_an_end() -> None:
    waits: list[float] = []
    answers = [HubError("server", "x"), HubError("rate_limited", "x", retry_after=7.0), "done"]

    def ask() -> str:
        answer = answers.pop(0)
        if isinstance(answer, HubError):
            raise answer
        return answer

    assert patiently(ask, sleep=waits.append) == "done"
    assert waits[1] == 7.0
    for code, retry_after in (("offline", None), ("gated", None), ("rate_limited", 4000.0)):

        def fail(code: str = code, retry_after: float | None = retry_after) -> str:
            raise HubError(code, "x", retry_after=retry_after)

        with pytest.raises(HubError):
            patiently(fail, sleep=lambda _: pytest.fail("it waited"))


# ---- the commands


def run(*args: str, env: dict[str, str] | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flashmoe.cli.main", *args], env={**os.environ, **(env or {})}, input=stdin,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture
def hub(places: Path) -> Iterator[tuple[HubServer, dict[str, str]]]:
    folder = places / "srv/acme/New-GGUF"
    folder.mkdir(parents=True)
    make_gguf(folder / "New-Q8_0.gguf", quant="q8_0", split=2, seed=5)
    make_gguf(folder / "New-Q4_K_M.gguf", quant="q8_0", seed=6)
    with HubServer(places / "srv") as server:
        yield server, {"HF_ENDPOINT": server.endpoint}


def test_pull_ls_verify_rm(hub: tuple[HubServer, dict[str, str]], places: Path) -> None:
    _, env = hub
    found = run("search", "new", "--json", env=env)
    assert [h["repo"] for h in json.loads(found.stdout)] == ["acme/New-GGUF"]
    pulled = run("pull", "acme/New-GGUF:Q8_0", "--json", env=env)
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(pulled.stdout.splitlines()[-1])["state"] == "done"
    default = run("pull", "acme/New-GGUF", env=env)
    assert default.stdout.strip().endswith("New-Q4_K_M.gguf")
    assert "usual balance" in default.stderr
    listed = json.loads(run("ls", "new", "--json").stdout)
    assert {m["name"]: m["parts"] for m in listed["models"]} == {"New-Q8_0": 2, "New-Q4_K_M": 1}
    assert run("verify", "New-Q8_0").returncode == 0
    first = Path(run("ls", "New-Q8_0", "--paths").stdout.strip())
    with first.open("r+b") as file:
        file.write(b"X")
    damaged = run("verify", "New-Q8_0")
    assert damaged.returncode == 1
    assert "pull it again" in damaged.stderr
    assert run("rm", "New-Q8_0").returncode == 2, "nobody is there to be asked"
    gone = run("rm", "New-Q8_0", "--yes")
    assert ", freeing " in gone.stderr
    assert not first.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_pull_says_where_it_is_and_goes_on(hub: tuple[HubServer, dict[str, str]], number: int) -> None:
    server, env = hub
    folder = server.root / "acme/Slow-GGUF"
    folder.mkdir()
    make_gguf(folder / "Slow-Q8_0.gguf", quant="q8_0")
    grow(folder / "Slow-Q8_0.gguf", 4 << 20, 1)
    server.faults.rate = 1e6
    command = [sys.executable, "-m", "flashmoe.cli.main", "pull", "acme/Slow-GGUF"]
    with subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as child:
        while server.stats.body_bytes < 1 << 20:
            time.sleep(0.01)
        child.send_signal(number)
        _, err = child.communicate(timeout=300)
    assert child.returncode == 130
    assert "Paused at" in err
    assert "Traceback" not in err
    server.faults.rate = 0
    assert run("pull", "acme/Slow-GGUF", env=env).returncode == 0
    assert server.stats.body_bytes < 1.3 * (4 << 20)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["pull", "nonsense"], 2, "isn't a repository"),
        (["pull", "acme/New-GGUF:Q5_K_M"], 1, "it has Q4_K_M, Q8_0"),
        (["pull", "acme/Nothing"], 1, "check the name"),
        (["rm", "nothing", "--yes"], 1, "No model on this machine"),
        (["verify", "nothing"], 1, "No model on this machine"),
        (["pull", "acme/New-GGUF", "--limit", "-1"], 2, "isn't a bandwidth"),
    ],
)
def test_mistakes(hub: tuple[HubServer, dict[str, str]], args: list[str], code: int, words: str) -> None:
    done = run(*args, env=hub[1])
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_the_library_works_and_the_hub_says_so(hub: tuple[HubServer, dict[str, str]]) -> None:
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        for args in (["search", "x"], ["pull", "acme/New-GGUF"]):
            done = run(*args, env={**hub[1], **env})
            assert done.returncode == 3
            assert "HF_HUB_OFFLINE" in done.stderr or "no network" in done.stderr
        assert run("ls", env={**hub[1], **env}).returncode == 0
    assert hub[0].stats.requests["api"] == 0


def test_garbled_answers_are_one_sentence(
    hub: tuple[HubServer, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, env = hub
    server.faults.status = {"api": [418]}
    done = run("search", "x", env=env)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1


# ---- one answer in every command


def main_of(monkeypatch: pytest.MonkeyPatch, env: dict[str, str], free: int, answer: str, *args: str) -> int:
    """Runs a command in this process, on a disk with so many bytes free and a person at the terminal."""
    from flashmoe.cli.main import main

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("flashmoe.hub.downloads.jobs.free_bytes", lambda path: free)
    monkeypatch.setattr("flashmoe.hub.lookup.free_bytes", lambda path: free)
    monkeypatch.setattr("flashmoe.hub.downloads.jobs.JobStore.check_space", lambda *a, **k: None)
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})(answer))
    return main(list(args))


@pytest.mark.parametrize(
    ("answer", "args", "code", "there"), [("n\n", [], 1, False), ("y\n", [], 0, True), ("", ["--yes"], 0, True)]
)
def test_more_than_half_of_the_free_disk_asks_first(
    hub: tuple[HubServer, dict[str, str]], places: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], answer: str, args: list[str], code: int, there: bool,
) -> None:  # fmt: skip
    server, env = hub
    grow(server.root / "acme/New-GGUF/New-Q4_K_M.gguf", 3 << 20, 1)
    assert main_of(monkeypatch, env, 5 << 20, answer, "pull", "acme/New-GGUF:Q4_K_M", *args) == code
    said = capsys.readouterr().err
    assert ("more than half of the" in said) is (not args)
    assert bool(list((places / "home/data/models").rglob("New-Q4_K_M.gguf"))) is there


def test_without_a_terminal_a_large_download_says_what_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UsageError, match="add --yes"):
        _sure("acme/New-GGUF", "Q4_K_M", 3 << 20, 4 << 20, yes=False)


def test_search_plan_and_pull_take_the_same_file(hub: tuple[HubServer, dict[str, str]], places: Path) -> None:
    server, env = hub
    folder = server.root / "acme/New-GGUF"
    (folder / "mtp").mkdir()
    make_gguf(folder / "mtp/New-Q4_0.gguf", seed=7)
    make_gguf(folder / "draft-New-UD-Q4_K_XL.gguf", seed=8)
    make_gguf(folder / "New-F16.gguf", seed=9)
    (folder / "New-Q6_K-00002-of-00002.gguf").write_bytes(b"GGUF")
    listed = run("search", "acme/New-GGUF", env=env)
    chosen = [line for line in listed.stdout.splitlines() if "pull takes this one" in line]
    assert len(chosen) == 1
    assert chosen[0].startswith("Q4_K_M")
    assert "Q6_K" in listed.stdout
    assert "(incomplete on the hub: 1 missing)" in listed.stdout
    assert "draft" not in listed.stdout
    planned = run("plan", "acme/New-GGUF", "--json", "--no-probe", env=env)
    assert "Taking Q4_K_M" in planned.stderr
    for command in ("pull", "plan"):
        lacking = run(command, "acme/New-GGUF:Q6_K", env=env)
        assert lacking.returncode == 1
        assert "1 part is missing of 2 (New-Q6_K-00001-of-00002.gguf)" in lacking.stderr
    pulled = run("pull", f"{env['HF_ENDPOINT']}/acme/New-GGUF", env=env)
    assert pulled.stdout.strip().endswith("New-Q4_K_M.gguf"), pulled.stderr
    assert "sha256 verified" in pulled.stderr
    address = f"{env['HF_ENDPOINT']}/acme/New-GGUF/blob/main/New-F16.gguf"
    assert "isn't downloaded; `flashmoe-tui pull" in run("run", address, "hello", env=env).stderr
    assert run("pull", address, env=env).stdout.strip().endswith("New-F16.gguf")
    assert run("plan", address, "--no-probe", "--json", env=env).returncode in (0, 1)
