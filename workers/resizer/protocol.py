"""The interface between a client's connection and its protocol: states of the connection, methods of the protocol.

RULES: no behaviour. The socket belongs to the connection (`front_connection.py`). The meaning of its bytes belongs to
the protocol (`frame_protocol.py`, `http_protocol.py`), which never touches the socket.
"""

from enum import Enum
from typing import Protocol


class FrontConnectionState(Enum):
    """The state of a client's connection."""

    OPEN = "open"
    ENDED = "ended"
    FINISHING = "finishing"
    LINGERING = "lingering"
    CLOSED = "closed"


class PauseReason(Enum):
    """What a connection that is not read from waits for."""

    SLOT = "slot"
    QUEUE = "queue"
    PIPELINE = "pipeline"  # too many requests or answers of this connection under way


class ClientProtocol(Protocol):
    """The protocol of one connection."""

    def place(self) -> memoryview | None:
        """Where the next bytes belong; None: anywhere, then `append`."""

    def fill(self, count: int) -> bool:
        """`count` bytes were read into `place`; whether `advance` could do anything with them."""

    def append(self, data: memoryview) -> None:
        """Bytes that were not read into `place`. The view is valid during the call only."""

    def advance(self) -> None:
        """Handle what is complete, until the connection is paused or nothing is left."""

    def is_between_requests(self) -> bool:
        """True when no request is half read."""

    def in_flight(self) -> int:
        """Requests that have not been answered."""

    def drain(self) -> None:
        """The front is draining: accept no further work, and end the connection once nothing is in flight."""

    def drop(self) -> None:
        """The connection is closed or reads nothing more: release the slot being read into, abandon the tasks."""
