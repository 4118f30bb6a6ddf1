"""Formats that probes of a template don't show: one entry for each family.

An entry applies where every text of `signs` stands in the template. Its fields replace what was learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backends.chat_format.format import Calls, ChatFormat, Thinking


@dataclass(frozen=True)
class Family:
    """What is known of a family beyond its template."""

    name: str
    signs: tuple[str, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    calls: Calls | None = None
    absent: str = "\0"
    """A text that another family has instead."""


_MINIMAX = "]<]minimax[>["
FAMILIES = (
    Family(
        "kimi2",
        ("<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>"),
        {},
        Calls(
            "named",
            section=("<|tool_calls_section_begin|>",),
            start=("<|tool_call_begin|>",),
            name_end=("<|tool_call_argument_begin|>",),
            id_is_name=True,
            end=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
        ),
    ),
    Family(
        "lfm2",
        ("List of tools: ", "<|im_start|>"),
        {},
        Calls("python", start=("<|tool_call_start|>",), end=("<|tool_call_end|>",)),
    ),
    Family(
        "gigachat3",
        ("<|message_sep|>", "function call", "<|role_sep|>"),
        {},
        Calls("json", start=("<|message_sep|>", "function", "call", "<|role_sep|>")),
        absent="<|function_call|>",
    ),
    Family(
        "granite3", ("<|tool_call|>", "<|start_of_role|>"), {}, Calls("json", in_list=True, start=("<|tool_call|>",))
    ),
    Family("firefunction", ("functools[",), {}, Calls("json", in_list=True, start=("functools",))),
    Family("harmony", ("<|channel|>", "<|message|>", "<|start|>", "analysis"), {"protocol": "harmony"}),
    Family(
        "muse",
        ("<|message|>", "atem:function_calls", "to="),
        {"protocol": "recipients"},
        Calls(
            "tagged",
            section=("<atem:function_calls>",),
            start=('<atem:invoke name="',),
            name_end=('">',),
            key_start=('<atem:parameter name="',),
            key_end=('">',),
            value_end=("</atem:parameter>",),
            end=("</atem:invoke>", "</atem:function_calls>"),
        ),
    ),
    Family(
        "kimi3",
        ("<|open|>", "<|close|>", "<|sep|>", "argument"),
        {"protocol": "kimi3", "thinking": Thinking("<|open|>think<|sep|>", "<|close|>think<|sep|>", control=True)},
        Calls("tagged", start=('<|open|>call tool="',)),
    ),
    Family("functionary", (">>>all", ">>>", "<|start_header_id|>"), {"protocol": "functionary"}, Calls("named")),
    Family(
        "gemma",
        ("<|tool_call>", "call:", '<|"|>'),
        {
            "thinking": Thinking("<|channel>thought", "<channel|>", control=True),
            "ends": ("<turn|>", "<|channel>", "<|tool_response>"),
        },
        Calls("gemma", start=("<|tool_call>", "call:"), end=("<tool_call|>",)),
    ),
    Family(
        "minimax-nested",
        ("]<]minimax[>[", "invoke"),
        {},
        Calls(
            "minimax",
            section=(_MINIMAX + "<tool_call>",),
            start=(_MINIMAX + '<invoke name="',),
            key_start=(_MINIMAX,),
            end=(_MINIMAX + "</tool_call>",),
        ),
    ),
    Family(
        "dsml",
        ("｜DSML｜", "invoke"),
        {},
        Calls(
            "tagged",
            section=("<｜DSML｜function_calls>",),
            start=('<｜DSML｜invoke name="',),
            name_end=('">',),
            key_start=('<｜DSML｜parameter name="',),
            key_end=('">',),
            value_end=("</｜DSML｜parameter>",),
            string_flag=True,
            end=("</｜DSML｜invoke>", "</｜DSML｜function_calls>"),
        ),
    ),
)


def apply(fmt: ChatFormat, source: str) -> ChatFormat:
    """The format with what the table knows of the template's family."""
    for family in FAMILIES:
        if all(sign in source for sign in family.signs) and family.absent not in source:
            fields = dict(family.fields)
            if family.calls is not None:
                fields["calls"] = replace(
                    family.calls,
                    id_style=fmt.calls.id_style,
                    arguments_as_text=fmt.calls.arguments_as_text,
                )
                if family.name == "dsml" and "function_calls" not in source:
                    tagged = fields["calls"]
                    fields["calls"] = replace(
                        tagged, section=("<｜DSML｜tool_calls>",), end=(tagged.end[0], "</｜DSML｜tool_calls>")
                    )
            return replace(fmt, **fields, learnt=f"family:{family.name}")
    return fmt
