"""Who a session's client is: its own address, or the one that a proxy in front claims for it; and what it asks for.

RULES: names and addresses only; reads no client byte.
"""

from dataclasses import dataclass

from balancer.edge.hello import ClientHello
from balancer.edge.proxy_protocol import Place, ProxyClaim, folded


@dataclass(frozen=True, slots=True)
class Introduced:
    """A client whose first bytes have said more than accept(2). `address` is what counts as the client's; `via` is the
    proxy's that vouches for it, None without one."""

    address: object
    via: object = None
    claim: ProxyClaim | None = None
    hello: ClientHello | None = None


def peer_name(peer: object) -> str:
    """Return a client's address as people write it: 10.0.0.9:5012, [::1]:5012, unix."""
    if isinstance(peer, Introduced):
        peer = peer.address
    if isinstance(peer, tuple):
        return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
    return "unix"


def introduction(peer: object) -> str:
    """Return what the log says of a client behind its address: " via=10.9.0.1:50132 sni=a.example", or nothing."""
    if not isinstance(peer, Introduced):
        return ""
    via = f" via={peer_name(peer.via)}" if peer.via is not None else ""
    return via + (f" sni={peer.hello.name or '-'}" if peer.hello is not None else "")


def server_name(peer: object) -> str:
    """Return the name that a TLS client asks for; "" when it names none."""
    return peer.hello.name if isinstance(peer, Introduced) and peer.hello is not None else ""


def source_of(peer: object) -> Place | None:
    """Return the client's address and port, IPv4 in IPv6 clothes as IPv4; None for a unix socket."""
    address = peer.address if isinstance(peer, Introduced) else peer
    return folded(address) if isinstance(address, tuple) else None
