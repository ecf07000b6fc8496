"""Several balancers with `balance = maglev` choose the same backend for a client, whoever has told them of the backends,
in whatever order and under whatever names; after a change they do once each of them has seen it."""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import free_port
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer
from tests.system.name_server import NameServer

PATIENCE = 20.0  # seconds; a passing run does not wait for them
BACKENDS = 10
CLIENTS = [f"10.{number >> 8}.{number & 255}.7" for number in range(600)]
OPTIONS = {"balance": "maglev", "proxy_protocol": "yes", "proxy_trusted": "127.0.0.1", "workers": 1}


class Balancers:
    """Five: three with lists, each in another order and with other names, and two that ask name servers of their own."""

    def __init__(self, stack: ExitStack) -> None:
        self.port = free_port()
        self.hosts = [f"127.0.0.{2 + number}" for number in range(BACKENDS + 1)]
        for host in self.hosts:
            stack.enter_context(Echo(host, self.port, greeting=True))
        self.name_servers = [stack.enter_context(NameServer()) for _ in range(2)]
        self.listed = [stack.enter_context(self.with_list(seed)) for seed in range(3)]
        self.asking = []
        for server in self.name_servers:
            server.know("web.test", *self.hosts[:BACKENDS])
            upstream = f"--upstream=dns:web.test:{self.port} slots=24 name=web"
            self.asking.append(stack.enter_context(Balancer(upstream, resolver=server.text, **OPTIONS)))
        for each in self.asking:
            self.wait_set(each, BACKENDS)

    def with_list(self, seed: int) -> Balancer:
        hosts = random.Random(seed).sample(self.hosts[:BACKENDS], BACKENDS)
        upstream = [f"{host}:{self.port} name=n{seed}-{place}" for place, host in enumerate(hosts)]
        return Balancer(*(f"--upstream={each}" for each in upstream), **OPTIONS)

    @staticmethod
    def wait_set(lb: Balancer, count: int) -> None:
        def has_them() -> bool:
            return sum(each["state"] == "up" for each in lb.status()["backends"]) == count

        wait_for(has_them, f"{count} backends", PATIENCE)


def chosen_by(lb: Balancer) -> list[str]:
    """The backend that each of CLIENTS is given."""
    found = []
    for client in CLIENTS:
        with socket.create_connection(lb.address, PATIENCE) as conn:
            conn.sendall(f"PROXY TCP4 {client} 10.255.0.1 40000 80\r\n".encode())
            name = b""
            while not name.endswith(b"\n"):
                data = conn.recv(100)
                assert data, f"{client} was given no backend"
                name += data
            found.append(name.decode().strip())
    return found


def different(one: list[str], other: list[str]) -> float:
    """The part of the clients that two balancers have given to different backends."""
    return sum(here != there for here, there in zip(one, other, strict=True)) / len(CLIENTS)


@pytest.fixture
def balancers() -> Iterator[Balancers]:
    with ExitStack() as stack:
        yield Balancers(stack)


def test_two_and_five_balancers_agree_and_differ_by_a_change_only_until_all_have_seen_it(
    balancers: Balancers,
) -> None:
    first, *others = (chosen_by(each) for each in (*balancers.listed, *balancers.asking))
    assert len(set(first)) == BACKENDS
    assert [different(first, other) for other in others] == [0.0] * 4

    early, late = balancers.asking
    balancers.name_servers[0].know("web.test", *balancers.hosts)  # the other one does not know yet
    balancers.wait_set(early, BACKENDS + 1)
    after = chosen_by(early)
    moved = different(after, chosen_by(late))
    bound = 1 / (BACKENDS + 1) + 0.02
    deviation = (bound * (1 - bound) / len(CLIENTS)) ** 0.5  # of so few; the unit tests have 100,000
    assert 0 < moved <= bound + 4 * deviation, f"{moved:.1%} of the clients"
    balancers.name_servers[1].know("web.test", *balancers.hosts)
    balancers.wait_set(late, BACKENDS + 1)
    assert chosen_by(late) == after
    print(f"{moved:.1%} of the clients differ while one has not seen the change")
