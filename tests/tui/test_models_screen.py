"""The model screen, driven by keys against the loopback hub; and pictures of downloads in every state."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from textual.pilot import Pilot
from textual.widgets import Input, Static

from backends.planner.machine import Machine
from backends.planner.plan import Budgets, Placement, Plan
from backends.planner.speed import Speed
from flashmoe.hub.downloads.views import FileView, JobView
from flashmoe.hub.inuse import InUse
from flashmoe.plans import measurements, model_list
from tests.gguf_factory import make_gguf
from tests.hub_files import make_set
from tests.hub_server import HubServer
from tui.app import AppOptions, FlashmoeApp
from tui.screens.dialogs import ChoiceDialog
from tui.screens.models.screen import ModelsScreen
from tui.widgets.download_pane import DownloadPane

MIB = 1 << 20
GIB = 1 << 30
HERE = Machine(
    ram_total=24 * GIB, ram_available=16 * GIB, cores=8, disk_free=120 * GIB, disk_bytes_s=1.4e9,
    disk_source="measured just now", memory_bytes_s=20e9,
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clean home with one model, a fixed machine, and no network."""
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "FLASHMOE_MODELS", "HF_HUB_CACHE", "NO_COLOR", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(measurements, "machine", lambda *a, **k: HERE)
    monkeypatch.setattr("flashmoe.paths.guide_model", lambda: tmp_path / "guide.gguf")
    folder = tmp_path / "home/data/models/acme/Tiny-GGUF"
    folder.mkdir(parents=True)
    make_gguf(folder / "Tiny-Q8_0.gguf", quant="q8_0")
    return tmp_path


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    make_set(home / "srv/acme/Large-A2B-GGUF/Q8_0", 6 * MIB)
    (home / "srv/meta/Gated-GGUF").mkdir(parents=True)
    make_gguf(home / "srv/meta/Gated-GGUF/Gated-Q4_0.gguf")
    with HubServer(home / "srv", gated={"meta/Gated-GGUF"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


@asynccontextmanager
async def models(size: tuple[int, int] = (120, 36)) -> AsyncIterator[tuple[Pilot[Any], ModelsScreen]]:
    app = FlashmoeApp(AppOptions(measure=False))
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and app.screen.finder.machine is not None)
        screen = app.screen
        assert isinstance(screen, ModelsScreen)
        await until(pilot, lambda: bool(screen._rows["catalogue"]) and "asking" not in screen._notes["hub"])
        yield pilot, screen
        await app.downloading.close()
        await app.controller.close()  # an engine that is still starting would outlive the loop


async def until(pilot: Pilot[Any], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, f"it never came to that:\n{picture(pilot)}"
        await pilot.pause(0.02)
    await pilot.pause()


def picture(pilot: Pilot[Any]) -> str:
    """The screen as text."""
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in strips)


async def type_text(pilot: Pilot[Any], text: str) -> None:
    for char in text:
        await pilot.press(char)


async def test_one_list_with_plans_for_this_machine(home: Path) -> None:
    async with models() as (pilot, screen):
        text = picture(pilot)
        assert "On this machine" in text
        assert "Tiny-Q8_0" in text
        assert "Qwen3-30B-A3B" in text
        assert "streams" in text
        assert "offline: " in screen._notes["hub"]
        await until(pilot, lambda: "acme/Tiny-GGUF" in picture(pilot) and "Estimated;" in picture(pilot))
        text = picture(pilot)
        assert "2 layers x 8 experts, 2 used" in text
        assert "RAM       experts" in text
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen is not screen)
        assert pilot.app.controller.request is not None  # type: ignore[attr-defined]
        assert pilot.app.controller.request.path.endswith("Tiny-Q8_0.gguf")  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [(80, 24), (60, 20), (90, 40)])
@pytest.mark.usefixtures("home")
async def test_under_the_list_the_details_have_room(size: tuple[int, int]) -> None:
    """At 80 x 24 five lines of them were seen, of twenty, and fourteen of the list."""
    async with models(size) as (pilot, screen):
        await until(pilot, lambda: "Estimated;" in str(screen.query_one("#models-details Static", Static).render()))
        rows, details = screen.query_one("#models-list"), screen.query_one("#models-details")
        assert details.size.height >= 0.4 * (rows.size.height + details.size.height)
        assert rows.size.height >= 6
        lines = picture(pilot).splitlines()
        if size[0] >= 80:  # two short figures share a line
            assert any(re.match(r" size +214 KiB +quant +Q8_0", line) for line in lines), lines
        before = details.size.height
        await type_text(pilot, "tiny-q8")
        await until(pilot, lambda: len([row for row in screen._shown if row is not None]) == 1)
        assert details.size.height > before  # a short list leaves it its rows
    async with models((80, 16)) as (pilot, screen):
        assert not screen.query_one("#models-details").display
        assert screen.query_one("#models-list").size.height >= 10


async def test_the_guide_is_always_there(home: Path) -> None:
    make_gguf(home / "guide.gguf", quant="q8_0")
    async with models() as (pilot, screen):
        await type_text(pilot, "demo")
        await until(pilot, lambda: screen.here is not None and screen.here.path == home / "guide.gguf")
        assert "needs no download" in picture(pilot)
        await pilot.press("ctrl+x", "d")
        await until(pilot, lambda: "The guide can't be deleted." in picture(pilot))


async def test_filter_sort_and_escape(home: Path) -> None:
    async with models() as (pilot, screen):
        await type_text(pilot, "oss 120")
        await until(pilot, lambda: screen.here is not None and screen.here.name == "gpt-oss-120b")
        assert "Granite" not in picture(pilot)
        await pilot.press("escape")
        assert screen.query_one(Input).value == ""
        orders = []
        for _ in range(4):
            await pilot.press("ctrl+s")
            rows = [row.name for row in screen._shown if row is not None and row.section == "catalogue"]
            orders.append((screen._sort, rows[0]))
        assert [sort for sort, _ in orders] == ["size", "speed", "date", "fit"]
        assert orders[0][1] == "OLMoE-1B-7B-0125-Instruct"
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is not screen)


async def test_the_cursor_skips_headings_and_tells_each(home: Path) -> None:
    async with models() as (pilot, screen):
        seen = []
        for _ in range(4):
            assert screen.here is not None
            seen.append(screen.here.name)
            await pilot.press("down")
        assert len(set(seen)) == 4
        assert seen[0] == "Tiny-Q8_0"
        for _ in range(9):
            await pilot.press("pageup")
        assert screen.here is not None
        assert screen.here.name == "Tiny-Q8_0"
        await type_text(pilot, "397B")
        await until(pilot, lambda: "60 layers x 512 experts, 10 used" in picture(pilot))
        assert "Disk too full" in picture(pilot) or "UD-IQ2_XXS" in picture(pilot)


async def test_search_download_pause_resume_load(hub: HubServer, home: Path) -> None:
    hub.faults.rate = 3e6
    async with models() as (pilot, screen):
        pane = screen.query_one(DownloadPane)
        await type_text(pilot, "large")
        await until(pilot, lambda: screen.here is not None and screen.here.repo == "acme/Large-A2B-GGUF")
        await until(pilot, lambda: "3 parts" in picture(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        assert "(usual)" in picture(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: bool(pane.views) and pane.views[0].done > MIB)
        hub.faults.rate = 1e5  # so that it isn't over before it is paused, however busy the machine is
        await until(pilot, lambda: re.search(r"part \d of 3", picture(pilot)) and "B/s" in picture(pilot))
        await pilot.press("f5", "space")
        await until(pilot, lambda: pane.views[0].state == "paused" and "paused" in picture(pilot))
        # Leaving the screen and coming back loses nothing.
        await pilot.press("escape", "escape", "escape")
        await until(pilot, lambda: pilot.app.screen is not screen)
        await pilot.press("f5")
        await until(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen))
        again = pilot.app.screen
        assert isinstance(again, ModelsScreen)
        pane = again.query_one(DownloadPane)
        await until(pilot, lambda: pane.has_focus and bool(pane.views) and pane.views[0].state == "paused")
        hub.faults.rate = 0
        await pilot.press("space")
        await until(pilot, lambda: pane.views[0].state == "done")
        await until(pilot, lambda: any(r.repo == "acme/Large-A2B-GGUF" for r in again._rows["here"]))
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen is not again)
        assert "Q8_0-00001-of-00003.gguf" in pilot.app.controller.request.path  # type: ignore[attr-defined]


async def test_a_download_goes_on_at_the_next_start_and_tells_its_end(hub: HubServer, home: Path) -> None:
    hub.faults.rate = 2e6
    async with models() as (pilot, screen):
        pane = screen.query_one(DownloadPane)
        await type_text(pilot, "acme/Large-A2B-GGUF")
        await until(pilot, lambda: screen.here is not None and screen.here.repo == "acme/Large-A2B-GGUF")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        await pilot.press("enter")
        await until(pilot, lambda: bool(pane.views) and pane.views[0].done > MIB)
        await pilot.press("ctrl+q")  # the app's own end: it must not wait for the download
        await until(pilot, lambda: pilot.app._exit)
    sent = hub.stats.body_bytes
    assert sent < 6 * MIB
    hub.faults.rate = 0
    app = FlashmoeApp(AppOptions(measure=False))
    async with app.run_test(size=(120, 36), notifications=True) as pilot:
        await until(pilot, lambda: "Resuming acme/Large-A2B-GGUF:Q8_0" in picture(pilot))
        await until(pilot, lambda: "downloaded: sha256 verified" in picture(pilot))
        await app.downloading.close()
    assert hub.stats.body_bytes < 6 * MIB * 1.2


async def test_plan_from_the_header_before_any_download(hub: HubServer) -> None:
    async with models() as (pilot, screen):
        await type_text(pilot, "large")
        await until(pilot, lambda: screen.here is not None and screen.here.repo == "acme/Large-A2B-GGUF")
        await pilot.press("f4")
        await until(pilot, lambda: "Planned Q8_0 from its header" in picture(pilot))
        assert "Fits RAM" in picture(pilot)
        assert not list(Path(hub.root).parent.joinpath("home/data/models").rglob("Large*"))


async def test_cancel_asks_and_deletes(hub: HubServer, home: Path) -> None:
    hub.faults.rate = 1e6
    async with models() as (pilot, screen):
        pane = screen.query_one(DownloadPane)
        await type_text(pilot, "acme/Large-A2B-GGUF")
        await until(pilot, lambda: screen.here is not None and screen.here.repo == "acme/Large-A2B-GGUF")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        await pilot.press("enter")
        await until(pilot, lambda: bool(pane.views) and pane.views[0].done > 0)
        await pilot.press("f5", "x")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        await pilot.press("enter")  # the first answer is the harmless one
        await until(pilot, lambda: pilot.app.screen is screen)
        assert pane.views[0].state in ("running", "waiting")
        await pilot.press("x")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        await pilot.press("down", "enter")
        await until(pilot, lambda: pane.views[0].state == "cancelled")
        assert not (home / "home/data/models/acme/Large-A2B-GGUF").exists()
        await pilot.press("x")
        await until(pilot, lambda: not pane.views)


async def test_gated_says_what_to_do(hub: HubServer) -> None:
    async with models() as (pilot, screen):
        await type_text(pilot, "gated")
        await until(pilot, lambda: screen.here is not None and screen.here.repo == "meta/Gated-GGUF")
        await until(pilot, lambda: "Gated: accept its terms" in picture(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: "is gated; accept its terms at https://huggingface.co/meta/Gated" in picture(pilot))
        assert pilot.app.screen is screen, "it is said before anything is chosen"
        assert not screen.query_one(DownloadPane).views


async def test_more_of_the_hubs_results(hub: HubServer, home: Path) -> None:
    for i in range(45):
        (home / f"srv/many/Repo-{i:02d}-GGUF").mkdir(parents=True)
        (home / f"srv/many/Repo-{i:02d}-GGUF/Repo-Q4_0.gguf").write_bytes(b"GGUF")
    hub.page_size = 20
    async with models() as (pilot, screen):
        await type_text(pilot, "many")
        await until(pilot, lambda: len(screen._rows["hub"]) == 21)
        for expected in (41, 45):
            await pilot.press("pagedown", "pagedown", "pagedown", "pagedown", "pagedown")
            await until(pilot, lambda: screen.here is not None and screen.here.name == "more …")
            await pilot.press("enter")
            await until(pilot, lambda n=expected: len(screen._rows["hub"]) == n)  # type: ignore[misc]
        assert all(row.repo for row in screen._rows["hub"]), "at the end there is no more"


async def test_a_pasted_address_of_a_file_means_that_file(hub: HubServer, home: Path) -> None:
    make_gguf(home / "srv/acme/Large-A2B-GGUF/Large-Q4_K_M.gguf", seed=3)
    address = f"{hub.endpoint}/acme/Large-A2B-GGUF/tree/main/Q8_0"
    async with models() as (pilot, screen):
        screen.query_one("#models-filter", Input).value = address
        await until(pilot, lambda: screen.finder._meant is not None and "asking" not in screen._notes["hub"])
        await until(pilot, lambda: screen.here is not None and screen.here.repo == "acme/Large-A2B-GGUF")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        first = next(line for line in picture(pilot).splitlines() if "(usual)" in line)
        assert "Q8_0" in first
        await pilot.press("escape")
        screen.query_one("#models-filter", Input).value = "acme/Large-A2B-GGUF"
        await until(pilot, lambda: screen.finder._meant is not None and not screen.finder._meant.folder)
        await until(pilot, lambda: "asking" not in screen._notes["hub"])
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        assert "(usual)" not in picture(pilot), "of two models neither is taken for the other: one chooses"
        assert "Q4_K_M" in picture(pilot)


async def test_a_large_download_asks_first(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmoe.hub.lookup.is_large", lambda size, free: True)
    async with models() as (pilot, screen):
        await type_text(pilot, "large")
        await until(pilot, lambda: screen.here is not None and screen.here.repo == "acme/Large-A2B-GGUF")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        await pilot.press("enter")
        await until(pilot, lambda: "more than half of the 120 GiB" in picture(pilot))
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen is screen)
        assert not screen.query_one(DownloadPane).views
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        await pilot.press("enter")
        await until(pilot, lambda: "more than half" in picture(pilot))
        await pilot.press("down", "enter")
        await until(pilot, lambda: bool(screen.query_one(DownloadPane).views))


async def test_delete_refuses_what_is_loaded_then_says_what_is_freed(home: Path) -> None:
    path = home / "home/data/models/acme/Tiny-GGUF/Tiny-Q8_0.gguf"
    async with models() as (pilot, screen):
        with InUse(path):
            await pilot.press("ctrl+x", "d")
            await until(pilot, lambda: "is loaded by this app" in picture(pilot))
        await pilot.press("ctrl+x", "d")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        assert "It frees" in picture(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is screen)
        assert path.exists()
        await pilot.press("ctrl+x", "d")
        await until(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
        await pilot.press("down", "enter")
        await until(pilot, lambda: ", freeing " in picture(pilot))
        assert not path.exists()
        assert "Tiny-Q8_0" not in [row.name for row in screen._rows["here"]]


async def test_verify_and_broken_files(home: Path) -> None:
    folder = home / "home/data/models/acme/Tiny-GGUF"
    (folder / "Broken-Q4_0.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    (folder / "Half-Q4_0-00002-of-00002.gguf").write_bytes(b"GGUF")
    async with models() as (pilot, screen):
        await pilot.press("f8")
        await until(pilot, lambda: "no published hashes" in picture(pilot))
        await type_text(pilot, "broken")
        await until(pilot, lambda: screen.here is not None and screen.here.name == "Broken-Q4_0")
        await pilot.press("enter")
        await pilot.pause()
        assert pilot.app.screen is screen, "what can't be loaded isn't chosen"
        await pilot.press("escape")
        await type_text(pilot, "half")
        await until(pilot, lambda: "1 of 2 parts are missing" in picture(pilot))


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (100, 30), (200, 60), (30, 8)])
async def test_every_size_draws(home: Path, size: tuple[int, int]) -> None:
    async with models(size) as (pilot, screen):
        pane = screen.query_one(DownloadPane)
        pane.show_all(VIEWS)
        pane.display = True
        await pilot.pause()
        lines = picture(pilot).splitlines()
        assert len(lines) == size[1]
        if size[1] >= 20:
            assert "Tiny-Q8_0" in "\n".join(lines)
        for width in (20, 40, 200):
            await pilot.resize_terminal(width, size[1])
            await pilot.pause()


async def test_hostile_text_is_shown_not_executed(home: Path) -> None:
    evil = JobView(
        id="x", repo="a/b", label="Q4\x1b[31m", state="failed", message="no\x1b]0;pwned\x07 [b]markup[/b]", size=10,
        files=(FileView("a.gguf", 10, 1, 0, "running"),),
    )  # fmt: skip
    async with models() as (pilot, screen):
        pane = screen.query_one(DownloadPane)
        pane.show_all([evil])
        pane.display = True
        await pilot.pause()
        text = picture(pilot)
        assert "\x1b" not in text
        assert "[b]markup[/b]" in text


# ---- pictures ------------------------------------------------------------------------------------------------------


def job(state: str, share: float, **more: Any) -> JobView:
    size = 219_216_328_992
    each = size // 6
    files = tuple(
        FileView(
            f"UD-Q4_K_XL/m-0000{i}-of-00006.gguf",
            each,
            min(each, max(0, int(size * share) - (i - 1) * each)),
            min(each, max(0, int(size * share) - (i - 1) * each)),
            "done" if size * share >= i * each else "running",
        )
        for i in range(1, 7)
    )
    fields = {"repo": "unsloth/Qwen3.5-397B-A17B-GGUF", "label": "UD-Q4_K_XL", "id": state, "size": size}
    fields |= {"done": int(size * share), "files": files, "state": state} | more
    return JobView(**fields)


VIEWS = [
    job("running", 0.41, bytes_s=112e6, eta_s=1150.0),
    job("paused", 0.2, repo="unsloth/GLM-4.6-GGUF", message="Paused: the disk is full at /models. Free some space."),
    job("failed", 0.7, repo="unsloth/Kimi-K2.6-GGUF", message="hub.example has trouble (status 503): gave up."),
    job("waiting", 0.1, repo="a/Waiting-GGUF", message="hub.example asks to slow down; trying again in 30 s (2 of 8)."),
    job("verifying", 1.0, repo="ggml-org/gpt-oss-120b-GGUF", label="MXFP4", verified=180_000_000_000),
    job("done", 1.0, repo="ggml-org/gpt-oss-20b-GGUF", label="MXFP4"),
]
BY_STATE = {view.state: view for view in VIEWS}


def steady(plan: Plan) -> Plan:
    """A plan whose figures don't move when the planner's formulas do: the pictures are of the screen."""
    gib = plan.file_bytes / GIB
    verdict = "no_disk" if gib > 110 else "fits" if gib < 14 else "streams"
    speed = Speed(
        expected=60 / (gib + 1), low=20 / (gib + 1), high=90 / (gib + 1), bound="disk", source="formula",
        reason="About 83% of the chosen experts will be in memory.", hit_rate=0.83, read_bytes_per_token=1.0,
        compute_s=0.1, disk_s=0.1, cold=1.0,
    )  # fmt: skip
    half = plan.expert_bytes // 2
    place = Placement(
        dense_ram=plan.dense_bytes, experts_ram=half, kv_ram=200 * MIB, compute_ram=0, process_ram=0, vram=0,
        n_gpu_layers=0, experts_ssd=half, anonymous=0, rss=0,
    )  # fmt: skip
    return structs.replace(
        plan, verdict=verdict, sentence="What the planner says, in a sentence of some length.", place=place, n_ctx=8192,
        budgets=Budgets(GIB, 4 * GIB, 16 * GIB, 8 * GIB), speed=None if verdict == "no_disk" else speed, notes=(),
    )  # fmt: skip


@pytest.fixture
def steady_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plan_facts", "plan_file"):
        real = getattr(model_list, name)
        monkeypatch.setattr(model_list, name, lambda *args, real=real: steady(real(*args)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


async def pictured(pilot: Pilot[Any], views: list[JobView]) -> ModelsScreen:
    """The model screen, offline, with `views` among its downloads."""
    app = pilot.app
    await pilot.pause()
    await pilot.press("ctrl+o")
    await until(pilot, lambda: isinstance(app.screen, ModelsScreen) and bool(app.screen._rows["catalogue"]))
    screen = app.screen
    assert isinstance(screen, ModelsScreen)
    await until(pilot, lambda: bool(screen.finder.plans) and "offline" in screen._notes["hub"])
    pane = screen.query_one(DownloadPane)
    pane.show_all(views)
    pane.display = bool(views)
    await pilot.pause()
    return screen


STATES = ["running", "failed", "paused", "waiting", "offline"]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.usefixtures("home", "steady_plans")
def test_picture(snap_compare: Any, state: str) -> None:
    async def ready(pilot: Pilot[Any]) -> None:
        screen = await pictured(pilot, [] if state == "offline" else [BY_STATE[state]])
        if state == "offline":
            await type_text(pilot, "qwen3.5")
            await until(pilot, lambda: screen._filter == "qwen3.5")
            before = ""
            while picture(pilot) != before:  # what is looked for, and told of a row, comes a moment later
                before = picture(pilot)
                await asyncio.sleep(1.5)
            assert "offline" in screen._notes["hub"]

    app = FlashmoeApp(AppOptions(measure=False, theme="ember"))
    assert snap_compare(app, run_before=ready, terminal_size=(120, 36))


@pytest.mark.usefixtures("home", "steady_plans")
def test_picture_80x24(snap_compare: Any) -> None:
    async def ready(pilot: Pilot[Any]) -> None:
        await pictured(pilot, VIEWS[:2])

    app = FlashmoeApp(AppOptions(measure=False, theme="ember"))
    assert snap_compare(app, run_before=ready, terminal_size=(80, 24))
