"""Servers as they are: slow ones, ones without ranges, login pages, compressed bodies, wrong lengths, no hashes."""

from __future__ import annotations

import time

import pytest
from msgspec import structs

from flashmoe.hub.client import HubClient
from flashmoe.hub.downloads.jobs import JobStore
from flashmoe.hub.downloads.state import Options
from flashmoe.hub.errors import HubError
from flashmoe.hub.floor import Floor
from flashmoe.hub.library import Library
from flashmoe.hub.scan import Source
from flashmoe.hub.verify import verify
from flashmoe.retry import Backoff
from tests.hub_place import FAST, MIB, REPO, Place
from tests.hub_server import Faults


def test_slow_connections_are_made_anew(place: Place) -> None:
    place.hub.faults = Faults(trickle=20_000.0, trickle_n=3)
    options = structs.replace(FAST, floor_bytes_s=200_000.0, floor_window_s=0.3)
    with place.manager(options) as manager:
        view = place.pull(manager, 60)
    assert view.state == "done", view
    place.assert_right()
    assert any("less than 200 kB/s" in e.message and "reconnected" in e.message for e in place.events)


def test_a_line_that_is_slow_itself_is_taken_as_it_is(place: Place) -> None:
    for file in place.files:
        with file.open("r+b") as data:
            data.truncate(300_000)
    place.hub.faults = Faults(trickle=150_000.0)
    options = structs.replace(FAST, floor_bytes_s=500_000.0, floor_window_s=0.2)
    with place.manager(options) as manager:
        view = place.pull(manager, 60)
    assert view.state == "done", view
    place.assert_right()


def test_the_floor_counts_only_the_servers_time() -> None:
    floor = Floor(1e6, 0.05)
    for _ in range(20):
        assert not floor.arrived(10)
        time.sleep(0.01)  # a bandwidth limit, a slow disk
        floor.resume()
    floor = Floor(1e6, 0.05)
    time.sleep(0.06)
    with pytest.raises(HubError) as caught:
        floor.arrived(10)
    assert caught.value.code == "slow"


def test_without_ranges_what_is_there_is_kept(place: Place) -> None:
    place.hub.faults.rate = 6e6
    with place.manager() as manager:
        id = place.begin(manager, place.total // 3)
        manager.pause(id)
        done = manager.wait(id, 10).done
    assert done > 0
    place.hub.faults = Faults(ignore_range=True)
    with place.manager() as manager:
        manager.start()
        manager.resume(id)
        assert manager.wait(id, 30).state == "done"
    place.assert_right()


def test_headers_are_read_from_a_server_without_ranges(place: Place) -> None:
    from flashmoe.hub.remote_header import read_remote

    place.hub.faults.ignore_range = True
    client = HubClient(place.hub.endpoint)
    repo = client.repo(REPO)
    assert read_remote(client, REPO, repo.commit, repo.quants[0]).n_layers == 2


@pytest.mark.parametrize("where", ["cdn", "resolve"])
def test_a_login_page_in_between_passes(place: Place, where: str) -> None:
    place.hub.faults.html = [where]
    with place.manager() as manager:
        assert place.pull(manager).state == "done"
    place.assert_right()


WRONG = {
    "login page": (Faults(html=["cdn"] * 50), "a web page instead of Tiny-A1B"),
    "login page of the hub": (Faults(html=["resolve"] * 50), "a web page instead of Tiny-A1B"),
    "compressed": (Faults(gzip=50), "compressed (gzip) though it was asked not to"),
    "wrong length": (Faults(wrong_length=7), "which has"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_the_file_is_named(place: Place, case: str) -> None:
    place.hub.faults, words = WRONG[case]
    with place.manager() as manager:
        view = place.pull(manager)
    assert (view.state, view.code) == ("failed", "bad_answer")
    assert words in view.message
    assert "\n" not in view.message
    assert place.hub.stats.requests["cdn"] <= 40, "it isn't asked for ever"


def test_a_login_page_instead_of_listings(place: Place) -> None:
    client = HubClient(place.hub.endpoint)
    for ask in (lambda: client.repo(REPO), lambda: client.search("x")):
        place.hub.faults.html = ["api"]
        with pytest.raises(HubError, match="answered with a web page instead of a list"):
            ask()


def test_listings_are_bounded(place: Place) -> None:
    client = HubClient(place.hub.endpoint)
    place.hub.faults.endless = True
    with pytest.raises(HubError, match="sent more than 32 MiB as a listing"):
        client.repo(REPO)
    place.hub.faults.endless = False
    files = ",".join(f'{{"rfilename": "m{i}.gguf", "size": 5}}' for i in range(20_001))
    place.hub.raw_api = f'{{"id": "{REPO}", "siblings": [{files}]}}'.encode()
    with pytest.raises(HubError, match="has 20,001 files"):
        client.repo(REPO)


def test_headers_of_a_hostile_repository_are_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a repository can make us fetch before a plan: bytes of all headers, tensors of all parts."""
    from flashmoe.hub import remote_header

    client = HubClient(place.hub.endpoint)
    repo = client.repo(REPO)
    monkeypatch.setattr(remote_header, "MAX_ALL_BYTES", MIB)
    with pytest.raises(HubError, match="more than 1 MiB"):
        remote_header.read_remote(client, REPO, repo.commit, repo.quants[0])
    monkeypatch.undo()
    monkeypatch.setattr(remote_header, "MAX_TENSORS", 10)
    with pytest.raises(HubError, match="more tensors than any real model"):
        remote_header.read_remote(client, REPO, repo.commit, repo.quants[0])


@pytest.mark.parametrize(
    ("faults", "checked", "status"),
    [
        (Faults(), "sha256 verified", "ok"),
        (Faults(git=True), "git's hash verified", "ok"),
        (Faults(no_hash=True), "only its size could be compared", "unknown"),
    ],
)
def test_what_was_checked_is_said(place: Place, faults: Faults, checked: str, status: str) -> None:
    place.hub.faults = faults
    with place.manager() as manager:
        view = place.pull(manager)
        assert view.state == "done", view
        assert view.checked.startswith(checked)
        sent = place.hub.stats.body_bytes
        assert place.pull(manager).state == "done"
    assert place.hub.stats.body_bytes == sent, "what is there isn't fetched again"
    place.assert_right()
    library = Library([Source("library", place.models)])
    checks = list(verify(library.scan(facts=False)[0], library))
    assert {c.status for c in checks} == {status}
    assert {c.checked for c in checks} == {"git" if faults.git else "size" if faults.no_hash else "sha256"}
    if faults.git:  # a flipped bit is found by git's hash too
        with place.part(0).open("r+b") as file:
            file.seek(5000)
            file.write(b"flipped")
        assert [c.status for c in verify(library.scan(facts=False)[0], library)] == ["damaged", "ok", "ok"]


def test_a_branch_is_pulled_from_that_branch(place: Place) -> None:
    from flashmoe.hub.lookup import look_up, read_reference
    from tests.hub_files import make_set, sha256

    other = make_set(place.hub.root.parent / "v1" / REPO / "Q4_0", MIB)
    place.hub.branches["v1"] = place.hub.root.parent / "v1"
    with place.manager() as manager:
        found = look_up(manager.client, read_reference(f"{REPO}@v1"), models=place.models)
        assert (found.quant.files[0].path.split("/")[0], found.repo.revision) == ("Q4_0", "v1")
        view = manager.wait(manager.add(found.repo, found.quant), 30)
        assert view.state == "done", view
        with pytest.raises(HubError, match="no branch, tag or commit “v2”"):
            look_up(manager.client, read_reference(f"{REPO}@v2"), models=place.models)
    assert sha256(place.models / REPO / "Q4_0" / other[0].name) == sha256(other[0])
    assert not JobStore(place.models).all()


def test_a_refused_download_names_the_page_where_one_can_log_in(place: Place) -> None:
    """Whichever mirror is asked: nobody can log in there."""
    place.hub.gated.add(REPO)
    with place.manager(Options(backoff=Backoff(0.02, 0.1, 3), space_margin=0)) as manager:
        view = place.pull(manager)
    assert f"accept its terms at https://huggingface.co/{REPO}" in view.message
