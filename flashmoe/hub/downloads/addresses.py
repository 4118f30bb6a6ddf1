"""Where a download's files are right now, and what it means when the hub has another version than the begun one."""

from __future__ import annotations

from msgspec import structs

from flashmoe.hub.client import Resolved
from flashmoe.hub.downloads.jobs import JobFile
from flashmoe.hub.downloads.state import SHA256, Owner, TransferFile, head_of
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import show


class Addresses:
    """Asks the hub for the files' addresses and remembers them until they are refused."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def of(self, f: TransferFile) -> Resolved:
        """The file's current address, asked for at most once at a time; notices a file that changed on the hub."""
        with f.resolving:
            where = f.where
            if where is None:
                where = self._ask(f)
                if (where.etag and where.etag != f.etag) or where.size != f.file.size:
                    self._start_over(f, where)
                f.where = where
            return where

    def refused(self, f: TransferFile, where: Resolved) -> None:
        """The server refuses `where`: the next connection asks for a new one."""
        with self._owner.cond:
            if f.where is where:  # the first of the connections that used it
                f.where = None
                f.refused += 1

    def _ask(self, f: TransferFile) -> Resolved:
        owner = self._owner
        try:
            return owner.client.resolve(owner.job.repo, f.file.path, owner.job.commit)
        except HubError as error:
            if error.code != "changed":
                raise
        self._move_to_newest()
        return owner.client.resolve(owner.job.repo, f.file.path, owner.job.commit)

    def _move_to_newest(self) -> None:
        """The commit is gone (somebody rewrote the repository): take the newest, keep the files that are the same."""
        owner = self._owner
        listing = owner.client.repo(owner.job.repo, owner.job.revision or None)
        there = {file.path for quant in listing.quants for file in quant.files} | {file.path for file in listing.other}
        gone = [f.file.path for f in owner.files if f.file.path not in there]
        if gone:
            raise HubError("not_found", f"{show(gone[0])} was removed from {owner.job.repo}", "choose another file")
        with owner.cond:
            owner.job = structs.replace(owner.job, commit=listing.commit)
        owner.store.save(owner.job)

    def _start_over(self, f: TransferFile, where: Resolved) -> None:
        """The hub has another version of this file than the one that was begun (or tells its hash only now)."""
        owner = self._owner
        with owner.cond:
            sha = where.etag if SHA256.fullmatch(where.etag) else None
            told = bool(f.etag) or where.size != f.file.size
            f.file = JobFile(f.file.path, where.size, sha, "" if sha else where.etag)
            f.verified = 0
            owner.job = structs.replace(owner.job, files=tuple(g.file for g in owner.files))
            owner.store.save(owner.job)
            if f.part:
                f.part.reset(head_of(owner.job, f))
                f.taken = bytearray(f.part.have)
            if told:
                owner.notice = f"{show(f.file.path.rsplit('/', 1)[-1])} changed on the hub: that file starts again."
            owner.cond.notify_all()
        if told:
            owner.changed()
