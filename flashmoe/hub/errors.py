"""What can go wrong between the hub, the disk and the library: one sentence each, with what to do."""

from __future__ import annotations

TRY_AGAIN = frozenset({"network", "offline", "rate_limited", "server", "locked"})
"""Codes of failures that may be gone the next time (exit code 3)."""


class HubError(Exception):
    """A failure with one clear sentence for the user.

    Codes: ``offline``, ``network``, ``not_found``, ``gated``, ``unauthorized``, ``forbidden``, ``rate_limited``,
    ``server``, ``bad_answer``, ``bad_name``, ``no_space``, ``locked``, ``changed``, ``checksum``, ``in_use``,
    ``ambiguous``, ``io_error``, ``cancelled``.
    """

    def __init__(self, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asked to wait, where it did."""

    @property
    def exit_code(self) -> int:
        """1 for failures that stay, 3 for those worth trying again."""
        return 3 if self.code in TRY_AGAIN else 1
