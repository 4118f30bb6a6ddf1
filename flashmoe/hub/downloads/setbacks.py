"""What a failure means for a file's next try: at once, after a pause, or never."""

from __future__ import annotations

import time

from flashmoe.hub.downloads.state import Owner, TransferFile
from flashmoe.hub.errors import HubError

WRONG_ANSWERS = 3
"""So many answers in a row that aren't the file are no accident."""
EXPIRED_ADDRESSES = 3
"""So many new addresses in a row that are refused at once aren't expired: the server refuses."""
SLOW_CONNECTIONS = 3
"""After so many slow ones in a row the line itself is slow: what comes is taken as it comes."""


class Setbacks:
    """Counts a transfer's failures. Called from the threads of its connections."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def recovered(self, f: TransferFile) -> None:
        """A block of `f` came."""
        if f.failures or f.refused or f.wrong:
            with self._owner.cond:
                f.failures = f.refused = f.wrong = 0
                f.not_before = 0.0

    def after(self, f: TransferFile, error: HubError) -> None:
        """Waits before the next try of `f`, or gives up."""
        owner = self._owner
        if owner.stopping:
            return
        if error.code == "expired":  # a new address costs nothing: at once
            if f.refused < EXPIRED_ADDRESSES:
                return
            error = HubError("server", f"{error.gist}, and so were new ones", "try again later")
        if error.code == "slow":
            self._slow(f, error)
            return
        if error.code == "bad_answer":
            self._wrong(f, error)
            return
        if not error.passing:
            owner.fail(error)
            return
        self._pause(f, error)

    def _pause(self, f: TransferFile, error: HubError) -> None:
        owner, backoff = self._owner, self._owner.options.backoff
        with owner.cond:
            now = time.monotonic()
            if now < f.not_before:
                return  # another connection met the same trouble
            f.failures += 1
            if backoff.over(f.failures):
                tries = f"{error.gist}; gave up after {f.failures} tries"
                owner.error = owner.error or HubError(error.code, tries, "what was downloaded is kept; resume it later")
                owner.cond.notify_all()
                return
            wait = backoff.pause_s(f.failures, error.retry_after)
            f.not_before = now + wait
            owner.trouble = f"{error.gist}; trying again in {wait:.0f} s ({f.failures} of {backoff.attempts})."
            owner.cond.notify_all()
        owner.changed()

    def _wrong(self, f: TransferFile, error: HubError) -> None:
        with self._owner.cond:
            if time.monotonic() >= f.not_before:
                f.wrong += 1
                f.where = None
            enough = f.wrong >= WRONG_ANSWERS
        if enough:
            self._owner.fail(error)
        else:
            self._pause(f, error)

    def _slow(self, f: TransferFile, error: HubError) -> None:
        with self._owner.cond:
            f.slow += 1
            f.where = None  # another address may lead to another server
            self._owner.trouble = f"{error.gist}; reconnected ({f.slow} times)."
        self._owner.changed()
