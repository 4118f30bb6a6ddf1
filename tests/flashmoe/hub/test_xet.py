"""Files that the hub stores by xet, through the real hf_xet and a storage in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashmoe.hub.downloads import transfer
from flashmoe.hub.xet import why_not
from tests.hub_files import sha256
from tests.hub_place import MIB, Place, until
from tests.hub_server import Faults

hf_xet = pytest.importorskip("hf_xet")


@pytest.fixture
def stored(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The place's files in a storage, which the hub names."""
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    cas = f"local://{tmp_path / 'cas'}"
    (tmp_path / "cas").mkdir()
    with hf_xet.XetSession().new_upload_commit(endpoint=cas) as commit:
        uploads = [(file, commit.start_upload_file(str(file))) for file in place.files]
    for file, upload in uploads:
        place.hub.xet_hashes[sha256(file)] = upload.result().xet_info.hash
    place.hub.faults = Faults(xet=True, xet_only=True, xet_cas=cas)
    return place


def test_xet_only_files_come_by_xet(stored: Place) -> None:
    with stored.manager() as manager:
        view = stored.pull(manager, 60)
    assert view.state == "done", view
    assert view.checked == "sha256 verified"
    assert view.received >= stored.total
    stored.assert_right()
    assert stored.hub.stats.requests["cdn"] == 0


def test_what_came_by_xet_is_resumed(stored: Place) -> None:
    with stored.manager(limit_bytes_s=2e6) as manager:
        id = stored.add(manager)
        until(lambda: (view := manager.get(id)) is not None and view.done > MIB)
        manager.pause(id)
        paused = manager.wait(id, 10)
    assert paused.state == "paused"
    assert 0 < paused.done < stored.total
    with stored.manager() as manager:
        manager.start()
        manager.resume(id)
        view = manager.wait(id, 60)
        assert view.state == "done"
        assert view.received <= stored.total - paused.done + MIB, "what is there isn't fetched again"
    stored.assert_right()


def test_where_the_storage_fails_plain_http_goes_on(stored: Place) -> None:
    stored.hub.faults.xet_only = False
    stored.hub.xet_hashes = dict.fromkeys(stored.hub.xet_hashes, "0" * 64)
    with stored.manager() as manager:
        view = stored.pull(manager, 60)
    assert view.state == "done", view
    stored.assert_right()
    assert any("continuing by plain HTTP" in e.message for e in stored.events)


def test_without_hf_xet_it_is_said(stored: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "why_not", lambda: "hf_xet isn't installed")
    with stored.manager() as manager:
        view = stored.pull(manager, 60)
    assert view.state == "failed"
    assert "install hf_xet" in view.message


def test_it_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
    assert why_not() is None
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    assert why_not() == "HF_HUB_DISABLE_XET is set"
