"""What a run of --local and its CPU processes tell each other.

    run    --> serial, descriptor of the source -->  CPU process      on a SOCK_SEQPACKET pair
           <-- serial, status, length, size, text --                  READY comes first, when it is prepared
           <== the picture, in place serial % PLACES                  of memory that only these two have

RULES: pure, and without Pillow: the run decodes no picture.
"""

import mmap
import socket
import struct
from typing import NamedTuple

PLACES = 2  # an order in work and the next one
READY = 0  # the serial of the first reply
TEXT_BYTES = 2000
ORDER = struct.Struct("<Q")
_REPLY = struct.Struct("<QIQII")
LONGEST = _REPLY.size + TEXT_BYTES


class LocalReply(NamedTuple):
    """One reply. `text`: what the result lacks, or why there is none."""

    serial: int
    status: int = 200
    length: int = 0
    width: int = 0
    height: int = 0
    text: str = ""

    def encode(self) -> bytes:
        return _REPLY.pack(*self[:5]) + self.text.encode("utf-8", "backslashreplace")[:TEXT_BYTES]


def decode_reply(packet: bytes) -> LocalReply | None:
    """The reply in `packet`; None when it is none."""
    if len(packet) < _REPLY.size:
        return None
    text = packet[_REPLY.size :].decode("utf-8", "replace")
    serial, status, length, width, height = _REPLY.unpack_from(packet)
    return LocalReply(serial, status, length, width, height, text)


class LocalProcess(NamedTuple):
    """A CPU process as the run sees it."""

    pid: int
    sock: socket.socket
    memory: mmap.mmap
