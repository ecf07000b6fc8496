"""A peer of the resizer for tests: speaks frames over one socket, and makes pictures of every size.

RULES: blocking sockets with a deadline; nothing here retries, so that a test sees what the daemon did.
"""

import io
import random
import socket
from collections.abc import Iterator
from functools import cache
from types import TracebackType
from typing import Any, Self

from PIL import Image

from workers.wire.frames import FrameReader, frame
from workers.wire.messages import Request, Response, decode_response, encode_request

SECONDS = 60.0


def framed(**fields: Any) -> bytes:
    """The whole frame of a Request."""
    return frame(encode_request(Request(**fields)))


class Peer:
    """One connection. `ask` and `hear` raise TimeoutError after SECONDS; `hear` returns None at the end of the stream."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.sock = socket.create_connection(address, SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = FrameReader()
        self.heard: list[Response] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.sock.close()

    def say(self, **fields: Any) -> None:
        self.sock.sendall(framed(**fields))

    def hear(self) -> Response | None:
        """The next reply; None when the peer has ended the connection, by FIN or reset."""
        while not self.heard:
            try:
                data = self.sock.recv(1 << 18)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.heard += [decode_response(payload) for payload in self.reader.feed(data)]
        return self.heard.pop(0)

    def hear_all(self, count: int) -> list[Response]:
        """`count` replies."""
        return list(self._hear(count))

    def _hear(self, count: int) -> Iterator[Response]:
        for number in range(count):
            reply = self.hear()
            assert reply is not None, f"the connection ended after {number} of {count} replies"
            yield reply

    def ask(self, **fields: Any) -> Response:
        """One request, one reply."""
        self.say(**fields)
        reply = self.hear()
        assert reply is not None, "the connection ended instead of a reply"
        return reply


@cache
def picture(width: int, height: int, kind: str = "JPEG", seed: int = 1) -> bytes:
    """A picture with enough detail to cost its decoder something."""
    noise = random.Random(seed).randbytes(96 * 64 * 3)
    image = Image.frombytes("RGB", (96, 64), noise).resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


# Seconds of a core, whatever the picture: a quarter to one (for many of them), one to six, and ten or more (to be cut).
SLOW = {"target_width": 3000, "target_height": 3000, "format": "avif"}
LONG = {"target_width": 5600, "target_height": 5600, "format": "avif", "quality": 95}
ENDLESS = {"target_width": 5600, "target_height": 5600, "format": "avif", "quality": 100}


def size_of(data: bytes | memoryview) -> tuple[int, int]:
    with Image.open(io.BytesIO(bytes(data))) as image:
        return image.size
