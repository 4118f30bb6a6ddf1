"""The downloader against every fault that the loopback hub can show."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

import pytest
from msgspec import structs

from flashmoe.hub.client import HubClient
from flashmoe.hub.downloads.state import Options
from flashmoe.hub.errors import HubError
from flashmoe.retry import Backoff
from tests.hub_place import FAST, MIB, PATIENT, REPO, Place, until
from tests.hub_server import Faults


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
        id = place.add(manager)

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


def test_a_server_without_ranges_sends_each_file_in_one_connection(place: Place) -> None:
    place.hub.faults.ignore_range = True
    with place.manager() as manager:
        view = place.pull(manager)
    assert view.state == "done", view
    place.assert_right()
    # Until it is noticed, the first connections of each file may have begun in the middle.
    assert place.hub.stats.body_bytes <= place.total * 1.5


def test_retry_after_is_honoured(place: Place) -> None:
    place.hub.faults.status = {"cdn": [429]}
    place.hub.faults.retry_after = "1"
    before = time.monotonic()
    with place.manager(Options(connections=1, backoff=Backoff(0.01, 30.0, 8), space_margin=0)) as manager:
        assert place.pull(manager).state == "done"
    assert time.monotonic() - before >= 1.0


def test_etag_change_restarts_that_file_only(place: Place) -> None:
    place.hub.faults.rate = 3e6
    with place.manager() as manager:
        id = place.begin(manager, place.total // 2)
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
        id = place.begin(manager, place.total // 2)
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
    with place.manager(structs.replace(FAST, backoff=Backoff(0.02, 0.1, 3), retry_failed_s=0.1)) as manager:
        id = place.add(manager)
        until(lambda: (view := manager.get(id)) is not None and view.state == "done", 20)
    assert any(e.state == "failed" and "trying again in" in e.message for e in place.events)
    place.assert_right()
