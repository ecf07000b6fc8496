"""Trusted backends: how few of their connections rest, what takes the trust away, and what a shorter rest still finds."""

import socket
from _socket import socket as Socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from balancer.config.units import Address
from balancer.pool.backend import Backend
from balancer.pool.board import ADMIN_MAINT, ADMIN_READY, P_REPLY_TIMES, POOLS
from balancer.pool.targets import NameAddresses
from balancer.pool.verdicts import VerdictWriter
from balancer.relay.framed.connection import RESTING
from balancer.relay.framed.connection_pool import (
    REST,
    SUSPICION,
    SWEEP,
    TRUSTED,
    TRUSTED_RESTING,
)
from tests.unit.balancer.relay.framed.framed_simulation import (
    FramedSimulation,
    FramePeer,
    Start,
    frame,
    misbehaved,
)
from tests.unit.balancer.relay.simulation import SIBLING, reset

FEW = 20  # replies after which these workers trust
SWEPT = SWEEP * 1.5


def begin(start: Start) -> FramedSimulation:
    worker = start(order="any")
    worker.connections.rest = REST
    worker.connections.trusted = FEW
    return worker


def serve(worker: FramedSimulation, client: FramePeer, count: int) -> None:
    """Have requests answered, several at once."""
    for first in range(0, count, RESTING // 2):
        texts = {f"n{number}" for number in range(first, min(first + RESTING // 2, count))}
        client.ask(*sorted(texts))
        asked = set()
        for peer in worker.dialled():
            for text in peer.frames():
                asked.add(text)
                peer.send(frame(text.upper()))
        worker.settle(3)
        assert asked == texts
        assert set(client.frames()) == {text.upper() for text in texts}


def resting(worker: FramedSimulation) -> int:
    """The connections that one request after the other uses in turn."""
    client = worker.client()
    used = set()
    for _ in range(2 * RESTING):
        client.ask("q")
        for number, peer in enumerate(worker.dialled()):
            if peer.frames():
                used.add(number)
                peer.answer("R")
        assert client.frames() == ["R"]
    client.close()
    return len(used)


def earn(worker: FramedSimulation) -> None:
    client = worker.client()
    serve(worker, client, FEW)
    worker.pass_time(SWEPT)
    client.close()


def other_tenant(slot: Backend, port: int) -> Backend:
    """Another one in its slot, which keeps its name."""
    return replace(slot, address=Address("inet", slot.address.host, port))


def asked(worker: FramedSimulation) -> FramePeer:
    """The backend's end of the connection that a new client's request is on."""
    worker.client().ask("q")
    [peer] = [one for one in worker.dialled() if one.frames()]
    return peer


def test_fewer_connections_rest_at_a_backend_once_it_has_answered_many_requests(start: Start) -> None:
    worker = begin(start)
    client = worker.client()
    serve(worker, client, FEW - 1)
    worker.pass_time(SWEPT)
    assert worker.connections.idle() >= RESTING
    serve(worker, client, 1)
    worker.pass_time(SWEPT)
    assert worker.connections.idle() == TRUSTED_RESTING
    assert resting(worker) == TRUSTED_RESTING


def byte_beyond(worker: FramedSimulation) -> None:
    asked(worker).send(frame("R") + b"x")


def double(worker: FramedSimulation) -> None:
    asked(worker).answer("R", "R")


def unasked(worker: FramedSimulation) -> None:
    peer = asked(worker)
    peer.answer("R")
    peer.answer("R")


def no_frame(worker: FramedSimulation) -> None:
    asked(worker).send(b"nonsense")


def cut(worker: FramedSimulation) -> None:
    peer = asked(worker)
    peer.send(frame("R" * 100)[:-1])
    worker.settle()
    peer.close()


def cut_header(worker: FramedSimulation) -> None:
    peer = asked(worker)
    peer.send(frame("R")[:3])
    worker.settle()
    peer.close()


def earns_no_trust_again(worker: FramedSimulation) -> None:
    """Behind the time of suspicion it answers well for long enough, three times over."""
    worker.pass_time(SUSPICION + 2, step=2.0)
    for _ in range(3):
        earn(worker)
    assert resting(worker) >= RESTING


@pytest.mark.parametrize("act", [byte_beyond, double, unasked, no_frame, cut, cut_header])
def test_a_wrong_reply_costs_the_trust_for_good(
    start: Start, act: Callable[[FramedSimulation], None]
) -> None:
    worker = begin(start)
    earn(worker)
    act(worker)
    worker.settle()
    earns_no_trust_again(worker)


def ended_at_rest(worker: FramedSimulation) -> None:
    peer = asked(worker)
    peer.answer("R")
    peer.close()


def ended_before_its_reply(worker: FramedSimulation) -> None:
    asked(worker).close()


def broken_before_its_reply(worker: FramedSimulation) -> None:
    peer = asked(worker)
    reset(getattr(peer.sock, "sock", peer.sock))


def refused(worker: FramedSimulation) -> None:
    address = worker.servers[0].getsockname()
    worker.servers[0].close()
    worker.client().ask(*["q"] * (TRUSTED_RESTING + 1))
    worker.servers[0] = socket.create_server(address, backlog=64)
    worker.servers[0].setblocking(False)


@pytest.mark.parametrize("act", [ended_at_rest, ended_before_its_reply, broken_before_its_reply, refused])
def test_a_connection_that_fails_starts_the_count_again(
    start: Start, act: Callable[[FramedSimulation], None]
) -> None:
    worker = begin(start)
    earn(worker)
    act(worker)
    worker.settle()
    worker.pass_time(SWEPT)
    assert resting(worker) >= RESTING
    earn(worker)
    assert resting(worker) == TRUSTED_RESTING


def unused(worker: FramedSimulation) -> None:
    worker.pass_time(worker.pool.idle_backend_timeout + SWEPT, step=SWEEP)


def in_maintenance(worker: FramedSimulation) -> None:
    for state in (ADMIN_MAINT, ADMIN_READY):
        worker.board.set_admin_state(worker.backends[0].index, state, 0)
        worker.pass_time(SWEPT)


@pytest.mark.parametrize("act", [unused, in_maintenance])
def test_a_time_without_connections_starts_the_count_again(
    start: Start, act: Callable[[FramedSimulation], None]
) -> None:
    """Nothing would show that another program answers there now."""
    worker = begin(start)
    earn(worker)
    act(worker)
    assert worker.connections.idle() == 0
    assert resting(worker) >= RESTING
    earn(worker)
    assert resting(worker) == TRUSTED_RESTING


class NamedServer(Socket):
    """Leads to the only server, whatever address is dialled; `port` is its."""

    port = 0

    def connect_ex(self, address: object) -> int:
        return super().connect_ex(("127.0.0.1", self.port))


def test_another_address_of_its_name_starts_the_count_again() -> None:
    """It may be another machine that answers there."""
    worker = FramedSimulation(order="any", upstream_host="web.test", new_socket=NamedServer)
    with closing(worker):
        NamedServer.port = worker.servers[0].getsockname()[1]
        worker.connections.rest, worker.connections.trusted = REST, FEW
        writer = VerdictWriter(worker.board, SIBLING)
        writer.restore(worker.backends[0], 0.0)
        for address in ("127.0.0.1", "127.0.0.2"):
            writer.write_addresses(worker.backends[0].index, NameAddresses((address,)))
            worker.pass_time(SWEEP)  # until it is seen
            worker.client().ask(*["q"] * (TRUSTED_RESTING + 1))  # more than are at rest: one is dialled
            for peer in worker.dialled():
                if peer.frames():
                    peer.answer("R")
            assert resting(worker) >= RESTING
            earn(worker)
            assert resting(worker) == TRUSTED_RESTING


def test_trust_belongs_to_the_tenant_of_a_slot(start: Start) -> None:
    """The next one begins anew; one that has misbehaved is not trusted when it comes back."""
    worker = begin(start)
    earn(worker)
    move_in = worker.connections.elector.on_tenant
    assert move_in is not None
    first = worker.backends[0]
    move_in(other_tenant(first, 2))
    assert resting(worker) >= RESTING
    earn(worker)
    assert resting(worker) == TRUSTED_RESTING
    double(worker)
    worker.pass_time(SUSPICION + 2, step=2.0)
    for tenant, is_trusted in ((first, True), (other_tenant(first, 2), False)):
        move_in(tenant)
        earn(worker)
        assert (resting(worker) == TRUSTED_RESTING) == is_trusted


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_wrong_reply_from_before_costs_a_backend_that_is_back_the_trust(start: Start, is_cut: bool) -> None:
    """It has another place in the pool by now, or the same one again."""
    worker = begin(start)
    peer = asked(worker)
    move_in = worker.connections.elector.on_tenant
    assert move_in is not None
    first = worker.backends[0]
    move_in(other_tenant(first, 2))
    move_in(first)
    if is_cut:
        peer.send(frame("R" * 100)[:-1])
        worker.settle()
        peer.close()
    else:
        peer.send(frame("R") + b"x")
    worker.settle(3)
    earns_no_trust_again(worker)


def test_replies_of_the_tenant_before_are_counted(start: Start) -> None:
    worker = begin(start)
    client = worker.client()
    serve(worker, client, 2)
    client.ask("under way")
    move_in = worker.connections.elector.on_tenant
    assert move_in is not None
    move_in(other_tenant(worker.backends[0], 2))
    [peer] = [one for one in worker.dialled() if one.frames()]
    peer.answer("R")
    assert client.frames() == ["R"]
    serve(worker, client, 3)
    worker.pass_time(SWEPT)
    assert worker.times(POOLS, P_REPLY_TIMES).count == 6


def test_where_many_tenants_have_misbehaved_no_new_one_is_trusted(start: Start) -> None:
    """Their names are not kept without end."""
    worker = begin(start)
    worker.connections.most_distrusted = 2
    move_in = worker.connections.elector.on_tenant
    assert move_in is not None
    for number in range(3):
        move_in(other_tenant(worker.backends[0], 1 + number))
        double(worker)
    move_in(worker.backends[0])
    earn(worker)
    assert resting(worker) >= RESTING


@pytest.mark.parametrize("act", ["double", "late", "late, others since"])
def test_a_second_reply_is_found_after_5000_good_ones_while_its_connection_rests(
    start: Start, act: str
) -> None:
    """No client gets it: TRUSTED_RESTING connections still rest before one is used again."""
    worker = begin(start)
    worker.connections.trusted = TRUSTED
    first, second = worker.client(), worker.client()
    serve(worker, first, 5000)
    worker.pass_time(SWEPT)
    assert resting(worker) == TRUSTED_RESTING
    first.ask("a")
    [peer] = [one for one in worker.dialled() if one.frames()]
    if act == "double":
        peer.answer("A", "A")
    else:
        peer.answer("A")
        if act != "late":
            serve(worker, second, TRUSTED_RESTING - 1)
        peer.answer("A")
    assert (first.frames(), second.frames()) == (["A"], [])
    assert len(misbehaved(worker)) == 1
    serve(worker, second, RESTING)
    assert first.frames() == []
