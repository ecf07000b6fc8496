"""The rest of one frame on its way from a stream to another: copied, as the bytes of TLS are not those of a socket."""

from balancer.relay.framed.transfer import FrameTransfer
from balancer.relay.pipes import Pipes
from balancer.relay.stream import Stream


class StreamTransfer(FrameTransfer):
    """As FrameTransfer. What the writer did not take begins its next `write`."""

    __slots__ = ("_reader", "_writer")

    def __init__(
        self, reader: Stream, writer: Stream, left: int, rest: bytes = b"", kept: list[bytes] | None = None
    ) -> None:
        super().__init__(-1, -1, left, rest, None, kept)
        self._reader, self._writer = reader, writer

    def _put(self, data: bytes) -> int:
        return self._writer.write(data)

    def _get(self, size: int) -> bytes:
        return self._reader.read(size)[0]


def transfer_between(
    reader: Stream,
    writer: Stream,
    left: int,
    rest: bytes,
    pipes: Pipes | None = None,
    kept: list[bytes] | None = None,
) -> FrameTransfer:
    """Return a transfer of the bytes `rest`, then `left` bytes of `reader`: spliced where both are plain."""
    if reader.fd is None or writer.fd is None:
        return StreamTransfer(reader, writer, left, rest, kept)
    return FrameTransfer(reader.fd, writer.fd, left, rest, pipes, kept)
