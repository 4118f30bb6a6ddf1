"""The monitor's panes, strip and maps: pictures in each colour mode, and what holds at every size."""

from __future__ import annotations

from typing import Any

import pytest
from textual.app import App, ComposeResult
from textual.containers import Horizontal
from textual.pilot import Pilot
from textual.widgets import Static

from backends.interface import Telemetry
from flashmoe import paths
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.sample import Gpu, Sample
from tests.monitor_demo import GUIDE, DemoEngine, feed_of, shared_feed
from tui import keymap, themes
from tui.screens.experts import ExpertMapView, ExpertsScreen
from tui.widgets.monitor.column import MonitorColumn
from tui.widgets.monitor.expert_map import IN_RAM, ON_SSD, mini_map
from tui.widgets.monitor.strip import MonitorStrip

COLOURS = ("ember", "paper", "contrast", "terminal", "none")


class PaneApp(App[None]):
    """Strip, an empty chat, column."""

    CSS = "Horizontal { height: 1fr; } Static { width: 1fr; } MonitorColumn { width: 40; } .-wide { width: 56; }"

    def __init__(self, feed: MonitorFeed, theme: str = "ember") -> None:
        super().__init__()
        self.feed = feed
        self.keymap = keymap.resolve({})
        for each in themes.load_themes(paths.builtin_themes_dir()).themes.values():
            self.register_theme(each)
        self.theme = theme

    def compose(self) -> ComposeResult:
        yield MonitorStrip(self.feed)
        with Horizontal():
            yield Static("")
            yield MonitorColumn(self.feed)

    def look(self) -> None:
        for pane in self.query("MonitorColumn, MonitorStrip"):
            pane.update_view()


def app_for(monkeypatch: pytest.MonkeyPatch, colours: str, feed: MonitorFeed) -> PaneApp:
    if colours == "none":
        monkeypatch.setenv("NO_COLOR", "1")
        return PaneApp(feed)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return PaneApp(feed, colours)


# ---- pictures ------------------------------------------------------------


@pytest.mark.parametrize("colours", COLOURS)
def test_panes_picture(monkeypatch: pytest.MonkeyPatch, snap_compare: Any, colours: str) -> None:
    assert snap_compare(app_for(monkeypatch, colours, shared_feed("capped")), terminal_size=(120, 36))


@pytest.mark.parametrize(("case", "size"), [("gpu", (100, 30)), ("warm", (200, 60)), ("shared", (80, 24))])
def test_panes_picture_at_other_sizes(
    monkeypatch: pytest.MonkeyPatch, snap_compare: Any, case: str, size: tuple[int, int]
) -> None:
    app = app_for(monkeypatch, "ember", shared_feed(case))

    async def ready(pilot: Pilot[None]) -> None:
        pilot.app.query_one(MonitorColumn).set_class(size[0] >= 160, "-wide")
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=ready)


@pytest.mark.parametrize("guide", [False, True], ids=["48x128", "guide"])
@pytest.mark.parametrize("size", [(80, 24), (120, 36), (200, 60)], ids=str)
def test_map_picture(monkeypatch: pytest.MonkeyPatch, snap_compare: Any, size: tuple[int, int], guide: bool) -> None:
    app = app_for(monkeypatch, "ember", shared_feed("capped", guide))

    async def ready(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(ExpertsScreen(app.feed))
        await pilot.press("h")
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=ready)


@pytest.mark.parametrize("colours", ["paper", "terminal", "none"])
def test_map_picture_in_colours(monkeypatch: pytest.MonkeyPatch, snap_compare: Any, colours: str) -> None:
    app = app_for(monkeypatch, colours, shared_feed("capped"))

    async def ready(pilot: Pilot[None]) -> None:
        await pilot.app.push_screen(ExpertsScreen(app.feed))
        await pilot.press("s", "down", "right")
        await pilot.pause()

    assert snap_compare(app, terminal_size=(120, 36), run_before=ready)


# ---- what holds at every size --------------------------------------------------


def empty_feed() -> MonitorFeed:
    return MonitorFeed()


def unknown_feed() -> MonitorFeed:
    """A model of which next to nothing is known."""
    feed = MonitorFeed()
    feed.set_model(DemoEngine("capped", **GUIDE).info)
    for t in range(10):
        feed.push(Sample(t=float(t), wall=float(t), telemetry=Telemetry(t=float(t), decode_tokens=t, decode_s=t * 0.1)))
    return feed


def gpus_feed() -> MonitorFeed:
    feed = MonitorFeed()
    engine = DemoEngine("gpu", **GUIDE)
    gpus = tuple(Gpu(index=i, name=f"GPU {i}", total=80 << 30, used=(i + 1) << 30) for i in range(8))
    for _ in range(10):
        sample = engine.step()
        feed.push(Sample(t=sample.t, wall=sample.wall, memory=sample.memory, gpus=gpus))
    return feed


FEEDS = {
    "empty": empty_feed,
    "unknown": unknown_feed,
    "gpus": gpus_feed,
    "capped": lambda: shared_feed("capped"),
    "guide": lambda: shared_feed("capped", True),
    "warm": lambda: shared_feed("warm"),
}


@pytest.mark.parametrize("name", FEEDS)
def test_lines_fit_every_size(name: str) -> None:
    feed = FEEDS[name]()
    column, strip, view = MonitorColumn(feed), MonitorStrip(feed), ExpertMapView(feed)
    for width in (12, 24, 30, 40, 56, 78, 118, 198):
        for height in (4, 8, 12, 16, 22, 30, 34, 58):
            for widget in (column, view):
                lines = widget.make_lines(width, height)
                assert len(lines) <= max(height, 8), (width, height)
                assert all(line.cell_length <= width for line in lines), (widget, width, height)
                assert "\n" not in "".join(line.plain for line in lines)
        assert all(line.cell_length <= width for line in strip.make_lines(width, 2))
    # A column that is drawn fills its frame from the first line to the last.
    for height in (8, 16, 30, 58):
        lines = column.make_lines(40, height)
        assert len(lines) == height
        assert {line.cell_length for line in lines} == {40}
        assert lines[0].plain[0] == "╭"
        assert lines[-1].plain[0] == "╰"


def test_the_map_reads_without_colour() -> None:
    feed = shared_feed("capped")
    text = "".join(line.plain for line in ExpertMapView(feed).make_lines(158, 56)[2:50])
    assert feed.map is not None
    assert feed.map.residency is not None
    resident = sum(byte >= 128 for byte in feed.map.residency)
    in_ram = sum(text.count(char) for char in IN_RAM)
    on_ssd = sum(text.count(char) for char in ON_SSD)
    assert in_ram + on_ssd >= 48 * 128 - 1  # the cursor's cell too
    assert in_ram == pytest.approx(resident, abs=2)
    assert not set(IN_RAM) & set(ON_SSD)


def test_downsampling_says_its_scale() -> None:
    feed = shared_feed("capped")
    small = " ".join(line.plain for line in ExpertMapView(feed).make_lines(78, 23))
    assert "1 cell = 2 experts × 3 layers" in small
    assert "1 cell = 1 expert" in " ".join(line.plain for line in ExpertMapView(feed).make_lines(198, 58))
    mini = " ".join(line.plain for line in mini_map(feed, 36, 10))
    assert "1 cell = 4 experts × 6 layers" in mini


def test_a_narrow_column_keeps_the_verdict_to_the_end() -> None:
    column = MonitorColumn(shared_feed("capped"))
    for height in (8, 10, 14, 20):
        text = "\n".join(line.plain for line in column.make_lines(40, height))
        assert "bound by the SSD" in text, height


async def test_only_lines_that_changed_are_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, feed = feed_of("capped", 20, **GUIDE)
    app = PaneApp(feed)
    async with app.run_test(size=(120, 36)) as pilot:
        await pilot.pause()
        painted: list[Any] = []
        column = app.query_one(MonitorColumn)
        monkeypatch.setattr(column, "refresh", lambda *regions, **more: painted.extend(regions))
        app.look()
        assert painted == []  # nothing new, nothing painted
        feed.push(engine.step())
        app.look()
        assert 0 < len(painted) < 20
        assert all(region.height == 1 for region in painted)


async def test_columns_of_figures_stand_still() -> None:
    """Where a figure ends must not move as it changes."""
    engine, feed = feed_of("capped", 5, **GUIDE)
    column = MonitorColumn(feed)
    ends = set()
    for _ in range(60):
        feed.push(engine.step())
        lines = [line.plain for line in column.make_lines(40, 30)]
        read = next(line for line in lines if "read " in line and "/s" in line)
        ends.add((read.index(" / "), read.index("GB/s")))
    assert len(ends) == 1


async def test_the_span_key_and_history() -> None:
    feed = feed_of("capped", 30, **GUIDE)[1]
    column = MonitorColumn(feed)
    names = [column.feed.span[0]] + [column.feed.cycle_span() for _ in range(5)]
    assert names == ["2 min", "10 min", "1 h", "session", "30 s", "2 min"]
    assert "2 min" in column.make_lines(40, 30)[0].plain


async def test_the_cursor_tells_of_its_expert() -> None:
    engine, feed = feed_of("capped", 20, **GUIDE)
    app = PaneApp(feed)
    async with app.run_test(size=(120, 36)) as pilot:
        await app.push_screen(ExpertsScreen(feed))
        await pilot.press("down", "down", "right", "right", "right")
        view = app.screen.query_one(ExpertMapView)
        text = "\n".join(line.plain for line in view._shown)
        assert "layer 2" in text
        assert "expert 3" in text
        assert f"used {engine.uses[2, 3]:,}×" in text
        assert ("in RAM" if engine.resident[2, 3] else "on SSD") in text
        await pilot.press("s")  # the cursor stays on its expert
        assert "expert 3 " in "\n".join(line.plain for line in view._shown)
        await pilot.press("shift+right", "shift+right", "shift+right", "pagedown", "pagedown")
        assert (view.row, view.column) == (7, 31)
        await pilot.press("s", "h")
        heat = engine.heat / engine.heat.mean(axis=1, keepdims=True) * ~engine.resident
        assert heat[view.row, view.column] == pytest.approx(heat.max(), rel=1e-5)
        await pilot.press("escape")
        assert not isinstance(app.screen, ExpertsScreen)


async def test_a_hostile_map_is_no_map() -> None:
    feed = feed_of("capped", 5, **GUIDE)[1]
    assert feed.map is not None
    import msgspec

    feed.push_map(msgspec.structs.replace(feed.map, n_layers=1 << 30))
    assert "no map" in ExpertMapView(feed).make_lines(100, 20)[2].plain
    feed.push_map(msgspec.structs.replace(feed.map, n_layers=8, uses=b"short"))
    assert "no map" in mini_map(feed, 30, 6)[0].plain


def test_a_hot_expert_in_ram_does_not_make_its_neighbours_on_ssd_look_hot() -> None:
    import msgspec
    import numpy as np

    from flashmoe.monitor.expert_stats import Cells, ExpertArrays

    feed = feed_of("capped", 5, **GUIDE)[1]
    assert feed.map is not None
    heat, residency = np.full((8, 32), 0.1, "<f4"), np.zeros((8, 32), np.uint8)
    heat[:, ::4], residency[:, ::4] = 50.0, 255
    arrays = ExpertArrays(msgspec.structs.replace(feed.map, heat=heat.tobytes(), residency=residency.tobytes()))
    cells = Cells(arrays, 4, 8)  # 2 layers x 4 experts: one of four is hot and in RAM
    assert cells.resident is not None
    assert cells.level is not None
    assert not cells.resident.any()
    assert cells.level.max() == 0  # cold, as those on the SSD are
