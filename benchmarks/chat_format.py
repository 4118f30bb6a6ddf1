"""How much of what models say is understood: llama.cpp's own test cases, read out of an sdist of llama-cpp-python.

``python benchmarks/chat_format.py llama_cpp_python-0.3.36.tar.gz`` prints the figures of ``results/chat_format.md`` and
each case that comes out otherwise. Compared as upstream's own tests do: text without the white space around it,
arguments as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

from backends.chat_format.parser import parse
from backends.chat_format.rendering import Renderer
from backends.chat_format.templates import ChatTemplate
from backends.chat_format.variables import tool_of
from backends.interface import ChatMessage, EngineError, GenerateRequest, ToolSpec

sys.path.insert(0, str(Path(__file__).resolve().parent))
from chat_cases import read_cases, rendered_cases

HEAD = "vendor/llama.cpp/"
SPLITS = (0, 1, 2, 3, 7)
Result = tuple[str, str, list[tuple[str, str, str]]]


def files_of(sdist: Path) -> dict[str, str]:
    """The sdist's templates and the two tests, by their paths in llama.cpp."""
    found = {}
    with tarfile.open(sdist) as archive:
        for member in archive:
            _, _, name = member.name.partition(HEAD)
            if name.startswith("models/templates/") or name in ("tests/test-chat.cpp", "tests/test-chat-template.cpp"):
                file = archive.extractfile(member)
                if file is not None:
                    found[name] = file.read().decode()
    return found


def _same(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except ValueError:
        return ""  # cut off: upstream doesn't compare these either


class Measure:
    """Runs the cases."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.renderer = Renderer()
        self._templates: dict[str, ChatTemplate] = {}

    def template(self, name: str) -> ChatTemplate:
        if name not in self._templates:
            source = self.files[f"models/templates/{name}"]
            self._templates[name] = ChatTemplate(source, bos="<s>", eos="</s>", renderer=self.renderer)
        return self._templates[name]

    def parsed(self) -> None:
        """What models wrote: cases of ``test-chat.cpp``."""
        total, right, apart = Counter[str](), Counter[str](), list[str]()
        for case in read_cases(self.files["tests/test-chat.cpp"]).found:
            kind = self._kind(case)
            if kind is None:
                continue
            wanted = case["want"]
            want: Result = (
                wanted["content"].strip(),
                wanted["reasoning_content"].strip(),
                [(n, _same(a), i or "") for n, a, i in wanted["tool_calls"]],
            )
            results = self._results(case)
            total[kind] += 1
            if any(r != results[0] for r in results):
                apart.append(f"cut differently, it differs: {case['template']} {case['raw'][:60]!r}")
            elif results[0] == want:
                right[kind] += 1
            else:
                apart.append(
                    f"{case['template']}: {case['raw'][:70]!r}\n    upstream {want}\n    here     {results[0]}"
                )
        for kind, n in total.items():
            print(f"{kind}: {right[kind]} of {n}")
        print("\n".join(apart))

    @staticmethod
    def _kind(case: dict[str, Any]) -> str | None:
        if case.get("continue_final_message") or case.get("json_schema"):
            return None
        if "NONE" in str(case.get("reasoning_format")):
            return None  # thinking left in the text: nobody here asks for that
        said = "reasoning_format" in case or not case["want"]["content"].startswith(("[THINK]", "<|START_THINKING|>"))
        return None if not said else "with tools" if case.get("tools") else "without tools"

    def _results(self, case: dict[str, Any]) -> list[Result]:
        template = self.template(case["template"])
        specs = tuple(ToolSpec(n, d, json.loads(p)) for n, d, p in case.get("tools", ()))
        request = GenerateRequest(
            id="1",
            messages=(ChatMessage("user", "Hello"),),
            tools=specs,
            enable_thinking=case.get("enable_thinking"),
        )
        after, tools = template.rendered(request).after, [tool_of(t) for t in specs]
        results = []
        for step in SPLITS:
            cut = bool(case.get("is_partial"))
            said = parse(template.format, case["raw"], tools=tools, after=after, truncated=cut, step=step)
            calls = [(c.name, _same(c.arguments), c.call_id or "") for c in said.calls]
            results.append((said.content.strip(), said.thinking.strip(), calls))
        return results

    def rendered(self) -> None:
        """Prompts: every template with every message in it, and the strings of ``test-chat-template.cpp``."""
        names = [n.rpartition("/")[2] for n in self.files if n.endswith(".jinja")]
        messages = tuple(
            ChatMessage(role, f"{word} word of {role}", "a thought" if role == "assistant" else "")
            for role, word in (("system", "first"), ("user", "second"), ("assistant", "third"), ("user", "fourth"))
        )
        whole = 0
        for name in names:
            try:
                missing = self.template(name).rendered(GenerateRequest(id="1", messages=messages)).missing
            except EngineError as error:
                print(f"{name}: {error.message}")
                continue
            whole += not missing
        print(f"templates that render with every message: {whole} of {len(names)}")
        conversation, cases = rendered_cases(self.files["tests/test-chat-template.cpp"])
        right = count = 0
        for name, source, own, by_template, *rest in cases:
            bos, eos, supported, extra = [*rest, *["", "", True, []][len(rest) :]]
            if not supported:
                continue
            count += 1
            said = tuple(ChatMessage(role, text) for role, text in [*conversation, *(extra or [])])
            made = ChatTemplate(source, bos=bos or "", eos=eos or "", renderer=self.renderer)
            got = made.prompt(GenerateRequest(id="1", messages=said))
            right += got == (by_template or own)
            if got != (by_template or own):
                print(f"{name}:\n    upstream {(by_template or own)!r}\n    here     {got!r}")
        print(f"expected prompts: {right} of {count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sdist", type=Path)
    measure = Measure(files_of(parser.parse_args().sdist))
    try:
        measure.rendered()
        measure.parsed()
    finally:
        measure.renderer.close()


if __name__ == "__main__":
    main()
