"""Writes answers as models do, in each format: what a parser must read back."""

from __future__ import annotations

import json
from typing import Any

Call = tuple[str, dict[str, Any]]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(call: Call, key: str = "arguments") -> str:
    return json.dumps({"name": call[0], key: call[1]}, ensure_ascii=False)


def _gemma(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{_gemma(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_gemma, value)) + "]"
    return json.dumps(value)


def calls_text(name: str, calls: list[Call]) -> str:
    """Some calls as a model of a format writes them."""
    if not calls:
        return ""
    match name:
        case "hermes":
            return "\n".join(f"<tool_call>\n{_json(c)}\n</tool_call>" for c in calls)
        case "coder":
            return "\n".join(
                f"<tool_call>\n<function={n}>\n"
                + "".join(f"<parameter={k}>\n{_text(v)}\n</parameter>\n" for k, v in a.items())
                + "</function>\n</tool_call>"
                for n, a in calls
            )
        case "glm":
            return "".join(
                f"<tool_call>{n}\n"
                + "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{_text(v)}</arg_value>\n" for k, v in a.items())
                + "</tool_call>"
                for n, a in calls
            )
        case "mistral":
            return "".join(
                f"[TOOL_CALLS]{n}[CALL_ID]abcdef{i:03}[ARGS]{json.dumps(a)}" for i, (n, a) in enumerate(calls)
            )
        case "deepseek":
            inner = "".join(
                f"<｜tool▁call▁begin｜>{n}<｜tool▁sep｜>{json.dumps(a)}<｜tool▁call▁end｜>" for n, a in calls
            )
            return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"
        case "list":
            return "[TOOL_CALLS][" + ", ".join(map(_json, calls)) + "]"
        case "bare":
            return "; ".join(_json(c, "parameters") for c in calls)
        case "python":
            inner = ", ".join(f"{n}({', '.join(f'{k}={json.dumps(v)}' for k, v in a.items())})" for n, a in calls)
            return f"<|tool_call_start|>[{inner}]<|tool_call_end|>"
        case "invoke":
            inner = "\n".join(
                f'<invoke name="{n}">\n'
                + "".join(f'<parameter name="{k}">{_text(v)}</parameter>\n' for k, v in a.items())
                + "</invoke>"
                for n, a in calls
            )
            return f"<x:tool_call>\n{inner}\n</x:tool_call>"
        case "gemma":
            return "".join(f"<|tool_call>call:{n}{_gemma(a)}<tool_call|>" for n, a in calls)
        case "kimi":
            inner = "".join(
                f"<|tool_call_begin|>functions.{n}:{i}<|tool_call_argument_begin|>{json.dumps(a)}<|tool_call_end|>"
                for i, (n, a) in enumerate(calls)
            )
            return f"<|tool_calls_section_begin|>{inner}<|tool_calls_section_end|>"
        case "dsml":
            inner = "\n".join(
                f'<｜DSML｜invoke name="{n}">\n'
                + "".join(
                    f'<｜DSML｜parameter name="{k}" string="{str(isinstance(v, str)).lower()}">{_text(v)}'
                    "</｜DSML｜parameter>\n"
                    for k, v in a.items()
                )
                + "</｜DSML｜invoke>"
                for n, a in calls
            )
            return f"<｜DSML｜function_calls>\n{inner}\n</｜DSML｜function_calls>"
        case "harmony":
            return "<|start|>assistant".join(
                f"<|channel|>commentary to=functions.{n} <|constrain|>json<|message|>{json.dumps(a)}<|call|>"
                for n, a in calls
            )
    raise KeyError(name)


def answer_text(name: str, thinking: str, content: str, calls: list[Call]) -> tuple[str, str]:
    """(what the template opened, what the model wrote)."""
    written = calls_text(name, calls)
    if name == "harmony":
        parts = []
        if thinking:
            parts.append(f"<|channel|>analysis<|message|>{thinking}<|end|>")
        if content:
            parts.append(f"<|channel|>{'commentary' if calls else 'final'}<|message|>{content}<|end|>")
        if written:
            parts.append(written)
        return "<|start|>assistant", "<|start|>assistant".join(parts)
    start, end = {"list": ("[THINK]", "[/THINK]"), "gemma": ("<|channel>thought\n", "<channel|>")}.get(
        name, ("<think>\n", "\n</think>\n\n")
    )
    if name == "coder":
        return "<|im_start|>assistant\n<think>\n", f"{thinking}{end}{content}{written}"
    return "<|im_start|>assistant\n", (f"{start}{thinking}{end}" if thinking else "") + content + written
