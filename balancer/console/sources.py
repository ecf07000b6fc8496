"""What `balancerctl sources` shows: the sources with the most sessions and those that were refused.

RULES: reads the tables of the listeners with limits per source; writes nothing.

    {"listeners": [{"name", "source_maxconn", "source_rate": "60/1m" or null,
                    "sources": [{"source": "192.0.2.7" or "2001:db8::/64", "sessions", "clients" in the last period of the
                                 rate or null, "refused", "limit": of the last refusal or null, "age_s" of it or null}]}]}

`sources` has the most sessions first. Its names are a sample of the workers (shm/source_names.py), its numbers are not.
"""

from collections.abc import Iterable
from heapq import nlargest
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from balancer.edge.access import SIX
from balancer.options import Listener
from balancer.pool.board import Board
from balancer.shm.source_names import NamedSource, Source
from balancer.shm.source_table import SourceReader

MOST_SOURCES = 20  # with the most sessions, and as many that were refused


def describe_sources(board: Board, listeners: Iterable[Listener], now: float) -> dict[str, Any]:
    """The sources of each listener that has limits per source."""
    tables = board.source_tables
    return {
        "listeners": [
            {
                "name": one.name,
                "source_maxconn": one.source_maxconn,
                "source_rate": str(one.source_rate) if one.source_rate else None,
                "sources": _sources_of(one, SourceReader(tables[one.name], board.counts), now),
            }
            for one in listeners
            if one.name in tables
        ]
    }


def _sources_of(listener: Listener, reader: SourceReader, now: float) -> list[dict[str, Any]]:
    refusals: dict[Source, NamedSource] = {}
    refused: dict[Source, int] = {}  # times, over all workers
    for one in reader.names(now):
        last = refusals.setdefault(one.source, one)
        if one.at > last.at:
            refusals[one.source] = one
        refused[one.source] = refused.get(one.source, 0) + one.refused
    cells = {source: reader.cells_of(source) for source in refusals}
    sessions = {source: reader.sessions(cells[source], now) for source in refusals}
    busy = nlargest(MOST_SOURCES, filter(sessions.get, sessions), sessions.__getitem__)
    denied = nlargest(MOST_SOURCES, filter(refused.get, refused), refused.__getitem__)
    rate = listener.source_rate
    found = []
    for source in sorted({*busy, *denied}, key=lambda one: (-sessions[one], -refused[one], one)):
        last = refusals[source]
        found.append(
            {
                "source": source_text(source, listener.source_mask),
                "sessions": sessions[source],
                "clients": reader.clients_within(cells[source], rate.seconds, now) if rate else None,
                "refused": refused[source],
                "limit": last.limit or None,
                "age_s": round(max(0.0, now - last.at), 1) if last.limit else None,
            }
        )
    return found


def source_text(source: Source, mask: tuple[int, int]) -> str:
    """The address or the network that clients are counted by."""
    number = int.from_bytes(source)
    if number < SIX:
        return str(IPv4Network((number, mask[0]), strict=False)).removesuffix("/32")
    return str(IPv6Network((number - SIX, mask[1]), strict=False)).removesuffix("/128")
