"""Resolves names in threads beside the prober's loop.

RULES
- The only module that asks a name server, and only in the prober: a worker must never wait for one.
  getaddrinfo() blocks for 10 s and more when the server is silent, so a thread looks up each name, at most one at a
  time per name. The threads touch nothing but their queue; the prober never forks.
- Numeric addresses and paths are never looked up.
- The last good answer stays until there is a new one. An address that is still among the answers stays too: most
  servers rotate their answers, and following them would spread one backend over several machines.
"""

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable

Lookup = Callable[[str], list[str]]


def look_up(name: str) -> list[str]:
    """Numeric addresses of a name in the system's order of preference. Blocks. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]


def choose(answers: list[str], current: str) -> str:
    """The address to use: the current one while it is still an answer, else the first one, "" when none."""
    usable = [
        answer for answer in answers if "%" not in answer
    ]  # a scoped address does not fit into two words
    if current in usable:
        return current
    return usable[0] if usable else ""


class Resolver:
    """Looks names up in the background. `wake_fd` is readable when answers may be collected."""

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._answers: deque[tuple[str, list[str], str]] = deque()
        self._asking: set[str] = set()
        self.wake_fd, self._wake_write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ask(self, name: str) -> bool:
        """Begin to look a name up; False when that is going on already."""
        if name in self._asking:
            return False
        self._asking.add(name)
        # A daemon thread: a silent server must not delay the end of the process.
        threading.Thread(target=self._run, args=(name,), name=f"resolve {name}", daemon=True).start()
        return True

    def collect(self) -> list[tuple[str, list[str], str]]:
        """(name, addresses, error) of the lookups that have ended since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
        ended = []
        while self._answers:
            ended.append(self._answers.popleft())
            self._asking.discard(ended[-1][0])
        return ended

    def _run(self, name: str) -> None:
        try:
            answers, error = self._lookup(name), ""
        except (OSError, UnicodeError) as failure:
            answers, error = [], str(failure)
        self._answers.append((name, answers, error))
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write_fd, b"\0")
