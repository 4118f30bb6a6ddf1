"""The cases of llama.cpp's own tests for chat formats, read out of an sdist of llama-cpp-python.

Nothing of the sdist is kept here. Its tests are C++, of which this reads what it needs (literals, initialisers, the
calls of a builder) and leaves out a statement that it doesn't understand. `chat_format.py` measures on them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TOKEN = re.compile(
    r"""\s+|//[^\n]*|/\*.*?\*/|\#[^\n]*"""
    r"""|(?P<raw>R"(?P<d>[^(\s]*)\((?P<rawtext>.*?)\)(?P=d)")"""
    r"""|(?P<str>(?:u8)?"(?:\\.|[^"\\])*")|(?P<chr>'(?:\\.|[^'\\])*')"""
    r"""|(?P<id>[A-Za-z_][A-Za-z_0-9]*)|(?P<num>-?\d[\w.]*)|(?P<op>::|->|&&|\|\||[-+!<>=*/&|^%~?:;,.(){}\[\]])""",
    re.DOTALL,
)
Token = tuple[str, str]


def tokens_of(source: str) -> list[Token]:
    """C++ tokens: ("str", decoded text), ("id", name), ("num", text), ("op", text)."""
    out: list[Token] = []
    at = 0
    while at < len(source):
        found = _TOKEN.match(source, at)
        if found is None:
            at += 1
            continue
        at = found.end()
        if found["raw"] is not None:
            out.append(("str", found["rawtext"]))
        elif found["str"] is not None:
            out.append(("str", _unescape(found["str"].removeprefix("u8")[1:-1])))
        elif found["chr"] is not None:
            out.append(("str", _unescape(found["chr"][1:-1])))
        else:
            out += [(kind, found[kind]) for kind in ("id", "num", "op") if found[kind] is not None]
    return out


_SIMPLE = {"n": 10, "t": 9, "r": 13, "0": 0, "a": 7, "b": 8, "f": 12, "v": 11}


def _unescape(text: str) -> str:
    out, at = bytearray(), 0
    while at < len(text):
        if text[at] != "\\":
            out += text[at].encode("utf-8", "surrogatepass")
            at += 1
        elif text[at + 1] == "x":
            digits = re.match(r"[0-9a-fA-F]+", text[at + 2 :])
            assert digits
            out.append(int(digits[0], 16) & 255)
            at += 2 + len(digits[0])
        elif text[at + 1] in "uU":
            width = 4 if text[at + 1] == "u" else 8
            out += chr(int(text[at + 2 : at + 2 + width], 16)).encode("utf-8", "surrogatepass")
            at += 2 + width
        else:
            out.append(_SIMPLE.get(text[at + 1], ord(text[at + 1])))
            at += 2
    return out.decode("utf-8", "replace")


class UnknownError(Exception):
    """An expression that isn't understood."""


class Cases:
    """Evaluates the statements of a test file as far as cases need it."""

    def __init__(self, source: str) -> None:
        self.tokens = tokens_of(source)
        self.scopes: list[dict[str, Any]] = [{}]
        self.found: list[dict[str, Any]] = []
        self.skipped = 0
        self.functions: dict[str, tuple[list[str], list[Token]]] = {}

    # -- expressions ---------------------------------------------------------------------------------------------------

    def value(self, tokens: list[Token]) -> Any:
        value, rest = self._sum(tokens)
        if rest:
            raise UnknownError(str(rest[:4]))
        return value

    def _sum(self, tokens: list[Token]) -> tuple[Any, list[Token]]:
        value, tokens = self._primary(tokens)
        while tokens and tokens[0] == ("op", "+"):
            right, tokens = self._primary(tokens[1:])
            if not isinstance(value, str) or not isinstance(right, str):
                raise UnknownError("+")
            value += right
        return value, tokens

    def _primary(self, tokens: list[Token]) -> tuple[Any, list[Token]]:
        if not tokens:
            raise UnknownError("end")
        kind, text = tokens[0]
        if kind == "str":
            at = 0
            parts = []
            while at < len(tokens) and tokens[at][0] == "str":
                parts.append(tokens[at][1])
                at += 1
            return "".join(parts), tokens[at:]
        if kind == "num":
            return int(re.sub(r"\D", "", text) or 0), tokens[1:]
        if (kind, text) == ("op", "{"):
            inner, rest = _group(tokens)
            return [self.value(part) for part in _commas(inner)], rest
        if (kind, text) == ("op", "("):
            inner, rest = _group(tokens)
            return self.value(inner), rest
        if kind != "id":
            raise UnknownError(text)
        name, at = text, 1
        while at + 1 < len(tokens) and tokens[at] == ("op", "::"):
            name, at = name + "::" + tokens[at + 1][1], at + 2
        if at < len(tokens) and tokens[at] == ("op", "<"):  # a template argument: std::vector<x>
            depth = 0
            for i in range(at, len(tokens)):
                depth += {"<": 1, ">": -1}.get(tokens[i][1], 0) if tokens[i][0] == "op" else 0
                if depth == 0:
                    at = i + 1
                    break
        tokens = tokens[at:]
        if (tokens and tokens[0] == ("op", "(")) or (tokens and tokens[0] == ("op", "{")):
            inner, tokens = _group(tokens)
            value = self._call(name, [self.value(part) for part in _commas(inner)])
        else:
            value = self._named(name)
        while tokens and tokens[0] in (("op", "."),) and isinstance(value, (_Builder, _Tester)):
            method = tokens[1][1]
            inner, tokens = _group(tokens[2:])
            value = value.call(self, method, [self.value(part) for part in _commas(inner)])
        return value, tokens

    def _named(self, name: str) -> Any:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        if name in ("true", "false"):
            return name == "true"
        if name.isupper():
            return name
        raise UnknownError(name)

    def _call(self, name: str, args: list[Any]) -> Any:
        match name:
            case "std::string" | "std::vector" | "U8C":
                return args[0] if args else ""
            case "peg_tester":
                return _Tester(args[0])
            case "common_chat_tool":
                return args
            case "simple_assist_msg":
                content, reasoning, tool, arguments, call_id = (args + [""] * 5)[:5]
                calls = [[tool, arguments, call_id]] if tool or call_id else []
                return _message(content, reasoning, calls)
            case "message_with_tool_calls":
                return _message("", "", [[args[0], args[1], ""]])
            case "message_with_content_and_tool_call":
                return _message(args[0], "", [[args[1], args[2], ""]])
            case "message_with_reasoning_and_tool_call":
                return _message("", args[0], [[args[1], args[2], ""]])
            case "message_with_tool_calls_and_reasoning":
                return _message("", args[2], [[args[0], args[1], ""]])
            case "message_with_reasoning_content_and_multiple_tool_calls":
                return _message(args[1], args[0], [[n, a, ""] for n, a in args[2]])
            case "message_with_content_and_tool_calls" | "message_with_content":
                return _message(args[0], "", [])
        if name in self.functions:
            names, body = self.functions[name]
            self.scopes.append(dict(zip(names, args, strict=False)))
            try:
                self.run(body)
            finally:
                self.scopes.pop()
            return None
        raise UnknownError(name)

    # -- statements ----------------------------------------------------------------------------------------------------

    def run(self, tokens: list[Token]) -> None:
        """Runs the statements of a body."""
        self.scopes.append({})
        at = 0
        while at < len(tokens):
            if tokens[at] == ("op", "{"):
                inner, rest = _group(tokens[at:])
                self.run(inner)
                at = len(tokens) - len(rest)
                continue
            if tokens[at] == ("id", "for"):
                head, rest = _group(tokens[at + 1 :])
                body, rest = _group(rest) if rest[0] == ("op", "{") else _until_semicolon(rest)
                at = len(tokens) - len(rest)
                self._loop(head, body)
                continue
            if tokens[at] == ("id", "if"):
                _, rest = _group(tokens[at + 1 :])
                _, rest = _group(rest) if rest[0] == ("op", "{") else _until_semicolon(rest)
                at = len(tokens) - len(rest)
                continue
            statement, rest = _until_semicolon(tokens[at:])
            at = len(tokens) - len(rest)
            try:
                self._statement(statement)
            except (UnknownError, ValueError, TypeError, IndexError, KeyError, AttributeError) as problem:
                if ("id", "run") in statement:
                    self.skipped += 1
                    print("left out:", repr(problem)[:150])
        self.scopes.pop()

    def _loop(self, head: list[Token], body: list[Token]) -> None:
        if ("op", ":") not in head:
            return
        colon = head.index(("op", ":"))
        try:
            values = self.value(head[colon + 1 :])
        except UnknownError:
            return
        for value in values:
            self.scopes.append({head[colon - 1][1]: value})
            self.run(body)
            self.scopes.pop()

    def _statement(self, tokens: list[Token]) -> None:
        if not tokens:
            return
        equals = next((i for i, t in enumerate(tokens) if t == ("op", "=")), None)
        plain = ("::", "<", ">", "*", "&", ".", "[", "]", ",")
        if equals is not None and all(t[0] == "id" or t[1] in plain for t in tokens[:equals]):
            left = tokens[:equals]
            value = self.value(tokens[equals + 1 :])
            if len(left) == 3 and left[1] == ("op", "."):
                self._named(left[0][1])[left[2][1]] = value
            else:
                names = [t[1] for t in left if t[0] == "id"]
                self.scopes[-1][names[-1]] = value
            return
        if len(tokens) == 2 and tokens[0][1] == "common_chat_msg":
            self.scopes[-1][tokens[1][1]] = _message("", "", [])
            return
        if len(tokens) > 2 and tokens[0][0] == "id" and tokens[1][0] == "id":
            # a definition with an initialiser: common_chat_tool name{…}
            head = next((i for i, t in enumerate(tokens) if t in (("op", "{"), ("op", "("))), None)
            if head is not None and all(t[0] == "id" or t[1] in ("::", "<", ">", "&", "*") for t in tokens[:head]):
                inner, rest = _group(tokens[head:])
                if not rest:
                    kind = next(t[1] for t in tokens if t[1] not in ("static", "const", "auto", "std", "::"))
                    values = [self.value(p) for p in _commas(inner)]
                    if kind == "common_chat_msg":
                        values = _given(values)  # type: ignore[assignment]
                    self.scopes[-1][tokens[head - 1][1]] = values
                    return
        self.value(tokens)


def _message(content: str, reasoning: str, calls: list[Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": calls}


def _given(values: list[Any]) -> dict[str, Any]:
    names = ("role", "content", "content_parts", "tool_calls", "reasoning_content", "tool_name", "tool_call_id")
    return {"role": "", **_message("", "", []), **dict(zip(names, values, strict=False))}


class _Tester:
    def __init__(self, template: str) -> None:
        self.template = template

    def call(self, cases: Cases, method: str, args: list[Any]) -> Any:
        if method != "test":
            raise UnknownError(method)
        return _Builder(self.template, args[0])


class _Builder:
    def __init__(self, template: str, raw: str) -> None:
        self.case: dict[str, Any] = {"template": Path(template).name, "raw": raw}
        self.want = _message("", "", [])

    def call(self, cases: Cases, method: str, args: list[Any]) -> Any:
        match method:
            case "expect":
                self.want = args[0]
            case "expect_content":
                self.want = {**self.want, "content": args[0]}
            case "expect_reasoning":
                self.want = {**self.want, "reasoning_content": args[0]}
            case "expect_tool_calls":
                self.want = {**self.want, "tool_calls": args[0]}
            case "run":
                want = self.want
                self.case["want"] = {
                    "content": want["content"], "reasoning_content": want["reasoning_content"],
                    "tool_calls": [[*c, "", "", ""][:3] for c in want["tool_calls"]],
                }  # fmt: skip
                cases.found.append(self.case)
            case _:
                self.case[method] = args[0] if args else True
        return self


def _group(tokens: list[Token]) -> tuple[list[Token], list[Token]]:
    """The tokens inside the bracket that `tokens` begins with, and those after it."""
    depth = 0
    for i, (kind, text) in enumerate(tokens):
        if kind == "op":
            depth += (text in "([{") - (text in ")]}")
            if depth == 0:
                return tokens[1:i], tokens[i + 1 :]
    raise UnknownError("bracket")


def _commas(tokens: list[Token]) -> Iterator[list[Token]]:
    depth, part = 0, list[Token]()
    for token in tokens:
        if token[0] == "op":
            depth += (token[1] in "([{") - (token[1] in ")]}")
        if depth == 0 and token == ("op", ","):
            yield part
            part = []
        else:
            part.append(token)
    if part:
        yield part


def _until_semicolon(tokens: list[Token]) -> tuple[list[Token], list[Token]]:
    depth = 0
    for i, (kind, text) in enumerate(tokens):
        if kind == "op":
            depth += (text in "([{") - (text in ")]}")
            if depth == 0 and text == ";":
                return tokens[:i], tokens[i + 1 :]
    return tokens, []


_GOES_ON = ([("op", ";")], [("op", ",")], [("op", ")")])


def rendered_cases(source: str) -> tuple[list[list[str]], list[list[Any]]]:
    """Of ``test-chat-template.cpp``: the conversation, and (name, template, text of llama.cpp's own code, text by the
    template or "", BOS, EOS, …) for each case."""
    tokens, cases = tokens_of(source), Cases("")

    def after(name: str) -> list[Any]:
        at = next(i for i, t in enumerate(tokens) if t == ("id", name) and tokens[i + 1] == ("op", "{"))
        return [cases.value(part) for part in _commas(_group(tokens[at + 1 :])[0])]

    return after("conversation"), after("test_cases")


def read_cases(source: str) -> Cases:
    """Runs every test function of ``test-chat.cpp`` that this understands."""
    cases = Cases(source)
    top, tokens = list[list[Token]](), cases.tokens
    while tokens:
        statement: list[Token] = []
        depth = 0
        for i, token in enumerate(tokens):
            statement.append(token)
            if token[0] == "op":
                depth += (token[1] in "([{") - (token[1] in ")]}")
                over = token[1] == "}" and tokens[i + 1 : i + 2] not in _GOES_ON
                if depth == 0 and (token[1] == ";" or over):
                    break
        tokens = tokens[len(statement) :]
        top.append(statement)
    for statement in top:
        if statement[-1] == ("op", ";"):
            with contextlib.suppress(UnknownError, ValueError, TypeError, IndexError, KeyError, AttributeError):
                cases._statement(statement[:-1])
        else:
            head = next((i for i, t in enumerate(statement) if t == ("op", "(")), None)
            if head and statement[head - 1][0] == "id":
                args, rest = _group(statement[head:])
                if rest and rest[0] == ("op", "{"):
                    names = [part[-1][1] for part in _commas(args) if part]
                    cases.functions[statement[head - 1][1]] = (names, _group(rest)[0])
    for name, (names, body) in list(cases.functions.items()):
        if name == "test_template_output_peg_parsers":
            cases.scopes.append({names[0]: False})
            cases.run(body)
            cases.scopes.pop()
    return cases
