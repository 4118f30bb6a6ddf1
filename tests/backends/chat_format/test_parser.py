"""Content, thinking and tool calls apart, in every format, however the text is cut and wherever it breaks off."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.chat_format.events import Said
from backends.chat_format.format import ChatFormat, Thinking
from backends.chat_format.parser import Parser, parse
from tests.backends.chat_format.formats import FORMATS, TOOLS
from tests.backends.chat_format.writing import answer_text, calls_text

CALLING = [n for n in FORMATS if n not in ("plain", "no calls", "muse", "kimi3", "minimax", "functionary")]
THINKING = [n for n in CALLING if n not in ("mistral", "bare", "python")]


def said(name: str, raw: str, *, after: str = "", tools: Any = TOOLS, truncated: bool = False) -> tuple[Any, ...]:
    """(content, thinking, [(name, arguments)]), checked to be the same for several ways of cutting."""
    results = []
    for step in (0, 1, 2, 7):
        found = parse(FORMATS[name], raw, tools=tools, after=after, truncated=truncated, step=step)
        results.append(found)
    assert all(r == results[0] for r in results)
    return (
        results[0].content,
        results[0].thinking,
        [(c.name, json.loads(c.arguments) if c.complete else c.arguments) for c in results[0].calls],
    )


@pytest.mark.parametrize("name", CALLING)
def test_one_call_and_two(name: str) -> None:
    calls = [("get_weather", {"city": "Zürich 👍🏽", "days": 3, "exact": True}), ("get_time", {"city": "Bern"})]
    for some in (calls[:1], calls):
        after, raw = answer_text(name, "", "", some)
        assert said(name, raw, after=after) == ("", "", some)


@pytest.mark.parametrize("name", THINKING)
def test_thinking_text_and_a_call(name: str) -> None:
    calls = [("get_weather", {"city": "Bern"})]
    after, raw = answer_text(name, "Look outside.", "One moment.", calls)
    assert said(name, raw, after=after) == ("One moment.", "Look outside.", calls)


@pytest.mark.parametrize("name", CALLING)
def test_markers_within_a_value_are_text(name: str) -> None:
    for value in (
        "</tool_call> <tool_call> </think>",
        "</parameter> [TOOL_CALLS] <|im_end|>",
        '{"a": "}"}, [',
        "a</arg_value>b",
    ):
        calls = [("get_weather", {"city": value, "days": 1})]
        after, raw = answer_text(name, "", "", calls)
        assert said(name, raw, after=after) == ("", "", calls), value


@pytest.mark.parametrize("name", CALLING)
def test_types_follow_the_schema(name: str) -> None:
    arguments = {"city": "12", "days": 2, "exact": False, "tags": ["a", "b"], "place": {"x": [1, None]}, "note": None}
    after, raw = answer_text(name, "", "", [("get_weather", arguments)])
    assert said(name, raw, after=after) == ("", "", [("get_weather", arguments)])


@pytest.mark.parametrize("name", CALLING)
def test_what_is_cut_off_is_given_as_far_as_it_came(name: str) -> None:
    after, raw = answer_text(name, "", "", [("get_weather", {"city": "Bern, the capital", "days": 2})])
    whole = json.dumps({"city": "Bern, the capital", "days": 2})
    for cut in range(len(raw)):
        content, thinking, calls = said(name, raw[:cut], after=after, truncated=True)
        assert (content, thinking) == ("", ""), cut
        for called, arguments in calls:
            assert called == "get_weather"
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            assert whole.startswith(text.rstrip("}")) or text == "{}", (cut, text)


@pytest.mark.parametrize("name", CALLING)
def test_without_tools_a_call_is_text(name: str) -> None:
    if name == "harmony":
        return  # its messages have recipients of their own
    _, raw = answer_text(name, "", "", [("get_weather", {"city": "Bern"})])
    content, _, calls = said(name, "Like this: " + raw, after="<|im_start|>assistant\n", tools=None)
    assert not calls
    assert "Bern" in content


@pytest.mark.parametrize("name", [n for n in CALLING if n != "harmony"])
def test_talk_about_markers_is_text(name: str) -> None:
    after = "<|im_start|>assistant\n"
    marker = calls_text(name, [("get_weather", {})])[:6]
    raw = f"You write {marker} before a call, and {{braces}} [brackets] after it."
    assert said(name, raw, after=after)[0] == raw


def test_tags_count_only_at_the_beginning() -> None:
    raw = "It means <think> and </think>."
    assert said("hermes", raw) == (raw, "", [])
    assert said("plain", raw) == (raw, "", [])
    assert said("plain", "<think>\nhm\n</think>\n\nYes.") == ("Yes.", "hm", [])
    assert said("hermes", "\n<think>a</think> <think>b</think>c") == ("c", "a\nb", [])


def test_a_users_tag_doesnt_open_thinking() -> None:
    assert said("hermes", "An answer.", after="<|im_start|>assistant\n") == ("An answer.", "", [])
    assert said("hermes", "a</think>b", after="<|im_start|>assistant\n<think>\n") == ("b", "a", [])
    assert said("hermes", "b", after="<|im_start|>assistant\n<think>\n\n</think>\n\n") == ("b", "", [])
    assert said("hermes", "</think>b", after="<|im_start|>assistant\n<think>\n\n</think>\n\n") == ("b", "", [])


def test_a_call_within_thinking_is_a_mention_if_thinking_goes_on() -> None:
    call = calls_text("hermes", [("get_time", {"city": "Bern"})])
    opened = "<|im_start|>assistant\n<think>\n"
    content, thinking, calls = said("hermes", f"Shall I {call}?\n</think>\nNo.", after=opened)
    assert (content, calls) == ("No.", [])
    assert call in thinking
    assert said("hermes", f"I shall.\n{call}", after=opened) == ("", "I shall.", [("get_time", {"city": "Bern"})])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ('<tool_call>{"name": "get_time", "arguments": {"city": "Bern",}}</tool_call>', {"city": "Bern"}),
        ("<tool_call>{'name': 'get_time', 'arguments': {'city': 'it\\'s', 'exact': True}}</tool_call>",
         {"city": "it's", "exact": True}),
        ('<tool_call>{"name": "get_time", "arguments": {"city": "a\nb\tc"}}</tool_call>', {"city": "a\nb\tc"}),
        ('<tool_call>{"name": "get_time", "arguments": "{\\"city\\": \\"Bern\\"}"}</tool_call>', {"city": "Bern"}),
        ('<tool_call>{"arguments": {"city": "Bern"}, "name": "get_time"}</tool_call>', {"city": "Bern"}),
        ('<tool_call>{"name": "get_time"}</tool_call>', {}),
        ('<tool_call>{"type": "function", "function": {"name": "get_time", "arguments": {}}}</tool_call>', {}),
        ('<tool_call>{"name": "get_time", "arguments": {"city": "Bern"}}', {"city": "Bern"}),
        ('<tool_call>{"name": "get_time", "arguments": {"city": "Bern"}', {"city": "Bern"}),
        ('<tool_call>[{"name": "get_time", "arguments": {}}]</tool_call>', {}),
        ('<tool_call>{"name": "get_time", "arguments": {"city": "C:\\dir"}}</tool_call>', {"city": "C:\\dir"}),
    ],
)  # fmt: skip
def test_what_models_do_to_json_is_mended(raw: str, expected: dict[str, Any]) -> None:
    assert said("hermes", raw) == ("", "", [("get_time", expected)])


def test_a_call_that_breaks_off_is_no_whole_call() -> None:
    found = parse(FORMATS["hermes"], '<tool_call>{"name": "get_time", "arguments": {"city": "Be', tools=TOOLS)
    (call,) = found.calls
    assert not call.complete
    assert call.raw.startswith("<tool_call>")
    assert found.content == ""


def test_half_an_escape_and_half_a_head_are_no_text() -> None:
    raw = '<tool_call>{"name": "get_time", "arguments": {"city": "a\\'
    assert said("hermes", raw, truncated=True)[0] == ""
    whole = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.get_time<|channel|>commentary"
    for cut in range(len(whole)):
        assert said("harmony", whole[:cut], after="<|start|>assistant", truncated=True)[0] == "", whole[:cut]
    assert said("harmony", "Plain words", after="<|start|>assistant", truncated=True)[0] == "Plain words"


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        ("<|channel|>final<|message|>a < b and <|", "a < b and <|"),
        ("<|channel|>commentary<|message|>Let me look.", "Let me look."),
        ("Plain words without any channel", "Plain words without any channel"),
    ],
)
def test_harmony(raw: str, content: str) -> None:
    assert said("harmony", raw, after="<|start|>assistant") == (content, "", [])


def test_harmony_goes_on_where_it_was_cut() -> None:
    raw = "go on<|end|><|start|>assistant<|channel|>final<|message|>x"
    assert said("harmony", raw, after="<|start|>assistant<|channel|>analysis<|message|>") == ("x", "go on", [])


@pytest.mark.parametrize(
    ("start", "end"),
    [("<mm:think>", "</mm:think>"), ("<|inner_prefix|>", "<|inner_suffix|>"), ("◁think▷", "◁/think▷"),
     ("<reasoning>", "</reasoning>"), ("<|START_THINKING|>", "<|END_THINKING|>")],
)  # fmt: skip
def test_other_tags_of_thinking(start: str, end: str) -> None:
    fmt = ChatFormat(thinking=Thinking(start, end))
    found = parse(fmt, f"{start}a{end}Hello")
    assert (found.content, found.thinking) == ("Hello", "a")


def test_a_wrapper_of_the_text_is_not_shown() -> None:
    fmt = ChatFormat(
        thinking=Thinking("<|think|>", "<|end|>", ("<|begin|>", "assistant", "<|content|>"), control=True),
        wrapper=("<|content|>",), ends=("<|end|>",),
    )  # fmt: skip
    found = parse(fmt, "<|think|>a<|end|><|begin|>assistant<|content|>Hello<|end|>")
    assert (found.content, found.thinking) == ("Hello", "a")


def test_special_tokens_count_by_their_ids() -> None:
    special = frozenset({"<tool_call>", "</tool_call>"})
    parser, found = Parser(FORMATS["hermes"], tools=TOOLS, special_texts=special), Said()
    pieces = parser.feed('As text: <tool_call>{"name": "get_time"}. As a token: ')
    pieces += parser.feed("<tool_call>", special=True)
    pieces += parser.feed('{"name": "get_time", "arguments": {}}') + parser.feed("</tool_call>", special=True)
    for piece in [*pieces, *parser.finish()]:
        found.add(piece)
    assert found.content == 'As text: <tool_call>{"name": "get_time"}. As a token:'
    assert [c.name for c in found.calls] == ["get_time"]


def test_text_and_arguments_stream() -> None:
    parser = Parser(FORMATS["hermes"], tools=TOOLS)
    assert [p.text for p in parser.feed("One two")] == ["One two"]
    assert parser.feed(" <tool")[0:] == []
    kinds = [p.kind for p in parser.feed('_call>{"name": "get_time", "arguments": {"city": "Be')]
    assert kinds == ["call", "arguments"]
    assert parser.phase == "call"
    assert [p.text for p in parser.feed("rn")] == ["rn"]


# ---- anything at all -------------------------------------------------------------------------------------------------

_WORDS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<function=", "<parameter=city>",
    "</parameter>", "</function>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<|channel|>",
    "<|message|>", "<|start|>", "<|end|>", "analysis", "final", "to=functions.get_time", "get_time", "get_weather",
    '{"name": "', '"', "{", "}", "[", "]", ":", ",", "\\", "'", "(", ")", "=", "1", "true", "\n", " ", "👍🏽", "é",
    "<|tool_call>", "call:", '<|"|>', "<tool_call|>", '<invoke name="', "<x:tool_call>", '<｜DSML｜invoke name="',
    "<｜tool▁call▁begin｜>", "<|tool_call_begin|>", "functions.get_time:0", "city", "<|im_end|>",
)  # fmt: skip


def outcome(name: str, raw: str, step: int, truncated: bool) -> Said:
    opened = "<|im_start|>assistant\n<think>\n" if len(raw) % 3 == 0 else ""
    return parse(FORMATS[name], raw, tools=TOOLS, after=opened, truncated=truncated, step=step)


def check(name: str, raw: str, truncated: bool) -> None:
    """The same for five ways of cutting, without an exception, and with whole JSON or none."""
    first = outcome(name, raw, 0, truncated)
    for step in (1, 2, 3, 5):
        assert outcome(name, raw, step, truncated) == first, (name, raw, step)
    for call in first.calls:
        assert call.name
        if call.complete:
            assert isinstance(json.loads(call.arguments), dict), (name, raw)


@given(words=st.lists(st.sampled_from(_WORDS), max_size=30), name=st.sampled_from(sorted(FORMATS)), cut=st.booleans())
@settings(deadline=None)
def test_any_text_gives_one_result(words: list[str], name: str, cut: bool) -> None:
    check(name, "".join(words), cut)


def random_output(rng: random.Random) -> tuple[str, str]:
    """A format and an output: valid calls, then cut, shuffled or sprinkled with markers."""
    name = rng.choice(CALLING)
    texts = ["Bern", "a\nb", "👍🏽", "</tool_call>", "<think>", '"}', "\\", "</parameter>", "[ARGS]{", "ж" * 9]
    calls = [
        (rng.choice(["get_weather", "get_time", "other"]), {
            k: rng.choice([rng.choice(texts) + rng.choice(texts), rng.randrange(99), None, [1, "x"], {"y": "z"}])
            for k in rng.sample(["city", "days", "tags", "note", "odd key"], rng.randrange(4))
        })
        for _ in range(rng.randrange(3))
    ]  # fmt: skip
    _, raw = answer_text(name, rng.choice(["", "Hm " + rng.choice(texts)]), rng.choice(["", "Yes."]), calls)
    if rng.random() < 0.4:
        raw = raw[: rng.randrange(len(raw) + 1)]
    if rng.random() < 0.3 and raw:
        parts = [raw[i : i + 9] for i in range(0, len(raw), 9)]
        rng.shuffle(parts)
        raw = "".join(parts)
    if rng.random() < 0.3:
        at = rng.randrange(len(raw) + 1)
        raw = raw[:at] + rng.choice(_WORDS) + raw[at:]
    return name, raw


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_outputs(count: int) -> None:
    rng = random.Random(19)
    for _ in range(count):
        name, raw = random_output(rng)
        check(name, raw, rng.random() < 0.5)


@pytest.mark.parametrize("step", [0, 1, 3])
def test_an_apostrophe_doesnt_end_a_text_in_single_quotes(step: int) -> None:
    raw = """<|tool_call_start|>[get_weather(city='Don\'t', note='it's "x"', days=2)]<|tool_call_end|>"""
    (call,) = parse(FORMATS["python"], raw, tools=TOOLS, step=step).calls
    assert json.loads(call.arguments) == {"city": "Don't", "note": 'it\'s "x"', "days": 2}


@pytest.mark.parametrize(
    ("note", "value"),
    [("5", "5"), ("null", None), ("'a' 'b'", "'a' 'b'"), ("5 # five", "5 # five"), ("None", None), ('"x"', "x")],
)
def test_a_text_where_null_is_allowed_as_well(note: str, value: str | None) -> None:
    raw = f'<x:tool_call><invoke name="get_weather"><parameter name="note">{note}</parameter></invoke></x:tool_call>'
    (call,) = parse(FORMATS["invoke"], raw, tools=TOOLS).calls
    assert json.loads(call.arguments) == {"note": value}
