"""Errors that a person reads, in parts: a code for programs, what happened, and what to do about it."""

from __future__ import annotations

MOST_CHARS = 600
"""Of each part: names and values from a file or a request may be of any length, a sentence may not."""


def bounded(text: str) -> str:
    """`text`, its middle left out where it is too long: how it begins and ends says more."""
    half = MOST_CHARS // 2
    return text if len(text) <= MOST_CHARS else f"{text[: half - 1]}…{text[-half:]}"


def sentence(what: str, advice: str = "") -> str:
    """What happened and what to do, as one sentence."""
    return f"{what}; {advice}" if advice else what


class ReportedError(Exception):
    """A failure that ends as one clear sentence on a screen; nothing searches that sentence.

    `code` is for programs, `what` says what happened, `advice` what to do ("" where nothing is to be done).
    """

    def __init__(self, code: str, what: str, advice: str = "") -> None:
        what, advice = bounded(what), bounded(advice)
        super().__init__(sentence(what, advice))
        self.code = code
        self.what = what
        self.advice = advice

    @property
    def message(self) -> str:
        """The sentence: `what` and `advice` joined."""
        return sentence(self.what, self.advice)

    @property
    def full(self) -> str:
        """The sentence with its full stop: another is to follow."""
        said = self.message
        return said if said[-1:] in (".", "?", "!") else f"{said}."

    @property
    def gist(self) -> str:
        """What happened, without the full stop: to be gone on with."""
        return self.what.rstrip(".")


class EngineError(ReportedError):
    """A failure of a backend or of the engine.

    Codes: ``not_found``, ``not_a_file``, ``not_gguf``, ``truncated``, ``unknown_architecture``, ``bad_model``,
    ``no_memory``, ``context_too_large``, ``prompt_too_long``, ``bad_request``, ``bad_template``, ``budget_too_small``,
    ``unsupported``, ``io_error``, ``cancelled``, ``engine_died``, ``network``, ``unauthorized``, ``internal``.

    ``prompt_too_long`` tells how many `tokens` the prompt has, where it was counted, and the `limit` of prompt and
    answer together.
    """

    def __init__(
        self, code: str, what: str, advice: str = "", *, tokens: int | None = None, limit: int | None = None
    ) -> None:
        super().__init__(code, what, advice)
        self.tokens = tokens
        self.limit = limit
