"""``parse``: what a model's raw output holds, or the prompt of a request, by a chat template alone."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.cli.common import EXIT_OK, UsageError, add_json_flag, out
from flashmoe.cli.models import resolve_model
from flashmoe.figures import size

if TYPE_CHECKING:
    from backends.chat_format.events import Said
    from backends.chat_format.templates import ChatTemplate
    from backends.interface import GenerateRequest, ToolSpec

MAX_INPUT_BYTES = 64 << 20
MAX_TEMPLATE_BYTES = 1 << 20
THINKING = ("on", "off", "low", "medium", "high")

DESCRIPTION = """\
Reads what a model wrote (from stdin) into content, thinking and tool calls, as the engine does while it answers. The
format is learnt from the chat template of MODEL, or from --template alone; nothing is loaded, nothing is computed.
With --render it prints the prompt of a request instead."""

EPILOG = """\
the result (--json prints it in one line; the keys are always these):
  content             the text, null where there is none
  reasoning_content   the thinking, null where there is none
  tool_calls          id (as the model wrote it, else null), name, arguments (JSON text; cut where the output was)
  unfinished          raw text of calls that broke off though the output wasn't cut: they don't count as calls
  format              what was learnt of the template

  --after TEXT   the end of the prompt, which opened the answer; left out, it is the template's own for a question
  --split        feeds the text whole, by characters (chars), or N at a time: the result must be the same
  --jsonl        each line of stdin is {"id", "raw", "tools", "after", "split", "truncated", "think"}; each gives a line

examples:
  flashmoe-tui parse qwen3.gguf --tools tools.json --json < output.txt
  flashmoe-tui parse --template chat.jinja --after '[THINK]' --split chars --json < output.txt
  flashmoe-tui parse --template chat.jinja --render request.json
  flashmoe-tui parse --template chat.jinja --jsonl < outputs.jsonl > parsed.jsonl"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = subparsers.add_parser(
        "parse", help="read a model's raw output, or print a prompt", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="the model whose chat template it is")
    parser.add_argument("--template", metavar="FILE", type=Path, help="a chat template instead of a model")
    parser.add_argument("--tools", metavar="FILE", type=Path, help="the request's tools, as JSON")
    parser.add_argument("--after", metavar="TEXT", help="the end of the prompt: what opened the answer")
    parser.add_argument("--split", metavar="HOW", type=split_of, default=0, help="whole, chars, or N characters")
    parser.add_argument("--truncated", action="store_true", help="the output was cut off; it didn't end by itself")
    parser.add_argument("--think", choices=THINKING, help="what the prompt asked for")
    parser.add_argument("--bos", metavar="TEXT", help="the text of the BOS token")
    parser.add_argument("--eos", metavar="TEXT", help="the text of the EOS token")
    parser.add_argument("--render", metavar="FILE", type=Path, help="print the prompt of this request (JSON)")
    parser.add_argument("--jsonl", action="store_true", help="one output a line on stdin, one result a line")
    add_json_flag(parser)


def split_of(text: Any) -> int:
    """``whole`` as 0, ``chars`` as 1, a number as itself."""
    if text in (None, "whole", "", 0):
        return 0
    if text == "chars":
        return 1
    if str(text).isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"must be whole, chars or a number of characters, not {text!r}")


def main(args: argparse.Namespace) -> int:
    """Runs the command."""
    from backends.chat_format.rendering import Renderer

    renderer = Renderer()
    try:
        template = _template(args, renderer)
        if template.format.learnt == "plain" and args.render is None:
            sys.stderr.write(
                "flashmoe-tui: nothing could be learnt of this template; the output is read as plain text.\n"
            )
        if args.render is not None:
            _render(args, template)
        elif args.jsonl:
            _lines(args, template)
        else:
            tools = _tools(_json_file(args.tools)) if args.tools else ()
            raw = _input()
            said = _parsed(template, raw, tools, args.after, args.split, args.truncated, args.think)
            shown = _result(said, args.truncated, template)
            out(json.dumps(shown, ensure_ascii=False, indent=None if args.json else 2))
    finally:
        renderer.close()
    return EXIT_OK


def _template(args: argparse.Namespace, renderer: Any) -> ChatTemplate:
    from backends.chat_format.templates import ChatTemplate, fallback_template

    if (args.template is None) == (args.model is None):
        raise UsageError("parse needs a MODEL or --template FILE: one of them.")
    if args.template is not None:
        source = _text_file(args.template, MAX_TEMPLATE_BYTES)
        return ChatTemplate(source, bos=args.bos or "", eos=args.eos or "", renderer=renderer)
    from backends.gguf.file import read_gguf
    from backends.llamacpp.special_texts import special_texts

    path = resolve_model(args.model, args)
    if isinstance(path, str):
        raise UsageError(
            f"{args.model} is not a file on this machine, so its chat template isn't known; use --template."
        )
    model = read_gguf(path)
    bos, eos = (args.bos, args.eos) if args.bos is not None and args.eos is not None else special_texts(path)
    return ChatTemplate(
        model.chat_template or fallback_template(False),
        bos=bos if args.bos is None else args.bos,
        eos=eos if args.eos is None else args.eos,
        renderer=renderer,
    )


def _text_file(path: Path, limit: int) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}.") from None
    if len(data) > limit:
        raise UsageError(f"{path} is larger than {size(limit)}.")
    return data.decode("utf-8", "replace").removeprefix("\ufeff")


def _json_file(path: Path) -> Any:
    try:
        return json.loads(_text_file(path, MAX_INPUT_BYTES))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}.") from None


def _input() -> str:
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise UsageError(f"stdin holds more than {MAX_INPUT_BYTES >> 20} MiB.")
    return data.decode("utf-8", "replace")


def _tools(value: Any) -> tuple[ToolSpec, ...]:
    """Tools as a request has them, or the inner objects alone."""
    from flashmoe.openai.fields import BadRequestError
    from flashmoe.openai.messages import parse_tools

    if isinstance(value, dict) and isinstance(value.get("tools"), list):
        value = value["tools"]
    if isinstance(value, list):
        value = [
            {"type": "function", "function": {**t, "parameters": t.get("parameters") or t.get("input_schema")}}
            if isinstance(t, dict) and "function" not in t and "name" in t
            else t
            for t in value
        ]
    try:
        return parse_tools(value)
    except BadRequestError as error:
        raise UsageError(f"{error.gist}.") from None


def _request(messages: Any, tools: tuple[ToolSpec, ...], think: str | None, **more: Any) -> GenerateRequest:
    from backends.interface import GenerateRequest

    effort = think if think in ("low", "medium", "high") else None
    switch = None if think is None else think != "off"
    return GenerateRequest(
        id="parse", messages=messages, tools=tools, enable_thinking=switch, effort=effort, **more  # type: ignore[arg-type]
    )  # fmt: skip


def _parsed(
    template: ChatTemplate,
    raw: str,
    tools: tuple[ToolSpec, ...],
    after: str | None,
    split: int,
    truncated: bool,
    think: str | None,
) -> Said:
    from backends.chat_format.parser import parse
    from backends.chat_format.variables import tool_of
    from backends.interface import ChatMessage, EngineError

    if after is None:
        try:
            after = template.rendered(_request((ChatMessage("user", "Hello"),), tools, think)).after
        except EngineError:  # a template that refuses a plain question opens nothing that could be known
            after = ""
    return parse(template.format, raw, tools=[tool_of(t) for t in tools], after=after, truncated=truncated, step=split)


def _result(said: Said, truncated: bool, template: ChatTemplate) -> dict[str, Any]:
    calls = [c for c in said.calls if c.complete or truncated]
    result: dict[str, Any] = {
        "content": said.content or None,
        "reasoning_content": said.thinking or None,
        "tool_calls": [{"id": c.call_id, "name": c.name, "arguments": c.arguments} for c in calls],
        "unfinished": [c.raw for c in said.calls if not c.complete and not truncated],
        "format": template.format.told(),
    }
    return result


def _lines(args: argparse.Namespace, template: ChatTemplate) -> None:
    default = _tools(_json_file(args.tools)) if args.tools else ()
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            if not isinstance(item, dict) or not isinstance(item.get("raw"), str):
                raise ValueError("it must be an object with raw")
            tools = _tools(item["tools"]) if item.get("tools") else default
            split = split_of(item["split"]) if item.get("split") is not None else args.split
            after, think = item.get("after"), item.get("think")
            truncated = item.get("truncated", args.truncated)
            if not isinstance(after, str | None) or not isinstance(truncated, bool | None):
                raise ValueError("after must be a text, truncated true or false")
            if think is not None and think not in THINKING:
                raise ValueError(f"think must be one of {', '.join(THINKING)}")
        except (ValueError, RecursionError, argparse.ArgumentTypeError) as error:
            raise UsageError(f"line {number} of stdin can't be used: {error}.") from None
        after = args.after if after is None else after
        said = _parsed(template, item["raw"], tools, after, split, bool(truncated), think or args.think)
        out(json.dumps({"id": item.get("id"), **_result(said, bool(truncated), template)}, ensure_ascii=False))


def _with_ids(messages: Any) -> Any:
    """Messages in which every result says which call it answers: those that don't, the calls in their order."""
    if not isinstance(messages, list):
        return messages
    out, waiting = list[Any](), list[str]()
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get("tool_calls"), list):
            waiting = [str(call.get("id") or "") for call in message["tool_calls"] if isinstance(call, dict)]
        elif isinstance(message, dict) and message.get("role") == "tool" and not message.get("tool_call_id"):
            message = {**message, "tool_call_id": (waiting.pop(0) if waiting else "") or "call_0"}
        out.append(message)
    return out


def _render(args: argparse.Namespace, template: ChatTemplate) -> None:
    from flashmoe.openai.fields import BadRequestError
    from flashmoe.openai.messages import parse_messages

    body = _json_file(args.render)
    if isinstance(body, list):
        body = {"messages": body}
    if not isinstance(body, dict):
        raise UsageError(f"{args.render} must hold a request with messages.")
    try:
        messages = parse_messages(_with_ids(body.get("messages")))
    except BadRequestError as error:
        raise UsageError(f"{error.gist}.") from None
    tools = _tools(body["tools"]) if body.get("tools") else _tools(_json_file(args.tools)) if args.tools else ()
    extra = body.get("chat_template_kwargs")
    request = _request(messages, tools, args.think, template_args=extra if isinstance(extra, dict) else {})
    text = template.rendered(request, opens=body.get("add_generation_prompt") is not False).text
    sys.stdout.write(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" if args.json else text)
