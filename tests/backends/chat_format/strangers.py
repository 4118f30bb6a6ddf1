"""Templates of models that nobody has met yet: each is like a known one, with other words for everything."""

from __future__ import annotations


def chat(
    call: str,
    *,
    turn: tuple[str, str, str] = ("<|im_start|>", "\n", "<|im_end|>\n"),
    thinking: tuple[str, str] = ("", ""),
    text: tuple[str, str] = ("", ""),
    opens: str = "",
    names: tuple[str, str] = ("user", "assistant"),
) -> str:
    """A template: `turn` is what stands before and after a role and after a message; `thinking` and `text` stand around
    these; `opens` is what a generation prompt adds; `call` renders the calls `m.tool_calls`."""
    begin, middle, end = turn
    thought = f"{thinking[0]}{{{{ m.reasoning_content }}}}{thinking[1]}" if thinking[0] else ""
    return (
        "{{ bos_token }}"
        "{% if tools %}" + begin + "system" + middle + "{{ tools | tojson }}" + end + "{% endif %}"
        "{% for m in messages %}"
        "{% if m.role == 'assistant' %}" + begin + names[1] + middle
        + "{% if m.reasoning_content %}" + thought + "{% endif %}"
        "{% if m.content %}" + text[0] + "{{ m.content }}" + text[1] + "{% endif %}"
        "{% if m.tool_calls %}" + call + "{% endif %}" + end + "{% else %}"
        "" + begin + "{{ '" + names[0] + "' if m.role == 'user' else m.role }}" + middle + "{{ m.content }}" + end
        + "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}" + begin + names[1] + middle + opens + "{% endif %}"
    )  # fmt: skip


def each(call: str, between: str = "") -> str:
    """`call` for each call `c`."""
    gap = "{% if not loop.last %}" + between + "{% endif %}" if between else ""
    return "{% for tc in m.tool_calls %}{% set c = tc.function %}" + call + gap + "{% endfor %}"


def arguments(one: str) -> str:
    """`one` for each argument `k`, with its text `v`."""
    return (
        "{% for k, w in c.arguments.items() %}{% set v = w if w is string else w | tojson %}" + one + "{% endfor %}"
    )  # fmt: skip


_JSON = "{{ c.arguments | tojson }}"
_LLAMA = ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
_BRACKETS = ("[ROLE]", "[/ROLE]", "[EOT]")
STRANGERS = {
    "square brackets": chat(
        "[CALLS][" + each('{"name": "{{ c.name }}", "arguments": ' + _JSON + "}", ", ") + "]",
        turn=_BRACKETS, thinking=("[REASON]", "[/REASON]"),
    ),
    "other keys": chat(
        each('<function_call>{"function": "{{ c.name }}", "args": ' + _JSON + "}</function_call>", "\n"),
        thinking=("<reasoning>\n", "\n</reasoning>\n"),
    ),
    "bars": chat(
        each("<|tool|>{{ c.name }}<|args|>" + _JSON + "<|/tool|>"),
        turn=("<|turn|>", "<|text|>", "<|/turn|>"), thinking=("<|inner|>", "<|/inner|>"),
    ),
    "fence": chat(
        each('```tool_call\n{"name": "{{ c.name }}", "parameters": ' + _JSON + "}\n```", "\n"),
        turn=_LLAMA, thinking=("<thought>\n", "\n</thought>\n"), opens="<thought>\n",
    ),
    "attributes": chat(
        "<calls>\n"
        + each('<call name="{{ c.name }}">\n' + arguments('<arg key="{{ k }}">{{ v }}</arg>\n') + "</call>\n")
        + "</calls>",
        thinking=("<ponder>", "</ponder>\n"),
    ),
    "equals": chat(
        each("<fn={{ c.name }}>\n" + arguments("<p={{ k }}>\n{{ v }}\n</p>\n") + "</fn>\n"),
        turn=("<s_begin>", "\n", "<s_end>\n"), thinking=("<think>\n", "\n</think>\n\n"), opens="<think>\n",
    ),
    "keys and values": chat(
        each("<do>{{ c.name }}\n" + arguments("<k>{{ k }}</k>\n<v>{{ v }}</v>\n") + "</do>", "\n"),
        turn=("<|", "|>\n", "\n"), thinking=("<think>", "</think>\n"),
    ),
    "ids that name": chat(
        "<|calls|>" + each("<|call|>{{ tc.id }}<|input|>" + _JSON + "<|/call|>") + "<|/calls|>",
        turn=("<|role|>", "<|is|>", "<|over|>"), thinking=("◁muse▷", "◁/muse▷"),
    ),
    "text wrapped": chat(
        each('<tool_call>{"name": "{{ c.name }}", "arguments": ' + _JSON + "}</tool_call>"),
        thinking=("<|begin_of_thought|>", "<|end_of_thought|>"), text=("<|begin_of_solution|>", "<|end_of_solution|>"),
    ),
    "python": chat(
        "<|py|>[" + each("{{ c.name }}({% for k, v in c.arguments.items() %}{{ k }}={{ v | tojson }}"
                         "{{ ', ' if not loop.last }}{% endfor %})", ", ") + "]<|/py|>",
        turn=_LLAMA,
    ),
    "a fence within": chat(
        "<｜calls▁open｜>"
        + each("<｜call▁open｜>function<｜sep｜>{{ c.name }}\n```json\n" + _JSON + "\n```<｜call▁close｜>", "\n")
        + "<｜calls▁close｜>",
        turn=("<｜", "｜>", "<｜done｜>"), thinking=("<think>\n", "\n</think>\n\n"),
    ),
    "a tag before json": chat(
        each('<|python_tag|>{"type": "function", "name": "{{ c.name }}", "parameters": ' + _JSON + "}", "; "),
        turn=_LLAMA,
    ),
    "the name is the key": chat(
        each('<tool_call>\n{"{{ c.name }}": ' + _JSON + "}\n</tool_call>", "\n"), thinking=("<mull>\n", "\n</mull>\n"),
    ),
    "tags for all": chat(
        "<actions>" + each("<action><tool>{{ c.name }}</tool><input>" + _JSON + "</input></action>") + "</actions>",
        thinking=("<scratchpad>", "</scratchpad>"),
    ),
    "no markers": chat(
        "{{ '\n' if m.content }}" + each('{"name": "{{ c.name }}", "parameters": ' + _JSON + "}", "; "),
        turn=("### ", ":\n", "\n\n"), names=("Human", "Robot"),
    ),
    "namespace": chat(
        "<acme:tool_calls>\n"
        + each('<acme:invoke name="{{ c.name }}">\n'
               + arguments('<acme:parameter name="{{ k }}">{{ v }}</acme:parameter>\n') + "</acme:invoke>\n")
        + "</acme:tool_calls>",
        turn=("]~b]", "\n", "[e~[\n"), thinking=("<acme:think>\n", "\n</acme:think>\n\n"), opens="<acme:think>\n",
    ),
    "words": chat(
        each("Action: {{ c.name }}\nAction Input: " + _JSON, "\n"),
        turn=("<start_of_turn>", "\n", "<end_of_turn>\n"), names=("user", "model"),
    ),
}  # fmt: skip
