"""Downloads and the disk: power loss, damaged tables, full disks, partial files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from msgspec import structs

from flashmoe.hub.downloads.jobs import MANIFEST, JobStore
from flashmoe.hub.downloads.partfile import BLOCK, PartFile, PartHead
from flashmoe.hub.downloads.state import Options
from flashmoe.hub.errors import HubError
from tests.hub_files import sha256
from tests.hub_place import MIB, REPO, Place, until


def test_power_loss_trusts_nothing_that_is_not_there(place: Place) -> None:
    """Blocks whose table entries reached the disk and whose data didn't are fetched again, and nothing else is."""
    place.hub.faults.rate = 8e6
    with place.manager() as manager:
        id = place.begin(manager, place.total // 2)
    part = place.part(0).with_name(place.part(0).name + ".part")
    with part.open("r+b") as file:  # zeros, as after a crash of a journal without data; and one torn block
        file.write(bytes(2 * BLOCK))
        file.seek(4 * BLOCK + 100)
        file.write(b"torn")
    os.truncate(place.part(1).with_name(place.part(1).name + ".part"), 3 * BLOCK + 50)
    sent = place.hub.stats.body_bytes
    place.goes_on(id)
    assert place.hub.stats.body_bytes - sent < place.total - sent + 3 * BLOCK + place.total // 3


def test_a_torn_table_costs_that_file_only(place: Place) -> None:
    place.hub.faults.rate = 8e6
    with place.manager() as manager:
        id = place.begin(manager, place.total // 2)
    state = place.part(0).with_name(place.part(0).name + ".part.state")
    state.write_bytes(b"\xff" * 100)
    place.goes_on(id)


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
        monkeypatch.setattr("flashmoe.hub.downloads.jobs.free_bytes", lambda path: place.total - 1)
        view = manager.wait(manager.add(repo, repo.quants[0]), 5)
        assert (view.state, view.code) == ("paused", "no_space")
        assert "free" in view.message
        assert "FLASHMOE_MODELS" in view.message
        # Enough for one, not for two:
        monkeypatch.setattr("flashmoe.hub.downloads.jobs.free_bytes", lambda path: int(place.total * 1.5))
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
            id = place.add(manager)
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
        id = place.begin(manager, 0)
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
