"""Renders a chat template from a model file: a hostile program in Jinja, so sandboxed and in a process with limits.

This module is what runs inside that process (``python -m backends.chat_format.template_env``): one JSON object a line
on stdin, one on stdout. `backends.chat_format.rendering` talks to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

from backends.system.helper import run_jobs

MAX_OUTPUT = 8 << 20
"""Characters that a rendered prompt may have."""
MEMORY_LIMIT = 768 << 20
"""Bytes of address space that rendering may take beyond what the process has."""

CPU_SECONDS = 20
"""Of processor time for one rendering; the parent gives up earlier by the clock."""


class TemplateRefusal(Exception):
    """The template called ``raise_exception``: its own words about why it can't render these messages."""


def make_environment() -> Any:
    """A sandboxed Jinja environment that behaves as Hugging Face's for chat templates."""
    from jinja2 import Undefined, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}…{% endgeneration %}`` marks assistant text for training; it renders as what it holds."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    class Sandbox(ImmutableSandboxedEnvironment):
        """Templates may build lists of their own (Kimi's queue of ids); what they are given is a copy anyway."""

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, list) and attr in ("append", "pop", "extend", "insert"):
                return True
            return bool(super().is_safe_attribute(obj, attr, value))

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])

    def raise_exception(message: object = "") -> NoReturn:
        raise TemplateRefusal(str(message)[:300])

    def strftime_now(pattern: str) -> str:
        return datetime.now().strftime(str(pattern)[:100])

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
            default=plain,
        )

    def plain(value: object) -> object:
        """What JSON doesn't know: the iterators that Jinja's filters give, and what is undefined."""
        if isinstance(value, Iterator):
            return list(value)
        if isinstance(value, Undefined):
            return None
        raise TypeError(f"{type(value).__name__} is not JSON")

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


KEPT_TEMPLATES = 8


def render(environment: Any, template: str, variables: dict[str, Any], kept: dict[str, Any]) -> dict[str, str]:
    """``{"text": …}``, or ``{"refused": …}`` with the template's own words, or ``{"error": …}``. `kept`: templates that
    were compiled before."""
    from jinja2 import TemplateError

    try:
        pieces: list[str] = []
        size = 0
        if template not in kept:
            if len(kept) >= KEPT_TEMPLATES:
                kept.clear()
            kept[template] = environment.from_string(template)
        for piece in kept[template].generate(**variables):
            size += len(piece)
            if size > MAX_OUTPUT:
                return {"error": f"it makes a prompt of more than {MAX_OUTPUT} characters"}
            pieces.append(piece)
        return {"text": "".join(pieces)}
    except TemplateRefusal as refusal:
        return {"refused": str(refusal)}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it nests too deeply"}
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        return {"error": f"{error.message}" + (f" (line {line})" if line else "")}
    except Exception as error:  # any Python error a template can provoke
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    environment = make_environment()
    kept: dict[str, Any] = {}
    run_jobs(
        lambda job: render(environment, job["template"], job["variables"], kept),
        cpu_s=CPU_SECONDS,
        memory_bytes=MEMORY_LIMIT,
    )


if __name__ == "__main__":
    main()
