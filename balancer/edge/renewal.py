"""Renewed certificates on their way from the master to living workers, and to the console, which tells of them.

RULES: made in the master before the fork; the master writes, the others read. The files go through a memfd that every
process has inherited, since OpenSSL reads files only and a worker may not be allowed to read the real ones. A version in
shared memory says that there is something new. A reader that finds another version in the memfd, or half a text, looks
again at its next tick.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from balancer.edge.certificates import CertificateFile
from balancer.shm.memory import shared_memory

_TOLD = (
    "subject",
    "issuer",
    "not_before",
    "not_after",
    "read_at",
)  # of a renewed one; its names are the same


class CertificateHandover:
    """The certificates of one table of contexts."""

    def __init__(self, files: Sequence[CertificateFile]) -> None:
        self._file = open(os.memfd_create("balancer-certificates", os.MFD_CLOEXEC), "r+b", buffering=0)  # noqa: SIM115
        self._cells = memoryview(shared_memory(8)).cast("q")  # the version
        self._seen = 0  # the version that this process has taken
        self._files = tuple(files)
        self._described = 0  # the version that _files are of

    def write(self, files: Sequence[CertificateFile]) -> None:
        """Hand these over; this process has them already."""
        version = self._cells[0] + 1
        about = [{name: getattr(file, name) for name in _TOLD} for file in files]
        pems = [file.pem.decode("latin-1") for file in files]
        text = json.dumps({"version": version, "pems": pems, "about": about})
        fd = self.fileno()
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode(), 0)
        self._files = tuple(files)
        self._cells[0] = self._seen = self._described = version

    def read(self) -> list[bytes] | None:
        """What was written since the last time, each file as PEM; None when nothing was."""
        version = self._cells[0]
        found = self._read(version) if version != self._seen else None
        if found is None:
            return None
        self._seen = version
        return [pem.encode("latin-1") for pem in found["pems"]]

    def read_again(self) -> None:
        """What the last `read` returned could not be taken: the next one returns it again."""
        self._seen -= 1

    def files(self) -> tuple[CertificateFile, ...]:
        """For a process that serves no client: what is handed over now. Of renewed ones the text is the former one's."""
        version = self._cells[0]
        found = self._read(version) if version != self._described else None
        if found is not None:
            about = found["about"]
            self._files = tuple(replace(file, **one) for file, one in zip(self._files, about, strict=True))
            self._described = version
        return self._files

    def _read(self, version: int) -> dict[str, Any] | None:
        """What the memfd has, None when it is not of this version: the next one is being written."""
        fd = self.fileno()
        try:
            found: dict[str, Any] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
        except ValueError:
            return None
        return found if found["version"] == version else None

    def close(self) -> None:
        """In the master: nothing more comes. Processes that were forked before have a descriptor of their own."""
        self._file.close()

    def fileno(self) -> int:
        return self._file.fileno()
