"""The journal of saved results: one line of JSON per result, in `.resize-client.journal` of the output directory.

    {"source": "a/x.jpg", "size": 81234, "mtime_ns": 17..., "job": "200x200 stretch", "target": "a/x-200x200.jpg",
     "saved_size": 4711, "saved_ns": 17..., "saved_as": "a/x-200x200.jpg"}

`target` is the name that was planned, `saved_as` the name of the file.

A line is written when the result is complete on disk but not yet renamed. So a line alone proves nothing: a result
counts as done only when the target exists with exactly that size and modification time, which a rename keeps. A run
that is killed before the rename leaves a line without a matching target, and the picture is done again.

RULES: appends only, with one write() per line; a line that cannot be parsed is ignored.
"""

import fcntl
import json
import os
from dataclasses import dataclass

from workers.client.output import OutputDirectory
from workers.client.scan import JOURNAL, Picture

MAX_BYTES = 256 * 1024 * 1024  # about a million results; no more is read


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line: a source as it was, and its saved result."""

    size: int
    mtime_ns: int
    target: str
    saved_size: int
    saved_ns: int
    saved_as: str


class Journal:
    """The journal of one output directory, open and locked for the whole run."""

    def __init__(self, output: OutputDirectory, job: str) -> None:
        """`job`: every option that changes the result, as text. Raises OSError."""
        self._output = output
        self._job = job
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(JOURNAL, flags, 0o666, dir_fd=output.root_fd)
        self.is_alone = self._lock()
        self._entries = self._read()

    def close(self) -> None:
        """Close the file, which releases the lock."""
        os.close(self._fd)

    def _lock(self) -> bool:
        """True when no other client uses this directory: only then were partial files left by killed runs."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def share(self) -> None:
        """Downgrade to a shared lock, which admits other clients; to be called after the partial files are removed."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def _read(self) -> dict[tuple[str, str], JournalEntry]:
        entries: dict[tuple[str, str], JournalEntry] = {}
        with open(os.dup(self._fd), "rb") as lines:
            lines.seek(0)
            whole = lines.read(MAX_BYTES)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                if row["job"] == self._job:
                    row.setdefault("saved_as", row["target"])
                    entry = JournalEntry(*(row[name] for name in JournalEntry.__slots__))
                    entries[row["source"], entry.target] = entry
            except (ValueError, KeyError, TypeError):
                continue
        if whole and not whole.endswith(b"\n"):  # cut off by a kill: it must not join with the next line
            os.write(self._fd, b"\n")
        return entries

    def is_done(self, picture: Picture, target: str) -> bool:
        """True when the current `picture` was saved as `target` and that result still exists unchanged."""
        entry = self._entries.get((picture.path, target))
        if entry is None or (entry.size, entry.mtime_ns) != (picture.size, picture.mtime_ns):
            return False
        info = self._output.stat(entry.saved_as)
        return info is not None and (info.st_size, info.st_mtime_ns) == (entry.saved_size, entry.saved_ns)

    def note(self, picture: Picture, target: str, saved: os.stat_result, saved_as: str = "") -> None:
        """Append the line of a result that is about to be renamed to `saved_as`, or to `target`. Raises OSError."""
        row = {
            "source": picture.path,
            "size": picture.size,
            "mtime_ns": picture.mtime_ns,
            "job": self._job,
            "target": target,
            "saved_size": saved.st_size,
            "saved_ns": saved.st_mtime_ns,
            "saved_as": saved_as or target,
        }
        os.write(self._fd, json.dumps(row).encode() + b"\n")  # ASCII: surrogate escapes are kept as \udcxx
