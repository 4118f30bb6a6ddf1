"""No word is cut in its middle, and nothing is left out for want of room that would fit otherwise."""

from __future__ import annotations

import re

import pytest
from textual.widgets import Static

from tests.tui_support import new_app, running, screen_is, shown, until
from tui.key_table import KEYS
from tui.screens.chat.commands import COMMANDS
from tui.texts import hanging, joined, whole_words
from tui.widgets.leader_hints import LeaderHints
from tui.widgets.monitor.lines import wrap


def test_what_is_too_long_loses_whole_words() -> None:
    assert whole_words("Continue an answer that was cut short", 37) == "Continue an answer that was cut short"
    assert whole_words("Continue an answer that was cut short", 30) == "Continue an answer that was…"
    assert whole_words("Load a model; without a name, list", 16) == "Load a model…"
    assert joined(["layer 3", "in RAM", "used 42 times"], 22) == "layer 3 · in RAM"
    assert wrap("--vram-experts auto (24 layers' experts fit)", 24, 1) == ["--vram-experts auto…"]
    assert wrap("anything", 20, 0) == []


def test_lines_of_a_sentence_are_about_as_long() -> None:
    assert wrap("4.0 GiB more budget: 2.8 → 4.3 tok/s", 35, 2) == ["4.0 GiB more budget:", "2.8 → 4.3 tok/s"]
    assert wrap("bound by the SSD", 35, 2) == ["bound by the SSD"]


def test_text_beside_a_label_stays_beside_it() -> None:
    assert hanging("one two three four", 4 + 12, 4) == "one two\n    three four"


@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 36)])
async def test_the_leader_shows_all_that_may_follow(size: tuple[int, int]) -> None:
    known = {word for spec in KEYS for word in re.findall(r"[A-Za-z]+", spec.description)}
    async with running(new_app(), size) as pilot:
        await pilot.press("ctrl+x")
        await until(pilot, lambda: "Attach a text file" in shown(pilot.app))
        hints = pilot.app.screen.query_one(LeaderHints)
        lines = hints.render().plain.split("\n")
        assert len(lines) <= hints.content_size.height
        words = re.findall(r"[A-Za-z]{2,}", " ".join(lines))
        assert set(words) <= known | {"EDITOR", "VISUAL"}


@pytest.mark.parametrize("size", [(60, 20), (80, 24)])
async def test_the_help_fits_its_box(size: tuple[int, int]) -> None:
    async with running(new_app(), size) as pilot:
        await pilot.press("f1")
        await screen_is(pilot, "HelpScreen")
        static = pilot.app.screen.query_one(Static)
        await until(pilot, lambda: static.content_size.width > 0)
        lines = pilot.app.screen.text().split("\n")  # type: ignore[attr-defined]
        prose = [each for each in lines if "Remap keys" not in each.plain]
        assert max(each.cell_length for each in prose) <= static.content_size.width


@pytest.mark.parametrize("size", [(60, 20), (80, 24)])
async def test_offers_end_with_a_word(size: tuple[int, int]) -> None:
    known = {word for command in COMMANDS for word in re.findall(r"[a-z]+", command.description)}
    async with running(new_app(), size) as pilot:
        await pilot.press("slash")
        await until(pilot, lambda: "/model" in shown(pilot.app))
        offers = pilot.app.screen.query_one("OfferList")
        ends = re.findall(r"([a-z]+)…", offers.render().plain)  # type: ignore[union-attr]
        assert set(ends) <= known
