"""What earlier runs have saved: one line of JSON per result, in `.resize-client.journal` of the output directory.

    {"source": "a/x.jpg", "size": 81234, "mtime_ns": 17..., "job": "200x200 stretch", "target": "a/x-200x200.jpg",
     "saved_size": 4711, "saved_ns": 17...}

A line is written when the result is complete on disk but not yet renamed. So a line alone proves nothing, and a result
counts as done only when the target is there with exactly that size and modification time, which a rename keeps. Killed
between the two: the line finds no such target, the picture is done again. Killed before the line: likewise.

RULES: appends only, one write a line; a line that cannot be read is as good as absent.
"""

import fcntl
import json
import os
from dataclasses import dataclass

from workers.client.save import Output
from workers.client.scan import Picture

NAME = ".resize-client.journal"
MAX_BYTES = 256 * 1024 * 1024  # about a million results; longer, and it is not ours


@dataclass(frozen=True, slots=True)
class Entry:
    """What one line says about a source and a job."""

    size: int
    mtime_ns: int
    target: str
    saved_size: int
    saved_ns: int


class Journal:
    """The journal of one output directory, held open and locked as long as the run lasts."""

    def __init__(self, output: Output, job: str) -> None:
        """`job`: everything about a request that changes the result. Raises OSError."""
        self._output = output
        self._job = job
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(NAME, flags, 0o666, dir_fd=output.root_fd)
        self.is_alone = self._lock()
        self._entries = self._read()

    def close(self) -> None:
        """Let go of the file and its lock."""
        os.close(self._fd)

    def _lock(self) -> bool:
        """True when no other client is at work in this directory: only then are partial files left-overs."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def share(self) -> None:
        """Let other clients in; to be called once the left-overs are swept."""
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    def _read(self) -> dict[tuple[str, str], Entry]:
        entries: dict[tuple[str, str], Entry] = {}
        with open(os.dup(self._fd), "rb") as lines:
            lines.seek(0)
            whole = lines.read(MAX_BYTES)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                if row["job"] == self._job:
                    entry = Entry(*(row[name] for name in Entry.__slots__))
                    entries[row["source"], entry.target] = entry
            except (ValueError, KeyError, TypeError):
                continue
        if whole and not whole.endswith(b"\n"):  # the last line of a killed run must not swallow our first
            os.write(self._fd, b"\n")
        return entries

    def is_done(self, picture: Picture, target: str) -> bool:
        """True when `picture` as it is now was saved as `target` and that result is still there."""
        entry = self._entries.get((picture.path, target))
        if entry is None or (entry.size, entry.mtime_ns) != (picture.size, picture.mtime_ns):
            return False
        info = self._output.look_at(target)
        return info is not None and (info.st_size, info.st_mtime_ns) == (entry.saved_size, entry.saved_ns)

    def note(self, picture: Picture, target: str, saved: os.stat_result) -> None:
        """Append the line of a result that is about to get its name. Raises OSError."""
        row = {
            "source": picture.path,
            "size": picture.size,
            "mtime_ns": picture.mtime_ns,
            "job": self._job,
            "target": target,
            "saved_size": saved.st_size,
            "saved_ns": saved.st_mtime_ns,
        }
        os.write(self._fd, json.dumps(row).encode() + b"\n")  # ASCII: surrogate escapes survive as \udcxx
