"""Sessions that begin with a PROXY header for their backend (`send-proxy`).

RULES: each dial sends one header before any other byte. It goes in one segment with the client's first bytes, and at once
when the client has sent none. The header is no payload: `bytes_in` starts at minus its length. Only listeners with a
send-proxy pool make these sessions.
"""

import os
from collections.abc import Callable
from itertools import count
from os import read

from balancer.edge.proxy_protocol import (
    ALPN,
    AUTHORITY,
    SSL,
    UNIQUE_ID,
    SendProxy,
    endpoint_of,
    write_ssl,
    write_v1,
    write_v2,
)
from balancer.eventloop.errnos import TRANSIENT
from balancer.relay import ends
from balancer.relay.half import LIMIT
from balancer.relay.peers import DescribedPeer, server_name, source_endpoint
from balancer.relay.session import Session
from balancer.relay.sockets import own_address


def header_writer(send: SendProxy) -> Callable[[Session], bytes]:
    """Return what makes the header of a session, for one worker and pool."""
    ids = count(1)
    prefix = os.urandom(6).hex()

    def header(session: Session) -> bytes:
        peer = session.peer
        source = source_endpoint(peer)
        claim = peer.claim if isinstance(peer, DescribedPeer) else None
        if claim is not None:
            destination = claim.destination
        else:
            destination = endpoint_of(own_address(session.client_fd)) if source else None
        if send.version == 1:
            return write_v1(source, destination)
        records: dict[int, bytes] = {}
        name = server_name(peer).encode() or (claim.records.get(AUTHORITY, b"") if claim else b"")
        if name and "authority" in send.extras:
            records[AUTHORITY] = name
        tls = peer.tls if isinstance(peer, DescribedPeer) else None
        if tls is not None:
            if tls.alpn and "alpn" in send.extras:
                records[ALPN] = tls.alpn.encode()
            if "ssl" in send.extras:
                records[SSL] = write_ssl(tls.version, tls.cipher, tls.common_name)
        if "unique-id" in send.extras:
            records[UNIQUE_ID] = f"{prefix}-{next(ids):x}".encode()
        return write_v2(source, destination, records, "crc32c" in send.extras)

    return header


class ProxyHeaderSession(Session):
    """A session that begins with a PROXY header for its backend."""

    __slots__ = ()

    def _relay_at_once(self) -> bool:
        self._put_header()
        if super()._relay_at_once():
            return True
        self.first = self.first[-self.bytes_in :]
        self.bytes_in = 0
        return False

    def connected(self, mask: int) -> None:
        if not self.first and not self.read_first():
            return
        self._put_header()
        super().connected(mask)

    def given(self) -> tuple[int, int]:
        bytes_in, bytes_out = super().given()
        return max(bytes_in, 0), bytes_out  # below zero: the backend broke before it had the header

    def _put_header(self) -> None:
        header = self.lane.header(self)
        self.first = header + self.first
        self.bytes_in = -len(header)

    def read_first(self) -> bool:
        """Read what the client has sent, of every one: it goes with the header. Return False for one that is gone."""
        try:
            self.first = read(self.client_fd, LIMIT)
        except OSError as error:
            if error.errno not in TRANSIENT:
                self.close(ends.CLIENT_LEFT_CONNECTING)
                return False
        return True
