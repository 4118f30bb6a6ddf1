"""The process in which chat templates are rendered: `Renderer`.

The template is a program by whoever made the file. It runs in a process of its own (`template_env`), which is killed
when it takes too long; nothing of it reaches this process but the text.
"""

from __future__ import annotations

from typing import Any

from backends.interface import EngineError
from backends.system.helper import Helper

TIME_LIMIT_S = 5.0
MAX_TEMPLATE = 1 << 20


class Renderer:
    """Renders templates in a child process, which starts on first use (or by `warm_up`) and again after it was
    killed."""

    def __init__(self, time_limit_s: float = TIME_LIMIT_S) -> None:
        self._limit = time_limit_s
        self._helper = Helper("backends.chat_format.template_env", time_limit_s)

    def warm_up(self) -> None:
        """Starts the process without waiting for it."""
        self._helper.warm_up()

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """The text; raises `EngineError` ``bad_template`` where the template fails, refuses, or takes too long."""
        if len(template) > MAX_TEMPLATE:
            raise bad_template(f"it has {len(template)} characters")
        answer = self._helper.ask({"template": template, "variables": variables})
        if answer is None:
            raise bad_template(f"it took longer than {self._limit:g} s, or ended the process that rendered it")
        if "text" in answer:
            return str(answer["text"])
        if "refused" in answer:
            raise EngineError("bad_template", f"The model's chat template refuses these messages: {answer['refused']}")
        raise bad_template(answer.get("error", "no answer"))

    def close(self) -> None:
        """Ends the process; a later `render` starts another."""
        self._helper.close()


def bad_template(reason: str) -> EngineError:
    """A template that can't be used, and why."""
    return EngineError(
        "bad_template",
        f"The chat template in the model file can't be used ({reason[:300]})",
        "use another file of this model.",
    )
