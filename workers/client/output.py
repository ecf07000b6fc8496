"""Saves results in the output directory: a result is complete or absent, and nothing outside is written.

    write  .resize-client-<pid>-<n>.part   created O_EXCL|O_NOFOLLOW in the directory of the target
    note   the journal writes its line: the result is complete and has its inode, but not yet its name
    rename -> target                       replaces an existing file; of a symbolic link the link itself

RULES: the root is opened once; every path below is opened from its descriptor one directory at a time, never through a
symbolic link. Paths come from naming, never from a reply. An OSError leaves no partial file.
"""

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator

PART = re.compile(r"\.resize-client-\d+-\d+\.part")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Note = Callable[[os.stat_result], None]


class OutputDirectory:
    """The output directory. Every method raises OSError."""

    def __init__(self, root: str, fsync: bool = False) -> None:
        os.makedirs(root, exist_ok=True)
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fsync = fsync
        self._serial = 0

    def close(self) -> None:
        """Close the directory."""
        os.close(self.root_fd)

    def save(
        self, target: str, data: bytes | memoryview, note: Note | None = None, mtime_ns: int | None = None
    ) -> None:
        """Write `data` to the relative path `target`. `note` is called with the complete file before it is renamed.
        `mtime_ns`: the modification time that the file gets, None for now."""
        folder, name = os.path.split(target)
        with self._opened(folder, create=True) as folder_fd:
            self._serial += 1
            part = f".resize-client-{os.getpid()}-{self._serial}.part"
            fd = os.open(part, _CREATE, 0o666, dir_fd=folder_fd)
            try:
                try:
                    _write_all(fd, data)
                    if mtime_ns is not None:
                        os.utime(fd, ns=(mtime_ns, mtime_ns))
                    if self._fsync:
                        os.fsync(fd)
                    if note is not None:
                        note(os.fstat(fd))
                finally:
                    os.close(fd)
                os.rename(part, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=folder_fd)
                raise
            if self._fsync:
                os.fsync(folder_fd)

    def stat(self, target: str) -> os.stat_result | None:
        """os.stat() of the regular file `target`; None when it is absent or reached through a symbolic link."""
        folder, name = os.path.split(target)
        try:
            with self._opened(folder, create=False) as folder_fd:
                info = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        except OSError:
            return None
        return info if stat.S_ISREG(info.st_mode) else None

    def sweep(self, folders: Iterator[str] | set[str]) -> int:
        """Remove the partial files that killed runs left in `folders`; returns how many."""
        removed = 0
        for folder in folders:
            with contextlib.suppress(OSError), self._opened(folder, create=False) as folder_fd:
                for name in os.listdir(folder_fd):
                    if PART.fullmatch(name):
                        os.unlink(name, dir_fd=folder_fd)
                        removed += 1
        return removed

    @contextlib.contextmanager
    def _opened(self, folder: str, create: bool) -> Iterator[int]:
        fd = os.dup(self.root_fd)
        try:
            for name in folder.split(os.sep) if folder else ():
                below = self._open_below(fd, name, create)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _open_below(self, fd: int, name: str, create: bool) -> int:
        if name in ("", ".", ".."):
            raise PermissionError(1, f"a result may not go through {name!r}")
        try:
            return os.open(name, _DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            if not create:
                raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=fd)
        return os.open(name, _DIRECTORY, dir_fd=fd)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
