"""While a prompt is computed its stream says how far it is, in comments that clients ignore, and so does /metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import pytest

from tests.gguf_factory import make_gguf
from tests.serving import serving


def test_a_long_prompt_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmoe.serve.app.PROGRESS_S", 0.0005)
    model = make_gguf(tmp_path / "m.gguf", n_layer=8, n_ctx_train=4096, endless=True)
    body = {
        "messages": [{"role": "user", "content": "word " * 1000}], "max_tokens": 4, "temperature": 0, "stream": True,
    }  # fmt: skip
    with serving(model, tmp_path / "log", parallel=1, n_ctx=4096, n_ubatch=32, n_threads=1) as server:
        metrics = ""
        comments, events = [], []
        with httpx2.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=300) as response:
            assert response.status_code == 200
            for line in response.iter_lines():
                if line.startswith(": prompt"):
                    comments.append(line)
                    metrics = metrics or httpx2.get(server.url + "/metrics").text
                elif line.startswith("data: {"):
                    events.append(json.loads(line[6:]))
        assert not server.engine.prompts  # nothing is left of it
        after = httpx2.get(server.url + "/metrics").text
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    told = [re.fullmatch(r": prompt: (\d+) of (\d+) tokens(?:, about \d+ s left)?", line) for line in comments]
    done = [int(m[1]) for m in told if m is not None]
    assert len(done) == len(comments) > 2
    assert done == sorted(done)
    total = {int(m[2]) for m in told if m is not None}
    assert total == {max(total)}
    assert done[-1] < max(total)
    assert "flashmoe_prompts_total_tokens" in metrics
    assert "flashmoe_prompts_total_tokens 0.0" in after
