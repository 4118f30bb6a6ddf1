"""A hash that follows each file from its first block to its last, compares, and gives the file its name."""

from __future__ import annotations

from flashmoe.hub.downloads.partfile import PartFile
from flashmoe.hub.downloads.state import Owner, TransferFile, check_of, digest_of
from flashmoe.hub.errors import HubError
from flashmoe.hub.names import show


class Checking:
    """Verifies a transfer's files, each in a thread of its own."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def follow(self, f: TransferFile) -> None:
        """Until the file is complete and right, or the transfer ends."""
        owner = self._owner
        while not owner.stopping and f.part is not None:
            digest = self._hash(f, f.part)
            if digest is None:
                continue
            if digest == f.etag or check_of(f.file) == "size":
                self._finish(f, f.part)
                return
            name = show(f.part.target.name)
            if f.restarted:
                raise HubError(
                    "checksum", f"{name} arrived twice with a wrong checksum",
                    "the hub's copy or the way to it is damaged",
                )  # fmt: skip
            with owner.cond:
                f.restarted, f.verified = True, 0
                f.part.forget_all()
                f.taken = bytearray(f.part.have)
                f.state, f.where = "running", None
                owner.notice = f"{name} arrived damaged (its checksum is not the hub's): downloading that file again."
                owner.cond.notify_all()
            owner.changed()

    def _hash(self, f: TransferFile, part: PartFile) -> str | None:
        """The hash once the last block is in; None when the file started over or the transfer stops."""
        owner = self._owner
        with owner.cond:
            generation, have, n_blocks = part.generation, part.have, part.n_blocks
            digest = digest_of(f.file)
            f.verified = index = 0
        while index < n_blocks:
            if owner.stopping or part.generation != generation:
                return None
            if not have[index]:
                with owner.cond:
                    owner.cond.wait(0.1)
                continue
            data = part.read_block(index)
            if data is None:  # the disk lost it (a power failure): fetch it again
                with owner.cond:
                    if part.generation == generation:
                        f.taken[index] = 0
                        f.state = "running"
                    owner.cond.notify_all()
                continue
            digest.update(data)
            index += 1
            f.verified += len(data)
            if f.state == "running" and have.find(0) < 0:
                f.state = "verifying"
        return None if part.generation != generation else digest.hexdigest()

    def _finish(self, f: TransferFile, part: PartFile) -> None:
        self._owner.store.remember(self._owner.job, f.file, f.etag)
        part.finish()
        with self._owner.cond:
            f.state, f.verified = "done", f.file.size
            self._owner.cond.notify_all()
        self._owner.changed()
