"""Clients of a listener that ends TLS, and a certificate on disk that is renewed."""

import socket
import ssl
from datetime import timedelta
from pathlib import Path

from scripts.lab.network import Address
from tests.authority import Authority

AUTHORITY = Authority()


class Renewable:
    """A certificate on disk that is renewed."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "a.pem"
        self.issue()

    def issue(self, *names: str, days: float = 30) -> int:
        """Write a new one, and return its serial number."""
        self.path.write_bytes(AUTHORITY.issue(*(names or ("a.example",)), ends=timedelta(days=days)))
        return AUTHORITY.serials[names[0] if names else "a.example"]


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=AUTHORITY.pem.decode())
    return context


def connect(
    address: Address, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLSocket:
    """A connection after its handshake; raises OSError."""
    sock = socket.create_connection(address, 30)
    try:
        return context.wrap_socket(sock, server_hostname="a.example", session=session)
    except BaseException:
        sock.close()
        raise


def serial_of(sock: ssl.SSLSocket) -> int:
    found = sock.getpeercert()
    assert found is not None
    return int(str(found["serialNumber"]), 16)


def echoes(sock: ssl.SSLSocket, data: bytes = b"hello") -> bool:
    """Whether the same bytes come back; False when the connection ends instead. Raises OSError."""
    sock.sendall(data)
    got = b""
    while len(got) < len(data):
        if not (part := sock.recv(65536)):
            return False
        got += part
    return got == data


def receive(sock: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO) -> bytes:
    """Some plaintext of TLS over memory; b"" is close_notify. Raises EOFError for a FIN without it."""
    while True:
        try:
            return tls.read(65536)
        except ssl.SSLZeroReturnError:
            return b""
        except ssl.SSLWantReadError:
            raw = sock.recv(65536)
            if not raw:
                raise EOFError from None
            incoming.write(raw)
