"""Sessions as the console sees them: filters, states, and slices that leave the worker its turns."""

import itertools
import json
import shlex
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.console.session_query import filter_of, is_whole, question_of, sessions_answer
from balancer.console.session_server import KILL_SLICE, SLICE, SessionFilter, SessionServer, describe_session
from balancer.console.views import sessions_text
from balancer.relay import ends
from balancer.relay.session_line import session_id
from tests.unit.balancer.relay.framed.framed_simulation import FramedSimulation
from tests.unit.balancer.relay.simulation import OWN, FarElector, Make


def test_a_session_is_described_in_each_of_its_states(make: Make) -> None:
    worker = make(upstream="maxconn=1")
    worker.pair()
    worker.connect()
    worker.settle()
    worker.pass_time(2.5)
    first, second = (describe_session(session, worker.loop.now) for session in worker.sessions)
    assert first["requests"] is None and " relaying " in sessions_text(
        {"sessions": [first], "unanswered": []}
    )
    assert (first["state"], first["pool"], first["age_s"]) == ("relaying", "main", 2.5)
    assert (second["state"], second["backend"]) == ("queued", None)
    assert first["id"] != second["id"] and 0 < first["idle_s"] <= 2.5


def test_a_dial_under_way_and_a_half_closed_session_are_told(make: Make) -> None:
    worker = make()
    client, _ = worker.pair()
    client.shutdown(socket.SHUT_WR)
    worker.settle()
    worker.lane.elector = FarElector(worker.board, worker.pool, OWN)
    worker.connect()
    worker.turn()
    states = [describe_session(session, worker.loop.now)["state"] for session in worker.sessions]
    assert states == ["half-closed", "dialling"]


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        ({}, True),
        ({"pool": "main"}, True),
        ({"pool": "other"}, False),
        ({"backend": "nothing"}, False),
        ({"backend": "main/{name}"}, True),
        ({"backend": "api/{name}"}, False),
        ({"client": "127.0.0.1"}, True),
        ({"client": "127.0.0.0/8"}, True),
        ({"client": "10.0.0.0/8"}, False),
        ({"client": "::1"}, False),
        ({"older": 2.0}, True),
        ({"older": 4.0}, False),
        ({"id": "f-0-0"}, False),
    ],
)
def test_filters(make: Make, wanted: dict[str, Any], matches: bool) -> None:
    worker = make()
    worker.pair()
    worker.pass_time(3.0)
    [session] = worker.sessions
    wanted |= (
        {"backend": wanted["backend"].format(name=worker.backends[0].name)} if "backend" in wanted else {}
    )
    meant = SessionFilter.parse(SessionFilter(**wanted).text())
    assert meant.matches(session, worker.loop.now) == matches
    assert SessionFilter(id=session_id(session), backend=worker.backends[0].name).matches(
        session, worker.loop.now
    )
    session.close(ends.KILLED)
    assert not meant.matches(session, worker.loop.now)


class Answer:
    """Where a worker writes its answer."""

    def __init__(self) -> None:
        self.text = b""
        self.connection: Any = SimpleNamespace(
            write=self.write, flush=lambda: None, close=lambda reason: None
        )

    def write(self, parts: Any) -> None:
        self.text += b"".join(parts)

    def send_bytes(self, answer: bytes) -> None:
        self.text += answer

    def send(self, answer: dict[str, Any]) -> None:
        self.text += json.dumps(answer).encode()


@pytest.fixture
def server(make: Make) -> Callable[[], tuple[Any, Any]]:
    worker = make()
    for _ in range(SLICE + 2):
        worker.pair()
    child: Any = SimpleNamespace(loop=worker.loop, log=worker.lines, master_pid=id(worker))
    return lambda: (worker, SessionServer(child, worker.context))


def test_a_list_takes_a_slice_a_turn(server: Callable[[], tuple[Any, Any]]) -> None:
    worker, found = server()
    answer = Answer()
    found.handle(["sessions", SessionFilter().text()], answer)
    assert answer.text.count(b'"id"') == SLICE
    worker.turn()
    assert answer.text.count(b'"id"') == SLICE + 2
    worker.settle(3)
    whole = json.loads(sessions_answer({1: answer.text, 2: b"\n"}, [7]))
    assert len({one["id"] for one in whole["sessions"]}) == SLICE + 2 and whole["unanswered"] == [7]
    assert whole["former_master"] is None and "upgrade" not in sessions_text(whole)
    whole = json.loads(sessions_answer({1: b"\n"}, [], 4242))
    assert (whole["former_master"], whole["sessions"]) == (4242, [])
    lines = [
        "no session",
        "the master before the upgrade (pid 4242) still has its sessions, which are not listed here",
    ]
    assert sessions_text(whole).split("\n") == lines
    found.server.stop()


def test_a_kill_closes_what_is_meant_and_says_how_many(server: Callable[[], tuple[Any, Any]]) -> None:
    worker, found = server()
    answer = Answer()
    found.handle(["kill", SessionFilter(id=session_id(worker.sessions[-1])).text()], answer)
    worker.settle(4)
    assert json.loads(answer.text) == {"closed": 1} and len(worker.sessions) == SLICE + 1
    assert worker.ends == ["KD operator"]
    found.server.stop()


def test_a_kill_takes_a_slice_a_turn_with_the_ends_of_its_sessions(
    server: Callable[[], tuple[Any, Any]],
) -> None:
    worker, found = server()
    answer = Answer()
    found.handle(["kill", SessionFilter(client="127.0.0.0/8").text()], answer)
    left = [len(worker.sessions)]
    while not answer.text:
        worker.turn()
        left.append(len(worker.sessions))
    worker.settle(2)
    assert json.loads(answer.text) == {"closed": SLICE + 2} and not worker.sessions
    ended = [before - after for before, after in itertools.pairwise(left)]
    assert max(ended[1:]) <= KILL_SLICE and ended[0] <= 2 * KILL_SLICE, "the question came between two turns"
    found.server.stop()


def test_a_defect_in_a_question_costs_no_session(server: Callable[[], tuple[Any, Any]]) -> None:
    worker, found = server()
    worker.sessions[0].peer = 5  # nothing that a client is
    worker.sessions[0].source_ip = "no address"
    found.handle(["sessions", SessionFilter(client="10.0.0.1").text()], Answer())
    assert any("fault" in line for line in worker.lines.others) and len(worker.sessions) == SLICE + 2
    worker.sessions[0].source_ip = "127.0.0.1"
    found.server.stop()


@given(st.text(), st.text())
def test_what_a_worker_is_asked_holds_any_name(backend: str, pool: str) -> None:
    meant = SessionFilter(backend=backend, pool=pool, older=2.5)
    line = question_of("kill", meant)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    verb, text = shlex.split(line.decode())
    assert (verb, SessionFilter.parse(text)) == ("kill", meant)


@pytest.mark.parametrize("answer", [b"", b'{"id":"a"},', b'{"error":"a command has at most 4096 bytes"}\n'])
def test_the_answer_of_a_worker_that_ends_or_fails_is_none(answer: bytes) -> None:
    assert not is_whole(answer)
    assert is_whole(b"\n") and is_whole(b'{"id":"a"},\n') and is_whole(b'{"closed": 1}\n')


def test_conditions_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        filter_of([f"backend={'é' * 1000}"], ValueError)
    assert filter_of(["pool=a", "draining"], ValueError) == (SessionFilter(pool="a"), True)
    for word in ("pool", "pool=", "colour=red", "client=x", "older=x"):
        with pytest.raises(ValueError):
            filter_of([word], ValueError)


def test_a_framed_client_is_with_the_backends_of_its_requests() -> None:
    worker = FramedSimulation(3, order="any")
    try:
        client = worker.client()
        client.ask("a", "b")
        [session] = worker.sessions
        names = [worker.backends[server].name for server in range(3) if worker.under_way(server)]
        assert len(names) == 2
        described = describe_session(session, worker.loop.now)
        assert sorted(described["backend"].split(",")) == sorted(names)
        assert (described["state"], described["requests"]) == ("framed", {"under_way": 2, "done": 0})
        assert " framed 2 now, 0 done " in sessions_text({"sessions": [described], "unanswered": []})
        meant = [
            one.name
            for one in worker.backends
            if SessionFilter(backend=one.name).matches(session, worker.loop.now)
        ]
        assert sorted(meant) == sorted(names)
    finally:
        worker.close()
