"""The address of a session's client, its own or the one that a PROXY header claims, and the server name it asks for.

RULES: data and text; reads no socket.
"""

from dataclasses import dataclass
from typing import Protocol

from balancer.edge.proxy_protocol import Endpoint, ProxyClaim, endpoint_of


class TlsFacts(Protocol):
    """What a handshake came to. `common_name` is of the client's certificate, None when it has shown none."""

    @property
    def version(self) -> str: ...  # "TLSv1.3"
    @property
    def cipher(self) -> str: ...
    @property
    def alpn(self) -> str: ...
    @property
    def common_name(self) -> str | None: ...


@dataclass(slots=True)
class DescribedPeer:
    """A client whose first bytes have said more than accept(2); each phase adds what it has read. `address` is what
    counts as the client's; `via` is the proxy's that vouches for it, None without one."""

    address: object
    via: object = None
    claim: ProxyClaim | None = None
    server_name: str | None = None  # of a TLS client; "" when it asks for none
    tls: TlsFacts | None = None  # of a client whose TLS ends here


def described(peer: object) -> DescribedPeer:
    """Return a session's peer in this form, the same one if it has it already."""
    return peer if isinstance(peer, DescribedPeer) else DescribedPeer(peer)


def peer_name(peer: object) -> str:
    """Return a client's address as people write it: 10.0.0.9:5012, [::1]:5012, unix."""
    if isinstance(peer, DescribedPeer):
        peer = peer.address
    if isinstance(peer, tuple):
        return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
    return "unix"


def peer_details(peer: object) -> str:
    """Return what the log says of a client behind its address: " via=10.9.0.1:50132 sni=a.example tls=TLSv1.3
    cipher=TLS_AES_128_GCM_SHA256", or nothing."""
    if not isinstance(peer, DescribedPeer):
        return ""
    said = f" via={peer_name(peer.via)}" if peer.via is not None else ""
    if peer.server_name is not None:
        said += f" sni={peer.server_name or '-'}"
    if peer.tls is not None:
        said += f" tls={peer.tls.version} cipher={peer.tls.cipher}"
    return said


def server_name(peer: object) -> str:
    """Return the name that a TLS client asks for; "" when it names none."""
    return (peer.server_name or "") if isinstance(peer, DescribedPeer) else ""


def source_endpoint(peer: object) -> Endpoint | None:
    """Return the client's address and port, IPv4 in IPv6 clothes as IPv4; None for a unix socket."""
    address = peer.address if isinstance(peer, DescribedPeer) else peer
    return endpoint_of(address) if isinstance(address, tuple) else None
