"""Which clients and sessions leave a record, and that a crowd of them leaves few."""

from typing import Any

import pytest

from balancer.console.failures import describe_failures
from balancer.relay import ends
from balancer.relay.failures import NO_FAILURES
from tests.unit.balancer.relay.simulation import Make, WorkerSimulation

CALENDAR = 1_800_000_000.0


def records(worker: WorkerSimulation) -> list[dict[str, Any]]:
    return describe_failures(worker.board, worker.loop.now, CALENDAR)


def test_a_session_that_reached_no_backend(make: Make) -> None:
    worker = make(retries=0)
    worker.servers[0].close()
    client = worker.connect()
    worker.settle()
    host, port = client.getsockname()
    worker.time += 3.0
    worker.settle()
    [found] = records(worker)
    [line] = worker.lines.sessions
    assert found.pop("id") in line
    assert found == {
        "at": "2027-01-15T07:59:57.000Z", "age_s": 3.0, "kind": "session", "end": "SC", "reason": "ECONNREFUSED",
        "what": "no backend could be reached", "client": f"{host}:{port}", "listener": "main", "pool": "main",
        "backend": worker.backends[0].name, "omitted": 0,
    }  # fmt: skip


def test_a_client_that_was_refused_at_the_accept(make: Make) -> None:
    worker = make(maxconns=1)
    clients = [worker.connect() for _ in range(2)]
    worker.settle(20)
    [found] = records(worker)
    assert (found["kind"], found["reason"], found["sessions"], found["backend"]) == (
        "refuse",
        "maxconns",
        "1/1",
        None,
    )
    assert found["client"] in [f"127.0.0.1:{client.getsockname()[1]}" for client in clients]


def test_what_clients_and_operators_end_is_no_failure(make: Make) -> None:
    worker = make()
    client = worker.connect()
    worker.settle()
    backend = worker.accept()
    client.close()
    worker.settle()
    backend.close()
    worker.settle()
    worker.connect()
    worker.settle()
    worker.accept()
    for session in list(worker.context.sessions):
        session.close(ends.KILLED, "operator")
    worker.settle()
    assert worker.ends == ["--", "KD operator"] and records(worker) == []
    assert not worker.board.failures.heads.tolist()[2 * worker.context.row], "nothing was written for them"


@pytest.mark.parametrize("end", [end for end in ends.ORDER if end != ends.CLEAN])
def test_every_other_end_is_one(make: Make, end: str) -> None:
    worker = make()
    worker.connect()
    worker.settle()
    worker.accept()
    [session] = worker.context.sessions
    session.close(end, 'why="x"')
    worker.settle()
    assert [(one["end"], one["reason"]) for one in records(worker)] == (
        [] if end in NO_FAILURES else [(end, 'why="x"')]
    )


def test_a_crowd_leaves_a_few_records_a_second_and_a_count(make: Make) -> None:
    worker = make(maxconns=1)
    clients = [worker.connect() for _ in range(41)]
    worker.settle(60)
    assert len(records(worker)) == 5
    worker.pass_time(1.1)
    assert [one["omitted"] for one in records(worker)] == [0, 0, 0, 0, 0, 34] and len(clients) == 41
