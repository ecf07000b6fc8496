"""The file of --report: open from the start of a run, complete or absent at its end.

RULES: it is opened before any work, because a path that cannot be written is told then. It is written beside its place
and renamed into it, so that the report of an earlier run stays until there is a new one.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from workers.client.report import format_rows
from workers.client.scan import OWN


class ReportFile:
    """The report of one run, and an empty one for a run that asks for none. `open` and `write` raise OSError."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._part = os.path.join(os.path.dirname(path), f"{OWN}-report-{os.getpid()}.part")

    def open(self) -> None:
        """Make the partial file."""
        if not self._path:
            return
        if os.path.isdir(self._path):
            raise IsADirectoryError(21, "Is a directory", self._path)
        try:
            self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            error.filename = self._path
            raise

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write the rows and rename the file into its place."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            with open(fd, "wb") as file:
                file.write(format_rows(rows, self._path.endswith(".csv")))
            os.replace(self._part, self._path)
        except BaseException:
            self._remove()
            raise

    def close(self) -> None:
        """Remove the partial file of a report that was not written."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._part)
