"""What can go wrong between the hub, the disk and the library: what happened, and what to do about it."""

from __future__ import annotations

from backends.errors import ReportedError
from flashmoe.retry import PASSING


class HubError(ReportedError):
    """A failure between the hub, the disk and the library. Full stops are set here, between and behind its parts.

    Codes: ``offline``, ``network``, ``slow``, ``not_found``, ``gated``, ``unauthorized``, ``forbidden``,
    ``rate_limited``, ``server``, ``bad_answer``, ``bad_name``, ``bad_setting``, ``not_a_model``, ``incomplete``,
    ``no_space``, ``locked``, ``changed``, ``checksum``, ``in_use``, ``ambiguous``, ``io_error``, ``cancelled``.
    """

    def __init__(
        self, code: str, what: str, advice: str = "", *, retry_after: float | None = None, close: tuple[str, ...] = ()
    ) -> None:
        super().__init__(code, what.rstrip(".") if advice else _ended(what), _ended(advice))
        self.close = close
        """Names like the one that isn't there."""
        self.retry_after = retry_after
        """Seconds that the server asked to wait, where it did."""

    @property
    def passing(self) -> bool:
        """Whether it may be gone the next time."""
        return self.code in PASSING

    @property
    def exit_code(self) -> int:
        """1 for failures that stay, 3 for those worth trying again."""
        return 3 if self.passing else 1


def _ended(text: str) -> str:
    return text if not text or text.endswith((".", "?", "!", "…")) else f"{text}."
