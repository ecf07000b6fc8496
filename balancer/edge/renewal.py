"""Renewed certificates on their way from the master to living workers.

RULES: made in the master before the fork; the master writes, the others read. The files go through a memfd that every
process has inherited, since OpenSSL reads files only and a worker may not be allowed to read the real ones. A version in
shared memory says that there is something new. A reader that finds another version in the memfd, or half a text, looks
again at its next tick.
"""

import json
import os
from collections.abc import Sequence

from balancer.edge.certificates import CertificateFile
from balancer.shm.memory import PAGE_BYTES, shared_memory

MOST_FILES = PAGE_BYTES // 8 - 1  # of one listener


class CertificateHandover:
    """The certificates of one table of contexts. `expiry()` is for the console, which serves no client."""

    def __init__(self, files: Sequence[CertificateFile]) -> None:
        self._file = open(os.memfd_create("balancer-certificates", os.MFD_CLOEXEC), "r+b", buffering=0)  # noqa: SIM115
        self._cells = memoryview(shared_memory(PAGE_BYTES)).cast(
            "q"
        )  # the version, then when each file expires
        self._count = min(len(files), MOST_FILES)
        self._seen = 0  # the version that this process has taken
        self._note_expiry(files)

    def write(self, files: Sequence[CertificateFile]) -> None:
        """Hand these over; this process has them already."""
        version = self._cells[0] + 1
        text = json.dumps({"version": version, "pems": [file.pem.decode("latin-1") for file in files]})
        fd = self.fileno()
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode(), 0)
        self._note_expiry(files)
        self._cells[0] = self._seen = version

    def read(self) -> list[bytes] | None:
        """What was written since the last time, each file as PEM; None when nothing was."""
        version = self._cells[0]
        if version == self._seen:
            return None
        fd = self.fileno()
        try:
            found = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        except ValueError:  # the next one is being written
            return None
        if found["version"] != version:
            return None
        self._seen = version
        return [pem.encode("latin-1") for pem in found["pems"]]

    def read_again(self) -> None:
        """What the last `read` returned could not be taken: the next one returns it again."""
        self._seen -= 1

    def close(self) -> None:
        """In the master: nothing more comes. Processes that were forked before have a descriptor of their own."""
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()

    def expiry(self) -> list[float]:
        """When each file expires, in seconds since 1970."""
        return [float(cell) for cell in self._cells[1 : 1 + self._count].tolist()]

    def _note_expiry(self, files: Sequence[CertificateFile]) -> None:
        for place, file in enumerate(files[: self._count], 1):
            self._cells[place] = int(file.not_after)
