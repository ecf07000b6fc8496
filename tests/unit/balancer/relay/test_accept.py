"""From accepted clients to sessions: counts, the limit over all workers, routes. Rests are the acceptor's own tests."""

import errno
import os
import socket
from ipaddress import ip_network
from typing import Any

import pytest

from balancer.edge.route import Route
from balancer.eventloop.acceptor import MAX_ACCEPTS, REST_SECONDS
from balancer.options import Pool
from balancer.pool.board import L_ACCEPTED, L_DENIALS, L_REFUSED, L_SESSIONS
from balancer.relay.accept import LOOK
from balancer.relay.ends import DENIALS
from balancer.shm.layout import ACCEPTING, LOAD
from tests.unit.balancer.pool.boards import OtherProcess
from tests.unit.balancer.relay.simulation import Make, WorkerSimulation, heard, listening


@pytest.fixture
def worker(make: Make) -> WorkerSimulation:
    return make()


def test_accepts_double_while_the_queue_is_full(worker: WorkerSimulation) -> None:
    worker.settle()
    for _ in range(40):
        worker.connect()
    taken = []
    for _ in range(6):
        before = worker.cell(L_ACCEPTED)
        worker.turn()
        taken.append(worker.cell(L_ACCEPTED) - before)
    assert taken == [1, 2, 4, 8, MAX_ACCEPTS, 40 - 31]


def test_only_the_named_queues_are_served(worker: WorkerSimulation) -> None:
    worker.relay.serve([])
    worker.connect()
    worker.settle()
    assert worker.cell(L_ACCEPTED) == worker.process_cell(ACCEPTING) == 0
    worker.relay.serve([0])
    worker.settle()
    assert worker.cell(L_ACCEPTED) == worker.process_cell(ACCEPTING) == 1


def test_queues_are_emptied_before_they_are_left(worker: WorkerSimulation) -> None:
    for _ in range(30):
        worker.connect()
    worker.relay.accept_waiting()
    assert worker.cell(L_ACCEPTED) == worker.process_cell(LOAD) == 30


class FailingSocket(socket.socket):
    """A listening socket whose accept(2) fails as often as `failures` says."""

    failures: list[int]

    def _accept(self) -> tuple[int, object]:
        if self.failures:
            raise OSError(self.failures.pop(), "injected")
        return super()._accept()  # type: ignore[misc, no-any-return]


def test_out_of_something_it_rests_and_the_board_shows_it(make: Make) -> None:
    sock = FailingSocket(fileno=listening().detach())
    sock.failures = [errno.EMFILE]
    worker = make(listening_socket=sock)
    client = worker.connect()
    worker.settle(50)
    assert worker.cell(L_ACCEPTED) == worker.process_cell(ACCEPTING) == 0
    worker.pass_time(REST_SECONDS * 1.1, 0.02)
    assert worker.cell(L_ACCEPTED) == worker.process_cell(ACCEPTING) == 1
    assert heard(client) == "|open"
    assert worker.lines.others == [
        f"accept error=EMFILE sessions=0/{worker.context.budget} then=again in 0.2 s"
    ]


def test_sessions_fill_the_descriptors_there_are(worker: WorkerSimulation) -> None:
    worker.context.budget = 3
    for _ in range(5):
        worker.connect()
    worker.settle(20)
    assert worker.process_cell(LOAD) == 3
    assert worker.process_cell(ACCEPTING) == 0
    worker.sessions[0].close("KD")
    worker.pass_time(REST_SECONDS * 1.2, 0.02)
    assert worker.cell(L_ACCEPTED) == 4
    assert worker.process_cell(LOAD) == 3


def test_pipes_take_room_as_sessions_do(worker: WorkerSimulation) -> None:
    worker.context.budget = 4
    pipe = worker.context.pipes.take()
    assert pipe is not None
    for _ in range(5):
        worker.connect()
    worker.settle(20)
    assert worker.process_cell(LOAD) == 3
    worker.context.pipes.give_back(pipe, 1)
    worker.pass_time(REST_SECONDS * 1.2, 0.02)
    assert worker.process_cell(LOAD) == 4


def test_clients_above_maxconns_are_refused_and_counted(make: Make) -> None:
    worker = make(maxconns=2)
    clients = [worker.connect() for _ in range(5)]
    worker.settle(20)
    assert [heard(client) for client in clients].count("|end") == 3
    assert (worker.cell(L_ACCEPTED), worker.cell(L_REFUSED), worker.ends) == (5, 3, [])
    assert worker.cell(L_SESSIONS) == 2
    assert worker.lines.others[0].endswith(" sessions=2/2 reason=maxconns then=close")


@pytest.fixture
def busy(make: Make) -> tuple[WorkerSimulation, OtherProcess]:
    """A worker whose limit is locked by a process that does not go on."""
    worker = make(maxconns=1, queue_timeout=2.0)
    other = OtherProcess(worker.board)
    other.lock(worker.board.listener_at(0) + L_SESSIONS)
    return worker, other


def test_clients_wait_until_it_can_be_told_whether_they_have_a_place(
    busy: tuple[WorkerSimulation, OtherProcess],
) -> None:
    worker, other = busy
    clients = [worker.connect() for _ in range(5)]
    worker.settle(20)
    worker.pass_time(1.0, LOOK)
    assert [heard(client) for client in clients] == ["|open"] * 5
    assert worker.cell(L_REFUSED) == worker.cell(L_SESSIONS) == 0
    assert worker.relay.undecided == worker.cell(L_ACCEPTED) < 5  # the others are left in the kernel's queue
    assert worker.lines.others == ["accept error=limit-busy then=again in 0.02 s"]
    other.leave()
    worker.pass_time(0.2, LOOK)
    assert [heard(client) for client in clients] == ["|open"] + ["|end"] * 4
    assert (worker.cell(L_ACCEPTED), worker.cell(L_REFUSED), worker.ends) == (5, 4, [])
    assert worker.lines.others[-1].endswith(" sessions=1/1 reason=maxconns then=close")
    assert worker.relay.undecided == 0


def test_a_client_that_leaves_meanwhile_is_a_session_that_ends(
    busy: tuple[WorkerSimulation, OtherProcess],
) -> None:
    worker, other = busy
    worker.connect().close()
    worker.settle()
    other.leave()
    worker.pass_time(0.2, LOOK)
    worker.accept()
    assert worker.cell(L_ACCEPTED) == 1 and worker.cell(L_REFUSED) == 0


def test_who_has_waited_for_queue_timeout_is_refused_and_the_log_says_why(
    busy: tuple[WorkerSimulation, OtherProcess],
) -> None:
    worker, _ = busy
    client = worker.connect()
    worker.settle()
    worker.pass_time(2.1, LOOK)
    assert heard(client) == "|end"
    assert worker.lines.others[-1].endswith(" waited=2.0s reason=limit-busy then=close")
    assert (worker.cell(L_ACCEPTED), worker.cell(L_REFUSED), worker.ends) == (1, 1, [])
    assert worker.acceptor.is_accepting


def test_a_worker_that_ends_closes_those_that_still_wait(
    busy: tuple[WorkerSimulation, OtherProcess],
) -> None:
    worker, _ = busy
    client = worker.connect()
    worker.settle()
    worker.relay.refuse_undecided("stopped")
    assert heard(client) == "|end"
    assert worker.relay.undecided == 0 and worker.cell(L_REFUSED) == 1


def test_with_overflow_queue_a_lock_that_does_not_tell_leaves_them_to_the_kernel(make: Make) -> None:
    worker = make(maxconns=1, overflow="queue")
    other = OtherProcess(worker.board)
    other.lock(worker.board.listener_at(0) + L_SESSIONS)
    worker.connect()
    worker.settle(20)
    worker.pass_time(1.0, LOOK)
    assert worker.cell(L_ACCEPTED) == 0
    assert worker.lines.others == ["accept error=limit-busy then=again in 0.02 s"]
    other.leave()
    worker.pass_time(0.1, LOOK)
    assert worker.cell(L_ACCEPTED) == worker.cell(L_SESSIONS) == 1


def test_far_below_the_limit_a_lock_that_is_held_is_not_asked_for(make: Make) -> None:
    worker = make(maxconns=3000)
    OtherProcess(worker.board).lock(worker.board.listener_at(0) + L_SESSIONS)
    clients = [worker.connect() for _ in range(40)]
    worker.settle(40)
    assert worker.cell(L_SESSIONS) == 40 and {heard(client) for client in clients} == {"|open"}


def test_with_overflow_queue_the_kernel_keeps_them(make: Make) -> None:
    worker = make(maxconns=2, overflow="queue")
    clients = [worker.connect() for _ in range(3)]
    worker.settle(20)
    assert worker.cell(L_ACCEPTED) == worker.cell(L_SESSIONS) == 2
    assert heard(clients[2]) == "|open"
    worker.pass_time(1.0, LOOK)
    assert worker.cell(L_ACCEPTED) == 2
    worker.sessions[0].close("KD")
    worker.settle()
    assert worker.cell(L_ACCEPTED) == 3, "a place of our own is taken again at once"
    assert worker.cell(L_SESSIONS) == 2


def test_a_removed_address_is_not_asked_again(worker: WorkerSimulation) -> None:
    """A reload has shut the socket down: watched level-triggered, it would be reported in every turn."""
    spare = os.dup(worker.listening.fileno())
    worker.listening.shutdown(0)
    worker.settle()
    assert not worker.acceptor.is_accepting
    assert worker.listening.fileno() == -1
    turns = worker.loop.turns
    worker.settle(3)
    assert worker.loop.turns == turns + 3
    os.close(spare)


ROUTES = (Route("near", ip_network("127.0.0.2/32")), Route("local", ip_network("127.0.0.0/30")))


def routed(make: Make, routes: tuple[Route, ...], **options: Any) -> WorkerSimulation:
    """Three pools of one backend each: near, local, main."""
    return make(backends=3, pools=("near", "local", "main"), routes=routes, **options)


def test_the_first_route_that_holds_the_address_decides(make: Make) -> None:
    worker = routed(make, (*ROUTES, Route("main")))
    for source, server in (("127.0.0.2", 0), ("127.0.0.1", 1), ("127.0.0.9", 2)):
        client = worker.connect(source)
        client.send(source.encode())
        worker.settle()
        assert heard(worker.accept(server)) == f"{source}|open"
    assert len(worker.sessions) == worker.cell(L_SESSIONS) == 3


@pytest.mark.parametrize("limit", [{}, {"maxconns": 5}, {"maxconns": 5, "overflow": "queue"}])
def test_a_client_without_route_is_refused_and_takes_no_place(make: Make, limit: dict[str, Any]) -> None:
    worker = routed(make, ROUTES, **limit)
    client = worker.connect("127.0.0.9")
    worker.settle()
    assert heard(client) == "|end"
    assert (worker.cell(L_ACCEPTED), worker.cell(L_REFUSED), worker.cell(L_SESSIONS)) == (1, 1, 0)
    assert worker.ends == []
    assert worker.lines.others[0].endswith(" reason=no-route then=close")
    assert worker.cell(L_DENIALS + DENIALS.index("no-route")) == 1


def test_queued_clients_of_one_pool_do_not_wait_for_the_other(make: Make) -> None:
    """Both pools are full; a freed place goes to a client of its own pool, although the other pool's came first."""
    worker = routed(make, (*ROUTES, Route("main")), upstream="maxconn=1")
    first = {source: worker.connect(source) for source in ("127.0.0.1", "127.0.0.2")}
    worker.settle()
    waiting = []
    for source in ("127.0.0.1", "127.0.0.2"):
        waiting.append(worker.connect(source))
        waiting[-1].send(source.encode())
        worker.pass_time(0.01, 0.01)
    first["127.0.0.2"].close()
    worker.accept(0).close()
    worker.settle()
    assert heard(worker.accept(0)) == "127.0.0.2|open"
    worker.accept(1)
    with pytest.raises(BlockingIOError):
        worker.accept(1)


def test_pools_with_other_connect_timeouts_keep_their_own(make: Make) -> None:
    """The order of dials is the order of deadlines in one pool only."""
    pools = (
        Pool("near", (), connect_timeout=3.0, retries=0),
        Pool("main", (), connect_timeout=1.0, retries=0),
    )
    worker = make(backends=2, pools=pools, routes=(ROUTES[0], Route("main")), clogged=True)
    slow, quick = worker.connect("127.0.0.2"), worker.connect("127.0.0.1")
    worker.settle()
    worker.pass_time(1.5, 0.1)
    assert (heard(slow), heard(quick)) == ("|open", "|end")
    worker.pass_time(2.0, 0.1)
    assert heard(slow) == "|end"
    assert [line.split(" pool=")[1].split()[0] for line in worker.lines.sessions if " pool=" in line] == [
        "near"
    ]
