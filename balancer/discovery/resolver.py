"""Resolves names in threads beside the prober's loop.

RULES
- The only module that asks a name server, and only in the prober: a worker must never wait for one.
  getaddrinfo() blocks for 10 s and more when the server is silent, so a thread looks up each name, at most one at a
  time per name. The threads touch nothing but their queue; the prober never forks.
- At most MOST_LOOKUPS names at once: a name server that is silent must not cost a thread for each of a thousand names.
- Numeric addresses and paths are never looked up.
- The last good answer stays until there is a new one. An address that is still among the answers stays in use too: most
  servers rotate their answers, and following them would spread one backend over several machines.
"""

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address

from balancer.pool.board import MOST_ADDRESSES
from balancer.pool.targets import NameAddresses

MOST_LOOKUPS = 64

Lookup = Callable[[str], list[str]]


def look_up(name: str) -> list[str]:
    """Numeric addresses of a name in the system's order of preference. Blocks. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found if entry[0] in (socket.AF_INET, socket.AF_INET6)]


def usable(answers: Iterable[str], families: Collection[int]) -> list[str]:
    """The addresses that may be a backend's, by these IP versions."""
    return [each for each in dict.fromkeys(answers) if _is_of_a_machine(each, families)]


def _is_of_a_machine(host: str, families: Collection[int]) -> bool:
    """0.0.0.0 and :: (the answer of servers that block a name) lead to this machine itself, whatever listens there; a
    link-local address says nothing without its link, and a scoped one (fe80::1%eth0) does not fit into the words of the
    board."""
    if "%" in host:
        return False
    address = ip_address(host)
    plain = getattr(address, "ipv4_mapped", None) or address
    return address.version in families and not (
        plain.is_unspecified or plain.is_link_local or plain.is_multicast
    )


def merge(known: NameAddresses, hosts: list[str]) -> NameAddresses:
    """What is known of a name after an answer: the address in use stays so while it is still among the answers. The same
    object when nothing has changed."""
    if known.host in hosts[MOST_ADDRESSES:]:
        hosts = [known.host, *hosts]
    first = tuple(hosts[:MOST_ADDRESSES])
    if set(first) == set(known.hosts):
        return known
    return NameAddresses(first, first.index(known.host) if known.host in first else 0)


class Resolver:
    """Looks names up in the background. `wake_fd` is readable when answers may be collected."""

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._answers: deque[tuple[str, list[str], str]] = deque()
        self._asking: set[str] = set()
        self._waiting: deque[str] = deque()
        self.wake_fd, self._wake_write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def ask(self, name: str) -> bool:
        """Begin to look a name up; False when that is going on already."""
        if name in self._asking:
            return False
        self._asking.add(name)
        self._waiting.append(name)
        self._start()
        return True

    def _start(self) -> None:
        while self._waiting and len(self._asking) - len(self._waiting) < MOST_LOOKUPS:
            name = self._waiting.popleft()
            # A daemon thread: a silent server must not delay the end of the process.
            threading.Thread(target=self._run, args=(name,), name=f"resolve {name}", daemon=True).start()

    def collect(self) -> list[tuple[str, list[str], str]]:
        """(name, addresses, error) of the lookups that have ended since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 4096)
        ended = []
        while self._answers:
            ended.append(self._answers.popleft())
            self._asking.discard(ended[-1][0])
        self._start()
        return ended

    def _run(self, name: str) -> None:
        try:
            answers, error = self._lookup(name), ""
        except (OSError, UnicodeError) as failure:
            answers, error = [], str(failure)
        self._answers.append((name, answers, error))
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write_fd, b"\0")
