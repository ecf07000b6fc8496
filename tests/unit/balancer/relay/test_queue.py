"""The queue for a full backend: first come first served, bounded, and over workers the client that has waited longest."""

from dataclasses import replace

import pytest

from balancer.pool.board import B_SESSIONS, P_OLDEST_WAIT_MS, P_QUEUED, P_QUEUED_TOTAL, P_WAIT_TIMES, POOLS
from balancer.pool.verdicts import VerdictWriter
from balancer.relay.queue import LOOK, UNDECIDED, PendingQueue
from tests.unit.balancer.pool.boards import OtherProcess
from tests.unit.balancer.relay.simulation import SIBLING, Make, WorkerSimulation, heard


@pytest.fixture
def worker(make: Make) -> WorkerSimulation:
    return make(upstream="maxconn=1")


def arrive(worker: WorkerSimulation, count: int) -> list[object]:
    clients = []
    for _ in range(count):
        clients.append(worker.connect())
        worker.time += 0.002  # so that the clients differ by milliseconds
        worker.settle()
    return list(clients)


def waiting(worker: WorkerSimulation) -> int:
    assert worker.pool_cell(P_QUEUED) == len(worker.lane.queue.since)
    return worker.pool_cell(P_QUEUED)


def theirs(worker: WorkerSimulation, pool: int = 0) -> memoryview:
    """What another worker shows of its queue for a pool."""
    return worker.board.counts.row(SIBLING)[worker.board.pool_at(pool) :]


def serve_one(worker: WorkerSimulation) -> str:
    """Have the backend read the request of the client that has the place, and close; return the request."""
    conn = worker.accept()
    request = heard(conn).split("|")[0]
    conn.close()
    worker.settle()
    return request


def test_first_come_first_served(worker: WorkerSimulation) -> None:
    clients = []
    for number in range(4):
        client = worker.connect()
        client.send(f"client {number}".encode())
        clients.append(client)
        worker.settle()
    assert waiting(worker) == 3
    for number in range(4):
        assert worker.backend_cell(B_SESSIONS) == 1
        assert serve_one(worker) == f"client {number}"
        clients[number].close()
        worker.settle()
    assert waiting(worker) == 0
    assert worker.pool_cell(P_OLDEST_WAIT_MS) == 0
    assert worker.pool_cell(P_QUEUED_TOTAL) == 3


class Waiting:
    """What stands in a queue; once it `has_place`, it dials and is appended to `served`."""

    def __init__(self, queue: PendingQueue, served: list["Waiting"]) -> None:
        self.closed, self.waited, self.ended, self.has_place = False, 0.0, "", False
        self._queue, self._served = queue, served

    def dial(self) -> None:
        if self.has_place:
            self._served.append(self)
            self._queue.remove(self)

    def close(self, end: str, reason: str = "") -> None:
        self.closed, self.ended = True, end


def test_who_has_had_a_place_goes_first_and_nobody_waits_longer_for_it(worker: WorkerSimulation) -> None:
    queue, served = worker.lane.queue, list[Waiting]()
    early, late, again = (Waiting(queue, served) for _ in range(3))
    queue.enqueue(early, "full")
    worker.pass_time(6.0)
    queue.enqueue(late, "full")
    queue.enqueue(again, "full", goes_first=True)
    worker.pass_time(4.2)
    assert [one.ended for one in (early, late, again)] == ["sQ", "", ""]
    late.has_place = again.has_place = True
    queue.serve()
    assert served == [again, late]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_those_that_go_first_do_so_in_their_order_and_hide_no_longer_wait(
    worker: WorkerSimulation, count: int
) -> None:
    """A freed place goes to the worker with the longest wait: a shorter one shown would leave those behind it last."""
    queue, served = worker.lane.queue, list[Waiting]()
    plain, *first = (Waiting(queue, served) for _ in range(1 + count))
    queue.enqueue(plain, "full")
    longest = worker.pool_cell(P_OLDEST_WAIT_MS)
    for one in first:
        worker.pass_time(1.0)
        queue.enqueue(one, "full", goes_first=True)
    worker.pass_time(0.5)
    assert worker.pool_cell(P_OLDEST_WAIT_MS) == longest
    theirs(worker)[P_OLDEST_WAIT_MS] = longest + 500
    for one in (plain, *first):
        one.has_place = True
    queue.place_freed()
    assert served == [*first, plain]
    assert worker.pool_cell(P_OLDEST_WAIT_MS) == waiting(worker) == 0


def test_the_queue_is_bounded(worker: WorkerSimulation) -> None:
    clients = arrive(worker, 6)  # one served, four wait (max_queue), one too many
    assert waiting(worker) == 4
    assert worker.ends == ["sQ queue=4/4"]
    assert heard(clients[5]) == "|end"  # type: ignore[arg-type]


def test_a_client_waits_no_longer_than_the_timeout(worker: WorkerSimulation) -> None:
    arrive(worker, 2)
    worker.pass_time(9.9, 0.1)
    assert waiting(worker) == 1
    worker.pass_time(0.3, 0.05)
    assert waiting(worker) == 0
    assert worker.ends == ["sQ queue-timeout"]
    waits = worker.times(POOLS, P_WAIT_TIMES)
    assert waits.count == 1 and waits.seconds == pytest.approx(10.05, abs=0.1)


def test_a_client_that_leaves_the_queue_is_passed_over(worker: WorkerSimulation) -> None:
    first, second, third = (worker.connect() for _ in range(3))
    for client in (first, second, third):
        client.send(b"x")
    worker.settle()
    assert waiting(worker) == 2
    second.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")
    second.close()
    worker.settle()
    assert waiting(worker) == 1
    assert worker.ends == ["CQ"]


def test_a_freed_place_wakes_the_worker_whose_client_has_waited_longest(worker: WorkerSimulation) -> None:
    first, _ = arrive(worker, 2)
    theirs(worker)[P_OLDEST_WAIT_MS] = worker.pool_cell(P_OLDEST_WAIT_MS) - 5
    conn = worker.accept()
    first.close()  # type: ignore[attr-defined]
    conn.close()
    worker.settle()
    assert worker.woken == [SIBLING]
    assert waiting(worker) == 1  # ours was not served out of turn


def test_a_freed_place_is_ours_when_our_client_has_waited_longer(worker: WorkerSimulation) -> None:
    first, _ = arrive(worker, 2)
    theirs(worker)[P_OLDEST_WAIT_MS] = worker.pool_cell(P_OLDEST_WAIT_MS) + 5
    conn = worker.accept()
    first.close()  # type: ignore[attr-defined]
    conn.close()
    worker.settle()
    assert worker.woken == []
    assert waiting(worker) == 0


def test_a_lost_wake_up_costs_a_moment_only(worker: WorkerSimulation) -> None:
    """The worker that was woken has been killed and takes no place, so this one looks by itself."""
    first, _ = arrive(worker, 2)
    theirs(worker)[P_OLDEST_WAIT_MS] = 1
    conn = worker.accept()
    first.close()  # type: ignore[attr-defined]
    conn.close()
    worker.settle()
    assert waiting(worker) == 1
    worker.pass_time(0.1, 0.05)
    assert waiting(worker) == 0
    assert worker.backend_cell(B_SESSIONS) == 1


def test_who_cannot_be_told_whether_there_is_a_place_waits_also_where_no_client_may(make: Make) -> None:
    worker = make(upstream="maxconn=1", queue_timeout=0.0)
    other = OtherProcess(worker.board)
    other.lock(worker.board.backend_at(0) + B_SESSIONS)
    first, second = arrive(worker, 2)
    assert waiting(worker) == 2 and worker.ends == []
    worker.pass_time(3.0)
    assert waiting(worker) == 2 and worker.ends == []
    other.leave()
    worker.pass_time(2 * LOOK, LOOK)
    assert worker.backend_cell(B_SESSIONS) == 1
    assert waiting(worker) == 0
    assert worker.ends == ["sQ queue=0/4"]  # now that can be told: full, and none may wait
    assert heard(first) == "|open"  # type: ignore[arg-type]
    assert heard(second) == "|end"  # type: ignore[arg-type]


@pytest.mark.parametrize(("timeout", "waited"), [(0.0, UNDECIDED), (2.0, 2.0)])
def test_it_does_not_wait_for_ever_and_the_log_says_for_what(
    make: Make, timeout: float, waited: float
) -> None:
    worker = make(upstream="maxconn=1", queue_timeout=timeout)
    OtherProcess(worker.board).lock(worker.board.backend_at(0) + B_SESSIONS)
    arrive(worker, 1)
    worker.pass_time(waited - 0.1)
    assert worker.ends == []
    worker.pass_time(0.2, 0.05)
    assert worker.ends == ["sQ queue-timeout: busy"]
    assert waiting(worker) == 0


def test_a_reload_that_raises_max_queue_holds_for_a_worker_of_before(worker: WorkerSimulation) -> None:
    arrive(worker, 5)  # one served, four wait
    writer = VerdictWriter(worker.board, SIBLING)
    writer.write_limits(replace(worker.pool, max_queue=6))
    arrive(worker, 3)
    assert waiting(worker) == 6 and worker.ends == ["sQ queue=6/6"]


def test_an_operators_limit_wakes_the_next_one_as_a_configured_one_does(make: Make) -> None:
    worker = make()
    worker.board.set_maxconn(worker.backends[0].index, 1)
    clients = [worker.connect() for _ in range(3)]
    worker.settle()
    assert waiting(worker) == 2
    for left in (1, 0):
        serve_one(worker)
        clients.pop(0).close()
        worker.settle()  # within the same moment, before a look of its own
        assert waiting(worker) == left


def test_clients_that_wait_are_served_when_a_reload_raises_maxconn(worker: WorkerSimulation) -> None:
    """The worker is of the generation before; nothing wakes it but its own look."""
    clients = arrive(worker, 4)
    backends = tuple(replace(backend, maxconn=10) for backend in worker.backends)
    VerdictWriter(worker.board, SIBLING).write_limits(replace(worker.pool, backends=backends))
    worker.pass_time(2 * LOOK, LOOK)
    assert waiting(worker) == 0 and worker.backend_cell(B_SESSIONS) == 4
    assert [heard(client) for client in clients] == ["|open"] * 4  # type: ignore[arg-type]
