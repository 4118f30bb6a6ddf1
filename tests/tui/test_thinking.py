"""How much a model shall think, as configured and as a chat says: it reaches the model's template."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.gguf_factory import make_gguf
from tests.tui_support import ask, home, limit, new_app, ready, running

__all__ = ["home"]

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined %}{{ 'x ' * (100 if enable_thinking else 200) }}{% endif %}"
    "{% if reasoning_effort is defined %}{{ 'y ' * (400 if reasoning_effort == 'low' else 500) }}{% endif %}"
)
"""Each way of asking for thinking makes a prompt of another length."""


@pytest.fixture(scope="module")
def echoing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("thinking") / "echo.gguf", chat_template=TEMPLATE, n_ctx_train=4096)


def configured(home: Path, said: str) -> None:
    file = home / "config" / "config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"chat: {{thinking: '{said}'}}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("said", "of_the_chat", "least", "most"),
    [
        ("auto", None, 1, 60),
        ("off", None, 200, 399),
        ("low", None, 500, 599),
        ("high", False, 200, 399),
        ("off", True, 100, 199),
    ],
)
async def test_the_template_is_told(
    said: str, of_the_chat: bool | None, least: int, most: int, echoing: Path, home: Path
) -> None:
    configured(home, said)
    app = new_app(echoing, n_ctx=2048)
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 2)
        conversation = app.chat_screen.flow.conversation
        conversation.settings = msgspec.structs.replace(conversation.settings, thinking=of_the_chat)
        await ask(pilot, "Well?")
        used = app.chat_screen.flow.ctx_used
    assert used is not None
    assert least <= used <= most
