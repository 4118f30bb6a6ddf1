"""Messages reach the model also where its template refuses them, drops them, or has no place for them."""

from __future__ import annotations

from typing import Any

import pytest

from backends.chat_format.history import one_call_each, plain_types
from backends.chat_format.templates import ChatTemplate
from backends.interface import ChatMessage, GenerateRequest, ToolCall, ToolSpec
from tests.backends.chat_format.formats import chatml, each
from tests.backends.chat_format.round_trip import DirectRenderer

TOOLS = (
    ToolSpec("get_weather", "The weather.", {"type": "object", "properties": {"city": {"type": ["string", "null"]}}}),
)
USER = ChatMessage("user", "QzHelloQz")
_CALL = '<tool_call>{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}</tool_call>'
SINGLE = chatml(each(_CALL).replace("m.tool_calls %}", "m.tool_calls[:1] %}"))
REFUSES_TWO = SINGLE.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}",
)
NULL = chatml(each(_CALL)).replace("{% if m.tool_calls %}", "{% if m.tool_calls and m.content is none %}").replace(
    "{{ m.content }}", "{{ m.content or '' }}"
)  # fmt: skip
PYTHONIC = (
    "{% if tools %}List of tools: {{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATES = (
    "{% set ns = namespace(last='') %}{% for m in messages %}{% if m.role == ns.last or (m.role == 'user' and "
    "ns.last == 'tool') %}{{ raise_exception('roles must alternate') }}{% endif %}{% set ns.last = m.role %}"
    "[{{ m.role }}] {{ m.content }}{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}\n{% endfor %}"
    "{{ tools }}"
)
TYPES = (
    "{% macro kind(t) %}{% if t in ('string', 'object') %}{{ t }}{% else %}{{ kind(t) }}{% endif %}{% endmacro %}"
    "{% for t in tools or [] %}{{ t.function.name }}: {% for k, v in t.function.parameters.properties.items() %}"
    "{{ k }}: {{ kind(v.type) }}{% endfor %}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


def prompt(source: str, *messages: ChatMessage, tools: tuple[ToolSpec, ...] = TOOLS, **more: Any) -> str:
    made = ChatTemplate(source, bos="<s>", eos="</s>", renderer=DirectRenderer())  # type: ignore[arg-type]
    rendered = made.rendered(GenerateRequest(id="1", messages=messages, tools=tools, **more))
    assert not rendered.missing
    return rendered.text


def calling(*cities: str) -> ChatMessage:
    calls = [ToolCall(f"call_{city}", "get_weather", f'{{"city": "{city}"}}') for city in cities]
    return ChatMessage("assistant", "", tool_calls=tuple(calls))


def result(city: str) -> ChatMessage:
    return ChatMessage("tool", f"Sun in {city}.", tool_call_id=f"call_{city}", name="get_weather")


@pytest.mark.parametrize("source", [SINGLE, REFUSES_TWO], ids=["drops", "refuses"])
def test_several_calls_where_a_template_knows_one_at_a_time(source: str) -> None:
    text = prompt(source, USER, calling("Bern", "Rome"), result("Rome"), result("Bern"))
    places = [text.index(part) for part in ('"Bern"', "Sun in Bern", '"Rome"', "Sun in Rome")]
    assert places == sorted(places)


def test_calls_and_results_stay_as_they_are_where_there_is_one() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "x"},
    ]
    assert one_call_each(messages) == messages
    assert one_call_each(messages[1:]) == messages[1:]
    alone: list[dict[str, Any]] = [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}, {"id": "2"}]}]
    assert one_call_each(alone) == alone


def test_calls_that_are_written_only_without_content() -> None:
    assert '"Bern"' in prompt(NULL, USER, calling("Bern"), result("Bern"))


def test_calls_that_a_template_leaves_out() -> None:
    text = prompt(PYTHONIC, USER, calling("Bern", "Rome"), result("Bern"), result("Rome"))
    assert '<|tool_call_start|>[get_weather(city="Bern"), get_weather(city="Rome")]<|tool_call_end|>' in text


def test_tools_that_a_template_doesnt_tell() -> None:
    source = chatml(each(_CALL)).replace("{% if tools %}", "{% if false %}")
    assert "get_weather" in prompt(source, ChatMessage("system", "QzSystemQz"), USER)
    assert "get_weather" not in prompt(source, USER, tools=())


def test_roles_that_must_alternate() -> None:
    assert "QzHelloQz\n\nQzMoreQz" in prompt(ALTERNATES, USER, ChatMessage("user", "QzMoreQz"))
    text = prompt(ALTERNATES, USER, calling("Bern"), result("Bern"), ChatMessage("user", "QzMoreQz"))
    assert "Sun in Bern" in text
    assert "QzMoreQz" in text


def test_types_that_a_template_doesnt_know() -> None:
    assert "city: string" in prompt(TYPES, USER)
    schema = {"type": "object", "properties": {"type": {"type": ["null", "integer", "string"]}}}
    assert plain_types(schema) == {"type": "object", "properties": {"type": {"type": ["integer", "string"]}}}


@pytest.mark.parametrize(
    "source",
    [
        chatml(""),
        chatml("").replace("{{ m.content }}", "{% if m.role != 'developer' %}{{ m.content }}{% endif %}"),
        chatml("") + "{# developer #}",
    ],
    ids=["any role", "drops it", "a word"],
)
def test_a_developers_message_arrives(source: str) -> None:
    text = prompt(source, ChatMessage("developer", "QzDevQz"), USER, tools=())
    assert "QzDevQz" in text
    text = prompt(source, ChatMessage("system", "QzSystemQz"), ChatMessage("developer", "QzDevQz"), USER, tools=())
    assert "QzSystemQz" in text
    assert "QzDevQz" in text


def test_the_last_of_two_system_messages_doesnt_replace_the_first() -> None:
    source = (
        "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}"
        "{% endif %}{% endfor %}{{ ns.s }}{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    text = prompt(source, ChatMessage("system", "QzOneQz"), ChatMessage("system", "QzTwoQz"), USER, tools=())
    assert "QzOneQz" in text
    assert "QzTwoQz" in text


def test_a_degree_that_a_template_refuses() -> None:
    source = (
        "{% if thinking_effort is defined and thinking_effort not in ['low', 'high', 'max'] %}"
        "{{ raise_exception('unsupported') }}{% endif %}{{ thinking_effort }}: `medium`"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    for effort, told in (("low", "low"), ("medium", "high"), ("high", "high")):
        assert prompt(source, USER, tools=(), effort=effort).startswith(f"{told}: ")
