"""The pictures of a directory and its sub-directories, ordered by path.

RULES: reads names and sizes, no contents. Symbolic links to directories are not followed (they may form circles), links
to files are. File names are bytes: bytes that are not UTF-8 become surrogate escapes and are written back unchanged.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from workers.wire.messages import GIF, JPEG, PNG

# The wire format knows three kinds. Resizers look at the content, so other formats are sent as the first kind.
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
class ScanResult:
    """Pictures ordered by path, and a sentence for each file or directory that could not be read."""

    pictures: tuple[Picture, ...]
    problems: tuple[str, ...]


def scan(root: str, include: Sequence[str] = (), exclude: Sequence[str] = (), skip: str = "") -> ScanResult:
    """Every picture below `root`, except below the directory `skip` (results of an earlier run)."""
    problems: list[str] = []
    pictures: list[Picture] = []
    for path, name in _files(root, _identity(skip), problems):
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
    return ScanResult(tuple(pictures), tuple(problems))


def _files(root: str, skipped: tuple[int, int] | None, problems: list[str]) -> Iterator[tuple[str, str]]:
    """(relative path, name) of everything that is not a directory."""
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    if not entry.is_dir(follow_symlinks=False):
                        yield path, entry.name
                    elif skipped is None or _identity(entry.path) != skipped:
                        pending.append(path)
        except OSError as error:
            problems.append(f"{folder or root}: {error.strerror}")


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
