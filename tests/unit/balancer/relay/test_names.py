"""A backend given by a name: its addresses are dialled one after another, and its first clients wait for the answer."""

import _socket
import errno
import os
import socket
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from balancer.pool.board import (
    B_ADDRESS_FAILURES,
    B_CONNECT_FAILURES,
    B_SESSIONS,
    B_SESSIONS_TOTAL,
    L_RETRIES,
    P_QUEUED,
)
from balancer.pool.targets import NameAddresses
from balancer.pool.verdicts import VerdictWriter
from balancer.relay.queue import UNDECIDED
from tests.unit.balancer.relay.simulation import SIBLING, Make, WorkerSimulation, heard


def spoken(worker: WorkerSimulation) -> socket.socket:
    """A client that has sent its request before it is accepted."""
    client = worker.connect()
    client.send(b"ask")
    return client


def hosts_in(worker: WorkerSimulation, *hosts: str) -> None:
    """Give the backend by a name that has these addresses, all with the port of the server."""
    board, (backend,) = worker.board, worker.backends
    writer = VerdictWriter(board, SIBLING)
    writer.restore(backend, 0.0)
    writer.write_addresses(backend.index, NameAddresses(hosts))


class Network(_socket.socket):
    """Connects to 127.0.0.2 .. 127.0.0.9 fail at once with `codes`, others are real."""

    codes: ClassVar[dict[str, int]] = {}

    def connect_ex(self, address: Any) -> int:
        code = self.codes.get(address[0])
        return super().connect_ex(address) if code is None else code


@pytest.fixture
def named(make: Make) -> Iterator[WorkerSimulation]:
    yield make(upstream_host="web.test", new_socket=Network)
    Network.codes = {}


CODES = [
    errno.ECONNREFUSED,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EACCES,
    errno.ETIMEDOUT,
]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("alive", range(4))
def test_a_failed_address_is_followed_by_the_next_one_at_once(
    named: WorkerSimulation, alive: int, code: int
) -> None:
    """Without a retry, without a failure of the backend, and the session has one place of it."""
    hosts = [f"127.0.0.{place + 2}" for place in range(4)]
    hosts[alive] = "127.0.0.1"
    Network.codes = dict.fromkeys(hosts, code) | {"127.0.0.1": None}  # type: ignore[dict-item]
    hosts_in(named, *hosts)
    client = spoken(named)
    named.turn()
    backend = named.accept()
    assert heard(backend) == "ask|open" and heard(client) == "|open"
    assert named.backend_cell(B_ADDRESS_FAILURES) == alive
    assert named.backend_cell(B_SESSIONS) == named.backend_cell(B_SESSIONS_TOTAL) == 1
    assert named.backend_cell(B_CONNECT_FAILURES) == named.cell(L_RETRIES) == 0
    spoken(named)
    named.turn()
    named.accept()
    assert named.backend_cell(B_ADDRESS_FAILURES) == alive  # it begins with the one that answers


def test_when_every_address_fails_it_is_one_failure_of_the_backend(named: WorkerSimulation) -> None:
    hosts = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    Network.codes = dict.fromkeys(hosts, errno.ECONNREFUSED)
    hosts_in(named, *hosts)
    client = named.connect()
    named.settle()
    assert heard(client) == "|end"
    assert named.backend_cell(B_ADDRESS_FAILURES) == 2
    assert named.backend_cell(B_CONNECT_FAILURES) == 1
    assert named.backend_cell(B_SESSIONS) == 0
    assert named.ends == ["SC all backends tried"]


def test_a_machine_without_one_of_the_families_dials_the_other(named: WorkerSimulation, make: Make) -> None:
    class WithoutV6(_socket.socket):
        def __init__(self, family: int, kind: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "injected")
            super().__init__(family, kind)

    worker = make(upstream_host="web.test", new_socket=WithoutV6)
    hosts_in(worker, "::1", "127.0.0.1")
    client = spoken(worker)
    worker.turn()
    assert heard(worker.accept()) == "ask|open" and heard(client) == "|open"


def test_out_of_descriptors_no_address_is_blamed(make: Make) -> None:
    def no_socket(family: int, kind: int) -> Any:
        raise OSError(errno.EMFILE, "injected")

    worker = make(upstream_host="web.test", new_socket=no_socket)
    hosts_in(worker, "::1", "127.0.0.1")
    spoken(worker)
    worker.settle()
    assert worker.ends == ["RC EMFILE"]
    assert worker.backend_cell(B_ADDRESS_FAILURES) == 0


def test_an_address_that_does_not_answer_is_left_after_connect_timeout(named: WorkerSimulation) -> None:
    port = named.servers[0].getsockname()[1]
    silent = socket.create_server(("127.0.0.2", port))
    named.clog(silent)
    hosts_in(named, "127.0.0.2", "127.0.0.1")
    client = named.connect()
    named.settle()
    assert len(named.lane.dialling) == 1
    before = len(os.listdir("/proc/self/fd"))
    named.pass_time(1.2, 0.05)
    named.accept().send(b"hi")
    named.settle()
    assert heard(client) == "hi|open"
    assert not named.lane.dialling and named.backend_cell(B_ADDRESS_FAILURES) == 1
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the backend's other end
    assert named.backend_cell(B_SESSIONS) == 1
    silent.close()


def test_the_first_client_waits_until_the_name_is_resolved(named: WorkerSimulation) -> None:
    client = spoken(named)
    named.pass_time(3.0)
    assert heard(client) == "|open" and named.pool_cell(P_QUEUED) == 1
    hosts_in(named, "127.0.0.1")
    named.pass_time(0.1, 0.05)
    assert heard(named.accept()) == "ask|open"
    assert named.pool_cell(P_QUEUED) == 0 and named.ends == []


def test_a_name_that_does_not_resolve_refuses_those_that_wait(named: WorkerSimulation) -> None:
    client = named.connect()
    named.settle()
    writer = VerdictWriter(named.board, SIBLING)
    writer.restore(named.backends[0], 0.0)
    writer.write_name_failed(named.backends[0].index)
    named.pass_time(0.1, 0.05)
    assert heard(client) == "|end"
    assert named.ends == ["SC no backend is up"]


@pytest.mark.parametrize(("timeout", "waited"), [(2.0, 2.0), (0.0, UNDECIDED)])
def test_nobody_waits_for_a_name_longer_than_in_the_queue(make: Make, timeout: float, waited: float) -> None:
    worker = make(upstream_host="web.test", queue_timeout=timeout)
    worker.connect()
    worker.settle()
    worker.pass_time(waited - 0.1)
    assert worker.ends == []
    worker.pass_time(0.2, 0.05)
    assert worker.ends == ["sQ queue-timeout: resolving"]
