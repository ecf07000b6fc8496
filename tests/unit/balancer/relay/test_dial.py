"""From an accepted client to a connected backend: what is counted, retried, and counted as the backend's failure."""

import _socket
import contextlib
import errno
import os
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from balancer.pool.backend import parse_upstream, with_indexes
from balancer.pool.board import (
    B_CONNECT_FAILURES,
    B_SESSIONS,
    B_SESSIONS_TOTAL,
    L_BYTES_IN,
    L_BYTES_OUT,
    L_RETRIES,
    L_SESSIONS,
    P_CONNECT_TIMES,
    P_QUEUED,
    P_QUEUED_TOTAL,
    POOLS,
)
from balancer.pool.election import Elector
from balancer.relay.flow import BULK
from balancer.relay.session import Session
from balancer.shm.histogram import bucket_of
from tests.unit.balancer.relay.simulation import (
    OWN,
    FarElector,
    Make,
    PairedSocket,
    WorkerSimulation,
    fill,
    heard,
    reset,
)


def test_a_refused_dial_goes_to_the_next_backend(make: Make) -> None:
    worker = make(backends=2)
    worker.servers[0].close()
    clients = [worker.connect() for _ in range(4)]
    worker.settle()
    for _ in clients:
        worker.accept(server=1).send(b"hi")
    worker.settle()
    assert [heard(client) for client in clients] == ["hi|open"] * 4
    failed = worker.backend_cell(B_CONNECT_FAILURES, 0)
    assert failed == worker.cell(L_RETRIES) > 0
    assert worker.backend_cell(B_SESSIONS, 0) == 0
    assert worker.backend_cell(B_SESSIONS, 1) == 4


def test_when_all_refuse_the_client_is_closed(make: Make) -> None:
    worker = make(backends=2, retries=5)
    for server in worker.servers:
        server.close()
    client = worker.connect()
    worker.settle()
    assert heard(client) == "|end"
    assert worker.ends == ["SC all backends tried"]
    assert worker.cell(L_SESSIONS) == 0


def test_retries_are_bounded(make: Make) -> None:
    worker = make(backends=4, retries=2)
    for server in worker.servers:
        server.close()
    worker.connect()
    worker.settle()
    assert worker.ends == ["SC ECONNREFUSED"]
    assert worker.cell(L_RETRIES) == 2
    assert sum(worker.backend_cell(B_CONNECT_FAILURES, n) for n in range(4)) == 3


def test_a_dial_counts_before_it_has_an_outcome_and_ends_with_its_timeout(make: Make) -> None:
    worker = make(retries=0, connect_timeout=1.0)
    worker.clog(worker.servers[0])
    client = worker.connect()
    worker.settle()
    assert (worker.backend_cell(B_SESSIONS), worker.backend_cell(B_SESSIONS_TOTAL)) == (1, 1)
    worker.pass_time(0.9, 0.1)
    assert heard(client) == "|open"
    worker.pass_time(0.3, 0.1)
    assert heard(client) == "|end"
    assert worker.ends == ["sC ETIMEDOUT"]
    assert worker.backend_cell(B_SESSIONS) == 0


def test_a_client_that_resets_while_we_dial_is_forgotten(make: Make) -> None:
    worker = make()
    worker.clog(worker.servers[0])
    client = worker.connect()
    worker.settle()
    reset(client)
    worker.settle()
    assert worker.ends == ["CC"]
    assert not worker.lane.dialling
    assert worker.backend_cell(B_SESSIONS) == worker.backend_cell(B_CONNECT_FAILURES) == 0


def test_a_shortage_of_this_machine_is_no_failure_of_the_backend(make: Make) -> None:
    def none_left(*_: int) -> socket.socket:
        raise OSError(errno.EMFILE, "too many")

    worker = make(backends=2, new_socket=none_left)
    client = worker.connect()
    worker.settle()
    assert heard(client) == "|end"
    assert worker.ends == ["RC EMFILE"]
    assert worker.backend_cell(B_CONNECT_FAILURES, 0) == worker.backend_cell(B_CONNECT_FAILURES, 1) == 0
    assert worker.cell(L_RETRIES) == 0


def test_an_address_family_that_this_machine_lacks_costs_one_retry(make: Make) -> None:
    refused = [errno.EAFNOSUPPORT]

    def lacking(*about: int) -> socket.socket:
        if refused:
            raise OSError(refused.pop(), "no such family")
        return socket.socket(*about)

    worker = make(backends=2, new_socket=lacking)
    worker.connect()
    worker.settle()
    assert worker.cell(L_RETRIES) == 1
    assert worker.backend_cell(B_SESSIONS, 0) + worker.backend_cell(B_SESSIONS, 1) == 1
    assert worker.ends == []


def test_a_backend_that_resets_before_any_byte_is_replaced(make: Make) -> None:
    worker = make(backends=2)
    client = worker.connect()
    worker.settle()
    [session] = worker.sessions
    assert session.backend is not None
    first = session.backend.index
    reset(worker.accept(first))
    worker.settle()
    worker.accept(1 - first).send(b"second")
    worker.settle()
    assert heard(client) == "second|open"
    assert worker.backend_cell(B_SESSIONS, first) == 0
    assert session.backend_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_session_that_ends_during_its_second_dial_leaves_no_deadline(make: Make) -> None:
    worker = make(backends=2)
    worker.connect()
    worker.settle()
    [session] = worker.sessions
    assert session.backend is not None
    reset(worker.accept(session.backend.index))
    while session not in worker.lane.dialling:
        worker.turn()
    session.close("CC")
    worker.turn()
    assert not worker.lane.dialling


def test_deferred_dials_wait_for_the_first_byte(make: Make) -> None:
    worker = make(defer_connect=True)
    client = worker.connect()
    worker.settle()
    assert worker.backend_cell(B_SESSIONS_TOTAL) == 0
    client.send(b"ask")
    worker.settle()
    assert heard(worker.accept()) == "ask|open"


def test_without_an_eligible_backend_the_client_is_refused(make: Make) -> None:
    worker = make(backends=0)
    client = worker.connect()
    worker.settle()
    assert heard(client) == "|end"
    assert worker.ends == ["SC no backend is up"]


def spoken(worker: WorkerSimulation, text: bytes = b"ask") -> socket.socket:
    """A client in the queue that has sent its request already."""
    client = worker.connect()
    client.send(text)
    return client


def test_a_request_sent_before_the_accept_reaches_a_near_backend_within_the_turn(make: Make) -> None:
    worker = make()
    client = spoken(worker)
    worker.turn()
    backend = worker.accept()
    assert heard(backend) == "ask|open"
    assert not worker.lane.dialling
    backend.send(b"answer")
    backend.close()
    worker.settle()
    assert heard(client) == "answer|end"
    client.close()
    worker.settle()
    assert worker.ends == ["--"]
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (3, 6)


def test_a_far_backend_is_waited_for(make: Make) -> None:
    worker = make()
    worker.lane.elector = FarElector(worker.board, worker.pool, OWN)
    spoken(worker)
    worker.turn()
    assert len(worker.lane.dialling) == 1
    worker.time += 0.03
    worker.settle()
    assert heard(worker.accept()) == "ask|open"
    connects = worker.times(POOLS, P_CONNECT_TIMES)
    assert connects.count == connects.counts[bucket_of(0.03)] == 1
    assert connects.seconds == pytest.approx(0.03, abs=2e-6)


class UnreadySocket(PairedSocket):
    """Its connect(2) returns before there is a connection, as one to a full queue does."""

    def connect_ex(self, address: object) -> int:
        fill(self)
        return errno.EINPROGRESS


@pytest.mark.parametrize("text", [b"ask", bytes(60_000)])
def test_a_request_read_before_the_connect_is_over_is_written_then(make: Make, text: bytes) -> None:
    """The small request is taken whole, the large one in pieces."""
    sock = UnreadySocket.make()
    worker = make(new_socket=lambda *_: sock)
    client = spoken(worker, text)
    worker.settle()
    [session] = worker.sessions
    assert session.first == text
    assert session in worker.lane.dialling
    got = sock.drain()
    client.send(b"more")
    for _ in range(40):
        worker.settle(3)
        got += sock.drain()
    assert got.lstrip(b"?") == text + b"more"
    worker.pass_time(2.0)
    assert worker.cell(L_BYTES_IN) == len(text) + 4


def test_a_request_read_early_goes_whole_to_the_next_backend(make: Make) -> None:
    worker = make(backends=2)
    worker.servers[0].close()
    clients = [spoken(worker) for _ in range(4)]
    worker.settle()
    assert [heard(worker.accept(server=1)) for _ in clients] == ["ask|open"] * 4
    assert worker.cell(L_RETRIES) > 0


def test_a_request_with_fin_behind_it_is_passed_on_with_its_fin(make: Make) -> None:
    worker = make()
    client = spoken(worker)
    client.shutdown(socket.SHUT_WR)
    worker.settle()
    backend = worker.accept()
    assert heard(backend) == "ask|end"
    backend.send(b"late")
    backend.close()
    worker.settle()
    assert heard(client) == "late|end"


def test_small_writes_are_not_delayed_from_the_second_one_on(make: Make) -> None:
    def is_prompt() -> bool:
        [session] = worker.sessions
        assert session.backend_socket is not None
        return bool(session.backend_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    worker = make()
    client = spoken(worker)
    worker.settle()
    assert not is_prompt()
    client.send(b"again")
    worker.settle()
    assert is_prompt()
    client.close()
    worker.accept().close()
    worker.settle()
    worker.connect()  # silent: no early read finds its bytes
    worker.settle()
    assert is_prompt()


def test_the_splicing_relay_does_not_delay_small_writes_either(make: Make) -> None:
    worker = make()
    spoken(worker)
    worker.settle()
    worker.accept().send(bytes(BULK))
    worker.settle()
    [session] = worker.sessions
    assert session.splicing is not None and session.backend_socket is not None
    assert session.backend_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_early_reads_become_rare_while_they_find_nothing(make: Make) -> None:
    worker = make()
    asked = []
    for number in range(1, 41):
        if not worker.lane.early.skips:
            asked.append(number)
        worker.connect()
        worker.settle()
    assert asked == [1, 2, 4, 8, 16, 32]
    for _ in range(40):
        spoken(worker)
        worker.settle()
    worker.connect()
    worker.settle()
    assert worker.lane.early.skips == 0  # the first that has sent nothing is followed by one that is asked


@pytest.mark.parametrize("options", [{"defer_connect": True}, {"upstream": "maxconn=1"}])
def test_a_fin_that_came_before_the_dial_is_passed_on_after_it(make: Make, options: dict[str, Any]) -> None:
    """The loop has reported it once, while there was no backend."""
    worker = make(**options)
    if "upstream" in options:
        first = spoken(worker)
        worker.settle()
        ahead = worker.accept()
    client = spoken(worker)
    client.shutdown(socket.SHUT_WR)
    worker.settle()
    if "upstream" in options:
        first.close()
        ahead.close()
        worker.pass_time(0.3)
    assert heard(worker.accept()) == "ask|end"


def test_bytes_sent_during_a_dial_that_fails_reach_the_next_backend(make: Make) -> None:
    worker = make(backends=2)
    worker.clog(worker.servers[0])
    clients = [spoken(worker) for _ in range(2)]
    worker.settle()
    for client in clients:
        client.send(b"more")
        client.shutdown(socket.SHUT_WR)
    worker.pass_time(1.5, 0.1)
    assert [heard(worker.accept(server=1)) for _ in clients] == ["askmore|end"] * 2
    assert all(not session.first for session in worker.sessions)


def with_unix_backend(worker: WorkerSimulation, path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(8)
    server.setblocking(False)
    worker.servers.append(server)
    worker.backends = with_indexes([parse_upstream(f"unix:{path}")], {f"unix:{path}": 0})
    worker.lane.elector = Elector(worker.board, replace(worker.pool, backends=worker.backends), OWN)
    return server


@pytest.mark.parametrize("is_unix", [False, True])
def test_a_client_that_reset_before_its_accept_is_closed(make: Make, tmp_path: Path, is_unix: bool) -> None:
    worker = make()
    server = with_unix_backend(worker, tmp_path / "s") if is_unix else worker.servers[0]
    reset(worker.connect())
    worker.settle()
    assert worker.ends == ["CC"]
    assert worker.backend_cell(B_SESSIONS) == 0
    with pytest.raises(BlockingIOError):  # not dialled
        server.accept()


@pytest.mark.parametrize("text", [b"", b"ask"])
def test_a_unix_backend_that_answers_and_hangs_up_has_not_refused(
    make: Make, tmp_path: Path, text: bytes
) -> None:
    worker = make()
    server = with_unix_backend(worker, tmp_path / "s")
    client = worker.connect()
    if text:
        client.send(text)
        worker.lane.early.skips = 1  # no early read
    worker.turn()
    backend, _ = server.accept()
    backend.send(b"banner")
    backend.close()
    worker.settle()
    assert heard(client) == "banner|end"
    assert worker.backend_cell(B_CONNECT_FAILURES) == 0


def test_a_unix_backend_is_reached_within_the_turn(make: Make, tmp_path: Path) -> None:
    worker = make()
    server = with_unix_backend(worker, tmp_path / "s")
    client = spoken(worker)
    worker.turn()
    backend, _ = server.accept()
    with backend:
        backend.setblocking(False)
        assert heard(backend) == "ask|open"
        backend.send(b"answer")
        worker.settle()
        assert heard(client) == "answer|open"


def test_a_unix_backend_with_a_full_accept_queue_is_waited_for(make: Make, tmp_path: Path) -> None:
    """EAGAIN is no failure: the client waits in the queue, and the backend keeps its health."""
    worker = make()
    server = with_unix_backend(worker, tmp_path / "s")
    server.listen(0)
    with contextlib.ExitStack() as crowd:
        while True:
            other = crowd.enter_context(socket.socket(socket.AF_UNIX))
            other.setblocking(False)
            if other.connect_ex(server.getsockname()):
                break
        client = spoken(worker)
        worker.settle()
        assert heard(client) == "|open" and worker.lane.queue.since
        assert worker.backend_cell(B_CONNECT_FAILURES) == worker.backend_cell(B_SESSIONS) == 0
        server.accept()[0].close()
        worker.pass_time(0.05)
        assert worker.backend_cell(B_SESSIONS) == 1 and not worker.lane.queue.since
    assert worker.ends == []


def test_a_backend_towards_which_no_port_is_free_is_passed_by(make: Make) -> None:
    """The ports of a destination are used up: another backend has its own."""

    class Portless(_socket.socket):
        def connect_ex(self, address: Any) -> int:
            return errno.EADDRNOTAVAIL if address[1] == taken else super().connect_ex(address)

    worker = make(backends=2, new_socket=Portless)
    taken = worker.servers[0].getsockname()[1]
    clients = [worker.connect() for _ in range(3)]
    worker.settle()
    for _ in clients:
        worker.accept(server=1).send(b"hi")
    worker.settle()
    assert [heard(client) for client in clients] == ["hi|open"] * 3
    assert worker.backend_cell(B_CONNECT_FAILURES, 0) == worker.backend_cell(B_SESSIONS, 0) == 0
    assert worker.cell(L_RETRIES) == 0


@pytest.mark.parametrize("is_far", [False, True])
def test_what_a_phase_has_read_reaches_the_backend_before_anything_else(make: Make, is_far: bool) -> None:
    """A phase leaves in `first` what it has read and does not use, behind a header of its own."""
    worker = make()
    if is_far:
        worker.lane.elector = FarElector(worker.board, worker.pool, OWN)
    worker.relay.serve([])
    client = spoken(worker, b"more")
    fd, address = worker.listening._accept()  # type: ignore[attr-defined]
    os.set_blocking(fd, False)
    session = Session(worker.lane, fd, address)
    worker.context.sessions[session] = None
    session.first = b"header, first "
    session.begin()
    worker.settle()
    backend = worker.accept()
    assert heard(backend) == "header, first more|open"
    backend.send(b"answer")
    client.shutdown(socket.SHUT_WR)
    worker.settle()
    assert (heard(client), heard(backend)) == ("answer|open", "|end")


def test_a_client_waits_for_a_crowded_backend_no_longer_than_queue_timeout(make: Make) -> None:
    """Each look for a place dials again; the client keeps its place in the queue, and the time it has waited."""

    class Portless(_socket.socket):
        def connect_ex(self, address: Any) -> int:
            return errno.EADDRNOTAVAIL

    worker = make(new_socket=Portless, queue_timeout=2.0)
    clients = [worker.connect() for _ in range(2)]
    worker.settle()
    worker.pass_time(1.8)
    assert [heard(client) for client in clients] == ["|open"] * 2
    assert worker.pool_cell(P_QUEUED) == worker.pool_cell(P_QUEUED_TOTAL) == 2
    worker.pass_time(0.5, 0.05)
    assert worker.ends == ["sQ queue-timeout"] * 2


# -- acknowledgements


def test_the_handshake_with_a_backend_ends_with_the_request(make: Make) -> None:
    worker = make()
    spoken(worker)
    worker.turn()
    [session] = worker.sessions
    assert session.backend_socket is not None
    info = session.backend_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    assert struct.unpack_from("I", info, 136) == (2,)  # tcpi_segs_out: SYN, and the request
    assert heard(worker.accept()) == "ask|open"


@pytest.mark.parametrize("skips", [0, 1])
def test_a_backend_sees_the_connection_of_a_client_that_has_said_nothing_at_once(
    make: Make, skips: int
) -> None:
    """It may have to speak first. Without an acknowledgement of its SYN it would wait for a timer."""
    worker = make()
    worker.lane.early.skips = skips
    client = worker.connect()
    worker.turn()
    worker.accept().send(b"220 hello")
    worker.settle()
    assert heard(client) == "220 hello|open"


@pytest.mark.parametrize("more", [b"", bytes(BULK)])
def test_a_backend_that_waits_for_an_acknowledgement_between_two_writes_gets_it(
    make: Make, more: bytes
) -> None:
    """Nagle's algorithm: the second small write waits for the acknowledgement of the first, 40 ms if that is held back.
    The fast path has the session, or the splicing relay because of a big upload."""
    worker = make()
    client = spoken(worker)
    worker.settle()
    backend = worker.accept()
    client.send(more)
    worker.settle()
    for word in (b"head", b"body"):
        assert not backend.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        backend.send(word)
    worker.settle()
    assert heard(client) == "headbody|open"
