"""Sentences of errors: in parts, and of a bounded length whatever a file or a request holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.errors import MOST_CHARS, ReportedError
from backends.gguf.file import read_gguf
from backends.interface import EngineError


def test_long_ones_lose_their_middle() -> None:
    error = ReportedError("x", "begins " + "a" * 5000 + " ends", "do " + "b" * 5000)
    assert error.what.startswith("begins aaa")
    assert error.what.endswith("aaa ends")
    assert len(error.what) <= MOST_CHARS
    assert len(error.message) <= 2 * MOST_CHARS + 2
    assert str(error) == error.message
    assert ReportedError("x", "short", "do it").message == "short; do it"


def test_a_name_as_long_as_the_kernel_allows(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(8):
        folder = folder / ("n" * 240)
    with pytest.raises(EngineError) as caught:
        read_gguf(folder / "missing.gguf")
    assert len(caught.value.message) < 1300
    assert "missing.gguf" in caught.value.message
