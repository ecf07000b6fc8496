"""The pid file: a lock that names its holder.

RULES: the lock is flock(2) on the file itself, so the kernel frees it however its holder dies, and a stale file is no
obstacle. The text appears whole (written beside, renamed over). Only the holder removes the file, and only while the path
still leads to it. A file of root's stays root's: after a change of the user it is written through the descriptor.
The lock belongs to the open file: a master started by USR2 inherits it with the descriptor.
"""

import contextlib
import fcntl
import os

from balancer.prefork.bind import CannotBind


class PidFile:
    """A locked pid file of this process."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def acquire(cls, path: str, inherited: int = -1) -> "PidFile":
        """Lock the file without waiting. Raises CannotBind naming the holder, or what is wrong."""
        if inherited >= 0:
            os.set_inheritable(inherited, False)
            return cls(path, inherited)
        try:
            while True:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                    os.close(fd)
                    raise CannotBind(f"pid file {path} is held by process {holder}") from error
                if _is_same(fd, path):
                    return cls(path, fd)
                os.close(fd)  # its holder has just removed or replaced it
        except CannotBind:
            raise
        except OSError as error:
            raise CannotBind(f"cannot use pid file {path}: {error.strerror}") from error

    def write(self, pid: int) -> None:
        """Write the pid; a reader sees the whole text at any moment."""
        text = b"%d\n" % pid
        beside = f"{self.path}.{pid}"
        try:
            fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            os.write(fd, text)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(beside, self.path)
        except OSError:  # no right to write into the directory any more: then in place
            with contextlib.suppress(OSError):
                os.unlink(beside)
            os.pwrite(self.fd, text, 0)
            os.ftruncate(self.fd, len(text))
            return
        os.close(self.fd)
        self.fd = fd

    def release(self, keep: bool = False) -> None:
        """Remove the file if it is still ours; `keep`: another master holds it now."""
        if not keep and _is_same(self.fd, self.path):
            try:
                os.unlink(self.path)
            except OSError:  # privileges were dropped: an empty file says that no master runs
                with contextlib.suppress(OSError):
                    os.ftruncate(self.fd, 0)
        os.close(self.fd)


def _is_same(fd: int, path: str) -> bool:
    try:
        mine, there = os.fstat(fd), os.stat(path)
    except OSError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
