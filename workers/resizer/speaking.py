"""How a client's socket and its language meet: the states of a connection and what a speaker must do.

RULES: names only. The socket is the client's (`client.py`); what the bytes mean is the speaker's
(`framed.py`, `web.py`), which never touches the socket.
"""

from enum import Enum
from typing import Protocol


class Life(Enum):
    """Of a client."""

    OPEN = "open"
    ENDED = "ended"
    FINISHING = "finishing"
    LINGER = "linger"
    CLOSED = "closed"


class Block(Enum):
    """What reading waits for."""

    SLOT = "slot"
    QUEUE = "queue"
    PIPELINE = "pipeline"  # too many requests or answers of this connection under way


class Speaker(Protocol):
    """The language of one connection."""

    def room(self) -> memoryview | None:
        """Where the next bytes belong; None: anywhere, then `take`."""

    def fill(self, count: int) -> bool:
        """`count` bytes were read into `room`; whether `advance` could do anything with them."""

    def take(self, data: memoryview) -> None:
        """What was read elsewhere. The view is valid during the call only."""

    def advance(self) -> None:
        """Deal with what is complete, until the client is blocked or nothing is."""

    def is_between(self) -> bool:
        """True when nothing is half read."""

    def owes(self) -> int:
        """Requests under way."""

    def drain(self) -> None:
        """The front is leaving: no further work; end the connection once nothing is owed."""

    def drop(self) -> None:
        """The client is gone: give back the slot being read into and abandon what is under way."""
