"""The load over TLS: as load.py, with handshakes that are what the work says, full or resumed.

    python -m scripts.benchlib.tls_load '{"host": ..., "port": ..., "path": ..., "connections": ..., "seconds": ...,
    "requests": 0, "close": true, "resume": false}'

RULES: TLS 1.3; certificates are not verified. wrk resumes sessions by itself, so it cannot do full handshakes. A run in
which connections were resumed, or not, against its plan has no result.
"""

import json
import select
import socket
import ssl
import sys
from typing import Any

from scripts.benchlib.load import CHUNK, SINK, ClosedLoop, length_of, request_for

MOST_OTHER = 0.02  # share of the connections: the first ones have nothing to resume


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class TlsClosedLoop(ClosedLoop):
    """All connections of one process."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.context = client_context()
        self.session: ssl.SSLSession | None = None  # what the next connection resumes
        self.shaking: set[int] = set()
        self.connections = self.resumed = 0
        super().__init__(plan)

    def reply_length(self) -> int:
        with (
            socket.create_connection((self.plan["host"], self.plan["port"]), 10) as raw,
            self.context.wrap_socket(raw) as sock,
        ):
            sock.sendall(request_for(self.plan))
            return length_of(sock)

    def turn(self, number: int, events: int) -> None:
        sock = self.socks[number]
        try:
            if not isinstance(sock, ssl.SSLSocket):
                sock = self.socks[number] = self.context.wrap_socket(
                    sock, do_handshake_on_connect=False, session=self.session if self.plan["resume"] else None
                )
                self.shaking.add(number)
            if number in self.shaking:
                sock.do_handshake()
                self.shaking.discard(number)
                self.connections += 1
                self.resumed += bool(sock.session_reused)
                self.send(number, sock)
            while self.left[number] > 0:
                got = sock.recv_into(SINK, min(self.left[number], CHUNK))
                if not got:
                    raise ConnectionResetError
                self.left[number] -= got
        except ssl.SSLWantReadError:
            self.epoll.modify(number, select.EPOLLIN)
            return
        except ssl.SSLWantWriteError:
            self.epoll.modify(number, select.EPOLLOUT)
            return
        except OSError:
            self.shaking.discard(number)
            self.drop(number)
            self.failed()
            return
        self.session = sock.session
        self.finished(number, sock)

    def run(self) -> dict[str, Any]:
        found = super().run()
        share = self.resumed / max(1, self.connections)
        if self.plan["close"] and abs(share - self.plan["resume"]) > MOST_OTHER + 50 / max(
            1, self.connections
        ):
            raise SystemExit(f"{share:.0%} of {self.connections} connections were resumed")
        return found


if __name__ == "__main__":
    print(json.dumps(TlsClosedLoop(json.loads(sys.argv[1])).run()))
