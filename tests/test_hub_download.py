"""The downloader against every fault that the loopback hub can show, and against the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import structs

from flashmoe.hub.downloads import DownloadManager
from flashmoe.hub.errors import HubError
from flashmoe.hub.jobs import MANIFEST, JobStore
from flashmoe.hub.partfile import BLOCK, PartFile, PartHead
from flashmoe.hub.session import HubClient
from flashmoe.hub.transfer import Options
from flashmoe.hub.views import JobView
from tests.hub_server import Faults, HubServer
from tests.test_hub_kill import make_set, sha256

MIB = 1 << 20
REPO = "acme/Tiny-A1B-GGUF"
FAST = Options(connections=3, backoff_s=0.02, backoff_max_s=0.1, attempts=6, space_margin=0)
PATIENT = Options(connections=3, backoff_s=0.02, backoff_max_s=0.1, attempts=20, space_margin=0)
"""With half of all connections dropped one may well be unlucky six times in a row: the threads decide."""


class Place:
    """A loopback hub with one set of three parts, and a models folder."""

    def __init__(self, tmp_path: Path, size: int = 6 * MIB) -> None:
        self.models = tmp_path / "models"
        self.files = make_set(tmp_path / "srv" / REPO / "Q8_0", size)
        self.hub = HubServer(tmp_path / "srv")
        self.total = sum(f.stat().st_size for f in self.files)
        self.events: list[JobView] = []

    @contextmanager
    def manager(self, options: Options = FAST, **more: float) -> Iterator[DownloadManager]:
        client = HubClient(self.hub.endpoint, timeout_s=5.0, read_timeout_s=2.0)
        manager = DownloadManager(self.models, client, options, on_event=self.events.append, **more)
        try:
            yield manager
        finally:
            manager.close()

    def pull(self, manager: DownloadManager, timeout: float = 30.0) -> JobView:
        repo = manager.client.repo(REPO)
        return manager.wait(manager.add(repo, repo.quants[0]), timeout)

    def part(self, number: int) -> Path:
        return self.models / REPO / "Q8_0" / self.files[number].name

    def assert_right(self) -> None:
        assert [sha256(self.part(i)) for i in range(3)] == [sha256(f) for f in self.files]
        left = [p.name for p in self.models.rglob("*") if ".part" in p.name or p.name.endswith(".new")]
        assert left == []
        assert not list((self.models / ".downloads").glob("*.json"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    place = Place(tmp_path)
    with place.hub:
        yield place


def until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


# ---- the network


@pytest.mark.parametrize(
    "faults",
    [
        Faults(drop=0.5),
        Faults(status={"cdn": [500, 503, 502, 504]}),
        Faults(status={"cdn": [429, 429], "resolve": [429]}, retry_after="0"),
        Faults(status={"resolve": [500, 503]}),
        Faults(expire_after=2),
        Faults(stall=0.2, stall_s=30.0),
        Faults(xet=True),
    ],
    ids=["drops", "5xx", "429", "resolve-5xx", "expiry", "stalls", "xet"],
)
def test_gets_through(place: Place, faults: Faults) -> None:
    place.hub.faults = faults
    with place.manager(PATIENT) as manager:
        view = place.pull(manager)
    assert view.state == "done", view
    place.assert_right()
    assert place.hub.stats.body_bytes <= place.total * 1.5


def test_several_connections_and_all_parts_at_once(place: Place) -> None:
    place.hub.faults.rate = 4e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])

        def all_parts() -> bool:
            view = manager.get(id)
            return view is not None and all(0 < f.done < f.size for f in view.files)

        until(all_parts)
        place.hub.faults.rate = 0
        assert manager.wait(id, 20).state == "done"
    place.assert_right()


def test_gives_up_and_goes_on_later(place: Place) -> None:
    place.hub.faults.status = {"cdn": [503] * 200}
    with place.manager() as manager:
        view = place.pull(manager)
        assert (view.state, view.code) == ("failed", "server")
        assert "resume it later" in view.message
        assert "\n" not in view.message
        place.hub.faults.status = {}
        manager.resume(view.id)
        assert manager.wait(view.id, 20).state == "done"
    place.assert_right()


def test_garbage_is_fetched_again_once_then_refused(place: Place) -> None:
    place.hub.faults.garbage = 1.0
    with place.manager() as manager:
        view = place.pull(manager)
    assert (view.state, view.code) == ("failed", "checksum")
    assert not place.part(0).exists()
    assert any("arrived damaged" in e.message for e in place.events)


def test_a_server_without_ranges_is_named(place: Place) -> None:
    place.hub.faults.ignore_range = True
    with place.manager() as manager:
        view = place.pull(manager)
    assert view.state == "failed"
    assert "ranges" in view.message


def test_retry_after_is_honoured(place: Place) -> None:
    place.hub.faults.status = {"cdn": [429]}
    place.hub.faults.retry_after = "1"
    before = time.monotonic()
    with place.manager(Options(connections=1, backoff_s=0.01, space_margin=0)) as manager:
        assert place.pull(manager).state == "done"
    assert time.monotonic() - before >= 1.0


def test_etag_change_restarts_that_file_only(place: Place) -> None:
    place.hub.faults.rate = 3e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > place.total // 2)
        manager.pause(id)
        manager.wait(id, 5)
    sent = place.hub.stats.body_bytes
    with place.files[1].open("r+b") as file:  # a new upload of part 2, of another length too
        file.seek(MIB)
        file.write(b"changed" * 100)
        file.seek(0, os.SEEK_END)
        file.write(b"longer")
    place.hub.faults.rate = 0
    with place.manager() as manager:
        manager.start()
        manager.resume(id)
        view = manager.wait(id, 20)
    assert view.state == "done", view
    assert any("changed on the hub" in e.message for e in place.events)
    place.assert_right()
    # Part 2 anew, and the rest of the others: never the whole set again.
    assert place.hub.stats.body_bytes - sent <= place.total - sent + place.total / 3 + 6 * MIB / 3


def test_a_file_that_changes_under_a_running_download(place: Place) -> None:
    place.hub.faults.rate = 4e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > place.total // 2)
        with place.files[0].open("r+b") as file:  # the begun part, changed under its own signed address
            file.seek(-64, os.SEEK_END)
            file.write(b"another end")
        place.hub.faults.rate = 0
        view = manager.wait(id, 20)
    assert view.state == "done", view
    place.assert_right()


def test_pulling_again_after_a_change_keeps_what_is_the_same(place: Place) -> None:
    with place.manager() as manager:
        assert place.pull(manager).state == "done"
    sent = place.hub.stats.body_bytes
    with place.files[2].open("ab") as file:
        file.write(b"new tail")
    with place.manager() as manager:
        assert place.pull(manager).state == "done"
    place.assert_right()
    assert place.hub.stats.body_bytes - sent == place.files[2].stat().st_size


def test_the_token_stays_with_the_hub(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "granted-secret")
    place.hub.tokens.add("granted-secret")
    place.hub.gated.add(REPO)
    with place.manager() as manager:
        assert place.pull(manager).state == "done"
    assert place.hub.stats.tokens_at_cdn == 0
    written = [p.read_bytes() for p in place.models.rglob("*") if p.is_file()]
    assert all(b"granted-secret" not in data for data in written)
    assert "granted-secret" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("token", "code", "hint"),
    [("", "gated", "accept its terms"), ("plain", "gated", "ask for it"), ("stale", "unauthorized", "renew it")],
)
def test_gated_says_what_to_do(place: Place, monkeypatch: pytest.MonkeyPatch, token: str, code: str, hint: str) -> None:
    place.hub.gated.add(REPO)
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        if token == "plain":
            place.hub.tokens.add(token)
        view = manager.wait(manager.add(repo, repo.quants[0]), 10)
    assert (view.state, view.code) == ("failed", code)
    assert hint in view.message
    assert not list(place.models.rglob("*.part*")), "a refused download takes no space"


def test_offline_mode_is_said_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.manager() as manager:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set") as caught:
            manager.client.repo(REPO)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
            manager.client.search("tiny")
    assert caught.value.code == "offline"
    assert place.hub.stats.requests["api"] == 0


def test_no_network_is_said_without_long_retries() -> None:
    client = HubClient("http://127.0.0.1:9")
    with pytest.raises(HubError) as caught:
        client.search("tiny")
    assert (caught.value.code, caught.value.exit_code) == ("offline", 3)


GOOD = '"rfilename": "m-Q4_0.gguf", "size": 5, "blobId": "x"'
GARBAGE = [
    "", "null", "7", "[]", "{}", "<html>", "[[[[", '{"id": 7}', '{"id": "a/b", "siblings": 3}',
    '[{"id": "../../x"}, 9, null]',
    '{"id": "a/b", "siblings": [{"rfilename": null}]}', '[{"id": "a/b", "lastModified": "yesterday", "tags": 5}]',
    f'{{"id": "a/b", "sha": "c", "siblings": [{{{GOOD}, "lfs": {{"size": -1, "sha256": "zz", "pointerSize": 1}}}}]}}',
    '{"id": "a/b", "sha": "../..", "siblings": [{"rfilename": "../m-Q4_0.gguf", "size": 5, "blobId": "x"}]}',
    '{"id": "a/b", "siblings": [{"rfilename": "m-Q4_0.gguf", "size": 1e300, "blobId": "x"}]}',
    '{"id": "a/b", "siblings": [{"rfilename": "m-Q4_0.gguf", "size": -5, "blobId": "x"}]}',
    '{"id": "a/b", "gated": {"a": 1}, "createdAt": "\\u0000", "siblings": []}',
    '{"id": "a/b", "cardData": {"license": ["x", "\\u001b[31m"]}, "siblings": []}',
    "[" * 100_000,
]  # fmt: skip


def sentence_of(ask: Callable[[], object]) -> str:
    """What the user would read where `ask` fails."""
    try:
        ask()
    except HubError as error:
        return error.message
    return ""


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
def test_any_answer_is_a_listing_or_one_sentence(place: Place, body: str) -> None:
    place.hub.raw_api = body.encode()
    with place.manager() as manager:
        for ask in (lambda: manager.client.search("x"), lambda: manager.client.repo(REPO)):
            assert "\n" not in sentence_of(ask)
        try:
            repo = manager.client.repo(REPO)
        except HubError:
            return
        for quant in repo.quants:
            with contextlib.suppress(HubError):
                manager.wait(manager.add(repo, quant), 10)
    inside = [p for p in place.models.rglob("*") if p.is_file() and p.name != "lock"]
    assert inside == []


def test_in_an_app_that_stays_open_it_tries_again_by_itself(place: Place) -> None:
    place.hub.faults.status = {"cdn": [503] * 15}
    with place.manager(structs.replace(FAST, attempts=3, retry_failed_s=0.1)) as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: (view := manager.get(id)) is not None and view.state == "done", 20)
    assert any(e.state == "failed" and "another round in" in e.message for e in place.events)
    place.assert_right()


# ---- pause, resume, cancel, several processes


def test_pause_keeps_resume_continues_over_a_restart(place: Place) -> None:
    place.hub.faults.rate = 4e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > place.total // 3)
        manager.pause(id)
        view = manager.wait(id, 5)
        assert view.state == "paused"
        assert view.done > place.total // 5
    place.hub.faults.rate = 0
    with place.manager() as manager:
        manager.start()
        idle = manager.jobs()[0]
        assert idle.state == "paused", "what was paused stays paused"
        assert idle.done == view.done
        manager.resume(id)
        assert manager.wait(id, 20).state == "done"
    place.assert_right()
    assert place.hub.stats.body_bytes <= place.total + 8 * BLOCK * 3


def test_what_ran_goes_on_at_the_next_start(place: Place) -> None:
    place.hub.faults.rate = 4e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > MIB)
    place.hub.faults.rate = 0
    with place.manager() as manager:
        manager.start()
        assert manager.wait(id, 20).state == "done"
    place.assert_right()


def test_a_stalled_server_does_not_hold_up_pause(place: Place) -> None:
    place.hub.faults = Faults(stall=1.0, stall_s=20.0)
    with place.manager(Options(connections=3, space_margin=0)) as manager:
        manager.client.read_timeout_s = 60.0
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.requests["cdn"] >= 3)
        time.sleep(0.3)
        before = time.monotonic()
        manager.pause(id)
        assert manager.wait(id, 10).state == "paused"
        assert time.monotonic() - before < 3.0


def test_cancel_leaves_nothing(place: Place) -> None:
    place.hub.faults.rate = 4e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > MIB)
        manager.cancel(id)
        assert manager.wait(id, 5).state == "cancelled"
        until(lambda: not (place.models / "acme").exists())
    assert not list((place.models / ".downloads").glob("*.json"))


def test_two_processes_never_write_one_file(place: Place) -> None:
    place.hub.faults.rate = 1e6
    env = {**os.environ, "HF_ENDPOINT": place.hub.endpoint, "FLASHMOE_MODELS": str(place.models)}
    command = [sys.executable, "-m", "flashmoe.cli.main", "pull", f"{REPO}:Q8_0"]
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > MIB)
        other = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        assert other.returncode == 3, other.stderr
        assert f"being downloaded by process {os.getpid()}" in other.stderr
        place.hub.faults.rate = 0
        assert manager.wait(id, 20).state == "done"
    place.assert_right()


def test_bandwidth_limit(place: Place) -> None:
    with place.manager(limit_bytes_s=4e6) as manager:
        before = time.monotonic()
        assert place.pull(manager).state == "done"
    assert time.monotonic() - before > (place.total - 2e6) / 4e6 * 0.8


# ---- the disk


def test_power_loss_trusts_nothing_that_is_not_there(place: Place) -> None:
    """Blocks whose table entries reached the disk and whose data didn't are fetched again, and nothing else is."""
    place.hub.faults.rate = 8e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > place.total // 2)
    part = place.part(0).with_name(place.part(0).name + ".part")
    with part.open("r+b") as file:  # zeros, as after a crash of a journal without data; and one torn block
        file.write(bytes(2 * BLOCK))
        file.seek(4 * BLOCK + 100)
        file.write(b"torn")
    os.truncate(place.part(1).with_name(place.part(1).name + ".part"), 3 * BLOCK + 50)
    sent = place.hub.stats.body_bytes
    place.hub.faults.rate = 0
    with place.manager() as manager:
        manager.start()
        assert manager.wait(id, 20).state == "done"
    place.assert_right()
    assert place.hub.stats.body_bytes - sent < place.total - sent + 3 * BLOCK + place.total // 3


def test_a_torn_table_costs_that_file_only(place: Place) -> None:
    place.hub.faults.rate = 8e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > place.total // 2)
    state = place.part(0).with_name(place.part(0).name + ".part.state")
    state.write_bytes(b"\xff" * 100)
    place.hub.faults.rate = 0
    with place.manager() as manager:
        manager.start()
        assert manager.wait(id, 20).state == "done"
    place.assert_right()


def test_files_copied_here_by_hand_are_taken(place: Place) -> None:
    place.part(1).parent.mkdir(parents=True)
    shutil.copy(place.files[1], place.part(1))
    with place.manager() as manager:
        assert place.pull(manager).state == "done"
    place.assert_right()
    assert place.hub.stats.body_bytes == place.total - place.files[1].stat().st_size


def test_space_is_checked_first_with_what_others_take(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        monkeypatch.setattr("flashmoe.hub.jobs.free_bytes", lambda path: place.total - 1)
        view = manager.wait(manager.add(repo, repo.quants[0]), 5)
        assert (view.state, view.code) == ("paused", "no_space")
        assert "free" in view.message
        assert "FLASHMOE_MODELS" in view.message
        # Enough for one, not for two:
        monkeypatch.setattr("flashmoe.hub.jobs.free_bytes", lambda path: int(place.total * 1.5))
        place.hub.faults.rate = 1e6
        # The ledger is to count here, not the allocation:
        manager.options = Options(connections=3, preallocate=False, space_margin=0)
        manager.resume(view.id)
        until(lambda: place.hub.stats.body_bytes > 0)
        store = JobStore(place.models)
        job = store.load(view.id)
        assert job is not None
        twin = structs.replace(job, id="twin", repo="acme/Other-GGUF")
        with pytest.raises(HubError, match="other downloads will take"):
            store.check_space(twin, margin=0)
        place.hub.faults.rate = 0


def _tmpfs(folder: Path, size: str) -> bool:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True)
    return done.returncode == 0


def fill(hog: Path) -> None:
    """Uses up whatever space is left."""
    with hog.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(64 * 1024))


@pytest.mark.parametrize("preallocate", [True, False])
def test_a_disk_that_fills_up_pauses(place: Place, tmp_path: Path, preallocate: bool) -> None:
    disk = tmp_path / "disk"
    if not _tmpfs(disk, "8m"):
        pytest.skip("mounting a small tmpfs needs root")
    try:
        place.models = disk / "models"
        hog = disk / "hog"
        if not preallocate:
            place.hub.faults.rate = 4e6
        else:
            hog.write_bytes(bytes(3 * MIB))
        options = Options(connections=3, preallocate=preallocate, space_margin=0)
        with place.manager(options) as manager:
            repo = manager.client.repo(REPO)
            id = manager.add(repo, repo.quants[0])
            if not preallocate:
                until(lambda: place.hub.stats.body_bytes > MIB)
                fill(hog)
            view = manager.wait(id, 20)
            assert (view.state, view.code) == ("paused", "no_space"), view
            hog.unlink()
            place.hub.faults.rate = 0
            manager.resume(id)
            assert manager.wait(id, 20).state == "done"
        place.assert_right()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_preallocation_is_seen_by_others(place: Place) -> None:
    place.hub.faults.rate = 1e6
    with place.manager() as manager:
        repo = manager.client.repo(REPO)
        id = manager.add(repo, repo.quants[0])
        until(lambda: place.hub.stats.body_bytes > 0)
        parts = list(place.models.rglob("*.part"))
        allocated = sum(p.stat().st_blocks * 512 for p in parts)
        manager.cancel(id)
        manager.wait(id, 5)
    if allocated < place.total:
        pytest.skip("this file system can't preallocate")
    assert len(parts) == 3


def test_manifest_keeps_what_the_hub_said(place: Place) -> None:
    with place.manager() as manager:
        assert place.pull(manager).state == "done"
    manifest = JobStore(place.models).manifest(REPO)
    assert (place.models / REPO / MANIFEST).exists()
    assert manifest.files["Q8_0/" + place.files[0].name].sha256 == sha256(place.files[0])


# ---- one partial file


def head(size: int, etag: str = "e") -> PartHead:
    return PartHead("a/b", "x.gguf", "c", etag, size, None)


def test_part_file_survives_reopening_and_forgets_other_versions(tmp_path: Path) -> None:
    target, size = tmp_path / "x.gguf", 3 * BLOCK + 10
    part = PartFile(target, head(size))
    part.write_block(1, b"b" * BLOCK, 0)
    part.write_block(3, b"d" * 10, 0)
    assert (part.done, bytes(part.have)) == (BLOCK + 10, b"\0\1\0\1")
    with pytest.raises(HubError, match="being downloaded by process"):
        PartFile(target, head(size))
    part.close()
    part = PartFile(target, head(size))
    assert (part.done, bytes(part.have), part.replaced) == (BLOCK + 10, b"\0\1\0\1", False)
    assert part.read_block(1) == b"b" * BLOCK
    assert part.read_block(0) is None
    part.close()
    part = PartFile(target, head(size, etag="other"))
    assert (part.done, part.replaced) == (0, True)
    part.remove()
    assert list(tmp_path.iterdir()) == []


def test_part_file_does_not_follow_links(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "x.gguf.part").symlink_to(victim)
    with pytest.raises(HubError, match="symbolic link"):
        PartFile(tmp_path / "x.gguf", head(10))
    assert victim.read_bytes() == b"precious"


def test_concurrent_writers_of_one_part(tmp_path: Path) -> None:
    n = 64
    part = PartFile(tmp_path / "x.gguf", head(n * BLOCK))
    blocks = [bytes([i]) * BLOCK for i in range(n)]

    def write(offset: int) -> None:
        for i in range(offset, n, 4):
            part.write_block(i, blocks[i], 0)

    threads = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert part.complete
    assert part.done == n * BLOCK
    part.finish()
    assert hashlib.sha256((tmp_path / "x.gguf").read_bytes()).digest() == hashlib.sha256(b"".join(blocks)).digest()
