"""Whether a pool serves, and why not: over every combination of what can keep a backend from serving."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations_with_replacement

import pytest

from balancer.edge.route import Route
from balancer.options import Listener, Options, Pool, ProcessOptions
from balancer.pool.backend import Backend, parse_upstream
from balancer.pool.board import (
    ADMIN_DRAIN,
    ADMIN_MAINT,
    AGENT_DOWN,
    AGENT_OUT,
    B_SESSIONS,
    DOWN,
    P_QUEUED,
    UP,
    W_ADDRESSES,
    W_AGENT,
    W_VERDICT,
    Board,
)
from balancer.pool.election import Elector
from balancer.pool.serving import (
    FULL,
    Serving,
    availability,
    queue_limit,
    serving,
    serving_by_pool,
    state_of,
    whole,
)
from balancer.pool.targets import NameAddresses
from balancer.pool.verdicts import VerdictWriter
from balancer.shm.layout import DRAINING, FIRST_LEASE, READY, ROLE, STATE
from tests.unit.balancer.pool.boards import make_board

WORKER, OTHER_WORKER, PROBER = FIRST_LEASE, FIRST_LEASE + 1, FIRST_LEASE + 2


class PoolSimulation:
    """A pool on a board, and what happens to its backends."""

    def __init__(self, *texts: str, **options: object) -> None:
        self.backends = tuple(replace(parse_upstream(text), index=7 - i) for i, text in enumerate(texts))
        self.board = make_board(live=3)
        for role, row in ((0, WORKER), (0, OTHER_WORKER), (1, PROBER)):
            cells = self.board.counts.row(row)
            cells[ROLE], cells[STATE] = role, READY
        self.board.assign_pool(0, [backend.index for backend in self.backends])
        self.pool = Pool("main", self.backends, index=0, **options)  # type: ignore[arg-type]

    def put(self, place: int, state: str) -> None:
        """Bring a backend into a state."""
        index = self.backends[place].index
        match state:
            case "down" | "up":
                self.board.write_verdict(index, [(W_VERDICT, DOWN if state == "down" else UP)])
            case "drain" | "maint":
                self.board.set_admin_state(index, ADMIN_DRAIN if state == "drain" else ADMIN_MAINT)
            case "weight-0":
                self.board.set_weight(index, 0)
            case "agent":
                self.board.write_verdict(index, [(W_AGENT, AGENT_OUT)])
            case "unresolved":
                self.board.write_verdict(index, [(W_ADDRESSES, 0)])

    def sessions(self, place: int, count: int, row: int = WORKER) -> None:
        self.board.counts.row(row)[Board.backend_at(self.backends[place].index) + B_SESSIONS] = count

    def queued(self, count: int, row: int) -> None:
        self.board.counts.row(row)[Board.pool_at(0) + P_QUEUED] = count


STATES = ("down", "unresolved", "agent", "weight-0", "drain", "maint")
SOME = ("down", "not resolved", "taken out by their agents", "with weight 0", "drained", "in maintenance")
EVERY = {
    "down": "every backend is down",
    "unresolved": "names not resolved yet",
    "agent": "every backend is taken out by its agent",
    "weight-0": "every backend has weight 0",
    "drain": "every backend is drained by an operator",
    "maint": "every backend is in maintenance by an operator",
}


def wording(states: Sequence[str]) -> str:
    if len(set(states)) == 1:
        return EVERY[states[0]]
    counts = [(states.count(state), some) for state, some in zip(STATES, SOME, strict=True)]
    return ", ".join(f"{count} {some}" for count, some in counts if count)


@pytest.mark.parametrize("states", list(combinations_with_replacement((*STATES, "up"), 3)))
def test_a_pool_serves_while_one_backend_is_up_and_else_says_why_not(states: tuple[str, ...]) -> None:
    pool = PoolSimulation("a:80", "b:80", "c:80")
    for place, state in enumerate(states):
        writer = VerdictWriter(pool.board, PROBER)
        writer.restore(pool.backends[place], 0.0)
        writer.write_addresses(pool.backends[place].index, NameAddresses(("10.0.0.1",)))
        pool.put(place, state)
    assert [state_of(pool.board, backend) for backend in pool.backends] == list(states)
    up = states.count("up")
    expected = Serving(up, 3, up > 0, "" if up else wording(states))
    assert availability(pool.board, pool.pool) == serving(pool.board, pool.pool) == expected
    elector = Elector(pool.board, pool.pool, WORKER)  # the same answer
    assert (elector.elect("") is not None) == expected.is_serving


def test_an_operator_has_the_first_word() -> None:
    pool = PoolSimulation("a:80")
    for state in ("unresolved", "down", "weight-0", "drain"):
        pool.put(0, state)
        if state != "down":  # a name without address is down too
            assert state_of(pool.board, pool.backends[0]) == state


def test_operator_agent_and_check_are_layers_none_of_which_lifts_another() -> None:
    pool = PoolSimulation("10.0.0.1:80")
    index = pool.backends[0].index
    pool.put(0, "down")
    pool.board.write_verdict(index, [(W_AGENT, 0)])
    assert state_of(pool.board, pool.backends[0]) == "down", "an agent's up does not lift a failed check"
    pool.put(0, "up")
    pool.board.write_verdict(index, [(W_AGENT, AGENT_DOWN)])
    assert state_of(pool.board, pool.backends[0]) == "down"
    pool.put(0, "maint")
    assert state_of(pool.board, pool.backends[0]) == "maint"


def test_in_panic_a_pool_serves_although_all_are_down() -> None:
    pool = PoolSimulation("10.0.0.1:80", "10.0.0.2:80", panic=30)
    pool.put(0, "down")
    pool.put(1, "down")
    assert serving(pool.board, pool.pool) == (0, 2, True, "")
    assert Elector(pool.board, pool.pool, WORKER).elect("") is not None
    pool.put(0, "drain")
    pool.put(1, "drain")
    assert not serving(pool.board, pool.pool).is_serving


def test_a_backend_that_was_not_checked_yet_is_up() -> None:
    pool = PoolSimulation("10.0.0.1:80")
    assert serving(pool.board, pool.pool) == (1, 1, True, "")


WAITS = {"queue_timeout": 5.0, "max_queue": 2}
WAITS_NOT = {"queue_timeout": 0.0, "max_queue": 2}


@pytest.mark.parametrize(
    ("texts", "sessions", "options", "is_serving"),
    [
        (("1.1.1.1:1 maxconn=2", "1.1.1.2:1 maxconn=1"), (2, 1), WAITS_NOT, False),
        (("1.1.1.1:1 maxconn=2", "1.1.1.2:1 maxconn=1"), (1, 1), WAITS_NOT, True),
        (("1.1.1.1:1 maxconn=2", "1.1.1.2:1 maxconn=1"), (2, 1), WAITS, True),
        (("1.1.1.1:1 maxconn=2", "1.1.1.2:1 maxconn=1"), (2, 1), {"queue_timeout": 5.0, "max_queue": 0}, False),
        (("1.1.1.1:1 maxconn=2", "1.1.1.2:1"), (2, 9), WAITS_NOT, True),
        (("1.1.1.1:1 maxconn=2", "1.1.1.2:1 backup"), (2, 0), WAITS_NOT, False),  # backups do not help the full
        (("1.1.1.1:1 maxconn=2 backup", "1.1.1.2:1 backup"), (2, 0), WAITS_NOT, True),
    ],
)  # fmt: skip
def test_full_without_a_queue_is_not_serving(
    texts: tuple[str, ...], sessions: tuple[int, ...], options: dict[str, object], is_serving: bool
) -> None:
    pool = PoolSimulation(*texts, **options)
    for place, count in enumerate(sessions):
        pool.sessions(place, count)
    assert serving(pool.board, pool.pool) == (2, 2, is_serving, "" if is_serving else FULL)
    assert availability(pool.board, pool.pool).is_serving  # the log does not say it at each session
    elector = Elector(pool.board, pool.pool, OTHER_WORKER)
    can_be_served = elector.elect("") is not None or bool(options["queue_timeout"] and options["max_queue"])
    assert can_be_served == is_serving


def test_a_backend_that_is_down_is_no_place() -> None:
    pool = PoolSimulation("1.1.1.1:1 maxconn=1", "1.1.1.2:1", **WAITS_NOT)
    pool.sessions(0, 1)
    pool.put(1, "down")
    assert serving(pool.board, pool.pool) == (1, 2, False, FULL)


def test_a_queue_that_is_full_in_every_worker_is_no_queue() -> None:
    pool = PoolSimulation("1.1.1.1:1 maxconn=1", **WAITS)
    pool.sessions(0, 1)
    pool.queued(2, WORKER)
    assert serving(pool.board, pool.pool).is_serving  # the other worker's has room
    pool.queued(2, OTHER_WORKER)
    assert serving(pool.board, pool.pool) == (1, 1, False, FULL)


def test_the_queue_of_a_worker_that_drains_is_no_queue() -> None:
    pool = PoolSimulation("1.1.1.1:1 maxconn=1", **WAITS)
    pool.sessions(0, 1)
    pool.queued(2, WORKER)
    pool.board.counts.row(OTHER_WORKER)[STATE] = DRAINING
    assert serving(pool.board, pool.pool) == (1, 1, False, FULL)


def test_the_queue_limit_of_a_pool_is_that_of_all_workers_that_accept() -> None:
    """What waits is summed over the workers: beside the limit of one, half a queue would look full."""
    simulation = PoolSimulation("10.0.0.1:1 maxconn=1", max_queue=10)
    assert queue_limit(simulation.board, simulation.pool) == 20
    simulation.board.counts.row(OTHER_WORKER)[STATE] = DRAINING
    assert queue_limit(simulation.board, simulation.pool) == 10
    simulation.board.counts.row(WORKER)[STATE] = DRAINING
    assert queue_limit(simulation.board, simulation.pool) == 20, "a reload has just begun"


def test_several_pools_serve_together_while_one_does_and_name_those_that_do_not() -> None:
    good, bad = Serving(2, 3, True, ""), Serving(0, 2, False, "every backend is down")
    assert whole({"main": good}) == good and whole({"main": bad}) == bad
    assert whole({"web": good, "api": bad}) == (2, 5, True, "pool api: every backend is down")
    reason = "pool web: every backend is down; pool api: every backend is down"
    assert whole({"web": bad, "api": bad}) == (0, 4, False, reason)


def test_pools_that_no_listener_leads_to_do_not_count() -> None:
    board = make_board(pools=3)
    pools = tuple(
        Pool(name, (Backend("x", parse_upstream("1.1.1.1:1").address, index=place, pool=name),), index=place)
        for place, name in enumerate(("web", "api", "spare"))
    )
    listeners = (Listener("in", routes=(Route("api"), Route("web"))), Listener("out", routes=(Route("web"),)))
    options = Options(ProcessOptions(), listeners, pools)
    assert list(serving_by_pool(board, options)) == ["web", "api"]
