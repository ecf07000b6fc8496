"""Elections are recorded between two looks only, with the session that dialled, whatever made it dial."""

from collections.abc import Iterator

import pytest

from balancer.console.explain_session import NoRecord, explain_session
from balancer.pool.board import ADMIN_DRAIN
from balancer.relay.session import Session
from balancer.relay.session_line import session_id
from tests.unit.balancer.relay.simulation import Make, WorkerSimulation

PLAIN = Session.dial


@pytest.fixture
def worker(make: Make) -> Iterator[WorkerSimulation]:
    worker = make(backends=3)
    yield worker
    record(worker, 0.0)
    assert Session.dial is PLAIN


def record(worker: WorkerSimulation, seconds: float) -> None:
    worker.board.elections.until_ms = int((worker.time + seconds) * 1000) if seconds else 0
    worker.relay.recorder.look(worker.time)


def newest(worker: WorkerSimulation) -> Session:
    return list(worker.context.sessions)[-1]


def explained(worker: WorkerSimulation, session: Session) -> list[dict[str, object]]:
    found = explain_session(worker.board, {"main": worker.pool}, session_id(session), worker.time, 1e9)
    elections: list[dict[str, object]] = found["elections"]
    return elections


def test_a_session_of_the_time_is_recorded_and_none_before_or_after(worker: WorkerSimulation) -> None:
    worker.board.set_admin_state(worker.backends[1].index, ADMIN_DRAIN)
    sessions = []
    for seconds in (0.0, 5.0, 0.0):
        record(worker, seconds)
        worker.connect()
        worker.settle()
        sessions.append(newest(worker))
    before, session, after = sessions
    [found] = explained(worker, session)
    assert session.backend is not None and found["elected"] == session.backend.name
    verdicts = {one["name"]: one["verdict"] for one in found["backends"]}  # type: ignore[attr-defined]
    assert sorted(verdicts.values()) == ["drain", "elected", "not its turn"]
    assert verdicts[worker.backends[1].name] == "drain"
    for other in (before, after):
        with pytest.raises(NoRecord, match="balancerctl record 5m"):
            explained(worker, other)


def test_a_recording_ends_by_itself(worker: WorkerSimulation) -> None:
    record(worker, 5.0)
    assert worker.relay.recorder.is_on
    worker.relay.recorder.look(worker.time + 5.1)
    assert not worker.relay.recorder.is_on and Session.dial is PLAIN


def test_each_retry_is_an_election_of_the_session(worker: WorkerSimulation) -> None:
    worker.servers[0].close()
    worker.servers[1].close()
    record(worker, 5.0)
    for _ in range(3):
        worker.connect()
    worker.settle()
    tried = max((explained(worker, one) for one in worker.context.sessions), key=len)[-1]
    assert "tried before" in [one["verdict"] for one in tried["backends"]]  # type: ignore[attr-defined]


def test_a_session_that_waited_is_recorded_when_it_gets_its_place(make: Make) -> None:
    worker = make(upstream="maxconn=1")
    record(worker, 50.0)
    first, _ = worker.connect(), worker.connect()
    worker.settle()
    waiting = newest(worker)
    assert [one["elected"] for one in explained(worker, waiting)] == [None]
    worker.accept().close()
    first.close()
    worker.settle()
    assert explained(worker, waiting)[-1]["elected"] == worker.backends[0].name
    record(worker, 0.0)
    assert Session.dial is PLAIN


def test_an_id_that_is_none_is_a_sentence(worker: WorkerSimulation) -> None:
    with pytest.raises(NoRecord, match="'x' is no ID of a session"):
        explain_session(worker.board, {}, "x", 0.0, 0.0)
