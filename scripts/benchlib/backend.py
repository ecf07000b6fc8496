"""A backend in Python for machines without nginx: two processes, epoll, sendfile; three fixed replies.

python -m scripts.benchlib.backend PORT DIRECTORY
"""

import os
import select
import socket
import sys
from pathlib import Path


class FileConnection:
    """One client connection and what is left to send to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.head = b""
        self.file = -1
        self.offset = self.size = 0
        self.closes = False


class FileServer:
    def __init__(self, port: int, directory: Path) -> None:
        self.directory = directory
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.listener.bind(("0.0.0.0", port))
        self.listener.listen(4096)
        self.listener.setblocking(False)
        self.files = {path.name: os.open(path, os.O_RDONLY) for path in directory.iterdir()}
        self.epoll = select.epoll()
        self.epoll.register(self.listener, select.EPOLLIN)
        self.connections: dict[int, FileConnection] = {}

    def run(self) -> None:
        while True:
            for number, events in self.epoll.poll():
                if number == self.listener.fileno():
                    self.accept()
                    continue
                connection = self.connections[number]
                try:
                    alive = self.turn(connection, events)
                except BlockingIOError:
                    alive = True
                except OSError:
                    alive = False
                if not alive:
                    del self.connections[number]
                    connection.sock.close()

    def accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections[sock.fileno()] = FileConnection(sock)
            self.epoll.register(sock, select.EPOLLIN)

    def turn(self, connection: FileConnection, events: int) -> bool:
        if events & select.EPOLLIN and not connection.head and connection.offset == connection.size:
            request = connection.sock.recv(65536)
            if not request:
                return False
            self.plan(connection, request)
        if connection.head:
            connection.head = connection.head[connection.sock.send(connection.head) :]
        while not connection.head and connection.offset < connection.size:
            left = connection.size - connection.offset
            try:
                connection.offset += os.sendfile(
                    connection.sock.fileno(), connection.file, connection.offset, left
                )
            except BlockingIOError:
                self.epoll.modify(connection.sock, select.EPOLLOUT)
                return True
        self.epoll.modify(connection.sock, select.EPOLLIN)
        return not connection.closes

    def plan(self, connection: FileConnection, request: bytes) -> None:
        name = request.split(b" ", 2)[1].decode().strip("/")
        connection.closes = b"onnection: close" in request
        connection.offset = connection.size = 0
        body = b"hello"
        if name:
            connection.file = self.files[name]
            connection.size = os.fstat(connection.file).st_size
            body = b""
        length = connection.size or len(body)
        connection.head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (length, body)


if __name__ == "__main__":
    os.fork()
    FileServer(int(sys.argv[1]), Path(sys.argv[2])).run()
