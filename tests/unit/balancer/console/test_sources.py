"""The sources of `balancerctl sources`: names of several workers, numbers of all."""

from dataclasses import replace
from typing import Any

import pytest

from balancer.console.sources import MOST_SOURCES, describe_sources, source_text
from balancer.console.table import sources_text
from balancer.edge.access import number_of
from balancer.options import Listener, parse_rate
from balancer.relay.source_limits import MAXCONN, RATE
from balancer.shm.layout import FIRST_LEASE, PID
from balancer.shm.source_table import SourceCounts, SourceTable
from tests.unit.balancer.pool.boards import make_board

WEB = Listener("web", source_maxconn=5, source_rate=parse_rate("10/1m"), source_mask=(32, 64))
NOW = 610.0


class Workers:
    """A board with a table for the listener web, and two workers that count in it."""

    def __init__(self) -> None:
        self.board = make_board(live=3)
        self.table = self.board.source_tables["web"] = SourceTable()
        self.counts = []
        for number in range(2):
            self.board.shared.rows.row(FIRST_LEASE + number)[PID] = 71 + number
            self.counts.append(SourceCounts(self.table, self.board.counts, FIRST_LEASE + number))

    def begin(
        self, worker: int, address: str, count: int = 1, refused: int = 0, limit: int = MAXCONN
    ) -> None:
        counts, source = self.counts[worker], number_of(address).to_bytes(17)
        cells = counts.cells_of(source)
        for _ in range(count + refused):
            counts.add_client(cells, int(NOW // 60))
        for number in range(count):
            counts.add_sessions(cells, 1)
            counts.own_names.note_busy(
                source, number + 1, lambda one: counts.sessions(counts.cells_of(one), NOW)
            )
        for _ in range(refused):
            counts.own_names.note_refused(source, limit, NOW - 9 + worker)

    def found(self, listener: Listener = WEB) -> list[dict[str, Any]]:
        [one] = describe_sources(self.board, [listener], NOW)["listeners"]
        return list(one["sources"])


@pytest.fixture
def workers() -> Workers:
    return Workers()


def test_sessions_and_refusals_of_all_workers_are_added_up(workers: Workers) -> None:
    workers.begin(0, "192.0.2.7", 2, refused=3)
    workers.begin(1, "192.0.2.7", 1, refused=1, limit=RATE)
    workers.begin(1, "2001:db8::", 1)
    workers.begin(0, "192.0.2.9", 0, refused=2)
    assert workers.found() == [
        {"source": "192.0.2.7", "sessions": 3, "clients": 7, "refused": 4, "limit": "source-rate", "age_s": 8.0},
        {"source": "2001:db8::/64", "sessions": 1, "clients": 1, "refused": 0, "limit": None, "age_s": None},
        {"source": "192.0.2.9", "sessions": 0, "clients": 2, "refused": 2, "limit": "source-maxconn", "age_s": 9.0},
    ]  # fmt: skip
    assert all(one["clients"] is None for one in workers.found(replace(WEB, source_rate=None)))


def test_who_has_left_and_was_never_refused_is_not_shown(workers: Workers) -> None:
    workers.begin(0, "192.0.2.7", 1)
    workers.begin(1, "192.0.2.8", 1)
    workers.board.shared.rows.row(FIRST_LEASE)[PID] = 0  # reaped
    assert [one["source"] for one in workers.found()] == ["192.0.2.8"]


def test_as_many_refused_ones_as_busy_ones_at_most(workers: Workers) -> None:
    for number in range(40):
        workers.begin(0, f"192.0.2.{number}", number % 5 + 1)
        workers.begin(1, f"192.0.3.{number}", 0, refused=number + 1)
    found = workers.found()
    assert len(found) == 2 * MOST_SOURCES
    assert [one["sessions"] for one in found[:16]] == [5] * 8 + [4] * 8
    assert [one["refused"] for one in found[MOST_SOURCES:]] == list(range(40, 20, -1))


def test_a_listener_without_limits_has_no_sources(workers: Workers) -> None:
    assert describe_sources(workers.board, [Listener("mail")], NOW) == {"listeners": []}
    assert "no listener has limits per source" in sources_text({"listeners": []})


@pytest.mark.parametrize(
    ("address", "mask", "text"),
    [
        ("192.0.2.7", (32, 64), "192.0.2.7"),
        ("192.0.2.0", (24, 64), "192.0.2.0/24"),
        ("2001:db8::", (32, 64), "2001:db8::/64"),
        ("2001:db8::1", (32, 128), "2001:db8::1"),
        ("0.0.0.0", (0, 64), "0.0.0.0/0"),
    ],
)
def test_a_source_is_what_it_is_counted_by(address: str, mask: tuple[int, int], text: str) -> None:
    assert source_text(number_of(address).to_bytes(17), mask) == text


def test_the_table_says_what_of_which_limit(workers: Workers) -> None:
    workers.begin(0, "192.0.2.7", 2, refused=1)
    workers.begin(0, "192.0.2.8", 1)
    shown = sources_text(describe_sources(workers.board, [WEB], NOW)).splitlines()
    assert [line.split() for line in shown] == [
        ["SOURCE", "LISTENER", "SESSIONS", "CLIENTS", "REFUSED", "LIMIT", "LAST"],
        ["192.0.2.7", "web", "2/5", "3", "of", "10/1m", "1", "source-maxconn", "9s", "ago"],
        ["192.0.2.8", "web", "1/5", "1", "of", "10/1m", "0", "-", "-"],
    ]
