"""The open connections of one server, bounded: who keeps a place when there are more clients than places.

RULES
- A client that has asked keeps its place until it is answered; every other one yields to a newcomer, the weakest claim
  first (`Claim`). So clients that send nothing, send slowly or do not read cannot keep a new one from being served: 32
  silent connections kept `/health` shut for 20 s, when only idle ones yielded.
- A connection that seems not to have asked is read once more before it is closed: its request may have arrived in the
  same batch.
- While every place is held by a client that has asked, new clients wait in the kernel's queue (`room`).

    connections = Connections(limit, make)
    Acceptor(loop, connections.begin, shortage, room=connections.room)
"""

import socket
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from balancer.eventloop.acceptor import Accepted, socket_of
from balancer.eventloop.connection import LINGERING, BufferedConnection, Claim


class Client(Protocol):
    """The protocol of one connection; ConnectionProtocol has a `claim`."""

    connection: BufferedConnection

    def claim(self) -> Claim: ...


C = TypeVar("C", bound=Client)


class Connections(Generic[C]):
    """At most `limit` connections, and one batch more; `begin` and `room` are for an Acceptor.

    `make` returns the protocol of a new connection, or None when it refused the client and closed the socket. A
    connection that closes calls `discard`.
    """

    def __init__(self, limit: int, make: Callable[[socket.socket], C | None]) -> None:
        self._limit = limit
        self._make = make
        self._open: dict[C, None] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._open))

    def room(self) -> int:
        """New connections that may begin now: free places, and those that would yield."""
        asked = sum(claim_of(each) is Claim.ASKED for each in self._open)
        return self._limit - asked

    def begin(self, batch: list[Accepted]) -> None:
        for accepted in batch:
            self._make_room()
            if (connection := self._make(socket_of(accepted))) is not None:
                self._open[connection] = None

    def discard(self, connection: C) -> None:
        """The connection is closed."""
        self._open.pop(connection, None)

    def _make_room(self) -> None:
        """Close the connection with the weakest claim. Where all turn out to have asked, one more than the limit begins:
        closed, a new client would lose the request that it may have sent already."""
        while len(self._open) >= self._limit:
            weakest = min(self._open, key=strength)
            claim = claim_of(weakest)
            if claim is Claim.ASKED:
                return
            if claim is Claim.SILENT:
                weakest.connection.read()
            if claim_of(weakest) is claim:
                weakest.connection.close("makes room")
                self.discard(weakest)


def claim_of(client: Client) -> Claim:
    """What the connection does with its place."""
    connection = client.connection
    if connection.state is LINGERING:
        return Claim.ANSWERED
    return Claim.UNREAD if connection.output.pending else client.claim()


def strength(client: Client) -> tuple[Claim, float]:
    """The order of yielding. Of idle ones, and of those that do not read, the one longest without movement is first; of
    silent ones the oldest, since a byte now and then must not buy a place. `min` takes the older of two equal ones."""
    claim = claim_of(client)
    return claim, 0.0 if claim is Claim.SILENT else client.connection.active_at
