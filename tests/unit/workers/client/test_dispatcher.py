"""A dispatcher with connections that carry nothing and a clock set by the test: what is dialled, sent and retried."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from workers.client.concurrency import ConcurrencyLimit
from workers.client.dispatcher import (
    DIAL_TIMEOUT,
    PATIENCE,
    PATIENCE_AT_FIRST,
    DispatchCalls,
    Dispatcher,
    DispatchLimits,
)
from workers.client.jobs import ClientJob, JobQueue
from workers.client.pipeline import RequestPipeline
from workers.client.scan import Picture
from workers.wire.frames import frame
from workers.wire.messages import Request, Response, encode_response


class FakeConnection:
    """The part of a ClientConnection that a dispatcher uses; the pipeline is a real one."""

    def __init__(self, serial: int, now: float, next_id: Callable[[], int]) -> None:
        self.serial = serial
        self.pipeline: RequestPipeline[ClientJob] = RequestPipeline(next_id, 10_000)
        self.ids: dict[str, int] = {}  # of the requests sent, by path
        self.dialled_at = now
        self.is_open = self.is_closed = self.is_draining = self.carries_suspect = False
        self.end = ""
        self.on_lost: Callable[[Any, str], None] = lambda connection, reason: None

    def is_idle(self) -> bool:
        return not len(self.pipeline)

    def send(self, job: ClientJob, request: Request) -> None:
        self.pipeline.add(job, request)
        self.ids[job.picture.path] = request.id

    def flush(self) -> None:
        pass

    def reply(self, path: str, status: int) -> list[tuple[ClientJob, Response]]:
        return self.pipeline.receive(frame(encode_response(Response(id=self.ids[path], status=status))))

    def close(self, reason: str) -> None:
        if not self.is_closed:
            self.is_closed, self.is_open, self.end = True, False, reason
            self.on_lost(self, reason)


class Simulation:
    """A dispatcher, its connections, and the jobs that were settled."""

    def __init__(self, jobs: int, low: int = 1, high: int = 0, in_flight: int = 4, retries: int = 3) -> None:
        self.now = 100.0
        self.connections: list[FakeConnection] = []
        self.settled: dict[str, str] = {}
        self.abandoned: dict[str, str] = {}
        self._ids = count(1)
        fresh = iter([ClientJob(Picture(f"{n}", 1, 1, "jpeg"), f"{n}-2x2") for n in range(jobs)])
        calls = DispatchCalls(
            lambda: self.now, self.dial, lambda job, now: Request(job.picture.path), self.settle, self.abandon
        )
        limits = DispatchLimits(in_flight, retries, 10.0)
        self.dispatcher = Dispatcher(JobQueue(fresh, jobs), ConcurrencyLimit(low, high), limits, calls)
        self.dispatcher.dispatch()

    def dial(self, dispatcher: Dispatcher) -> Any:
        connection = FakeConnection(len(self.connections) + 1, self.now, self._ids.__next__)
        connection.on_lost = dispatcher.on_lost
        self.connections.append(connection)
        return connection

    def settle(self, job: ClientJob, response: Response | None, reason: str) -> None:
        assert job.picture.path not in self.settled, "settled twice"
        self.settled[job.picture.path] = reason or str(response.status if response else "nothing")

    def abandon(self, jobs: Iterator[ClientJob], connection: Any, reason: str) -> None:
        for job in jobs:
            assert job.picture.path not in self.settled | self.abandoned, "settled twice"
            self.abandoned[job.picture.path] = reason

    def open(self, *serials: int) -> None:
        for serial in serials:
            connection = self.connections[serial - 1]
            connection.is_open = True
            self.dispatcher.on_open(connection)  # type: ignore[arg-type]

    def carried(self, serial: int) -> list[str]:
        return [job.picture.path for job in self.connections[serial - 1].pipeline.in_flight()]

    def answer(self, serial: int, status: int = 200, names: list[str] | None = None) -> None:
        """Reply to the requests in flight on connection `serial`, or to those of `names`."""
        connection = self.connections[serial - 1]
        answers = []
        for path in self.carried(serial):
            if names is None or path in names:
                answers += connection.reply(path, status)
        self.dispatcher.on_replies(connection, answers)  # type: ignore[arg-type]

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.25
            self.dispatcher.tick()


def test_jobs_go_out_up_to_the_depth() -> None:
    simulation = Simulation(6, in_flight=4)
    assert len(simulation.connections) == 1
    simulation.open(1)
    assert simulation.carried(1) == ["0", "1", "2", "3"]
    simulation.answer(1, names=["1"])
    assert simulation.carried(1) == ["0", "2", "3", "4"]
    simulation.answer(1)
    simulation.answer(1)
    assert simulation.settled == dict.fromkeys("012345", "200")


def test_no_more_connections_than_jobs() -> None:
    assert len(Simulation(3, low=8).connections) == 3
    assert len(Simulation(30, low=8).connections) == 8


@pytest.mark.parametrize("status", [429, 503])
def test_after_a_busy_reply_the_connection_drains_and_the_job_goes_to_a_new_one(status: int) -> None:
    simulation = Simulation(4, in_flight=2)
    simulation.open(1)
    simulation.answer(1, status, names=["0"])
    assert simulation.carried(1) == ["1"], "a draining connection gets no more"
    assert len(simulation.connections) == 1
    simulation.wait(0.25)
    assert len(simulation.connections) == 2
    simulation.open(2)
    simulation.answer(1, names=["1"])
    assert simulation.connections[0].is_closed
    assert simulation.connections[0].end == ""
    assert simulation.carried(2) == ["2", "3"] or "0" in simulation.carried(2)
    simulation.wait(1)
    simulation.answer(2)
    simulation.wait(1)
    simulation.answer(2)
    assert simulation.settled == dict.fromkeys("0123", "200")


def test_only_busy_shrinks_the_number_of_connections() -> None:
    for status, wanted in ((429, 6), (503, 8)):
        simulation = Simulation(100, low=1, high=8)
        simulation.dispatcher.concurrency.current = 8
        simulation.open(1)
        simulation.answer(1, status)
        assert simulation.dispatcher.concurrency.current == wanted


def test_the_jobs_of_a_lost_connection_are_retried_alone() -> None:
    simulation = Simulation(6, in_flight=3)
    simulation.open(1)
    simulation.answer(1, names=["0"])
    simulation.connections[0].close("lost: reset")
    assert len(simulation.connections) == 2, "it had answered, so the next is dialled at once"
    simulation.wait(5)
    simulation.open(2)
    assert simulation.carried(2) == ["1"], "a suspect is sent alone"
    simulation.answer(2)
    assert simulation.carried(2) == ["2"]
    simulation.answer(2)
    simulation.answer(2)
    assert simulation.carried(2) == ["4", "5"]
    simulation.answer(2)
    assert simulation.settled == dict.fromkeys("012345", "200")


def test_retries_end() -> None:
    simulation = Simulation(1, retries=2)
    for serial in (1, 2, 3):
        simulation.open(serial)
        assert simulation.carried(serial) == ["0"]
        simulation.connections[serial - 1].pipeline.answered = 1
        simulation.connections[serial - 1].close("lost: reset")
        simulation.wait(1)
    assert simulation.settled == {"0": "lost: reset"}
    assert len(simulation.connections) == 3


def test_an_old_idle_connection_makes_room_for_a_new_one() -> None:
    """No open connection may carry the jobs that are left: one is closed for a newer one."""
    simulation = Simulation(2, low=2, in_flight=1)
    simulation.open(1, 2)
    simulation.answer(1, names=["0"])
    assert not simulation.connections[0].is_closed
    simulation.connections[1].pipeline.answered = 1
    simulation.dispatcher.concurrency = ConcurrencyLimit(1, 1)
    simulation.connections[1].close("lost: reset")
    simulation.wait(3)
    assert simulation.connections[0].is_closed
    simulation.open(3)
    simulation.answer(3)
    assert simulation.settled == {"0": "200", "1": "200"}


def test_protocol_violations_are_final() -> None:
    simulation = Simulation(6, in_flight=2)
    simulation.open(1)
    simulation.connections[0].pipeline.violation = "repeated ID 7"
    simulation.connections[0].pipeline.answered = 1
    simulation.connections[0].close("protocol: repeated ID 7")
    assert simulation.settled == {"0": "protocol: repeated ID 7", "1": "protocol: repeated ID 7"}


def test_an_address_where_no_resizer_is_gets_no_second_connection() -> None:
    simulation = Simulation(1000, low=2, in_flight=2)
    simulation.open(1, 2)
    for connection in simulation.connections:
        connection.pipeline.receive(b"SSH-2.0-OpenSSH_9.2\r\n")
        connection.close(f"protocol: {connection.pipeline.violation}")
    simulation.wait(5.0)
    assert simulation.settled == {}
    assert len(simulation.abandoned) == 1000
    assert len(simulation.connections) == 2
    assert set(simulation.abandoned.values()) == {
        "protocol: not a frame: begins with 53 53 48 2d 32 2e 30 2d"
    }


def test_a_resizer_that_loses_its_place_costs_what_was_in_flight() -> None:
    simulation = Simulation(9, in_flight=2)
    simulation.open(1)
    simulation.answer(1, names=["0"])
    simulation.connections[0].pipeline.receive(b"x" * 16)
    simulation.connections[0].close("protocol: not a frame")
    assert simulation.abandoned == {}
    assert {name for name, end in simulation.settled.items() if end.startswith("protocol")} == {"1", "2"}


def test_timeouts_count_from_the_place_in_the_queue() -> None:
    simulation = Simulation(2, in_flight=2, retries=0)
    simulation.open(1)
    simulation.wait(9)
    assert not simulation.connections[0].is_closed
    simulation.answer(1, names=["0"])
    simulation.wait(8)
    assert not simulation.connections[0].is_closed, "the second waited for the first"
    simulation.wait(4)
    assert simulation.connections[0].end == "timeout: no reply in 10 s"
    assert simulation.settled["1"].startswith("timeout")


def test_a_dial_that_never_ends_is_ended() -> None:
    simulation = Simulation(1)
    simulation.wait(DIAL_TIMEOUT + 0.5)
    assert simulation.connections[0].end == "cannot connect: timed out"


def fail_dials(simulation: Simulation, seconds: float) -> None:
    end = simulation.now + seconds
    while simulation.now < end:
        for connection in simulation.connections:
            if not connection.is_closed:
                connection.close("cannot connect: refused")
        simulation.wait(0.25)


def test_a_wrong_address_is_given_up_soon() -> None:
    simulation = Simulation(1000, low=4)
    fail_dials(simulation, 20)
    assert len(simulation.connections) <= PATIENCE_AT_FIRST + 4
    assert simulation.settled == {}
    assert len(simulation.abandoned) == 1000
    assert set(simulation.abandoned.values()) == {"cannot connect: refused"}


def test_a_service_that_has_answered_gets_more_patience_and_one_job_at_a_time() -> None:
    simulation = Simulation(1000, low=4)
    simulation.open(1)
    simulation.answer(1)
    assert len(simulation.settled) == 4
    spent = 0
    while len(simulation.settled) + len(simulation.abandoned) < 1000 and simulation.now < 200:
        for connection in simulation.connections:
            if not connection.is_closed:
                if not connection.is_open:
                    simulation.open(connection.serial)
                spent += len(connection.pipeline)
                connection.close("lost: closed by the other side")
        simulation.wait(0.25)
    assert len(simulation.settled) < 12
    assert len(simulation.settled) + len(simulation.abandoned) == 1000
    assert len(simulation.connections) <= 4 + PATIENCE + 2
    assert spent <= 4 * 4 + PATIENCE, "an absent service must not use up the retries of all jobs"


def test_one_reply_ends_the_back_off() -> None:
    simulation = Simulation(100, low=2)
    fail_dials(simulation, 0.3)
    simulation.wait(1)
    simulation.open(simulation.connections[-1].serial)
    assert len(simulation.carried(simulation.connections[-1].serial)) == 1, "one job as a trial"
    simulation.answer(simulation.connections[-1].serial)
    assert len(simulation.carried(simulation.connections[-1].serial)) == 4
    simulation.wait(0.5)
    assert sum(not connection.is_closed for connection in simulation.connections) == 2


def test_stop_settles_nothing() -> None:
    simulation = Simulation(5)
    simulation.open(1)
    simulation.dispatcher.stop()
    assert simulation.settled == {}
    assert simulation.connections[0].is_closed
    assert len(simulation.connections) == 1


def test_what_is_left_at_a_stop_is_every_job_that_was_not_settled() -> None:
    simulation = Simulation(9, in_flight=4)
    simulation.open(1)
    simulation.answer(1, names=["0"])
    simulation.answer(1, 429, names=["1"])
    left = [job.picture.path for job in simulation.dispatcher.unsettled()]
    assert sorted(left) == ["1", "2", "3", "4", "5", "6", "7", "8"]
