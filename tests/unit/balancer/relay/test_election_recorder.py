"""Elections are recorded between two looks only, with the session that dialled, whatever made it dial."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from balancer.console.explain_session import REMOVED, NoRecord, explain_session
from balancer.pool.board import ADMIN_DRAIN
from balancer.pool.election_log import is_sampled
from balancer.relay.election_recorder import key_of
from balancer.relay.session import Session
from balancer.relay.session_line import session_id
from tests.unit.balancer.relay.simulation import Make, WorkerSimulation

PLAIN = Session.dial


@pytest.fixture
def worker(make: Make) -> Iterator[WorkerSimulation]:
    worker = make(backends=3)
    yield worker
    worker.relay.recorder.one_in = 0
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


def is_recorded(worker: WorkerSimulation, session: Session) -> bool:
    try:
        return bool(explained(worker, session))
    except NoRecord:
        return False


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
    assert worker.relay.recorder.every == 1
    worker.relay.recorder.look(worker.time + 5.1)
    assert worker.relay.recorder.every == 0 and Session.dial is PLAIN


def test_one_session_in_n_is_recorded_without_an_operator_and_all_while_one_asks(
    worker: WorkerSimulation,
) -> None:
    worker.relay.recorder.one_in = 4
    for seconds in (0.0, 5.0, 0.0):
        record(worker, seconds)
        before = set(worker.context.sessions)
        for _ in range(40):
            worker.connect()
            worker.settle()
        new = [one for one in worker.context.sessions if one not in before]
        chosen = [one for one in new if seconds or is_sampled(key_of(one), 4)]
        assert [one for one in new if is_recorded(worker, one)] == chosen and chosen
        assert len(new) == 40 and (len(chosen) < 40 or seconds)


def test_a_record_names_no_backend_that_has_the_place_of_another(worker: WorkerSimulation) -> None:
    """A reload gives a backend's block to another, its name another address, or its pool away."""
    record(worker, 5.0)
    worker.connect()
    worker.settle()
    session = newest(worker)
    first, second, third = worker.pool.backends
    assert session.backend is not None
    others = (
        replace(first, name="elsewhere"), replace(second, address=replace(second.address, port=1)), third,
    )  # fmt: skip
    swapped = (replace(second, index=first.index), replace(first, index=second.index), third)
    for backends in (others, swapped):
        pool = replace(worker.pool, backends=backends)
        found = explain_session(worker.board, {"main": pool}, session_id(session), worker.time, 1e9)
        [election] = found["elections"]
        kept = {one.name for one in backends} & {one.name for one in worker.pool.backends}
        kept -= {second.name} if backends is others else set()
        assert {one["name"] for one in election["backends"]} - {REMOVED} == kept
        assert election["elected"] == (session.backend.name if session.backend.name in kept else REMOVED)
    gone = explain_session(
        worker.board, {"other": replace(worker.pool, name="other")}, session_id(session), worker.time, 1e9
    )
    assert gone["elections"][0]["pool"] is None and gone["elections"][0]["elected"] == REMOVED


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
