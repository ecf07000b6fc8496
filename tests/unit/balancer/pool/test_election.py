"""Elections: which backends are eligible, what is counted when, and why none was elected."""

from dataclasses import replace
from functools import partial

import pytest

from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.board import (
    ADMIN_DRAIN,
    ADMIN_MAINT,
    ADMIN_READY,
    AGENT_OUT,
    B_ADDRESS_FAILURES,
    B_CONNECT_FAILURES,
    B_EARLY_ENDS,
    B_SESSIONS,
    B_SESSIONS_ODD,
    B_SESSIONS_TOTAL,
    CHECK_NAMES,
    DOWN,
    UP,
    VERDICTS_VERSION,
    W_ADDRESS,
    W_ADDRESSES,
    W_AGENT,
    W_AGENT_MAXCONN,
    W_AGENT_WEIGHT,
    W_BACKUP,
    W_CHECK,
    W_PORT,
    W_RAMP,
    W_SRV_WEIGHT,
    W_TENANT,
    W_TENANT_KEY,
    W_VERDICT,
    Board,
)
from balancer.pool.election import Elector
from balancer.pool.policies import POLICIES
from balancer.pool.serving import FULL, is_panic, serving
from balancer.pool.targets import NameAddresses, links, pack_addresses
from balancer.pool.verdicts import VerdictWriter
from balancer.shm.layout import FIRST_LEASE, GENERATION
from scripts.relay_costs import BytecodeCounter
from tests.unit.balancer.pool.boards import OtherProcess, make_board, pool_of

OWN, OTHER = FIRST_LEASE, FIRST_LEASE + 1
VERSION = Board.pool_words_at(0) + VERDICTS_VERSION


@pytest.fixture
def board() -> Board:
    made = make_board()
    for row in (OWN, OTHER):
        made.counts.zero(row)
    return made


def pool(*texts: str) -> tuple[Backend, ...]:
    """Backends a, b, c ... with blocks that are not their positions."""
    named = [
        parse_upstream(f"10.0.0.1:{9000 + place} name={'abcdef'[place]} {text}")
        for place, text in enumerate(texts)
    ]
    return with_indexes(named, {backend.name: 6 - place for place, backend in enumerate(named)})


def elector(board: Board, backends: tuple[Backend, ...], policy: str = "leastconn") -> Elector:
    return Elector(board, pool_of(board, backends, policy), OWN)


def names(elect: Elector, count: int = 12) -> set[str]:
    """The names elected, each released at once."""
    chosen = set()
    for _ in range(count):
        backend = elect.elect("10.9.9.9", ())
        if backend is None:
            return chosen | {elect.why}
        elect.release(backend)
        chosen.add(backend.name)
    return chosen


def set_verdict(board: Board, backend: Backend, verdict: int) -> None:
    board.write_verdict(backend.index, [(W_VERDICT, verdict)])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_session_is_counted_in_the_own_row_before_the_dial_and_out_at_release(
    board: Board, policy: str
) -> None:
    backends = pool("", "")
    elect = elector(board, backends, policy)
    chosen = elect.elect("10.9.9.9", ())
    assert chosen is not None
    own, at = board.counts.row(OWN), Board.backend_at(chosen.index)
    assert own[at + B_SESSIONS] == own[at + B_SESSIONS_TOTAL] == 1
    elect.connect_failed(chosen)
    assert own[at + B_SESSIONS] == 1
    elect.release(chosen)
    assert own[at + B_SESSIONS] == 0
    assert own[at + B_SESSIONS_TOTAL] == own[at + B_CONNECT_FAILURES] == 1
    assert not any(board.counts.row(OTHER))


def test_sessions_of_all_workers_count(board: Board) -> None:
    a, b = pool("", "")
    board.shared.rows.row(OTHER)[Board.backend_at(a.index) + B_SESSIONS] = 3
    elect = elector(board, (a, b))
    assert [elect.elect("", ()) for _ in range(3)] == [b, b, b]


def test_before_any_check_every_backend_serves(board: Board) -> None:
    assert names(elector(board, pool("", "", ""))) == {"a", "b", "c"}


def test_a_verdict_takes_effect_at_the_next_election_in_both_directions(board: Board) -> None:
    a, b = pool("", "")
    elect = elector(board, (a, b))
    set_verdict(board, a, DOWN)
    assert names(elect) == {"b"}
    set_verdict(board, b, DOWN)
    assert names(elect) == {"down"}
    set_verdict(board, a, UP)
    assert names(elect) == {"a"}


@pytest.mark.parametrize("state", [ADMIN_DRAIN, ADMIN_MAINT])
def test_an_operator_takes_a_backend_out_and_back(board: Board, state: int) -> None:
    a, b = pool("", "")
    elect = elector(board, (a, b))
    board.set_admin_state(a.index, state)
    assert names(elect) == {"b"}
    board.set_admin_state(a.index, ADMIN_READY)
    assert names(elect) == {"a", "b"}


def test_a_weight_for_now_replaces_the_configured_one_and_zero_means_no_new_sessions(board: Board) -> None:
    a, b = pool("weight=1", "weight=1")
    elect = elector(board, (a, b), "roundrobin")
    board.set_weight(a.index, 3)
    chosen = [elect.elect("", ()) for _ in range(8)]
    assert chosen.count(a) == 6
    board.set_weight(a.index, 0)
    assert names(elect) == {"b"}
    board.set_weight(a.index, None)
    assert names(elect) == {"a", "b"}


def test_a_verdict_that_changes_nothing_does_not_disturb_the_rounds(board: Board) -> None:
    a, b = pool("", "")
    elect = elector(board, (a, b), "roundrobin")
    order = []
    for _ in range(6):
        backend = elect.elect("", ())
        assert backend is not None
        order.append(backend.name)
        set_verdict(board, a, UP)
    assert order.count("a") == 3


def test_backups_serve_only_while_no_other_is_eligible(board: Board) -> None:
    a, b, c = pool("", "backup", "backup")
    elect = elector(board, (a, b, c))
    assert names(elect) == {"a"}
    set_verdict(board, a, DOWN)
    assert names(elect) == {"b", "c"}
    set_verdict(board, a, UP)
    assert names(elect) == {"a"}


def test_tried_ones_are_not_elected_again_and_then_it_is_down(board: Board) -> None:
    a, b = pool("", "")
    elect = elector(board, (a, b))
    assert elect.elect("", {a.index}) == b
    assert elect.elect("", {a.index, b.index}) is None
    assert elect.why == "down"


@pytest.mark.parametrize("policy", POLICIES)
def test_full_ones_are_passed_over_and_all_full_is_told_apart_from_down(board: Board, policy: str) -> None:
    a, b = pool("maxconn=1", "maxconn=2")
    elect = elector(board, (a, b), policy)
    chosen = [elect.elect("10.9.9.9", ()) for _ in range(3)]
    assert sorted(backend.name for backend in chosen if backend) == ["a", "b", "b"]
    assert elect.elect("10.9.9.9", ()) is None
    assert elect.why == "full"
    assert board.sessions(a.index) == 1 and board.sessions(b.index) == 2
    assert board.total(Board.backend_at(a.index) + B_SESSIONS_TOTAL) == 1
    elect.release(a)
    assert elect.elect("10.9.9.9", ()) == a


def test_a_session_that_reached_no_other_gets_a_backup(board: Board) -> None:
    a, b, c = pool("", "backup", "")
    elect = elector(board, (a, b, c))
    for tried in ({a.index}, {c.index}):
        chosen = elect.elect("10.9.9.9", tried)
        assert chosen in (a, c)
    assert elect.elect("10.9.9.9", {a.index, c.index}) == b
    assert elect.elect("10.9.9.9", {a.index, b.index, c.index}) is None
    assert elect.why == "down"


def test_a_full_pool_does_not_spill_into_the_backups(board: Board) -> None:
    a, b = pool("maxconn=1", "backup")
    elect = elector(board, (a, b))
    assert elect.elect("", ()) == a
    assert elect.elect("", ()) is None
    assert elect.why == "full"


def many(count: int, text: str = "") -> tuple[Backend, ...]:
    named = [parse_upstream(f"10.0.0.1:{9000 + place} {text}") for place in range(count)]
    return with_indexes(named, {backend.name: place for place, backend in enumerate(named)})


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "source"])
def test_that_all_are_full_is_found_out_without_a_pick_for_each(policy: str) -> None:
    """With 1,000 backends 131 ms were lost at each election while the pool was full."""
    costs = []
    for count in (20, 80):
        backends = many(count, "maxconn=1")
        elect = elector(make_board(count), backends, policy)
        assert {elect.elect("") for _ in backends} == set(backends)
        counted = BytecodeCounter()
        counted(partial(elect.elect, ""))
        assert elect.why == "full"
        costs.append(counted.total)
    assert costs[1] < 6 * costs[0]


def test_a_session_that_this_worker_has_ended_counts_at_once_in_a_big_pool() -> None:
    backends = many(12)
    board = make_board(12)
    for backend in backends:
        board.counts.row(OTHER)[Board.backend_at(backend.index) + B_SESSIONS] = 4 + (
            backend is not backends[5]
        )
    elect = elector(board, backends)
    for _ in backends:
        assert elect.elect("") == backends[5]
        elect.release(backends[5])


def test_when_a_lock_does_not_tell_whether_there_is_a_place_it_says_so(board: Board) -> None:
    a, b, c = pool("maxconn=1", "maxconn=1", "maxconn=1")
    elect = elector(board, (a, b, c))
    other = OtherProcess(board)
    for backend in (a, b):
        other.lock(Board.backend_at(backend.index) + B_SESSIONS)
    assert elect.elect("", ()) == c  # the others are passed over as the full are
    assert elect.elect("", ()) is None
    assert elect.why == "busy"
    other.leave()
    assert {elect.elect("", ()), elect.elect("", ())} == {a, b}
    assert elect.elect("", ()) is None
    assert elect.why == "full"


@pytest.mark.parametrize(("before", "after", "more"), [(1, 3, 2), (1, 0, 9), (3, 1, 0), (0, 2, 1), (2, 2, 1)])
def test_a_limit_that_a_reload_has_changed_holds_for_a_worker_of_before(
    board: Board, before: int, after: int, more: int
) -> None:
    """Its clients may wait for just the place that the reload has made."""
    (a,) = pool(f"maxconn={before}")
    elect = elector(board, (a,))
    assert elect.elect("") == a
    newer = pool_of(board, (replace(a, maxconn=after),))
    VerdictWriter(board, OTHER).write_limits(newer)
    assert [elect.elect("") for _ in range(9)].count(a) == more
    VerdictWriter(board, OTHER).write_limits(pool_of(board, (a,)))  # the reload has failed
    assert elect.elect("") == (a if not before or 1 + more < before else None)


@pytest.mark.parametrize(("configured", "said", "more"), [(1, 3, 2), (1, 0, 9), (3, 1, 0), (0, 2, 1)])
def test_an_operators_maxconn_holds_until_a_reload_brings_limits(
    board: Board, configured: int, said: int, more: int
) -> None:
    (a,) = pool(f"maxconn={configured}")
    elect = elector(board, (a,))
    assert elect.elect("") == a
    board.set_maxconn(a.index, said)
    assert [elect.elect("") for _ in range(9)].count(a) == more
    assert elect.release(a) is bool(said), "who waits is woken"
    assert elect.elect("") == a
    VerdictWriter(board, OTHER).write_limits(pool_of(board, (a,)))
    assert board.admin_maxconn(a.index) == said, "a new prober of the same generation"
    board.counts.row(OTHER)[GENERATION] = 1
    VerdictWriter(board, OTHER).write_limits(pool_of(board, (a,)))
    assert board.admin_maxconn(a.index) is None
    assert elect.elect("") == (a if not configured or 1 + more < configured else None)


def test_an_operators_maxconn_counts_before_that_of_an_agent(board: Board) -> None:
    (a,) = pool("maxconn=100")
    board.write_verdict(a.index, [(W_AGENT_MAXCONN, 5)])
    board.set_maxconn(a.index, 50)
    assert board.maxconn_of(a.index, a.maxconn) == 50
    board.write_verdict(a.index, [(W_RAMP, 100)])
    assert board.maxconn_of(a.index, a.maxconn) == 5, "a slow start allows a part"


def test_an_operators_maxconn_is_not_that_of_the_next_tenant(board: Board) -> None:
    slot = pool("")[0]
    board.write_verdict(slot.index, [(W_TENANT_KEY, 7)])
    board.set_maxconn(slot.index, 2)
    board.write_verdict(slot.index, [(W_TENANT_KEY, 8)])
    assert board.maxconn_of(slot.index, 0) == 0
    board.set_weight(slot.index, 3)
    board.write_verdict(slot.index, [(W_TENANT_KEY, 8)])
    assert board.maxconn_of(slot.index, 0) == 0, "an act on the next one does not bring it back"


def test_sessions_of_other_workers_count_against_maxconn(board: Board) -> None:
    (a,) = pool("maxconn=5")
    board.shared.rows.row(OTHER)[Board.backend_at(a.index) + B_SESSIONS] = 4
    elect = elector(board, (a,))
    assert elect.elect("", ()) == a
    assert elect.elect("", ()) is None


def test_an_unlimited_backend_takes_what_the_full_one_cannot(board: Board) -> None:
    a, b = pool("maxconn=1", "")
    elect = elector(board, (a, b))
    chosen = [elect.elect("", ()) for _ in range(6)]
    assert chosen.count(a) == 1 and chosen.count(b) == 5


def test_a_verdict_half_written_is_not_looked_at(board: Board) -> None:
    a, b = pool("", "")
    elect = elector(board, (a, b))
    board.words.cells[VERSION] += 1  # the prober begins to write
    board.words.cells[Board.backend_words_at(a.index) + W_VERDICT] = DOWN
    assert names(elect) == {"a", "b"}
    board.words.cells[VERSION] += 1
    assert names(elect) == {"b"}


def test_a_worker_born_while_the_prober_writes_serves_at_once_and_looks_again(board: Board) -> None:
    a, b = pool("", "")
    board.words.cells[VERSION] = 7
    elect = elector(board, (a, b))
    assert names(elect) == {"a", "b"}
    board.words.cells[Board.backend_words_at(a.index) + W_VERDICT] = DOWN
    board.words.cells[VERSION] = 8
    assert names(elect) == {"b"}


@pytest.fixture
def web() -> Backend:
    (backend,) = with_indexes([parse_upstream("web:80")], {"web:80": 2})
    return backend


def resolve(board: Board, backend: Backend, *hosts: str, in_use: int = 0) -> VerdictWriter:
    writer = VerdictWriter(board, OTHER)
    writer.restore(backend, 0.0)
    writer.write_addresses(backend.index, NameAddresses(hosts, in_use))
    return writer


def order(elect: Elector, backend: Backend) -> list[object]:
    """The hosts that a session dials one after another."""
    return [link[1][0] for link in links(elect.target(backend))]


def test_a_name_is_eligible_once_resolved_and_is_dialled_where_it_moved(board: Board, web: Backend) -> None:
    elect = elector(board, (web,))
    for host in ("10.0.0.5", "10.0.0.6"):
        resolve(board, web, host)
        backend = elect.elect("", ())
        assert backend == web and order(elect, web) == [host]


def test_a_name_that_is_not_answered_yet_is_no_refusal(board: Board, web: Backend) -> None:
    elect = elector(board, (web,))
    assert names(elect) == {"resolving"}
    writer = VerdictWriter(board, OTHER)
    writer.restore(web, 0.0)
    assert names(elect) == {"resolving"}
    board.set_admin_state(web.index, ADMIN_DRAIN)
    assert names(elect) == {"down"}  # an answer would not help
    board.set_admin_state(web.index, ADMIN_READY)
    assert names(elect) == {"resolving"}
    writer.write_name_failed(web.index)
    assert names(elect) == {"down"}
    writer.write_addresses(web.index, NameAddresses(("10.0.0.5",)))
    assert names(elect) == {"web:80"}


def test_the_words_of_another_name_are_not_dialled(board: Board, web: Backend) -> None:
    """A reload gives the backend another name: a worker may be born before the prober that asks for it."""
    resolve(board, web, "10.0.0.5")
    api = replace(web, address=parse_upstream("api:80").address)
    elect = elector(board, (api,))
    assert names(elect) == {"resolving"}
    resolve(board, api, "10.0.0.6")
    assert elect.elect("") == api and order(elect, api) == ["10.0.0.6"]


@pytest.mark.parametrize("address", ["10.0.0.9:80", "api:80", "unix:/run/web"])
def test_a_worker_goes_on_with_the_addresses_that_it_knew_when_a_reload_has_given_the_backend_another(
    board: Board, web: Backend, address: str
) -> None:
    resolve(board, web, "10.0.0.5", "10.0.0.6")
    elect = elector(board, (web,))
    writer = VerdictWriter(board, OTHER)
    writer.restore(replace(web, address=parse_upstream(address).address), 0.0)  # the newer prober begins
    assert names(elect) == {"web:80"} and order(elect, web) == ["10.0.0.5", "10.0.0.6"]
    set_verdict(board, web, DOWN)  # of the other address
    assert names(elect) == {"web:80"} and order(elect, web) == ["10.0.0.5", "10.0.0.6"]
    board.set_admin_state(web.index, ADMIN_DRAIN)
    assert names(elect) == {"down"}


def test_a_verdict_on_the_address_of_a_newer_configuration_is_not_obeyed(board: Board) -> None:
    (a,) = pool("")
    writer = VerdictWriter(board, OTHER)
    writer.restore(a, 0.0)
    elect = elector(board, (a,))
    set_verdict(board, a, DOWN)
    assert names(elect) == {"down"}
    newer = replace(a, address=parse_upstream("10.0.0.9:80").address)
    writer.restore(newer, 0.0)
    set_verdict(board, a, DOWN)
    assert names(elect) == {"a"} and names(elector(board, (newer,))) == {"down"}


def test_while_others_serve_nobody_waits_for_a_name(board: Board, web: Backend) -> None:
    (a,) = pool("")
    assert names(elector(board, (a, web))) == {"a"}


def test_a_failed_address_is_tried_last_by_the_next_sessions(board: Board, web: Backend) -> None:
    resolve(board, web, "::1", "127.0.0.1", "10.0.0.1")
    elect = elector(board, (web,))
    assert elect.elect("") == web
    assert order(elect, web) == ["::1", "127.0.0.1", "10.0.0.1"]
    first = elect.target(web)
    elect.address_failed(web, first)
    assert order(elect, web) == ["127.0.0.1", "10.0.0.1", "::1"]
    elect.address_failed(web, first)  # another session, which had begun before: what is known better stays
    assert order(elect, web) == ["127.0.0.1", "10.0.0.1", "::1"]
    at = Board.backend_at(web.index)
    own = board.counts.row(OWN)
    assert own[at + B_ADDRESS_FAILURES] == 2 and own[at + B_CONNECT_FAILURES] == 0
    assert own[at + B_SESSIONS] == 1


def test_what_a_worker_has_found_stays_until_the_addresses_change(board: Board, web: Backend) -> None:
    writer = resolve(board, web, "::1", "127.0.0.1")
    elect = elector(board, (web,))
    elect.address_failed(web, elect.target(web))
    set_verdict(board, web, UP)
    assert elect.elect("") == web and order(elect, web) == ["127.0.0.1", "::1"]
    writer.write_in_use(web.index, 1)
    assert elect.elect("") == web and order(elect, web) == ["127.0.0.1", "::1"]
    writer.write_in_use(web.index, 0)  # the prober has found that it answers again
    assert elect.elect("") == web and order(elect, web) == ["::1", "127.0.0.1"]


def test_between_changes_no_list_is_rebuilt(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    elect = elector(board, pool("", ""))
    monkeypatch.setattr(board, "versions", lambda pool: pytest.fail("rebuilt without a change"))
    assert names(elect) == {"a", "b"}


def test_a_sibling_that_accepts_at_the_same_moment_is_seen_at_every_election(board: Board) -> None:
    a, b = pool("", "")
    elect = elector(board, (a, b))
    theirs = board.shared.rows.row(OTHER)
    for emptier, fuller in ((a, b), (b, a)) * 2:
        (
            theirs[Board.backend_at(emptier.index) + B_SESSIONS],
            theirs[Board.backend_at(fuller.index) + B_SESSIONS],
        ) = 0, 9
        assert elect.elect("") == emptier


def test_a_verdict_in_another_pool_rebuilds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    board = make_board(pools=2)
    mine, theirs = pool("", ""), pool("", "", "", "")[2:]
    elect = elector(board, mine)
    board.assign_pool(1, [backend.index for backend in theirs])
    set_verdict(board, theirs[0], DOWN)
    board.set_admin_state(theirs[1].index, ADMIN_DRAIN)
    monkeypatch.setattr(board, "versions", lambda pool: pytest.fail("rebuilt without a change"))
    assert names(elect) == {"a", "b"}


def shares_of(elect: Elector, count: int = 1100) -> dict[str, int]:
    """How many of `count` sessions, each released at once, every backend is given."""
    given: dict[str, int] = {}
    for number in range(count):
        backend = elect.elect(f"10.9.{number % 250}.9", ())
        assert backend is not None
        elect.release(backend)
        given[backend.name] = given.get(backend.name, 0) + 1
    return given


@pytest.mark.parametrize("policy", ["leastconn", "roundrobin", "random"])
@pytest.mark.parametrize("words", [{W_RAMP: 100}, {W_AGENT_WEIGHT: 11}])
def test_a_part_of_a_weight_is_that_part_of_the_sessions(
    board: Board, policy: str, words: dict[int, int]
) -> None:
    a, b = pool("weight=1", "weight=1")
    elect = elector(board, (a, b), policy)
    board.write_verdict(a.index, words.items())
    given = shares_of(elect)
    assert 60 <= given["a"] <= 140, "a tenth of the other's"
    board.write_verdict(a.index, dict.fromkeys(words, 0).items())
    assert 450 <= shares_of(elect)["a"] <= 650


def test_a_hash_keeps_to_the_configured_weights(board: Board) -> None:
    a, b = pool("", "")
    elect = elector(board, (a, b), "source")
    before = [getattr(elect.elect(f"10.0.0.{n}", ()), "name", "") for n in range(100)]
    board.write_verdict(a.index, [(W_RAMP, 100), (W_AGENT_WEIGHT, 11)])
    assert [getattr(elect.elect(f"10.0.0.{n}", ()), "name", "") for n in range(100)] == before


def test_a_slow_start_allows_a_part_of_maxconn_and_an_agent_another_one(board: Board) -> None:
    (a,) = pool("maxconn=100")
    assert board.maxconn_of(a.index, a.maxconn) == 100
    board.write_verdict(a.index, [(W_RAMP, 100)])
    assert board.maxconn_of(a.index, a.maxconn) == 10
    board.write_verdict(a.index, [(W_AGENT_MAXCONN, 5)])
    assert board.maxconn_of(a.index, a.maxconn) == 1, "never none"
    board.write_verdict(a.index, [(W_RAMP, 0)])
    assert board.maxconn_of(a.index, a.maxconn) == 4
    assert board.maxconn_of(a.index, 0) == 0, "where no limit is configured an agent sets none"


def test_in_panic_those_that_are_down_are_elected_as_well(board: Board) -> None:
    backends = pool("", "", "", "")
    elect = Elector(board, replace(pool_of(board, backends), panic=50), OWN)
    for backend in backends[:2]:
        board.write_verdict(backend.index, [(W_VERDICT, DOWN)])
    assert names(elect) == {"c", "d"}
    board.write_verdict(backends[2].index, [(W_VERDICT, DOWN)])
    assert names(elect) == {"a", "b", "c", "d"}
    board.set_admin_state(backends[0].index, ADMIN_MAINT)
    board.write_verdict(backends[1].index, [(W_AGENT, AGENT_OUT)])
    assert names(elect) == {"d"}, "what an operator or an agent has taken out stays out, and does not count"
    board.write_verdict(backends[3].index, [(W_VERDICT, DOWN)])
    assert names(elect) == {"c", "d"}


def test_a_panic_does_not_lead_to_this_balancer_itself(board: Board) -> None:
    backends = pool("", "", "")
    elect = Elector(board, replace(pool_of(board, backends), panic=50), OWN)
    for backend, check in zip(backends, ("itself", "refused", "timeout"), strict=True):
        board.write_verdict(backend.index, [(W_VERDICT, DOWN), (W_CHECK, CHECK_NAMES.index(check))])
    assert names(elect) == {"b", "c"}


def test_backups_that_are_up_come_before_a_panic(board: Board) -> None:
    backends = pool("", "", "backup", "backup")
    elect = Elector(board, replace(pool_of(board, backends), panic=50), OWN)
    for backend in backends[:2]:
        board.write_verdict(backend.index, [(W_VERDICT, DOWN)])
    assert names(elect) == {"c", "d"}
    for backend in backends[2:]:
        board.write_verdict(backend.index, [(W_VERDICT, DOWN)])
    assert names(elect) == {"a", "b"} or names(elect) == {"a", "b", "c", "d"}


def slot_words(
    host: str, tenant: int, port: int = 0, weight: int = 0, is_backup: bool = False
) -> dict[int, int]:
    words = {W_ADDRESSES: 1, W_PORT: port, W_SRV_WEIGHT: weight, W_BACKUP: int(is_backup), W_TENANT: tenant}
    return words | dict(enumerate(pack_addresses([host]), W_ADDRESS))


def slots_of(board: Board, policy: str = "leastconn") -> tuple[tuple[Backend, ...], Elector]:
    """Two slots of a set, both empty."""
    slots = with_indexes(
        parse_upstream("dns:web.test:80 slots=2 name=web").expanded(), {"web-1": 6, "web-2": 5}
    )
    made = elector(board, slots, policy)
    for slot in slots:
        VerdictWriter(board, OTHER).restore(slot, 0.0)
    return slots, made


def test_a_new_tenant_of_a_slot_does_not_inherit_the_sessions_of_the_one_before(board: Board) -> None:
    (one, two), elect = slots_of(board)
    told: list[str] = []
    elect.on_tenant = lambda backend: told.append(str(backend.address))
    assert elect.elect("", ()) is None and elect.why == "resolving"
    board.write_verdicts(
        [(one.index, slot_words("10.0.0.1", 1).items()), (two.index, slot_words("10.0.0.2", 1).items())]
    )
    held = [elect.elect("", ()) for _ in range(20)]
    assert told == ["10.0.0.1:80", "10.0.0.2:80"]
    board.write_verdict(one.index, slot_words("10.0.0.3", 2, port=81).items())
    assert board.tenant_sessions(one.index) == 0 and board.sessions(one.index) == 10
    given = [elect.elect("", ()) for _ in range(10)]
    assert [str(backend.address) for backend in given if backend] == ["10.0.0.3:81"] * 10
    assert elect.target(given[0])[1] == ("10.0.0.3", 81)  # type: ignore[arg-type]
    for backend in (*held, *given):
        assert backend is not None
        elect.release(backend)
    assert [board.sessions(slot.index) for slot in (one, two)] == [0, 0]
    assert [board.gauge(Board.backend_at(slot.index) + B_SESSIONS_ODD) for slot in (one, two)] == [0, 0]


def test_maxconn_counts_the_present_tenant_only(board: Board) -> None:
    (one, two), _ = slots_of(board)
    limited = tuple(replace(slot, maxconn=2) for slot in (one, two))
    elect = elector(board, limited)
    board.write_verdict(one.index, slot_words("10.0.0.1", 1).items())
    assert [elect.elect("", ()) is not None for _ in range(3)] == [True, True, False]
    board.write_verdict(one.index, slot_words("10.0.0.2", 2).items())
    assert [elect.elect("", ()) is not None for _ in range(3)] == [True, True, False]


@pytest.mark.parametrize("policy", ["leastconn", "nq", "p2c"])
def test_a_tenant_that_came_back_between_two_elections_is_counted_as_it_is_now(
    board: Board, policy: str
) -> None:
    (one, two), elect = slots_of(board, policy)
    board.write_verdicts(
        [(one.index, slot_words("10.0.0.1", 1).items()), (two.index, slot_words("10.0.0.2", 1).items())]
    )
    assert elect.elect("", ()) is not None
    board.write_verdict(one.index, [(W_ADDRESSES, 0)])
    board.write_verdict(one.index, slot_words("10.0.0.1", 2).items())
    for _ in range(11):
        assert elect.elect("", ()) is not None
    sessions = [board.tenant_sessions(slot.index) for slot in (one, two)]
    assert abs(sessions[0] - sessions[1]) <= 1 and sum(sessions) >= 11


def test_among_full_slots_the_one_whose_former_tenant_was_full_is_found(board: Board) -> None:
    (one, two), _ = slots_of(board)
    elect = elector(board, tuple(replace(slot, maxconn=1) for slot in (one, two)), "first")
    board.write_verdict(two.index, slot_words("10.0.0.2", 2).items())
    assert elect.elect("", ()) is not None, "of a tenant that is counted in the even gauge"
    board.write_verdicts(
        [(one.index, slot_words("10.0.0.1", 1).items()), (two.index, slot_words("10.0.0.3", 3).items())]
    )
    assert [elect.elect("", ()) is not None for _ in range(3)] == [True, True, False]


def test_what_failed_at_the_tenant_before_says_nothing_of_the_present_one(board: Board) -> None:
    (one, _), elect = slots_of(board)
    board.write_verdict(one.index, slot_words("10.0.0.1", 1).items())
    former = elect.elect("", ())
    board.write_verdict(one.index, slot_words("10.0.0.2", 2).items())
    present = elect.elect("", ())
    assert former is not None and present is not None
    failures = []
    for backend in (former, present):
        elect.connect_failed(backend)
        elect.ended_early(backend, 0.0, False)
        at = Board.backend_at(one.index)
        failures.append((board.total(at + B_CONNECT_FAILURES), board.total(at + B_EARLY_ENDS)))
    assert failures == [(0, 0), (1, 1)]


@pytest.mark.parametrize("policy", POLICIES)
def test_slots_serve_by_their_tenants_weight_and_priority(board: Board, policy: str) -> None:
    (one, two), elect = slots_of(board, policy)
    board.write_verdict(one.index, slot_words("10.0.0.1", 1, weight=2).items())
    board.write_verdict(two.index, slot_words("10.0.0.2", 1, weight=4, is_backup=True).items())
    assert names(elect) == {"web-1"}
    board.write_verdict(one.index, [(W_ADDRESSES, 0)])
    assert names(elect) == {"web-2"}


def test_tenants_of_a_higher_priority_are_backups_for_a_panic_and_for_full_too(board: Board) -> None:
    (one, two), _ = slots_of(board)
    slots = tuple(replace(slot, maxconn=1) for slot in (one, two))
    pool = replace(pool_of(board, slots), panic=60)
    elect = Elector(board, pool, OWN)
    board.write_verdict(one.index, slot_words("10.0.0.1", 1).items())
    board.write_verdict(two.index, slot_words("10.0.0.2", 1, is_backup=True).items())
    board.write_verdict(two.index, [(W_VERDICT, DOWN)])
    assert not is_panic(board, pool)
    board.write_verdict(two.index, [(W_VERDICT, UP)])
    assert elect.elect("", ()) is not None and elect.elect("", ()) is None
    assert serving(board, pool).reason == FULL


def test_a_hash_follows_the_address_and_not_the_slot(board: Board) -> None:
    (one, two), elect = slots_of(board, "maglev")

    def owners() -> list[str]:
        found = []
        for number in range(50):
            backend = elect.elect(f"10.9.9.{number}", ())
            assert backend is not None
            elect.release(backend)
            found.append(backend.address.host)
        return found

    first, second = ((one, "10.0.0.1"), (two, "10.0.0.2")), ((two, "10.0.0.1"), (one, "10.0.0.2"))
    seen = []
    for tenant, places in ((1, first), (2, second)):
        board.write_verdicts([(slot.index, slot_words(host, tenant).items()) for slot, host in places])
        seen.append(owners())
    assert seen[0] == seen[1] and set(seen[0]) == {"10.0.0.1", "10.0.0.2"}
