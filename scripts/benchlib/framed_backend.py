"""The backend of the framed works: answers each frame with one of the size that it asks for.

python -m scripts.benchlib.framed_backend PORT

    payload   bytes of the reply's payload u32 | filler
"""

import os
import select
import socket
import sys

from workers.wire.frames import HEADER, frame, parse_header

_BIGGEST = 1 << 20


class FramedEcho:
    """One process: all its connections on one epoll."""

    def __init__(self, port: int) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.listener.bind(("0.0.0.0", port))
        self.listener.listen(4096)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener, select.EPOLLIN)
        self.socks: dict[int, socket.socket] = {}
        self.unread: dict[int, bytes] = {}
        self.replies: dict[int, bytes] = {}

    def run(self) -> None:
        while True:
            for number, _ in self.epoll.poll():
                if number == self.listener.fileno():
                    self.accept()
                elif not self.turn(number):
                    self.unread.pop(number)
                    self.socks.pop(number).close()

    def accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socks[sock.fileno()] = sock
            self.unread[sock.fileno()] = b""
            self.epoll.register(sock, select.EPOLLIN)

    def turn(self, number: int) -> bool:
        """Read once; answer the frames that are whole. False when the connection is over."""
        sock = self.socks[number]
        try:
            got = sock.recv(1 << 18)
            data = self.unread[number] + got
            while len(data) >= HEADER and len(data) >= (end := HEADER + parse_header(data[:HEADER])):
                size = min(int.from_bytes(data[HEADER : HEADER + 4], "big"), _BIGGEST)
                if size not in self.replies:
                    self.replies[size] = frame(bytes(size))
                sock.sendall(self.replies[size])
                data = data[end:]
        except (OSError, ValueError):
            return False
        self.unread[number] = data
        return bool(got)


if __name__ == "__main__":
    os.fork()
    FramedEcho(int(sys.argv[1])).run()
