"""Results into the output directory: whole or not at all, and nowhere else.

    write  .resize-client-<pid>-<n>.part   created O_EXCL|O_NOFOLLOW in the target's own directory
    note   (the journal's chance: the result is complete and has its inode, but not yet its name)
    rename -> target                       replaces what was there, a symbolic link itself included

RULES: the root is opened once and everything below it is reached from its descriptor, one directory at a time, never
through a symbolic link; a path comes from naming, never from a reply. An OSError leaves no partial file behind.
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


class Output:
    """The output directory. Raises OSError from every method."""

    def __init__(self, root: str, fsync: bool = False) -> None:
        os.makedirs(root, exist_ok=True)
        self.root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fsync = fsync
        self._serial = 0

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self.root_fd)

    def save(self, target: str, data: bytes | memoryview, note: Note | None = None) -> None:
        """Make `data` the content of `target` (relative). `note` is told the finished file before it is renamed."""
        folder, name = os.path.split(target)
        with self._opened(folder, create=True) as folder_fd:
            self._serial += 1
            part = f".resize-client-{os.getpid()}-{self._serial}.part"
            fd = os.open(part, _CREATE, 0o666, dir_fd=folder_fd)
            try:
                try:
                    _write_all(fd, data)
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

    def look_at(self, target: str) -> os.stat_result | None:
        """stat() of the regular file `target`; None when there is none, or only through a symbolic link."""
        folder, name = os.path.split(target)
        try:
            with self._opened(folder, create=False) as folder_fd:
                info = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        except OSError:
            return None
        return info if stat.S_ISREG(info.st_mode) else None

    def sweep(self, folders: Iterator[str] | set[str]) -> int:
        """Remove the partial files that a killed run left in `folders`; how many there were."""
        swept = 0
        for folder in folders:
            with contextlib.suppress(OSError), self._opened(folder, create=False) as folder_fd:
                for name in os.listdir(folder_fd):
                    if PART.fullmatch(name):
                        os.unlink(name, dir_fd=folder_fd)
                        swept += 1
        return swept

    @contextlib.contextmanager
    def _opened(self, folder: str, create: bool) -> Iterator[int]:
        fd = os.dup(self.root_fd)
        try:
            for name in folder.split(os.sep) if folder else ():
                below = self._step(fd, name, create)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _step(self, fd: int, name: str, create: bool) -> int:
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
