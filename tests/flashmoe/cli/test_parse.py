"""``parse``: raw output to content, thinking and calls, and prompts, from a template alone or a model's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flashmoe.cli.main import main
from tests.backends.chat_format.formats import TEMPLATES, TOOLS
from tests.gguf_factory import make_gguf

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}}\n</tool_call>'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMOE_HOME", str(tmp_path / "home"))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Templates and tools as files."""
    for name in ("hermes", "coder", "list", "plain"):
        (tmp_path / f"{name}.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    return tmp_path


class Parse:
    """Runs the command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *argv: str | Path, stdin: str | bytes = "") -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        data = stdin.encode("utf-8", "surrogatepass") if isinstance(stdin, str) else stdin
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        code = main(["parse", *map(str, argv)])
        told = self._capsys.readouterr()
        return code, told.out, told.err

    def json(self, *argv: str | Path, stdin: str | bytes = "") -> dict[str, Any]:
        """The result, which is one line."""
        code, out, err = self(*argv, "--json", stdin=stdin)
        assert code == 0, err
        assert out.count("\n") == 1
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Parse:
    return Parse(monkeypatch, capsys)


def test_content_thinking_and_calls(files: Path, parse: Parse) -> None:
    raw = f"<think>\nHm.\n</think>\n\nOne moment.\n{CALL}"
    found = parse.json("--template", files / "hermes.jinja", "--tools", files / "tools.json", stdin=raw)
    assert (found["content"], found["reasoning_content"]) == ("One moment.", "Hm.")
    (call,) = found["tool_calls"]
    assert set(call) == {"id", "name", "arguments"}
    assert (call["id"], call["name"], json.loads(call["arguments"])) == (
        None, "get_weather", {"city": "Zürich", "days": 2},
    )  # fmt: skip
    assert found["format"]["thinking"] == ["<think>", "</think>"]
    assert found["format"]["tool_calls"]["kind"] == "json"


def test_what_there_is_none_of_is_null(files: Path, parse: Parse) -> None:
    found = parse.json("--template", files / "plain.jinja", stdin="Hello")
    assert (found["content"], found["reasoning_content"], found["tool_calls"]) == ("Hello", None, [])
    found = parse.json("--template", files / "hermes.jinja", "--tools", files / "tools.json", stdin=CALL)
    assert found["content"] is None


def test_without_tools_a_call_is_text(files: Path, parse: Parse) -> None:
    found = parse.json("--template", files / "hermes.jinja", stdin=CALL)
    assert found["content"] == CALL
    assert found["tool_calls"] == []


def test_tools_are_taken_in_every_usual_form(files: Path, parse: Parse) -> None:
    inner = [t["function"] for t in TOOLS]
    forms: list[Any] = [
        TOOLS, inner, {"tools": TOOLS},
        [{"name": f["name"], "input_schema": f["parameters"]} for f in inner],
    ]  # fmt: skip
    for form in forms:
        (files / "form.json").write_text("\ufeff" + json.dumps(form), encoding="utf-8")
        found = parse.json("--template", files / "hermes.jinja", "--tools", files / "form.json", stdin=CALL)
        assert [c["name"] for c in found["tool_calls"]] == ["get_weather"]


@pytest.mark.parametrize("split", ["whole", "chars", "1", "2", "7", "1000"])
def test_however_it_is_split(split: str, files: Path, parse: Parse) -> None:
    raw = f"I think.</think>Yes 👍🏽.\n{CALL}"
    template = ("--template", files / "coder.jinja", "--tools", files / "tools.json")
    assert parse.json(*template, "--split", split, stdin=raw) == parse.json(*template, stdin=raw)


def test_the_templates_own_opener_or_another(files: Path, parse: Parse) -> None:
    template = ("--template", files / "coder.jinja")  # its generation prompt opens thinking
    assert parse.json(*template, stdin="a</think>b")["reasoning_content"] == "a"
    found = parse.json(*template, "--after", "<|im_start|>assistant\n<think>\n\n</think>\n\n", stdin="b")
    assert (found["content"], found["reasoning_content"]) == ("b", None)
    found = parse.json("--template", files / "list.jinja", "--after", "[THINK]", stdin="a[/THINK]b")
    assert (found["content"], found["reasoning_content"]) == ("b", "a")
    found = parse.json("--template", files / "list.jinja", "--after", "", stdin="[THINK]a[/THINK]b")
    assert (found["content"], found["reasoning_content"]) == ("b", "a")


def test_the_switch_of_thinking(files: Path, parse: Parse) -> None:
    (files / "switch.jinja").write_text(
        TEMPLATES["hermes"].replace(
            "assistant\n{% endif %}", "assistant\n{{ '<think>\n' if enable_thinking }}{% endif %}"
        )
    )
    template = ("--template", files / "switch.jinja")
    for think, wanted in (("on", "a"), ("high", "a"), ("off", None)):
        found = parse.json(*template, "--think", think, stdin="a</think>b" if wanted else "b")
        assert (found["content"], found["reasoning_content"]) == ("b", wanted)
    assert parse.json(*template, stdin="b")["format"]["thinking_switch"] == "enable_thinking"


def test_what_was_cut_off(files: Path, parse: Parse) -> None:
    template = ("--template", files / "hermes.jinja", "--tools", files / "tools.json")
    raw = '<tool_call>{"name": "get_weather", "arguments": {"city": "Zü'
    found = parse.json(*template, "--truncated", stdin=raw)
    assert found["tool_calls"] == [{"id": None, "name": "get_weather", "arguments": '{"city": "Zü'}]
    assert found["unfinished"] == []
    found = parse.json(*template, stdin=raw)  # it ended by itself: that is no call
    assert (found["tool_calls"], found["content"]) == ([], None)
    assert found["unfinished"] == [raw]


def test_many_lines(files: Path, parse: Parse) -> None:
    lines = [
        {"id": 1, "raw": "Hello"},
        {"id": "b", "raw": CALL, "tools": TOOLS, "split": "chars"},
        {"raw": "a</think>b", "after": "<think>\n", "split": 3},
        {"id": None, "raw": CALL[:40], "tools": TOOLS, "truncated": True, "think": "off"},
    ]
    stdin = "".join(json.dumps(line) + "\n\n" for line in lines)
    code, out, err = parse("--template", files / "hermes.jinja", "--jsonl", "--json", stdin=stdin)
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [f["id"] for f in found] == [1, "b", None, None]
    assert found[0]["content"] == "Hello"
    assert [c["name"] for c in found[1]["tool_calls"]] == ["get_weather"]
    assert (found[2]["content"], found[2]["reasoning_content"]) == ("b", "a")
    assert found[3]["content"] is None
    assert all({"content", "reasoning_content", "tool_calls", "format"} <= set(f) for f in found)


def test_tools_of_the_flag_hold_for_every_line(files: Path, parse: Parse) -> None:
    line = json.dumps({"id": 1, "raw": CALL})
    code, out, _ = parse(
        "--template", files / "hermes.jinja", "--tools", files / "tools.json", "--split", "2", "--jsonl", stdin=line
    )
    assert code == 0
    assert [c["name"] for c in json.loads(out)["tool_calls"]] == ["get_weather"]


@pytest.mark.parametrize(
    "line", ["no json", "[]", '{"id": 1}', '{"raw": 5}', '{"raw": "", "split": "half"}', "[" * 9999]
)
def test_a_line_that_cant_be_used_is_named(line: str, files: Path, parse: Parse) -> None:
    code, out, err = parse("--template", files / "plain.jinja", "--jsonl", stdin=f'{{"raw": "x"}}\n{line}\n')
    assert code == 2
    assert out.count("\n") == 1
    assert "line 2" in err
    assert "Traceback" not in err


def test_prompts(files: Path, parse: Parse) -> None:
    request = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hey"}, {"type": "text", "text": "there"}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "x", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Bern"}'}}]},
            {"role": "tool", "tool_call_id": "x", "content": "noon"},
        ],
        "tools": TOOLS,
    }  # fmt: skip
    (files / "request.json").write_text(json.dumps(request))
    template = ("--template", files / "hermes.jinja", "--render", files / "request.json")
    code, out, err = parse(*template)
    assert code == 0, err
    assert out.endswith("noon<|im_end|>\n<|im_start|>assistant\n")
    assert "Hey\nthere" in out
    assert '{"name": "get_time", "arguments": {"city": "Bern"}}' in out
    assert parse.json(*template) == {"prompt": out}
    (files / "request.json").write_text(json.dumps({**request, "add_generation_prompt": False}))
    assert parse(*template)[1] == out.removesuffix("<|im_start|>assistant\n")
    (files / "request.json").write_text(json.dumps(request["messages"][:2]))
    assert "# Tools" not in parse(*template)[1]
    assert "# Tools" in parse(*template, "--tools", files / "tools.json")[1]


def test_the_texts_of_bos_and_eos(files: Path, parse: Parse) -> None:
    (files / "ends.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    (files / "request.json").write_text(json.dumps([{"role": "user", "content": "x"}]))
    template = ("--template", files / "ends.jinja", "--render", files / "request.json")
    assert parse(*template, "--bos", "<B>", "--eos", "<E>")[1] == "<B>x<E>"
    assert parse(*template)[1] == "x"


def test_a_models_template(files: Path, parse: Parse) -> None:
    model = make_gguf(files / "tiny model ü.gguf", chat_template=TEMPLATES["hermes"])
    found = parse.json(model, "--tools", files / "tools.json", stdin=CALL)
    assert [c["name"] for c in found["tool_calls"]] == ["get_weather"]
    bare = make_gguf(files / "bare.gguf", chat_template=None)
    assert parse.json(bare, stdin="Hello")["content"] == "Hello"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "a MODEL or --template"),
        (("m.gguf", "--template", "hermes.jinja"), "one of them"),
        (("--template", "nosuch.jinja"), "nosuch.jinja can't be read"),
        (("--template", "hermes.jinja", "--tools", "hermes.jinja"), "is not JSON"),
        (("--template", "hermes.jinja", "--render", "tools.json"), "message"),
        (("--template", "hermes.jinja", "--split", "0"), "whole, chars or a number"),
        (("nosuch.gguf",), "nosuch.gguf"),
    ],
)
def test_mistakes_are_one_sentence(
    argv: tuple[str, ...], words: str, files: Path, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    code, out, err = parse(*argv)
    assert code in (1, 2)
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_bytes_that_are_no_text_and_broken_templates(files: Path, parse: Parse) -> None:
    assert parse.json("--template", files / "plain.jinja", stdin=b"a\xffb")["content"] == "a\ufffdb"
    (files / "broken.jinja").write_text("{% for %}")
    found = parse.json("--template", files / "broken.jinja", stdin="<think>a</think>Hello")
    assert (found["content"], found["reasoning_content"]) == ("Hello", "a")
    assert found["format"]["learnt"] == "plain"


def test_as_a_command(files: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flashmoe.cli.main", "parse", "--template", files / "hermes.jinja", "--tools",
         files / "tools.json", "--json"],
        input=CALL.encode(), capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tool_calls"][0]["name"] == "get_weather"


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ('{"raw": "x", "think": "maybe"}', "think"),
        ('{"raw": "x", "after": 5}', "after"),
        ('{"raw": "x", "truncated": "false"}', "truncated"),
    ],
)
def test_a_line_with_a_value_that_means_nothing(line: str, word: str, files: Path, parse: Parse) -> None:
    code, _, err = parse("--template", files / "hermes.jinja", "--jsonl", stdin=line)
    assert code == 2
    assert "line 1" in err
    assert word in err


def test_results_that_dont_say_which_call_they_answer(files: Path, parse: Parse) -> None:
    call: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
    parts = [{"type": "text", "text": "QzOneQz"}, {"type": "text", "text": "QzTwoQz"}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": parts},
    ]
    (files / "request.json").write_text(json.dumps({"messages": messages, "tools": TOOLS}), encoding="utf-8")
    code, out, err = parse("--template", files / "hermes.jinja", "--render", files / "request.json")
    assert code == 0, err
    assert "QzOneQz\nQzTwoQz" in out


def test_a_template_that_cant_be_used_is_said(files: Path, parse: Parse) -> None:
    (files / "broken.jinja").write_text("{{", encoding="utf-8")
    code, out, err = parse("--template", files / "broken.jinja", "--json", stdin="Hello")
    assert code == 0
    assert json.loads(out)["content"] == "Hello"
    assert "nothing could be learnt" in err
