"""A resizer whose replies the test chooses, for tests of the client: threads in the test process, real sockets.

with FakeResizer() as server: ...                correct replies, with IDs
with FakeResizer(behave) as server: ...          behave(connection, request) sends the replies
"""

import io
import socket
import threading
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

from PIL import Image

from workers.wire.frames import FrameError, FrameReader, frame
from workers.wire.messages import MessageError, Request, Response, decode_request, encode_response

FORMATS = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"GI": "GIF"}


@lru_cache(maxsize=256)
def picture(width: int, height: int, format: str = "JPEG", colour: int = 0) -> bytes:
    """A small picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), (colour % 256, 90, 200)).save(out, format)
    return out.getvalue()


def right_answer(request: Request, name: str = "fake") -> Response:
    """The correct reply to `request`."""
    answer = Response(request.original_name, request.typ, id=request.id, status=200 if request.id else 0)
    answer.server, answer.workers = (name, 2) if request.id else ("", 0)
    answer.resized_width, answer.resized_height = request.target_width, request.target_height
    if not request.dry_run:
        format = request.format.upper() or FORMATS[bytes(request.data[:2])]
        answer.data = picture(request.target_width, request.target_height, format)
    return answer


class ServerConnection:
    """The server's end of one connection. `number` counts from 1."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.requests = 0

    def send(self, response: Response) -> None:
        self.sock.sendall(frame(encode_response(response)))

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.sock.close()


Behaviour = Callable[[ServerConnection, Request], Any]


def behave_well(connection: ServerConnection, request: Request) -> None:
    connection.send(right_answer(request))


class FakeResizer:
    """Listens on a loopback port; one thread accepts, one thread per connection."""

    def __init__(self, behave: Behaviour = behave_well) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.requests: list[Request] = []
        self.by_connection: dict[int, int] = {}
        self.at_once = 0
        self._open = 0
        self._lock = threading.Lock()
        self._connections: list[ServerConnection] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sock in (self._listener, *(connection.sock for connection in self._connections)):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        for thread in self._threads:
            thread.join(5)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            connection = ServerConnection(sock, len(self._connections) + 1)
            self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: ServerConnection) -> None:
        with self._lock:
            self._open += 1
            self.at_once = max(self.at_once, self._open)
        reader = FrameReader()
        try:
            while data := connection.sock.recv(1 << 18):
                for payload in reader.feed(data):
                    request = decode_request(payload)
                    with self._lock:
                        self.requests.append(request)
                        self.by_connection[connection.number] = (
                            self.by_connection.get(connection.number, 0) + 1
                        )
                    connection.requests += 1
                    self._behave(connection, request)
        except (OSError, FrameError, MessageError):
            pass
        finally:
            with self._lock:
                self._open -= 1
            connection.sock.close()
