"""Small chat templates, one for each way of writing thinking and tool calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backends.chat_format.format import ChatFormat
from backends.chat_format.learn import learn
from backends.chat_format.template_env import make_environment, render


def chatml(call: str, *, thinking: str = "", generation: str = "") -> str:
    """A ChatML template: `call` renders one tool call `c`, `thinking` what comes before an answer's text."""
    return (
        "{% if tools %}<|im_start|>system\n# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
        "{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}" + thinking + "{% endif %}{{ m.content }}"
        "{% if m.tool_calls %}" + call + "{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n" + generation + "{% endif %}"
    )


def each(call: str) -> str:
    """`call` for each call."""
    return "{% for tc in m.tool_calls %}{% set c = tc.function %}" + call + "{% endfor %}"


_JSON = '{"name": "{{ c.name }}", "arguments": {{ c.arguments | tojson }}}'
_THINK = "<think>\n{{ m.reasoning_content }}\n</think>\n\n"
TEMPLATES = {
    "hermes": chatml(each("<tool_call>\n" + _JSON + "\n</tool_call>\n"), thinking=_THINK),
    "coder": chatml(
        each(
            "<tool_call>\n<function={{ c.name }}>\n{% for k, v in c.arguments.items() %}<parameter={{ k }}>\n"
            "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>\n"
        ),
        thinking=_THINK,
        generation="<think>\n",
    ),
    "glm": chatml(
        each(
            "<tool_call>{{ c.name }}\n{% for k, v in c.arguments.items() %}<arg_key>{{ k }}</arg_key>\n<arg_value>"
            "{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>"
        ),
        thinking=_THINK,
    ),
    "mistral": chatml(each("[TOOL_CALLS]{{ c.name }}[CALL_ID]{{ tc.id }}[ARGS]{{ c.arguments | tojson }}")),
    "deepseek": chatml(
        "<｜tool▁calls▁begin｜>"
        + each("<｜tool▁call▁begin｜>{{ c.name }}<｜tool▁sep｜>{{ c.arguments | tojson }}<｜tool▁call▁end｜>")
        + "<｜tool▁calls▁end｜>",
        thinking=_THINK,
    ),
    "list": chatml(
        "[TOOL_CALLS][" + each(_JSON + "{{ ', ' if not loop.last }}") + "]",
        thinking="[THINK]{{ m.reasoning_content }}[/THINK]",
    ),
    "bare": chatml(each('{"name": "{{ c.name }}", "parameters": {{ c.arguments | tojson }}}')),
    "python": chatml(
        "<|tool_call_start|>["
        + each(
            "{{ c.name }}({% for k, v in c.arguments.items() %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}"
            "{% endfor %}){{ ', ' if not loop.last }}"
        )
        + "]<|tool_call_end|>"
    ),
    "invoke": chatml(
        "<x:tool_call>\n"
        + each(
            '<invoke name="{{ c.name }}">\n{% for k, v in c.arguments.items() %}<parameter name="{{ k }}">'
            "{{ v if v is string else v | tojson }}</parameter>\n{% endfor %}</invoke>\n"
        )
        + "</x:tool_call>",
        thinking=_THINK,
    ),
    "gemma": chatml("{{ '<|tool_call>call:' }}{{ '<|\"|>' }}<tool_call|>"),
    "harmony": (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}{# <|channel|>analysis #}"
    ),
    "kimi": chatml(
        "<|tool_calls_section_begin|>"
        + each("<|tool_call_begin|>{{ tc.id }}<|tool_call_argument_begin|>{{ c.arguments | tojson }}<|tool_call_end|>")
        + "<|tool_calls_section_end|>",
        thinking="<think>{{ m.reasoning_content }}</think>",
    ),
    "dsml": chatml("<｜DSML｜function_calls><｜DSML｜invoke", thinking="<think>{{ m.reasoning_content }}</think>"),
    "kimi3": chatml("<|open|>call<|sep|>argument<|close|>"),
    "minimax": chatml("]<]minimax[>[<invoke"),
    "muse": chatml("<|message|> to=<atem:function_calls>"),
    "no calls": chatml("{{ tool_names }}"),
    "functionary": "{% for m in messages %}<|start_header_id|>{{ m.role }}\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant\n>>>{% endif %}{# >>>all #}",
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
}

ENVIRONMENT = make_environment()


def renderer_of(source: str) -> Callable[[dict[str, Any]], str]:
    """Renders a template here, without a process of its own."""
    kept: dict[str, Any] = {}

    def rendered(variables: dict[str, Any]) -> str:
        answer = render(ENVIRONMENT, source, {"bos_token": "<s>", "eos_token": "</s>", **variables}, kept)
        if "text" not in answer:
            raise ValueError(answer)
        return answer["text"]

    return rendered


def format_of(name: str) -> ChatFormat:
    """What is learnt of one of the templates."""
    return learn(TEMPLATES[name], renderer_of(TEMPLATES[name]))


FORMATS = {name: format_of(name) for name in TEMPLATES}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "exact": {"type": "boolean"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "place": {"type": "object"},
                    "note": {"type": ["string", "null"]},
                },
            },
        },
    }
    for name in ("get_weather", "get_time")
]
