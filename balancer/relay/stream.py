"""The bytes of one side of a session, as the splicing relay sees them.

RULES: the seam between a connection and what it carries. Only Flow and SplicingRelay know streams; the fast path reads
and writes its descriptors itself. Errors are OSErrors, as read(2) and write(2) report them.
"""

from os import read, write
from typing import Protocol

from balancer.relay.sockets import reset_on_close, shut_writing, unacknowledged, write_last


class Stream(Protocol):
    """One side of a session."""

    @property
    def fd(self) -> int | None:
        """The descriptor for splice(2); None when the bytes on it are not the bytes of the stream."""

    unsent: bytes  # bytes for the peer that wait for room without a `write` to call again

    @property
    def is_held(self) -> bool:
        """Bytes that wait for room are those of a `write` to call again."""

    @property
    def fault(self) -> str:
        """What was wrong with the bytes of the peer."""

    def read(self, size: int) -> tuple[bytes, bool]:
        """Return up to `size` bytes, and whether a further read would find none now; no bytes are the end."""

    def write(self, data: bytes) -> int:
        """Write what the peer takes now; return how many bytes of `data` that is."""

    def write_last(self, data: bytes) -> int:
        """As `write`, of the last bytes: `shut` follows. What tells of the end leaves in their segment."""

    def flush(self) -> int:
        """Write what is unsent; return how many bytes count as written with it."""

    def shut(self) -> None:
        """Tell the peer that no more bytes come."""

    def reset(self) -> None:
        """Make the close of the connection a reset."""

    def unacknowledged(self) -> int:
        """Return how many sent bytes the peer has not acknowledged; its FIN counts as one."""


class RawStream:
    """A socket's own bytes."""

    __slots__ = ("fd",)

    unsent = b""
    is_held = False
    fault = ""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, size: int) -> tuple[bytes, bool]:
        data = read(self.fd, size)
        return data, len(data) < size  # a socket's short read has emptied its receive queue

    def write(self, data: bytes) -> int:
        return write(self.fd, data)

    def write_last(self, data: bytes) -> int:
        return write_last(self.fd, data)

    def flush(self) -> int:
        return 0

    def shut(self) -> None:
        shut_writing(self.fd)

    def reset(self) -> None:
        reset_on_close(self.fd)

    def unacknowledged(self) -> int:
        return unacknowledged(self.fd)
