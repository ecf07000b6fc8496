"""The pictures of a directory and its sub-directories, ordered by path, and what else is there.

RULES: the content decides what is a picture and of which format; of a file that says nothing by its content, the name
does, so that a broken picture is told by the resizer that refuses it. Reads 64 bytes of a file. Symbolic links to
directories are not followed (they may form circles), links to files are. File names are bytes: bytes that are not UTF-8
become surrogate escapes and are written back unchanged. Nothing is left out in silence, except this program's own files.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from workers.client.naming import format_of
from workers.picture_header import read_header

OWN = ".resize-client"  # the journal and partial files begin with it
JOURNAL = OWN + ".journal"
HEAD = 64  # bytes that tell the format

NOT_A_PICTURE = "not JPEG, PNG, GIF, WebP or AVIF"
NOT_WANTED = "not wanted by --include and --exclude"
RESULTS = "directory of results"
RESOURCE_FORK = "resource fork of macOS"
LINKED_DIRECTORY = "symbolic link to a directory"
SPECIAL = "neither a file nor a directory"


@dataclass(frozen=True, slots=True)
class Picture:
    """One source file; `path` is relative to the input directory, `size` in bytes, `mtime_ns` as stat() gives it,
    `format` by its content, or by its name where the content is of no known format."""

    path: str
    size: int
    mtime_ns: int
    format: str


@dataclass(slots=True)
class ScanResult:
    """Pictures ordered by path, a sentence for each file or directory that could not be read, and the paths that are
    left out, by reason."""

    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, path: str, reason: str) -> None:
        """Note that `path` is left out."""
        self.left_out.setdefault(reason, []).append(path)


def scan(root: str, include: Sequence[str] = (), exclude: Sequence[str] = (), skip: str = "") -> ScanResult:
    """Every picture below `root`, except in the directory `skip`, which is to hold the results, and in directories that
    hold those of other runs: each has a journal. `root` itself may have one."""
    found = ScanResult()
    for path, name in _files(root, _identity(skip), found):
        if name.startswith("._"):
            found.leave_out(path, RESOURCE_FORK)
        elif not _is_wanted(path, name, include, exclude):
            found.leave_out(path, NOT_WANTED)
        else:
            _look_at(root, path, found)
    found.pictures.sort(key=lambda picture: picture.path)
    for paths in found.left_out.values():
        paths.sort()
    return found


def _look_at(root: str, path: str, found: ScanResult) -> None:
    says = format_of(path)
    whole = os.path.join(root, path)
    try:
        info = os.stat(whole)
    except OSError as error:
        if says:
            found.problems.append(f"{path}: {error.strerror}")
        else:
            found.leave_out(path, NOT_A_PICTURE)
        return
    if not stat.S_ISREG(info.st_mode):
        found.leave_out(path, LINKED_DIRECTORY if stat.S_ISDIR(info.st_mode) else SPECIAL)
        return
    format = _format_by_content(whole) or says
    if format:
        found.pictures.append(Picture(path, info.st_size, info.st_mtime_ns, format))
    else:
        found.leave_out(path, NOT_A_PICTURE)


def _format_by_content(path: str) -> str:
    """The format of the file's content; "" for others and for a file that cannot be read now."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        header = read_header(os.read(fd, HEAD))
    except OSError:
        return ""
    finally:
        os.close(fd)
    return header.format if header else ""


def _files(root: str, skipped: tuple[int, int] | None, found: ScanResult) -> Iterator[tuple[str, str]]:
    """(relative path, name) of everything that is not a directory."""
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as opened:
                entries = list(opened)
        except OSError as error:
            found.problems.append(f"{folder or root}: {error.strerror}")
            continue
        if folder and any(entry.name == JOURNAL for entry in entries):
            found.leave_out(folder + os.sep, RESULTS)
            continue
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if entry.name.startswith(OWN):
                continue
            if not entry.is_dir(follow_symlinks=False):
                yield path, entry.name
            elif skipped is None or _identity(entry.path) != skipped:
                pending.append(path)
            else:
                found.leave_out(path + os.sep, RESULTS)


def _identity(path: str) -> tuple[int, int] | None:
    if not path:
        return None
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _is_wanted(path: str, name: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether the globs admit the file; they do not tell upper from lower case, as cameras do not."""
    path, name = path.casefold(), name.casefold()

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, one) or fnmatchcase(path, one) for one in map(str.casefold, patterns))

    return (not include or matches(include)) and not matches(exclude)
