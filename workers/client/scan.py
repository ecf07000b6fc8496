"""The pictures of a directory and its sub-directories, in a stable order.

RULES: reads names and sizes, no contents. Links to directories are not followed (they may form circles), links to
files are. What a reply will be saved as is none of its business. Names are bytes to the system: those that are not
UTF-8 travel as surrogate escapes and come out as they were.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from workers.wire.messages import GIF, JPEG, PNG

# The wire's three kinds; resizers look at the content, so the kinds it has no number for travel as the first.
KINDS = {
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".jpe": JPEG,
    ".png": PNG,
    ".gif": GIF,
    ".webp": JPEG,
    ".avif": JPEG,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One source file; `path` is relative to the input directory, `size` in bytes, `mtime_ns` as stat() gives it."""

    path: str
    size: int
    mtime_ns: int
    typ: int


@dataclass(frozen=True, slots=True)
class Found:
    """What a scan brought: pictures by path, and a sentence for each place that could not be read."""

    pictures: tuple[Picture, ...]
    problems: tuple[str, ...]


def scan(root: str, include: Sequence[str] = (), exclude: Sequence[str] = (), leave_out: str = "") -> Found:
    """Every picture below `root`, except below the directory `leave_out` (results of an earlier run)."""
    problems: list[str] = []
    pictures: list[Picture] = []
    for path, name in _files(root, _identity(leave_out), problems):
        kind = KINDS.get(os.path.splitext(name)[1].lower())
        if kind is None or not _is_wanted(path, name, include, exclude):
            continue
        try:
            info = os.stat(os.path.join(root, path))
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
            continue
        if stat.S_ISREG(info.st_mode):
            pictures.append(Picture(path, info.st_size, info.st_mtime_ns, kind))
    pictures.sort(key=lambda picture: picture.path)
    return Found(tuple(pictures), tuple(problems))


def _files(root: str, left_out: tuple[int, int] | None, problems: list[str]) -> Iterator[tuple[str, str]]:
    """(relative path, name) of everything that is not a directory."""
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below)) as entries:
                for entry in entries:
                    path = os.path.join(below, entry.name)
                    if not entry.is_dir(follow_symlinks=False):
                        yield path, entry.name
                    elif left_out is None or _identity(entry.path) != left_out:
                        waiting.append(path)
        except OSError as error:
            problems.append(f"{below or root}: {error.strerror}")


def _identity(path: str) -> tuple[int, int] | None:
    if not path:
        return None
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _is_wanted(path: str, name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) or fnmatchcase(path, pattern) for pattern in patterns)

    return (not include or matches(include)) and not matches(exclude)
