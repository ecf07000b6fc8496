"""Clients that wait for a place when a reload changes the limits: those of the new configuration hold for them too.

They wait in a worker of the configuration before, which accepts nobody any more. RULES: each test closes what it holds
before its balancer stops.
"""

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Echo
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, ini_section

PATIENCE = 20.0  # seconds; a passing run does not wait for them
Layout = Callable[..., str]
LONG = {
    "queue_timeout": "10m",
    "drain_timeout": "10s",
    "check": "none",
}  # a check would be a connection too many


class Clients:
    """Clients of one balancer; each has sent a byte, which it gets back once it has a place."""

    def __init__(self, lb: FileBalancer, stack: ExitStack) -> None:
        self.lb = lb
        self.stack = stack

    def come(self, count: int) -> list[socket.socket]:
        """They connect one after the other; each has been accepted when the next one comes."""
        before = self.accepted()
        came = []
        for number in range(1, count + 1):
            client = self.stack.enter_context(socket.create_connection(self.lb.address, PATIENCE))
            client.sendall(b"x")
            came.append(client)
            wait_for(lambda n=number: self.accepted() >= before + n, "the client accepted", PATIENCE)
        return came

    def accepted(self) -> int:
        return int(self.lb.status()["totals"]["accepted_total"])

    def wait_queued(self, count: int) -> None:
        wait_for(lambda: self.lb.status()["totals"]["queued"] == count, f"{count} in the queue", PATIENCE)


def is_served(client: socket.socket) -> bool:
    """Whether the client has its answer; fails when it was closed or reset instead."""
    client.settimeout(0)
    try:
        assert client.recv(1, socket.MSG_PEEK), "closed without an answer"
    except BlockingIOError:
        return False
    return True


def served(clients: list[socket.socket]) -> int:
    return sum(map(is_served, clients))


def serve_all(clients: list[socket.socket]) -> None:
    """Close each client that has a place, until every one has had one."""
    while clients:
        first = wait_for(lambda: next(filter(is_served, clients), None), "a client served", PATIENCE)
        clients.remove(first)
        first.close()


def flat(address: str, maxconn: int, **keys: object) -> str:
    return ini_section("balancer", port=0, upstream=f"{address} name=a maxconn={maxconn}", **(LONG | keys))


def pools(address: str, maxconn: int, **keys: object) -> str:
    """The same limit in a pool of its own, beside another one."""
    waits = {key: LONG[key] for key in ("queue_timeout", "check")}
    return (
        ini_section("balancer", drain_timeout=LONG["drain_timeout"])
        + ini_section("listener web", port=0, bind="127.0.0.1", pool="web")
        + ini_section("pool web", upstream=f"{address} name=a maxconn={maxconn}", **(waits | keys))
        + ini_section("pool other", upstream=f"{address} name=a maxconn=1", check=LONG["check"])
    )


def start(stack: ExitStack, text: str, workers: int = 2) -> tuple[FileBalancer, Clients]:
    lb = stack.enter_context(FileBalancer(text, workers=workers))
    return lb, Clients(lb, stack.enter_context(ExitStack()))


@pytest.mark.parametrize("layout", [flat, pools])
@pytest.mark.parametrize("steps", [(1, 2), (1, 4), (1, 0), (2, 3, 5), (2, 9)], ids=str)
def test_a_higher_limit_serves_those_that_wait_already(layout: Layout, steps: tuple[int, ...]) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        lb, clients = start(stack, layout(backend.name, steps[0]))
        holders = clients.come(steps[0])
        wait_for(lambda: served(holders) == steps[0], "all places taken", PATIENCE)
        waiting = clients.come(5)
        clients.wait_queued(5)
        for generation, limit in enumerate(steps[1:], 2):
            lb.write(layout(backend.name, limit))
            lb.reload(generation, PATIENCE)
            places = min(5, limit - steps[0]) if limit else 5
            wait_for(lambda n=places: served(waiting) >= n, f"{places} served", PATIENCE)
            clients.wait_queued(5 - places)
            assert served(waiting) == places
        serve_all([*holders, *waiting, *clients.come(1)])
        assert backend.most <= (max(steps) if min(steps) else 9)
        clients.stack.close()


@pytest.mark.parametrize("layout", [flat, pools])
def test_a_lower_limit_holds_for_those_that_wait_already(layout: Layout) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        lb, clients = start(stack, layout(backend.name, 3))
        holders = clients.come(3)
        wait_for(lambda: served(holders) == 3, "all places taken", PATIENCE)
        waiting = clients.come(4)
        clients.wait_queued(4)
        lb.write(layout(backend.name, 1))
        lb.reload(2, PATIENCE)
        for client in holders[:2]:
            client.close()
        wait_for(lambda: lb.backend("a")["sessions"] == 1, "one of three left", PATIENCE)
        wait_for(lambda: backend.now == 1, "the backend to see it", PATIENCE)
        backend.most = 0
        assert served(waiting) == 0
        holders[2].close()
        serve_all(waiting)
        assert backend.most == 1
        clients.stack.close()


@pytest.mark.parametrize("layout", [flat, pools])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_another_max_queue_cuts_none_of_those_that_wait_already(layout: Layout, after: int) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        lb, clients = start(stack, layout(backend.name, 1, max_queue=2), workers=1)
        (holder,) = clients.come(1)
        wait_for(lambda: is_served(holder), "the place taken", PATIENCE)
        waiting = clients.come(2)
        clients.wait_queued(2)
        (refused,) = clients.come(1)
        assert is_closed(refused)
        lb.write(layout(backend.name, 1, max_queue=after))
        lb.reload(2, PATIENCE)
        lb.wait_line(r"worker 0 pid=\d+ drain sessions=3", PATIENCE)  # the old worker accepts nobody any more
        newcomers = clients.come(after + 1)
        clients.wait_queued(2 + after)
        assert is_closed(newcomers[-1])
        holder.close()
        for client in (*waiting, *newcomers[:after]):  # those that have waited longest come first
            wait_for(lambda c=client: is_served(c), "a client served", PATIENCE)
            client.close()
        clients.stack.close()


def is_closed(client: socket.socket) -> bool:
    """Whether the balancer ends the connection without an answer; waits for the end or the answer."""
    client.settimeout(PATIENCE)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
