"""Tasks that wait, in the order in which they will be begun: each origin in turn, and of each origin each client in turn.

RULES: pure. The origin that was served longest ago is next, of its clients the one that was served longest ago, of its
tasks the oldest. So a client that asks now and then goes before those that ask all the time, from its own address too.

    origin    an address: 80 connections of one machine have the share of one
    client    a connection: all clients of a balancer have its address, and share what it gets

An origin is in `_origins` exactly when one of its clients has a line here; a client has a line exactly when it is among
the clients of its origin. Both lists are sorted by (pick at which it was served last, serial).
"""

from bisect import bisect, insort
from collections import deque
from collections.abc import Iterator
from itertools import chain
from operator import itemgetter

from workers.resizer.task import Origin, QueueClient, Task

FIRST = -1  # before all that were served at some pick, and those never served (0)
_SERVED = itemgetter(0)


class FairQueue:
    """The tasks of one class. `picks`: numbers that grow, shared by all queues that serve the same clients."""

    __slots__ = ("_clients", "_count", "_lines", "_origins", "_picks")

    def __init__(self, picks: Iterator[int]) -> None:
        self._picks = picks
        self._count = 0
        self._lines: dict[QueueClient, deque[Task]] = {}
        self._clients: dict[Origin, list[tuple[int, int, QueueClient]]] = {}
        self._origins: list[tuple[int, int, Origin]] = []

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Task]:
        return chain.from_iterable(self._lines.values())

    @property
    def head(self) -> Task:
        """The task to be begun next. Raises IndexError when none waits."""
        return self._lines[self._clients[self._origins[0][2]][0][2]][0]

    @property
    def turn(self) -> tuple[int, int, int]:
        """Of the head, beside the heads of other queues of the same clients: the lowest is next. Raises IndexError."""
        served, _, origin = self._origins[0]
        _, serial, client = self._clients[origin][0]
        return FIRST if served == FIRST else origin.served, client.served, serial

    def turns_before(self, client: QueueClient) -> int:
        """Number of tasks, at most, that would be begun before one of `client`; all when others of its own wait. Every
        origin is taken to have a task in each round."""
        origins, origin = self._origins, client.origin
        if client in self._lines:
            return self._count
        clients = self._clients.get(origin)
        if clients is None:
            return bisect(origins, origin.served, key=_SERVED)
        place = next(place for place, entry in enumerate(origins) if entry[2] is origin)
        return min(self._count, place + len(origins) * bisect(clients, client.served, key=_SERVED))

    def append(self, task: Task) -> None:
        """Queue a task behind the others of its client."""
        client = task.client
        self._add(client, 1)
        line = self._lines.get(client)
        if line is None:
            self._lines[client] = deque((task,))
            self._enter(client, client.served, client.origin.served, task.serial)
        else:
            line.append(task)

    def appendleft(self, task: Task) -> None:
        """Queue a task before all others that were not put back."""
        client = task.client
        self._add(client, 1)
        line = self._lines.setdefault(client, deque())
        if line:
            self._leave(client)
        line.appendleft(task)
        self._enter(client, FIRST, FIRST, task.serial)

    def popleft(self) -> Task:
        """Take out the task to be begun next. Raises IndexError when none waits."""
        origin = self._origins.pop(0)[2]
        clients = self._clients[origin]
        client = clients.pop(0)[2]
        line = self._lines[client]
        task = line.popleft()
        self._add(client, -1)
        client.served = origin.served = now = next(self._picks)
        if line:
            clients.append((now, line[0].serial, client))
        else:
            del self._lines[client]
        if clients:
            self._origins.append((now, clients[0][1], origin))
        else:
            del self._clients[origin]
        return task

    def remove(self, task: Task) -> None:
        """Take out a task. Raises ValueError when it is not here."""
        client = task.client
        line = self._lines.get(client, deque())
        line.remove(task)
        self._add(client, -1)
        if not line:
            self._leave(client)
            del self._lines[client]

    def _add(self, client: QueueClient, count: int) -> None:
        self._count += count
        client.waiting += count
        client.origin.waiting += count

    def _enter(self, client: QueueClient, served: int, origin_served: int, serial: int) -> None:
        """A client has a line from now on; where it comes first, so does its origin."""
        origin = client.origin
        clients = self._clients.setdefault(origin, [])
        if clients and origin_served == FIRST:
            self._origins.remove(next(entry for entry in self._origins if entry[2] is origin))
        if not clients or origin_served == FIRST:
            insort(self._origins, (origin_served, serial, origin))
        insort(clients, (served, serial, client))

    def _leave(self, client: QueueClient) -> None:
        """A client has no line any more."""
        origin = client.origin
        clients = self._clients[origin]
        clients.remove(next(entry for entry in clients if entry[2] is client))
        if not clients:
            del self._clients[origin]
            self._origins.remove(next(entry for entry in self._origins if entry[2] is origin))
