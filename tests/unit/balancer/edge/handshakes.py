"""TLS between two memory BIOs: no socket, no thread."""

import ssl
import tempfile
from dataclasses import dataclass

from tests.authority import Authority


def client_context(trusted: Authority, own: Authority | None = None, name: str = "client") -> ssl.SSLContext:
    """A client that verifies by `trusted`; with `own` it has a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=trusted.pem.decode())
    if own is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(own.issue(common_name=name))
            file.flush()
            context.load_cert_chain(file.name)
    return context


@dataclass
class Ends:
    """Both ends of a connection; `to_server` and `to_client` are what is under way."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    to_server: ssl.MemoryBIO
    to_client: ssl.MemoryBIO


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
) -> Ends:
    """A whole handshake, and a byte from the server, behind which its tickets and its refusals have arrived. Raises
    ssl.SSLError of the side that refuses first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = Ends(
        client.wrap_bio(to_client, to_server, server_hostname=name, session=session),
        server.wrap_bio(to_server, to_client, server_side=True),
        to_server,
        to_client,
    )
    waiting = [ends.client.do_handshake, ends.server.do_handshake]
    for _ in range(20):
        for step in list(waiting):
            try:
                step()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(step)
    assert not waiting, "the handshake stands still"
    ends.server.write(b"x")
    assert ends.client.read(10) == b"x"
    return ends
