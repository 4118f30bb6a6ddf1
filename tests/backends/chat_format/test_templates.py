"""Chat templates: rendered as Hugging Face does, and harmless however hostile."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from backends.chat_format.rendering import Renderer
from backends.chat_format.templates import CHATML, PLAIN, ChatTemplate
from backends.interface import ChatMessage, EngineError, GenerateRequest, ToolCall, ToolSpec

QWEN = """
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

USER = ChatMessage("user", "Hi")


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    made = Renderer(time_limit_s=3.0)
    yield made
    made.close()


def template(source: str, renderer: Renderer) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>", renderer=renderer)


def ask(*messages: ChatMessage, **more: object) -> GenerateRequest:
    return GenerateRequest(id="1", messages=messages, **more)  # type: ignore[arg-type]


def test_renders_as_hugging_face_does(renderer: Renderer) -> None:
    made = template(QWEN, renderer)
    text = made.prompt(ask(ChatMessage("system", "Be kind."), USER))
    expected = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text == expected
    assert made.prompt(ask(USER, enable_thinking=False)).endswith("<think>\n\n</think>\n\n")


def test_blocks_are_trimmed_and_filters_known(renderer: Renderer) -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.first %}\n{{ bos_token }}{% endif %}\n"
        "{{ m | tojson }}{% break %}\n{% endfor %}{% generation %}x{% endgeneration %}{{ strftime_now('%Y') | length }}"
    )
    text = template(source, renderer).prompt(ask(ChatMessage("user", 'é"<')))
    assert text == '<s>{"role": "user", "content": "é\\"<"}x4'


def test_thinking_is_given_to_templates_that_read_it(renderer: Renderer) -> None:
    source = "{% for m in messages %}[{{ m.reasoning_content | default('-') }}|{{ m.thinking }}]{% endfor %}"
    assert template(source, renderer).prompt(ask(USER, ChatMessage("assistant", "a", "t"))) == "[-|][t|t]"


def test_template_arguments_do_not_replace_the_messages(renderer: Renderer) -> None:
    made = template("{{ effort }}{{ messages | length }}", renderer)
    assert made.prompt(ask(USER, template_args={"effort": "low", "messages": "none"})) == "low1"


def test_an_answer_is_continued_where_it_was_cut(renderer: Renderer) -> None:
    made = template(QWEN, renderer)
    text = made.prompt(ask(USER, ChatMessage("assistant", "Once upon"), continue_final=True))
    assert text.endswith("<|im_start|>assistant\nOnce upon")
    text = made.prompt(ask(USER, ChatMessage("assistant", "", "Let me see"), continue_final=True))
    assert text.endswith("<|im_start|>assistant\n<think>\nLet me see")
    with pytest.raises(EngineError, match="assistant") as raised:
        made.prompt(ask(USER, continue_final=True))
    assert raised.value.code == "bad_request"


@pytest.mark.parametrize("source", [CHATML, PLAIN])
def test_fallbacks_render_any_chat(source: str, renderer: Renderer) -> None:
    made = template(source, renderer)
    text = made.prompt(ask(ChatMessage("system", "S"), USER, ChatMessage("assistant", "A"), USER))
    assert [text.index(x) for x in ("S", "Hi", "A")] == sorted(text.index(x) for x in ("S", "Hi", "A"))
    assert "Hi" in made.prompt(ask(USER, ChatMessage("assistant", "Half"), continue_final=True))


HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "huge output": "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "huge string": "{{ 'x' * 10000000000 }}",
    "doubling": "{% set n = namespace(x='xxxxxxxx') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "power": "{{ (9 ** (9 ** 9)) % 7 }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}{{ cycler.__init__.__globals__.os.system('true') }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "mutation": "{{ messages.clear() }}",
    "syntax": "{% for %}",
    "undefined": "{{ nothing.at.all }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_fail_in_time_and_with_a_sentence(name: str, renderer: Renderer) -> None:
    started = time.monotonic()
    with pytest.raises(EngineError) as raised:
        template(HOSTILE[name], renderer).prompt(ask(USER))
    assert raised.value.code == "bad_template"
    assert "\n" not in raised.value.message
    assert raised.value.message.endswith(".")
    assert time.monotonic() - started < 60
    assert template("{{ messages[0].content }}", renderer).prompt(ask(USER)) == "Hi"  # and the next one works


def test_a_refusal_keeps_the_templates_words(renderer: Renderer) -> None:
    with pytest.raises(EngineError, match="roles must alternate"):
        template("{{ raise_exception('roles must alternate') }}", renderer).prompt(ask(USER))


def test_a_template_without_tools_is_told_them_in_words(renderer: Renderer) -> None:
    made = template(CHATML, renderer)
    assert made.format.calls_in_text
    tool = ToolSpec("get_time", "The time.", {"type": "object", "properties": {"zone": {"type": "string"}}})
    calls = tuple(ToolCall(f"c{i}", "get_time", f'{{"zone": "{zone}"}}') for i, zone in enumerate("AB"))
    talk = (
        ChatMessage("system", "Be brief."), USER, ChatMessage("assistant", "Let me look.", tool_calls=calls),
        ChatMessage("tool", "12:00", tool_call_id="c0"), ChatMessage("tool", "13:00", tool_call_id="c1"),
    )  # fmt: skip
    text = made.prompt(ask(*talk, tools=(tool,)))
    assert text.count("<|im_start|>system\nBe brief.\n\n") == 1
    assert '{"name": "get_time", "description": "The time.", "parameters": {' in text
    assert '\nLet me look.\n<tool_call>\n{"name": "get_time", "arguments": {"zone": "A"}}\n</tool_call>\n<tool_' in text
    results = "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n13:00\n</tool_response>"
    assert text.count("<|im_start|>user\n" + results + "<|im_end|>") == 1
    assert "get_time" not in made.prompt(ask(talk[0], USER))
    assert made.prompt(ask(USER, tools=(tool,))).startswith("<|im_start|>system\nYou may call these functions")


def test_what_opens_an_answer_is_seen_behind_an_answer_that_ends_otherwise(renderer: Renderer) -> None:
    source = (  # as gpt-oss closes the last answer of a chat that is done
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' and not add_generation_prompt else '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    made = template(source, renderer)
    for last in (USER, ChatMessage("assistant", "Hello")):
        rendered = made.rendered(ask(USER, last))
        assert rendered.after == "<|start|>assistant"
        assert rendered.head is not None
        assert rendered.head + rendered.after == rendered.text


def test_history_that_leaves_out_that_nothing_was_thought_is_replayed(renderer: Renderer) -> None:
    made = template(QWEN, renderer)
    request = ask(USER, ChatMessage("assistant", "Hello"), ChatMessage("user", "And?"), enable_thinking=False)
    rendered = made.rendered(request)
    opening = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert rendered.after == opening
    first = "<|im_start|>user\nHi<|im_end|>\n" + opening
    assert made.around(request, [1], rendered.after) == [
        first,
        "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n" + opening,
    ]
