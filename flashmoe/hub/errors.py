"""What can go wrong between the hub, the disk and the library: one sentence each, with what to do."""

from __future__ import annotations

from backends.errors import ReportedError

TRY_AGAIN = frozenset({"network", "offline", "rate_limited", "server", "locked"})
"""Codes of failures that may be gone the next time (exit code 3)."""


class HubError(ReportedError):
    """A failure between the hub, the disk and the library.

    Codes: ``offline``, ``network``, ``not_found``, ``gated``, ``unauthorized``, ``forbidden``, ``rate_limited``,
    ``server``, ``bad_answer``, ``bad_name``, ``no_space``, ``locked``, ``changed``, ``checksum``, ``in_use``,
    ``ambiguous``, ``io_error``, ``cancelled``.
    """

    def __init__(
        self, code: str, what: str, advice: str = "", *, retry_after: float | None = None, close: tuple[str, ...] = ()
    ) -> None:
        super().__init__(code, what, advice)
        self.close = close
        """Names like the one that isn't there."""
        self.retry_after = retry_after
        """Seconds that the server asked to wait, where it did."""

    @property
    def exit_code(self) -> int:
        """1 for failures that stay, 3 for those worth trying again."""
        return 3 if self.code in TRY_AGAIN else 1
