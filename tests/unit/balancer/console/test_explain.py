"""What an election would see: verdicts of each backend, for each policy, without counting anything."""

from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.config.units import parse_address
from balancer.console.entrance import NO_WORKER
from balancer.console.explain import explain
from balancer.console.views import explain_text, info_text
from balancer.edge.route import Route
from balancer.options import HASHES, Listener, Pool
from balancer.pool import board as b
from balancer.pool.backend import Backend
from balancer.pool.election import Elector
from balancer.pool.policies import POLICIES
from balancer.shm import layout as c
from tests.unit.balancer.console import sample_status as sample

NAMES = ("one", "two", "three", "spare")


def pool_of(balance: str) -> Pool:
    backends = tuple(
        Backend(name, parse_address(f"10.0.0.{n}:1"), index=n, weight=2 if name == "three" else 1,
                maxconn=3 if name == "two" else 0, backup=name == "spare")
        for n, name in enumerate(NAMES)
    )  # fmt: skip
    return Pool("main", backends, balance=balance, index=0)


@pytest.fixture
def board() -> b.Board:
    """one has 4 sessions, two 3 of at most 3, three 6 at weight 2."""
    made = b.Board(c.make_shared(b.columns_for(8), rows=8), 8)
    for kind, count in ((b.LISTENERS, 1), (b.POOLS, 1), (b.BACKENDS, 4)):
        made.give_out(kind, range(count), ())
    made.assign_pool(0, range(4))
    made.shared.rows.row(c.MASTER_ROW)[c.MASTER_LIVE_ROWS] = c.FIRST_LEASE + 1
    row = made.shared.rows.row(c.FIRST_LEASE)
    row[c.PID] = 71
    for index, sessions in enumerate((4, 3, 6)):
        row[made.backend_at(index) + b.B_SESSIONS] = sessions
    return made


def verdicts(board: b.Board, balance: str, source: str = "") -> dict[str, str]:
    listener = Listener("web", (), routes=(Route("main"),), index=0)
    before = board.cells.tobytes()
    found = explain(board, listener, {"main": pool_of(balance)}, source, "")
    assert board.cells.tobytes() == before
    assert [one["name"] for one in found["backends"] if one["verdict"] == "elected"] == found["elected"]
    return {one["name"]: one["verdict"] for one in found["backends"]}


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        ("leastconn", {"one": "more loaded", "two": "full", "three": "elected", "spare": "backup"}),
        ("roundrobin", {"one": "elected", "two": "full", "three": "elected", "spare": "backup"}),
        ("p2c", {"one": "elected", "two": "full", "three": "elected", "spare": "backup"}),
    ],
)
def test_each_backend_has_its_verdict(board: b.Board, balance: str, expected: dict[str, str]) -> None:
    assert verdicts(board, balance) == expected


def test_in_framed_mode_requests_are_elected_for(board: b.Board) -> None:
    listener = Listener("web", (), routes=(Route("main"),), index=0)
    pool = replace(pool_of("leastconn"), mode="framed")
    row = board.shared.rows.row(c.FIRST_LEASE)
    row[board.pool_at(0) + b.P_CONNECTIONS_IDLE], row[board.pool_at(0) + b.P_CONNECTIONS_IN_USE] = 13, 7
    found = explain(board, listener, {"main": pool}, "", "")
    assert (found["elects"], found["connections"], found["elected"]) == (
        "request", {"idle": 13, "in_use": 7}, ["three"],
    )  # fmt: skip
    text = explain_text(found)
    assert "pool main, leastconn for each request, 0/1,024 requests queued" in text
    assert "connections to the backends: 7 in use, 13 idle" in text and " REQUESTS " in text
    for index in range(len(NAMES)):
        board.set_maxconn(index, 1)
        row[board.backend_at(index) + b.B_SESSIONS] = 1
    full = explain(board, listener, {"main": pool}, "", "")
    assert (full["elected"], full["reason"].endswith("the request joins the queue")) == ([], True)
    plain = explain(board, listener, {"main": pool_of("leastconn")}, "", "")
    assert (plain["elects"], plain["connections"]) == ("session", None) and " SESSIONS " in explain_text(
        plain
    )
    assert plain["reason"].endswith("the client joins the queue")


def test_by_source_one_is_elected_and_always_the_same(board: b.Board) -> None:
    found = verdicts(board, "source", "192.0.2.7")
    assert list(found.values()).count("elected") == 1
    assert verdicts(board, "source", "192.0.2.7") == found


@pytest.mark.parametrize("balance", list(POLICIES))
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_what_a_worker_elects_is_among_those_that_are_named(balance: str, data: st.DataObject) -> None:
    """Weights, sessions, limits, backups, states and panic by chance: the election of a worker is the measure."""
    backends = tuple(
        Backend(
            f"b{n}", parse_address(f"10.0.0.{data.draw(st.integers(1, 200))}:{n + 1}"), index=n,
            weight=data.draw(st.integers(1, 4)), maxconn=data.draw(st.sampled_from([0, 0, 3])),
            backup=data.draw(st.integers(0, 3)) == 3,
        )
        for n in range(4)
    )  # fmt: skip
    pool = Pool(
        "main",
        backends,
        balance=balance,
        index=0,
        panic=data.draw(st.sampled_from([0, 60])),
        hash_load=data.draw(st.sampled_from([0, 150])) if balance in HASHES else 0,
    )
    made = b.Board(c.make_shared(b.columns_for(8), rows=8), 8)
    for kind, count in ((b.LISTENERS, 1), (b.POOLS, 1), (b.BACKENDS, 4)):
        made.give_out(kind, range(count), ())
    made.assign_pool(0, range(4))
    made.shared.rows.row(c.MASTER_ROW)[c.MASTER_LIVE_ROWS] = c.FIRST_LEASE + 1
    row = made.shared.rows.row(c.FIRST_LEASE)
    row[c.PID] = 71
    for index in range(4):
        row[made.backend_at(index) + b.B_SESSIONS] = data.draw(st.integers(0, 5))
        made.write_verdict(index, [(b.W_VERDICT, data.draw(st.sampled_from([b.UP, b.UP, b.DOWN])))])
        made.set_admin_state(index, data.draw(st.sampled_from([b.ADMIN_READY] * 3 + [b.ADMIN_DRAIN])))
    listener = Listener("web", (), routes=(Route("main"),), index=0)
    found = explain(made, listener, {"main": pool}, "192.0.2.7", "")
    elected = Elector(made, pool, c.FIRST_LEASE + 1).elect("192.0.2.7")
    assert (elected is None) == (not found["elected"])
    if elected is not None:
        assert elected.name in found["elected"]


def test_a_name_without_address_is_not_elected(board: b.Board) -> None:
    pool = Pool("main", (Backend("one", parse_address("nosuch.invalid:1"), index=0),), index=0)
    listener = Listener("web", (), routes=(Route("main"),), index=0)
    found = explain(board, listener, {"main": pool}, "", "")
    assert (found["elected"], found["backends"][0]["verdict"]) == ([], "unresolved")
    assert found["reason"] == "names not resolved yet"


def test_a_hash_without_the_client_is_not_guessed(board: b.Board) -> None:
    for balance in HASHES:
        assert list(verdicts(board, balance).values()).count("elected") == 2


def test_backups_serve_while_no_other_can(board: b.Board) -> None:
    for index in (0, 1):
        board.write_verdict(index, [(b.W_VERDICT, b.DOWN)])
    board.set_admin_state(2, b.ADMIN_DRAIN)
    assert verdicts(board, "leastconn") == {
        "one": "down",
        "two": "down",
        "three": "drain",
        "spare": "elected",
    }


def test_the_first_route_that_matches_is_taken(board: b.Board) -> None:
    routes = (
        Route("reject", ip_network("10.1.0.0/16")),
        Route("main", ip_network("10.0.0.0/8"), "a.example"),
        Route("main", ip_network("10.0.0.0/8")),
    )
    listener, pools = Listener("web", (), routes=routes, index=0), {"main": pool_of("leastconn")}
    for source, name, taken in (
        ("10.1.2.3", "a.example", 0),
        ("10.2.0.1", "a.example", 1),
        ("10.2.0.1", "", 2),
    ):
        found = explain(board, listener, pools, source, name)
        assert [one["is_taken"] for one in found["routes"]].index(True) == taken
        assert (found["pool"] is None) == (taken == 0)
    outside = explain(board, listener, pools, "192.0.2.1", "")
    assert outside["pool"] is None and outside["reason"] == "no route matches: refused"


def test_no_answer_steers_a_terminal() -> None:
    """The whole of each text of `explain` and `info`, whatever stands in the answer."""
    bad = "\x1b[2J\r"
    way = {
        "listener": bad, "source": bad, "sni": bad, "maxconns": [0, 0], "pool": None, "reason": bad,
        "routes": [{"route": bad, "is_taken": False, "matches": False}],
    }  # fmt: skip
    pool = {
        "pool": bad,
        "balance": bad,
        "elects": "session",
        "connections": None,
        "queued": [0, 0],
        "backends": [],
    }
    election = {"at": bad, "pool": bad, "balance": bad, "elected": bad, "left_out": 0, "backends": []}
    info = sample.status(host=bad, reason=bad, config=bad, reload={"text": bad}, processes=[])
    texts = [
        explain_text(way),
        explain_text(way | pool),
        explain_text({"elections": [election]}),
        info_text(info),
    ]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n")) and "\\x1b[2J\\r" in text


@pytest.mark.parametrize("maxconns", [0, 5])
def test_a_client_that_does_not_come_in_is_told(board: b.Board, maxconns: int) -> None:
    board.shared.rows.row(c.FIRST_LEASE)[board.listener_at(0) + b.L_SESSIONS] = 5
    listener = Listener("web", (), maxconns=maxconns, routes=(Route("main"),), index=0)
    found = explain(board, listener, {"main": pool_of("nq")}, "", "")
    assert found.get("full") == ("it is refused" if maxconns else None)
    found = explain(board, listener, {"main": pool_of("nq")}, "", "", NO_WORKER)
    assert explain_text(found).splitlines()[0].endswith(f", no client comes in: {NO_WORKER})")
