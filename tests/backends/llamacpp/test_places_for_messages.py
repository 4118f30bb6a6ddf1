"""Messages that a chat template has no place for: they go elsewhere, are refused, or it is told, once a load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from backends.chat_format.rendering import Renderer
from backends.chat_format.templates import ChatTemplate
from backends.engine.client import EngineClient
from backends.engine.protocol import Notice
from backends.interface import ChatMessage, EngineError, GenerateRequest, LoadRequest, Sampling
from backends.llamacpp.backend import MmapBackend
from flashmoe.cli.main import main
from tests.gguf_factory import make_gguf
from tests.tui_support import ask, home, limit, new_app, ready, running

__all__ = ["home"]

_OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_SAYS = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
NO_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}" + _SAYS + "{% endif %}{% endfor %}" + _OPENS
REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}" + _SAYS + "{% endfor %}"
) + _OPENS
FIRST_ONLY = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}" + _SAYS + "{% endif %}{% endfor %}" + _OPENS
)
FIRST_OR_REFUSED = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}"
    + _SAYS + "{% endfor %}" + _OPENS
)  # fmt: skip
LAST_ONLY = "{% for m in messages %}{% if m.role != 'user' or loop.last %}" + _SAYS + "{% endif %}{% endfor %}" + _OPENS
NO_ANSWERS = "{% for m in messages %}{% if m.role == 'user' %}" + _SAYS + "{% endif %}{% endfor %}" + _OPENS
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | replace('/think', '') | upper }}<|im_end|>\n"
    "{% endfor %}" + _OPENS
)
SYSTEM, USER, LATER = ChatMessage("system", "Be kind."), ChatMessage("user", "Hi"), ChatMessage("system", "Be brief.")
ANSWER = ChatMessage("assistant", "Hello")


@pytest.mark.parametrize("source", [NO_SYSTEM, REFUSES_SYSTEM])
def test_a_system_message_goes_into_the_question(source: str) -> None:
    renderer = Renderer()
    try:
        made = ChatTemplate(source, bos="", eos="", renderer=renderer)
        found = made.rendered(GenerateRequest(id="1", messages=(SYSTEM, USER)))
        assert "<|im_start|>user\nBe kind.\nHi<|im_end|>" in found.text
        assert (found.system_merged, found.missing) == (True, ())
    finally:
        renderer.close()


@pytest.mark.parametrize("source", [FIRST_ONLY, FIRST_OR_REFUSED])
def test_a_later_system_message_goes_into_the_question_after_it(source: str) -> None:
    renderer = Renderer()
    try:
        made = ChatTemplate(source, bos="", eos="", renderer=renderer)
        for _ in range(2):  # learnt, then known
            found = made.rendered(GenerateRequest(id="1", messages=(SYSTEM, USER, ANSWER, LATER, USER)))
            assert found.text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
            assert "<|im_start|>user\nBe brief.\nHi<|im_end|>" in found.text
            assert (found.system_merged, found.missing) == (True, ())
            found = made.rendered(GenerateRequest(id="1", messages=(SYSTEM, USER)))
            assert not found.system_merged
        found = made.rendered(GenerateRequest(id="1", messages=(USER, ANSWER, LATER)))
        assert "<|im_start|>user\nBe brief.<|im_end|>" in found.text
    finally:
        renderer.close()


def test_a_text_that_is_rewritten_isnt_left_out() -> None:
    renderer = Renderer()
    try:
        made = ChatTemplate(REWRITES, bos="", eos="", renderer=renderer)
        assert made.rendered(GenerateRequest(id="1", messages=(ChatMessage("user", "why? /think"),))).missing == ()
        made = ChatTemplate(NO_ANSWERS, bos="", eos="", renderer=renderer)
        assert made.rendered(GenerateRequest(id="1", messages=(USER, ANSWER, USER))).missing == (1,)
    finally:
        renderer.close()


def test_what_the_model_would_not_see_is_refused(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf", chat_template=LAST_ONLY)
    model = MmapBackend().load(LoadRequest(path=str(path), n_threads=1), lambda _: True)
    try:
        first = ChatMessage("user", "What is 6 times 7?")
        with pytest.raises(EngineError, match=r"message 2 \(role user\)") as raised:
            model.prepare(GenerateRequest(id="1", messages=(SYSTEM, first, ANSWER, USER)))
        assert raised.value.code == "bad_request"
    finally:
        model.close()


async def test_it_is_told_once_a_load(tmp_path: Path) -> None:
    events: list[object] = []
    client = EngineClient(log_path=tmp_path / "engine.log", on_event=events.append)
    try:
        for template, messages, word in (
            (NO_SYSTEM, (SYSTEM, USER), "system prompt"),
            (NO_ANSWERS, (USER, ANSWER, USER), "earlier answers"),
        ):
            path = make_gguf(tmp_path / f"{word}.gguf", chat_template=template)
            for _ in range(2):
                events.clear()
                await client.load(LoadRequest(path=str(path), backend="mmap", n_threads=1))
                for number in range(3):
                    asked = GenerateRequest(id=str(number), messages=messages, sampling=Sampling(max_tokens=1))
                    async for _ in client.generate(asked):
                        pass
                (notice,) = [e for e in events if isinstance(e, Notice)]
                assert word in notice.message
    finally:
        await client.stop()


async def test_the_app_shows_it_once(tmp_path: Path) -> None:
    app, told = new_app(make_gguf(tmp_path / "m.gguf", chat_template=NO_SYSTEM)), list[str]()
    notify: Callable[..., None] = app.notify

    def heard(message: str, **more: object) -> None:
        told.append(message)
        notify(message, **more)

    app.notify = heard  # type: ignore[method-assign,assignment]
    async with running(app) as pilot:
        await ready(pilot)
        limit(app, 3)
        await ask(pilot, "Hello")
        assert not [t for t in told if "system prompt" in t]
        flow = app.chat_screen.flow
        settings = flow.conversation.settings
        flow.conversation.settings = msgspec.structs.replace(settings, system_prompt="Be kind.")
        for _ in range(2):
            await ask(pilot, "And now?")
        assert len([t for t in told if "system prompt" in t]) == 1


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_gguf(tmp_path / "m.gguf", chat_template=NO_SYSTEM)
    assert main(["run", str(path), "Hello", "--system", "Be kind.", "--max-tokens", "2", "--backend", "mmap"]) == 0
    told = capsys.readouterr().err
    assert told.count("no place for a system prompt") == 1
    assert main(["run", str(path), "Hello", "--max-tokens", "2", "--backend", "mmap"]) == 0
    assert "system prompt" not in capsys.readouterr().err
