"""Who a session's client is: its own address, or the one that a proxy in front of us claims for it.

RULES: names and addresses only; reads no client byte.
"""

from dataclasses import dataclass

from balancer.edge.proxy_protocol import Place, ProxyClaim, folded


@dataclass(frozen=True, slots=True)
class ClaimedPeer:
    """A client that a trusted proxy vouches for; `via` is the proxy's own address, as accept(2) gave it."""

    claim: ProxyClaim
    via: object


def peer_name(peer: object) -> str:
    """Return a client's address as people write it: 10.0.0.9:5012, [::1]:5012, unix."""
    if isinstance(peer, ClaimedPeer):
        peer = peer.claim.source
    if isinstance(peer, tuple):
        return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
    return "unix"


def via_name(peer: object) -> str:
    """Return the address of the proxy that vouches for a client; nothing for one that came by itself."""
    return peer_name(peer.via) if isinstance(peer, ClaimedPeer) else ""


def source_of(peer: object) -> Place | None:
    """Return the client's address and port, IPv4 in IPv6 clothes as IPv4; None for a unix socket."""
    if isinstance(peer, ClaimedPeer):
        return peer.claim.source
    return folded(peer) if isinstance(peer, tuple) else None
