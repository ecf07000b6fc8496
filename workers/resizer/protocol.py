"""What a front asks of the protocol of a client, besides what the connection calls.

RULES: the socket belongs to the connection (`front_connection.py`). The meaning of its bytes belongs to the protocol
(`frame_protocol.py`, `http_protocol.py`), which never touches the socket.
"""

from balancer.eventloop.connection import ConnectionProtocol


class ClientProtocol(ConnectionProtocol):
    """By itself: a client that has not sent anything yet, which makes it idle."""

    __slots__ = ()

    def is_reading(self) -> bool:
        """True when the peer has to send the rest of a request, and no other is in flight."""
        return False

    def is_idle(self) -> bool:
        """True between two requests, and before the first."""
        return True

    def drain(self) -> None:
        """Accept no further work, and end the connection once nothing is in flight."""
