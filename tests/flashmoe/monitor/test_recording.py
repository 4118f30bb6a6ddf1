"""Recordings: what comes back is what went in; damaged, cut and newer files are told in one sentence."""

from __future__ import annotations

import csv
import io
import json
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from flashmoe.cli.main import main as command
from flashmoe.monitor.analysis import COLUMNS, stats, write_csv
from flashmoe.monitor.feed import MonitorFeed
from flashmoe.monitor.map_codec import MapDecoder, MapEncoder, MapFrame
from flashmoe.monitor.plot import svg, write_plot
from flashmoe.monitor.recording import MAGIC, Recorder, Recording, RecordingError
from flashmoe.monitor.replay import Player
from tests.monitor_demo import GUIDE, DemoEngine
from tests.places import ROOT


def record(path: Path, case: str = "capped", seconds: float = 40, **shape: Any) -> DemoEngine:
    engine = DemoEngine(case, **(shape or GUIDE))
    recorder = Recorder(path)
    recorder.model(engine.info)
    for _ in range(int(seconds * 2)):
        recorder.sample(engine.step())
        recorder.expert_map(engine.map())
    recorder.close()
    assert recorder.problem is None
    return engine


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "run.fmrec"
    record(path)
    return path


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "run.fmrec"
    engine, again = record(path), DemoEngine("capped", **GUIDE)
    recording = Recording(path)
    assert recording.header.version == 1
    assert not recording.cut
    assert list(recording.samples) == [again.step() for _ in range(80)]
    model = recording.messages[0]
    assert model == msgspec.structs.replace(engine.info, path="demo.gguf")  # no path of this machine
    assert recording.duration == pytest.approx(39.5)


def test_it_is_compact(tmp_path: Path) -> None:
    path = tmp_path / "large.fmrec"
    record(path, seconds=20, layers=48, experts=128)
    raw = len(msgspec.msgpack.encode(DemoEngine("capped").step())) * 40
    maps = 5 * 48 * 128 * 13
    assert path.stat().st_size < (raw + maps) / 4


@pytest.mark.parametrize("shape", [GUIDE, {"layers": 48, "experts": 128}])
def test_maps_come_back_exactly_but_for_the_steps_of_heat(shape: dict[str, Any]) -> None:
    engine = DemoEngine("capped", **shape)
    encoder, decoder = MapEncoder(), MapDecoder()
    for _ in range(12):
        engine.step()
        source = engine.map()
        back = decoder.decode(encoder.encode(source))
        assert back is not None
        for name in ("uses", "last_used", "residency", "hits", "misses", "next_token_reuse", "layers", "expert_bytes"):
            assert getattr(back, name) == getattr(source, name), name
        assert source.heat is not None
        assert back.heat is not None
        heat = np.frombuffer(source.heat, "<f4")
        assert np.abs(np.frombuffer(back.heat, "<f4") - heat).max() <= 0.03 * heat.max()


def test_a_map_can_be_read_from_a_keyframe_only() -> None:
    engine = DemoEngine("capped", **GUIDE)
    encoder = MapEncoder()
    first, second = encoder.encode(engine.map()), encoder.encode(engine.map())
    assert first.keyframe
    assert not second.keyframe
    assert MapDecoder().decode(second) is None
    with pytest.raises(ValueError):
        MapDecoder().decode(MapFrame(keyframe=True, n_layers=8, n_experts=32, planes={"uses": b"123"}))


def test_a_recording_goes_into_a_new_file(recorded: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="exists already"):
        Recorder(recorded)
    with pytest.raises(RecordingError, match="Can't record to"):
        Recorder(tmp_path / "no" / "such" / "folder.fmrec")


def test_a_killed_program_leaves_all_but_the_last_seconds(tmp_path: Path) -> None:
    path = tmp_path / "killed.fmrec"
    code = (
        "import os, sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\nfrom flashmoe.monitor.recording import Recorder\n"
        "from tests.monitor_demo import DemoEngine, GUIDE\n"
        "engine, recorder = DemoEngine('capped', **GUIDE), Recorder(Path(sys.argv[1]))\n"
        "recorder.model(engine.info)\n"
        "for _ in range(60): recorder.sample(engine.step())\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    recording = Recording(path)
    assert recording.duration >= 18  # of 30 s: at most ten are lost


def test_a_file_cut_in_mid_block_is_read_up_to_there(recorded: Path) -> None:
    whole = Recording(recorded)
    data = recorded.read_bytes()
    recorded.write_bytes(data[:-100])
    cut = Recording(recorded)
    assert cut.cut
    assert 0 < len(cut.samples) < len(whole.samples)


def block(messages: list[Any]) -> bytes:
    data = zlib.compress(msgspec.msgpack.encode(messages))
    return struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a recording"),
        (b"GGUF and more", "is not a recording"),
        (MAGIC, "holds no sample"),
        (MAGIC + struct.pack("<I", 5) + b"abcde", "is damaged"),
        (MAGIC + block([["h", {"version": 9, "app": "9.0"}]]), "newer flashmoe-tui"),
        (MAGIC + block([["s", {"t": "yesterday"}]]), "is damaged"),
        (MAGIC + block([["h", {"version": 1}], ["?", 1]]), "holds no sample"),
    ],
)
def test_bad_files_get_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.fmrec"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=said):
        Recording(path)


def test_a_block_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmoe.monitor.recording._MAX_BLOCK", 10_000)
    path = tmp_path / "bomb.fmrec"
    path.write_bytes(MAGIC + block([["?", "x" * 100_000]]))
    with pytest.raises(RecordingError, match="damaged"):
        Recording(path)


def test_later_versions_may_add_keys_and_kinds(recorded: Path) -> None:
    with open(recorded, "ab") as file:
        file.write(block([["z", {"what": 1}], ["s", {"t": 2000.0, "wall": 1.0, "added_later": [1, 2]}]]))
    assert Recording(recorded).samples[-1].t == 2000.0


# ---- replay -------------------------------------------------------------------------------------------------------


def live_feed(recording: Recording, until: float) -> MonitorFeed:
    feed, decoder = MonitorFeed(), MapDecoder()
    start = recording.samples[0].t
    now = 0.0
    for message in recording.messages:
        if hasattr(message, "telemetry"):
            now = message.t - start
            if now > until:
                break
            feed.push(message)
        elif isinstance(message, MapFrame):
            feed.push_map(decoder.decode(message))
        else:
            feed.set_model(message)
    return feed


@pytest.mark.parametrize("position", [0.0, 7.25, 20.0, 39.5])
def test_a_seek_shows_what_was_live(recorded: Path, position: float) -> None:
    recording = Recording(recorded)
    player = Player(recording, MonitorFeed())
    player.seek(33.0)
    player.seek(position)  # back (or on)
    live = live_feed(recording, position)
    assert player.feed.frame == live.frame
    assert player.feed.map == live.map
    assert player.feed.curve("read", 30) == live.curve("read", 30)


def test_playing_pausing_and_speed(recorded: Path) -> None:
    player = Player(Recording(recorded), MonitorFeed())
    player.advance(2.0)
    assert player.position == pytest.approx(2.0)
    player.paused = True
    player.advance(5.0)
    assert player.position == pytest.approx(2.0)
    player.paused = False
    assert player.faster(1) == 2.0
    player.advance(3.0)
    assert player.position == pytest.approx(8.0)
    player.advance(1000.0)
    assert player.ended
    assert player.paused
    for _ in range(20):
        player.faster(-1)
    assert player.speed == 0.25


# ---- evaluation ---------------------------------------------------------------------------------------------------


def test_stats_add_up(tmp_path: Path) -> None:
    path = tmp_path / "run.fmrec"
    engine = record(path)
    found = stats(Recording(path))
    first = DemoEngine("capped", **GUIDE)
    first.step()
    assert found.decode_tokens == engine.tokens - first.tokens
    assert found.expert_read_bytes == engine.read - first.read
    assert found.process_read_bytes == engine.read - first.read
    uses = engine.hits + engine.misses - first.hits - first.misses
    assert found.hit_rate == pytest.approx((engine.hits - first.hits) / uses)
    assert found.decode_tok_s == pytest.approx(found.decode_tokens / found.decode_s)
    assert found.models == ["demo-30B-A3B"]
    assert sum(found.verdicts.values()) > 20


def test_csv_has_a_row_for_each_sample(recorded: Path) -> None:
    target = io.StringIO()
    assert write_csv(Recording(recorded), target) == 80
    rows = list(csv.DictReader(io.StringIO(target.getvalue())))
    assert tuple(rows[0]) == COLUMNS
    assert float(rows[-1]["t_s"]) == pytest.approx(39.5)
    assert 0 < float(rows[-1]["hit_rate"]) < 1
    assert rows[0]["read_bytes_s"] == ""  # unknown, not zero


def test_the_plot_is_a_picture(recorded: Path, tmp_path: Path) -> None:
    root = ET.fromstring(svg(Recording(recorded)))
    text = " ".join(element.text or "" for element in root.iter() if element.tag.endswith("text"))
    for words in ("demo-30B-A3B", "speed, tokens/s", "measured maximum", "hit rate", "engine's own"):
        assert words in text
    target = tmp_path / "run.png"
    try:
        write_plot(Recording(recorded), target)
    except RecordingError as error:
        assert "rsvg-convert" in str(error)  # noqa: PT017
    else:
        assert target.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RecordingError, match="must end in"):
        write_plot(Recording(recorded), tmp_path / "run.jpeg")


def test_the_command(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["replay", str(recorded), "--stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 80
    assert command(["replay", str(recorded), "--stats"]) == 0
    assert "bound by" in capsys.readouterr().out
    assert command(["replay", str(recorded), "--csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 81
    assert command(["replay", str(recorded), "--plot", str(tmp_path / "o.svg")]) == 0
    assert (tmp_path / "o.svg").read_text().startswith("<svg")
    assert command(["replay", str(tmp_path / "none.fmrec")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "bad.fmrec").write_text("hello")
    assert command(["replay", str(tmp_path / "bad.fmrec"), "--stats"]) == 1
    assert "is not a recording" in capsys.readouterr().err
