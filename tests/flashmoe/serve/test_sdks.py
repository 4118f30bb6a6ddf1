"""The libraries that people use, in an environment of their own, against the real server: see tests/clients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flashmoe.paths import guide_model
from tests.backends.chat_format.formats import TEMPLATES
from tests.gguf_factory import make_gguf
from tests.serving import Running, serving

SCRIPTS = Path(__file__).parents[2] / "clients"
PYTHON = Path(os.environ.get("FLASHMOE_CLIENTS", f"{sys.prefix}-clients")) / "bin/python"
"""Of the environment that `make test-clients` sets up."""

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"the clients' libraries are not in {PYTHON}: make test-clients"),
]


@pytest.fixture(scope="module", params=["guide", "mistral"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    if request.param == "guide":
        model = guide_model()
    else:
        model = make_gguf(folder / "tiny.gguf", n_ctx_train=4096, chat_template=TEMPLATES[request.param])
    with serving(model, folder / "log", n_ctx=4096) as running:
        yield running


@pytest.mark.parametrize("script", sorted(path.stem for path in SCRIPTS.glob("with_*.py")))
def test_text_structured_output_and_a_call(server: Running, script: str, tmp_path: Path) -> None:
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("OPENAI", "ANTHROPIC", "PYTHON"))},
        "HOME": str(tmp_path),
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [PYTHON, SCRIPTS / f"{script}.py", server.url], env=environment, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, done.stderr[-8000:]
