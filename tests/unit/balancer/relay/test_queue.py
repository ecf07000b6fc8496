"""The queue for a full backend: first come first served, bounded, and over workers whoever waits longest."""

from collections.abc import Iterator

import pytest

from balancer.pool.board import B_SESSIONS, OLDEST_WAIT_MS, QUEUED, QUEUED_TOTAL, REFUSED
from tests.unit.balancer.relay.world import SIBLING, World, heard


@pytest.fixture
def world() -> Iterator[World]:
    world = World(upstream="maxconn=1")
    yield world
    world.close()


def arrive(world: World, count: int) -> list[object]:
    clients = []
    for _ in range(count):
        clients.append(world.connect())
        world.time += 0.002  # so that who came first can be told by the millisecond
        world.settle()
    return list(clients)


def waiting(world: World) -> int:
    assert world.cell(QUEUED) == len(world.hub.waiting.since)
    return world.cell(QUEUED)


def serve_one(world: World) -> str:
    """The backend serves the client that has the place, and ends; what that client said."""
    conn = world.accept()
    said = heard(conn).split("|")[0]
    conn.close()
    world.settle()
    return said


def test_first_come_first_served(world: World) -> None:
    clients = []
    for number in range(4):
        client = world.connect()
        client.send(f"client {number}".encode())
        clients.append(client)
        world.settle()
    assert waiting(world) == 3
    for number in range(4):
        assert world.backend_cell(B_SESSIONS) == 1
        assert serve_one(world) == f"client {number}"
        clients[number].close()
        world.settle()
    assert waiting(world) == 0
    assert world.cell(OLDEST_WAIT_MS) == 0
    assert world.cell(QUEUED_TOTAL) == 3


def test_the_room_is_bounded(world: World) -> None:
    clients = arrive(world, 6)  # one served, four wait (max_queue), one too many
    assert waiting(world) == 4
    assert world.ends == ["sQ queue=4/4"]
    assert heard(clients[5]) == "|end"  # type: ignore[arg-type]
    assert world.cell(REFUSED) == 1


def test_nobody_waits_longer_than_the_timeout(world: World) -> None:
    arrive(world, 2)
    world.pass_time(9.9, 0.1)
    assert waiting(world) == 1
    world.pass_time(0.3, 0.05)
    assert waiting(world) == 0
    assert world.ends == ["sQ queue-timeout"]


def test_who_leaves_the_queue_gives_the_turn_to_the_next(world: World) -> None:
    first, second, third = (world.connect() for _ in range(3))
    for client in (first, second, third):
        client.send(b"x")
    world.settle()
    assert waiting(world) == 2
    second.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
    second.close()
    world.settle()
    assert waiting(world) == 1
    assert world.ends == ["CQ"]


def test_a_freed_place_rings_the_sibling_who_waits_longest(world: World) -> None:
    rung: list[int] = []
    world.hub.waiting.ring = rung.append
    first, _ = arrive(world, 2)
    theirs = world.board.shared.rows.row(SIBLING)
    theirs[OLDEST_WAIT_MS] = world.cell(OLDEST_WAIT_MS) - 5
    conn = world.accept()
    first.close()  # type: ignore[attr-defined]
    conn.close()
    world.settle()
    assert rung == [SIBLING]
    assert waiting(world) == 1  # ours was not served out of turn


def test_a_freed_place_is_ours_when_we_have_waited_longer(world: World) -> None:
    rung: list[int] = []
    world.hub.waiting.ring = rung.append
    first, _ = arrive(world, 2)
    world.board.shared.rows.row(SIBLING)[OLDEST_WAIT_MS] = world.cell(OLDEST_WAIT_MS) + 5
    conn = world.accept()
    first.close()  # type: ignore[attr-defined]
    conn.close()
    world.settle()
    assert rung == []
    assert waiting(world) == 0


def test_a_lost_bell_costs_a_moment_only(world: World) -> None:
    """The sibling that was rung has been killed: nobody takes the place, so the room looks by itself."""
    first, _ = arrive(world, 2)
    world.board.shared.rows.row(SIBLING)[OLDEST_WAIT_MS] = 1
    conn = world.accept()
    first.close()  # type: ignore[attr-defined]
    conn.close()
    world.settle()
    assert waiting(world) == 1
    world.pass_time(0.1, 0.05)
    assert waiting(world) == 0
    assert world.backend_cell(B_SESSIONS) == 1
