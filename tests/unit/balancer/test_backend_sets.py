"""Sets in the prober: when they are asked, what an answer publishes, and that no mistake of a server empties them."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from balancer.checks.monitored import monitor, monitored
from balancer.discovery.answers import ERRORS, NameReply, Query
from balancer.discovery.servers import NameServers
from balancer.options import Pool
from balancer.pool.backend import Backend, parse_upstream
from balancer.pool.board import (
    ADMIN_DRAIN,
    ADMIN_MAINT,
    DOWN,
    W_CHECK,
    W_DNS_ERROR,
    W_DNS_LEFT_OUT,
    W_DNS_QUERIES,
    W_TENANT,
    Board,
)
from balancer.pool.election import Elector
from balancer.pool.serving import state_of
from balancer.pool.spares import Added, with_spares, write_added
from balancer.pool.targets import addresses_of, targets_of, tenant_of
from balancer.shm.layout import MASTER_RELOADS, MASTER_ROW
from tests.unit.balancer.pool.boards import make_board
from tests.unit.balancer.test_prober import MAIN, SECOND, Loop, ProberSimulation

FOUR = Query("web.test", "A")


class SetSimulation(ProberSimulation):
    """Slots of web.test, and what its name server says: `reply`, None while it is silent."""

    def __init__(self, slots: int = 4) -> None:
        texts = [f"10.255.0.{number}:1" for number in range(slots)]
        super().__init__(*texts)
        expanded = parse_upstream(f"dns:web.test:80 slots={slots} name=web").expanded()
        self.backends = tuple(
            replace(slot, index=old.index) for slot, old in zip(expanded, self.backends, strict=True)
        )
        self.reply: NameReply | None = None
        self.queries: list[float] = []

    def ask(self, query: Query, done: Callable[[NameReply], object], asked: Callable[[], object]) -> None:
        self.queries.append(self.loop.now)
        asked()
        if self.reply is not None:
            done(self.reply)

    def know(self, *hosts: str, ttl: float = 1.0) -> None:
        self.reply = NameReply("", hosts, ttl=ttl, server="10.0.0.53")

    def hosts(self) -> list[str]:
        return [str(target[1][0]) for backend in self.backends for target in targets_of(self.board, backend)]


@pytest.fixture
def sim() -> SetSimulation:
    return SetSimulation()


def test_the_first_answer_settles_a_start_and_empty_slots_are_no_backends(sim: SetSimulation) -> None:
    prober = sim.prober()
    assert sim.settled == []
    sim.loop.advance(4.0, prober.tick)
    assert sim.settled == []
    sim.loop.advance(1.5, prober.tick)
    assert len(sim.settled) == 1, "connect-timeout"
    again = SetSimulation()
    again.know("10.0.0.1", "10.0.0.2")
    prober = again.prober()
    assert again.settled == [again.loop.now]
    again.loop.advance(3.0, prober.tick)
    assert again.title == "prober [2/2 up]"
    assert {state_of(again.board, backend) for backend in again.backends} == {"up", "empty"}
    assert not again.verbs("down") and not again.verbs("all-down")
    assert {target[0] for _, target in again.asked} == {"10.0.0.1", "10.0.0.2"}, "empty slots are not checked"


@pytest.mark.parametrize("ttl, seconds", [(0.0, 1.0), (1.0, 1.0), (4.0, 4.0), (600.0, 10.0)])
def test_it_is_asked_again_by_its_ttl_within_bounds(sim: SetSimulation, ttl: float, seconds: float) -> None:
    sim.know("10.0.0.1", ttl=ttl)
    prober = sim.prober(check="none")
    sim.loop.advance(61.0, prober.tick)
    assert len(sim.queries) == pytest.approx(60 / seconds, rel=0.3)
    assert sim.board.word(sim.backends[0].index, W_DNS_QUERIES) == len(sim.queries)


@pytest.mark.parametrize(
    "options", [{"check_fall": 1}, {"check_fall": 3}, {"check_fall": 1, "check": "none"}]
)
def test_a_backend_that_falls_by_its_sessions_has_the_server_asked_soon(
    sim: SetSimulation, options: dict[str, object]
) -> None:
    sim.know("10.0.0.1", "10.0.0.2", ttl=600.0)
    prober = sim.prober(**options)
    sim.loop.advance(10.5, prober.tick)
    sim.queries.clear()
    sim.network[("10.0.0.1", 80)] = "refused"
    sim.fail_session(sim.backends[0])
    sim.loop.advance(2.6, prober.tick)
    assert len(sim.queries) >= 1


@pytest.mark.parametrize("error", ["", "SERVFAIL", "NXDOMAIN", "timeout"])
def test_a_backend_that_falls_has_the_server_asked_soon_and_one_that_stays_down_not_more_often(
    sim: SetSimulation, error: str
) -> None:
    sim.know("10.0.0.1", "10.0.0.2", ttl=600.0)
    prober = sim.prober()
    sim.loop.advance(10.5, prober.tick)
    fell = sim.loop.now
    if error:
        sim.reply = NameReply(error)
    sim.network |= {("10.0.0.1", 80): "refused", ("10.0.0.2", 80): "refused"}
    sim.queries.clear()
    sim.loop.advance(20.0, prober.tick)
    assert sim.queries[0] - fell < 4.0, "a check and the second after it, long before the refresh"
    assert len(sim.verbs("down")) == 2
    sim.queries.clear()
    sim.loop.advance(60.0, prober.tick)
    assert len(sim.queries) == pytest.approx(6, abs=1)


def test_the_first_backend_of_a_set_is_said_to_be_back_though_it_is_checked_before_the_next_tick() -> None:
    class Later(SetSimulation):
        def ask(self, query: Query, done: Callable[[NameReply], object], asked: Callable[[], object]) -> None:
            answer = super().ask
            self.loop.call_at(self.loop.now + 0.01, lambda: answer(query, done, asked))

    sim = Later()
    sim.reply = NameReply("NXDOMAIN")
    prober = sim.prober()
    sim.loop.advance(3.0, prober.tick)
    assert len(sim.verbs("all-down")) == 1
    sim.know("10.0.0.1", ttl=600.0)
    sim.loop.advance(9.0, prober.tick)
    assert len(sim.verbs("some-up")) == 1


@pytest.mark.parametrize("error", ["SERVFAIL", "NXDOMAIN", "NODATA", "REFUSED", "timeout"])
def test_an_error_keeps_the_last_set_is_told_once_and_asked_for_less_and_less(
    sim: SetSimulation, error: str
) -> None:
    sim.know("10.0.0.1", "10.0.0.2")
    prober = sim.prober(check="none")
    sim.loop.advance(0.5, prober.tick)
    sim.reply = NameReply(error)
    sim.queries.clear()
    sim.loop.advance(62.0, prober.tick)
    assert sim.hosts() == ["10.0.0.1", "10.0.0.2"]
    assert [line.partition("error=")[2] for line in sim.verbs("resolve")[1:]] == [
        f"{error} then=keeps 2 backends"
    ]
    assert 7 <= len(set(sim.queries)) <= 11, "1, 2, 4, 8, 10, 10 ... seconds"
    assert ERRORS[sim.board.word(sim.backends[0].index, W_DNS_ERROR)] == error
    sim.know("10.0.0.3")
    sim.loop.advance(11.0, prober.tick)
    assert sim.hosts() == ["10.0.0.3"]
    assert not sim.board.word(sim.backends[0].index, W_DNS_ERROR)
    sim.reply = NameReply(error)
    sim.loop.advance(3.0, prober.tick)
    assert len(sim.verbs("resolve")) == 4


def test_a_new_tenant_is_judged_anew(sim: SetSimulation) -> None:
    sim.know("10.0.0.1")
    sim.network[("10.0.0.1", 80)] = "refused"
    prober = sim.prober()
    sim.loop.advance(6.0, prober.tick)
    slot = next(backend for backend in sim.backends if targets_of(sim.board, backend))
    assert sim.verdict(slot) == DOWN
    sim.know("10.0.0.2")
    sim.loop.advance(1.3, prober.tick)
    assert sim.hosts() == ["10.0.0.2"]
    one = next(backend for backend in sim.backends if targets_of(sim.board, backend))
    assert state_of(sim.board, one) == "up" and sim.board.word(one.index, W_CHECK) in (0, 1)
    line = sim.verbs("resolve")[-1]
    assert "added=10.0.0.2:80 removed=10.0.0.1:80" in line and "server=10.0.0.53" in line


def test_a_new_tenant_is_checked_though_a_check_of_the_one_before_was_under_way(sim: SetSimulation) -> None:
    sim.know("10.0.0.1")
    sim.network[("10.0.0.1", 80)] = "timeout"
    sim.network[("10.0.0.2", 80)] = "refused"
    prober = sim.prober()
    sim.loop.advance(0.9, prober.tick)
    sim.know("10.0.0.2")
    sim.loop.advance(8.0, prober.tick)
    slot = next(backend for backend in sim.backends if targets_of(sim.board, backend))
    assert sim.hosts() == ["10.0.0.2"] and sim.verdict(slot) == DOWN


def test_what_the_agent_of_the_tenant_before_answers_late_is_not_about_the_present_one(
    sim: SetSimulation,
) -> None:
    late: list[Callable[[], object]] = []
    checks = sim.probe

    def probe(loop: Loop, target: Any, timeout: float, done: Any, send_proxy: Any, dialogue: Any) -> object:
        if target[1][1] != 81:
            return checks(loop, target, timeout, done, send_proxy, dialogue)
        if target[1][0] == "10.0.0.1":
            dialogue.advance()
            dialogue.advance(b"drain\n")
            late.append(lambda: done(dialogue.outcome, 0.9, ""))
        else:
            done("refused", 0.0, "")
        return SimpleNamespace(is_over=True, abandon=lambda: None)

    sim.probe = probe  # type: ignore[method-assign, assignment]
    sim.know("10.0.0.1")
    prober = sim.prober(agent_port=81)
    sim.loop.advance(2.5, prober.tick)
    sim.know("10.0.0.2")
    sim.loop.advance(1.5, prober.tick)
    assert sim.hosts() == ["10.0.0.2"] and late
    for answer in late:
        answer()
    slot = next(backend for backend in sim.backends if targets_of(sim.board, backend))
    assert state_of(sim.board, slot) == "up"


def test_what_fails_at_a_backend_that_has_left_does_not_take_its_empty_slot_down(sim: SetSimulation) -> None:
    sim.know("10.0.0.1", "10.0.0.2")
    prober = sim.prober()
    sim.loop.advance(1.5, prober.tick)
    slot = next(
        backend for backend in sim.backends if targets_of(sim.board, backend)[0][1] == ("10.0.0.1", 80)
    )
    sim.know("10.0.0.2")
    sim.loop.advance(2.0, prober.tick)
    assert state_of(sim.board, slot) == "empty"
    for _ in range(8):
        sim.fail_session(slot)
        sim.loop.advance(0.3, prober.tick)
    assert not sim.verbs("down")


def slot_of(sim: SetSimulation, host: str) -> Backend:
    return next(one for one in sim.backends if [t[1] for t in targets_of(sim.board, one)] == [(host, 80)])


@pytest.mark.parametrize("wish", ["drain", "maint", "weight"])
def test_what_an_operator_wants_is_of_the_tenant_not_of_its_slot(sim: SetSimulation, wish: str) -> None:
    sim.know("10.0.0.1", "10.0.0.2")
    prober = sim.prober(check="none")
    sim.loop.advance(1.5, prober.tick)
    first = slot_of(sim, "10.0.0.1")
    if wish == "weight":
        sim.board.set_weight(first.index, 0)
    else:
        sim.board.set_admin_state(first.index, ADMIN_DRAIN if wish == "drain" else ADMIN_MAINT)
    state = "weight-0" if wish == "weight" else wish
    assert state_of(sim.board, first) == state
    sim.know("10.0.0.2")
    sim.loop.advance(1.5, prober.tick)
    assert state_of(sim.board, first) == "empty"
    sim.know("10.0.0.1", "10.0.0.2", "10.0.0.3")
    sim.loop.advance(1.5, prober.tick)
    assert slot_of(sim, "10.0.0.1") == first and state_of(sim.board, first) == state, "it came back"
    assert state_of(sim.board, slot_of(sim, "10.0.0.3")) == "up"
    successor = sim.prober(SECOND, check="none")
    sim.loop.advance(0.5, successor.tick)
    assert state_of(sim.board, first) == state, "over a reload"
    sim.know("10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7")
    sim.loop.advance(1.5, successor.tick)
    assert {state_of(sim.board, one) for one in sim.backends} == {"up"}, "other machines moved in"
    assert sim.board.weight_of(first.index, 1) == 1
    sim.board.set_weight(first.index, 5)
    assert (state_of(sim.board, first), sim.board.weight_of(first.index, 1)) == ("up", 5), "nothing is left"


@pytest.mark.parametrize(
    "act",
    [
        lambda board, index: board.set_admin_state(index, ADMIN_DRAIN),
        lambda board, index: board.set_admin_state(index, ADMIN_MAINT),
        lambda board, index: board.set_weight(index, 3),
        lambda board, index: board.set_maxconn(index, 5),
        lambda board, index: board.set_maxconn(index, 0),
    ],
    ids=["drain", "maint", "weight", "maxconn", "no maxconn"],
)
def test_a_slot_with_the_wish_of_an_operator_is_given_away_last(
    sim: SetSimulation, act: Callable[[Board, int], object]
) -> None:
    sim.know("10.0.0.1")
    prober = sim.prober(check="none")
    sim.loop.advance(1.5, prober.tick)
    first = slot_of(sim, "10.0.0.1")
    act(sim.board, first.index)
    sim.know("10.0.0.2", "10.0.0.3", "10.0.0.4")
    sim.loop.advance(1.5, prober.tick)
    assert state_of(sim.board, first) == "empty"
    sim.know("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
    sim.loop.advance(1.5, prober.tick)
    assert slot_of(sim, "10.0.0.1") == first, "it finds what was set for it"


def test_a_reload_to_framed_mode_counts_the_tenants_it_finds_in_the_one_gauge(sim: SetSimulation) -> None:
    sim.know("10.0.0.1")
    sim.loop.advance(0.5, sim.prober(check="none").tick)
    index = next(backend.index for backend in sim.backends if targets_of(sim.board, backend))
    assert sim.board.word(index, W_TENANT) == 1
    sim.prober(SECOND, check="none", mode="framed")
    assert sim.board.word(index, W_TENANT) == 2 and sim.hosts() == ["10.0.0.1"]


def test_addresses_that_are_no_machines_are_no_backends(sim: SetSimulation) -> None:
    sim.know("10.0.0.1")
    prober = sim.prober(check="none")
    sim.loop.advance(0.5, prober.tick)
    sim.know("0.0.0.0", "::", "224.0.0.1", "169.254.0.1", "fe80::1")
    sim.loop.advance(3.0, prober.tick)
    assert sim.hosts() == ["10.0.0.1"], "the answer of a server that blocks a name"
    assert "keeps 1 backend" in sim.verbs("resolve")[-1]
    sim.know("0.0.0.0", "10.0.0.2", "::ffff:10.0.0.2", "::ffff:10.0.0.3")
    sim.loop.advance(11.0, prober.tick)
    assert sorted(sim.hosts()) == ["10.0.0.2", "10.0.0.3"]
    tenants = [sim.board.word(backend.index, W_TENANT) for backend in sim.backends]
    successor = sim.prober(SECOND, check="none")
    sim.loop.advance(3.0, successor.tick)
    assert [sim.board.word(backend.index, W_TENANT) for backend in sim.backends] == tenants


def test_what_finds_no_slot_is_told_once(sim: SetSimulation) -> None:
    sim.know(*(f"10.0.0.{number}" for number in range(1, 8)))
    prober = sim.prober(check="none")
    sim.loop.advance(20.0, prober.tick)
    assert sim.board.word(sim.backends[0].index, W_DNS_LEFT_OUT) == 3
    assert [line for line in sim.verbs("resolve") if "left_out=3 slots=4" in line] == sim.verbs("resolve")[1:]


def test_a_successor_goes_on_with_the_slots(sim: SetSimulation) -> None:
    sim.know("10.0.0.1", "10.0.0.2")
    sim.loop.advance(2.0, sim.prober(check="none").tick)
    before = [sim.board.word(backend.index, W_TENANT) for backend in sim.backends]
    sim.reply = NameReply("timeout")
    successor = sim.prober(SECOND, check="none")
    assert sim.settled[-1] == sim.loop.now, "a reload waits for nothing that is known"
    sim.know("10.0.0.2", "10.0.0.1", "10.0.0.3")
    sim.loop.advance(12.0, successor.tick)
    after = [sim.board.word(backend.index, W_TENANT) for backend in sim.backends]
    assert sum(after) == sum(before) + 1 and len(sim.hosts()) == 3


def test_balancers_with_one_set_agree_on_who_serves_a_client_also_while_one_lags_behind_a_change() -> None:
    """Five balancers with slots and answers in an order of their own, each with an election of its own, and 100,000
    clients. One hears 1 s after the others of a sixth backend: meanwhile they differ about its
    share, and up to 2 % more."""
    hosts = [f"10.0.0.{number}" for number in range(1, 6)]
    chance, clients = random.Random(4), [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(100_000)]
    balancers = [SetSimulation(6) for _ in range(5)]
    probers, electors = [], []
    for each in balancers:
        each.know(*chance.sample(hosts, 5))
        probers.append(each.prober(check="none"))
        each.loop.advance(0.5, probers[-1].tick)
        electors.append(Elector(each.board, Pool("main", each.backends, balance="maglev", index=0), SECOND))

    def choices() -> list[list[str]]:
        found = []
        for elector in electors:
            elected = (elector.elect(client) for client in clients)
            found.append([one.address.host for one in elected if one is not None])
        return found

    def agreeing(found: list[list[str]]) -> float:
        return sum(len(set(one)) == 1 for one in zip(*found, strict=True)) / len(clients)

    before = choices()
    assert agreeing(before) >= 0.999 and len(set(before[0])) == 5
    for each in balancers:
        each.know(*chance.sample([*hosts, "10.0.0.6"], 6))
    for each, prober in zip(balancers[1:], probers[1:], strict=True):
        each.loop.advance(1.2, prober.tick)
    lagging = agreeing(choices())
    assert 1 - 1 / 6 - 0.02 <= lagging < 0.9, f"{lagging:.2%} while one lags"
    balancers[0].loop.advance(1.2, probers[0].tick)
    after = choices()
    assert agreeing(after) >= 0.999 and len(set(after[0])) == 6


class SpareSimulation(SetSimulation):
    """A backend of the configuration and two spare slots, in a pool of some mode."""

    def __init__(self, mode: str = "tcp") -> None:
        super().__init__(3)
        main = replace(MAIN, mode=mode, spare_slots=2, backends=(parse_upstream("10.0.0.1:80 name=web"),))
        self.pools = (main,)
        places = [one.index for one in self.backends]
        spares = with_spares(main).backends
        self.backends = tuple(replace(one, index=index) for one, index in zip(spares, places, strict=True))

    def want(self, number: int, host: str, weight: int = 1) -> None:
        write_added(self.board, self.backends[number].index, Added(host, 80, weight) if host else None)

    def states(self) -> list[str]:
        return [state_of(self.board, one) for one in self.backends]


@pytest.mark.parametrize("mode", ["tcp", "framed"])
def test_a_backend_that_is_added_is_a_tenant_as_one_that_dns_knows(mode: str) -> None:
    sim = SpareSimulation(mode)
    prober = sim.prober()
    assert sim.settled == [sim.loop.now] and not sim.queries, "nothing is waited for, and no server asked"
    sim.loop.advance(1.0, prober.tick)
    assert sim.title == "prober [1/1 up]" and sim.states() == ["up", "empty", "empty"]
    sim.network[("10.0.0.9", 80)] = "refused"
    sim.want(1, "10.0.0.9", 3)
    sim.loop.advance(0.3, prober.tick)
    slot = sim.backends[1]
    assert sim.hosts() == ["10.0.0.1", "10.0.0.9"] and sim.board.weight_of(slot.index, 1) == 3
    assert sim.verbs("resolve") == ["info resolve set=spare backends=1 added=10.0.0.9:80"]
    sim.loop.advance(6.0, prober.tick)
    assert sim.states() == ["up", "down", "empty"]
    assert "backend=spare-1 address=spare at=10.0.0.9:80" in sim.verbs("down")[0]
    before = sim.board.word(slot.index, W_TENANT)
    sim.want(1, "10.0.0.8")
    sim.loop.advance(0.3, prober.tick)
    assert sim.states() == ["up", "up", "empty"], "another is judged anew"
    assert sim.board.word(slot.index, W_TENANT) == before + (2 if mode == "framed" else 1)
    sim.want(1, "10.0.0.8", 7)
    sim.loop.advance(0.3, prober.tick)
    assert sim.board.weight_of(slot.index, 1) == 7
    sim.want(1, "")
    sim.loop.advance(0.3, prober.tick)
    assert sim.hosts() == ["10.0.0.1"] and sim.verbs("resolve")[-1].endswith("backends=0 removed=10.0.0.8:80")
    assert not sim.queries


def test_a_certificate_of_a_backend_that_is_added_is_for_its_address() -> None:
    sim = SpareSimulation()
    prober = sim.prober()
    sim.want(1, "10.0.0.9")
    sim.loop.advance(0.3, prober.tick)
    slot = sim.backends[1]
    assert tenant_of(sim.board, slot).tls_host == "10.0.0.9", "for sessions"
    one = monitored(slot, monitor(replace(MAIN, backends=(slot,))))
    one.addresses = addresses_of(sim.board, slot)
    assert one.tls_host == "10.0.0.9", "for checks"


def test_a_pool_whose_backends_are_down_does_not_wait_for_its_spare_slots() -> None:
    sim = SpareSimulation()
    prober = sim.prober()
    sim.network[("10.0.0.1", 80)] = "refused"
    sim.loop.advance(8.0, prober.tick)
    elector = Elector(sim.board, replace(sim.pools[0], backends=sim.backends), SECOND)
    assert elector.elect("10.9.9.9") is None and elector.why == "down"
    assert "up=0/1" in sim.verbs("all-down")[0]


def test_a_successor_of_the_prober_goes_on_with_what_was_added_and_a_reload_ends_it() -> None:
    sim = SpareSimulation()
    first = sim.prober()
    sim.want(2, "10.0.0.9")
    sim.loop.advance(0.3, first.tick)
    held = sim.board.word(sim.backends[2].index, W_TENANT)
    second = sim.prober(SECOND)
    sim.loop.advance(1.0, second.tick)
    assert sim.hosts() == ["10.0.0.1", "10.0.0.9"] and sim.board.word(sim.backends[2].index, W_TENANT) == held
    assert len(sim.verbs("resolve")) == 1
    sim.board.shared.rows.row(MASTER_ROW)[MASTER_RELOADS] += 1
    sim.loop.advance(0.3, second.tick)
    assert sim.hosts() == ["10.0.0.1"]


def test_spare_slots_are_no_backends_where_a_name_has_none_either() -> None:
    sim = SpareSimulation()
    [slot] = parse_upstream("dns:web.test:80 slots=1 name=web").expanded()
    sim.backends = (replace(slot, index=sim.backends[0].index), *sim.backends[1:])
    sim.reply = NameReply("NXDOMAIN")
    prober = sim.prober()
    sim.loop.advance(6.0, prober.tick)
    assert "up=0/1 reason=no backend is known of any name" in sim.verbs("all-down")[0]


def test_empty_slots_do_not_count_where_a_tenth_of_a_pool_may_be_taken_out() -> None:
    """Without checks: of 2 backends and 18 empty slots one may be out."""
    sim = SpareSimulation()
    pool = replace(sim.pools[0], spare_slots=18)
    backends = [replace(parse_upstream(f"10.0.0.{n}:80 name=w{n}"), index=n) for n in range(3)]
    spares = with_spares(replace(pool, backends=tuple(backends))).backends[3:]
    sim.board = make_board(backends=32, live=3)
    sim.backends = (*backends, *(replace(one, index=3 + place) for place, one in enumerate(spares)))
    sim.board.assign_pool(0, range(len(sim.backends)))
    prober = sim.prober(check="none")
    for _ in range(8):
        for backend in backends[:2]:
            sim.fail_session(backend, 3)
        sim.loop.advance(0.3, prober.tick)
    assert sorted(sim.states()[:3]) == ["down", "up", "up"]


def test_a_name_server_that_falls_silent_about_one_domain_keeps_the_set_of_it(sim: SetSimulation) -> None:
    """The other domain has a namesake; only the first lookup may take that."""
    servers = NameServers((("10.0.0.53", 53),), ("a.test", "b.test"), 9)
    zone = {"web.test.a.test": NameReply("timeout"), "web.test.b.test": NameReply("", ("10.0.0.2",), ttl=1.0)}
    queried: list[str] = []

    def ask(query: Query, done: Callable[[NameReply], object], asked: Callable[[], object]) -> None:
        queried.append(query.name)
        done(zone.get(query.name, NameReply("NXDOMAIN")))

    sim.ask, sim.servers = ask, lambda: servers  # type: ignore[method-assign]
    prober = sim.prober(check="none")
    sim.loop.advance(0.5, prober.tick)
    assert sim.hosts() == ["10.0.0.2"] and queried[0] == "web.test.a.test"
    zone["web.test.a.test"] = NameReply("", ("10.0.0.1",), ttl=1.0)
    sim.loop.advance(1.5, prober.tick)
    assert sim.hosts() == ["10.0.0.1"]
    zone["web.test.a.test"] = NameReply("timeout")
    sim.loop.advance(12.0, prober.tick)
    assert sim.hosts() == ["10.0.0.1"]


@pytest.mark.parametrize("known", ["a.test", "b.test"])
def test_a_successor_of_the_prober_knows_which_domain_has_answered(sim: SetSimulation, known: str) -> None:
    """It begins while that domain fails; the other one gets a namesake, or has always failed."""
    servers = NameServers((("10.0.0.53", 53),), ("a.test", "b.test"), 9)
    answer = NameReply("", ("10.0.0.1",), ttl=1.0)
    zone = {"web.test.a.test": NameReply("timeout"), "web.test.b.test": NameReply("timeout")}
    zone[f"web.test.{known}"] = answer

    def ask(query: Query, done: Callable[[NameReply], object], asked: Callable[[], object]) -> None:
        done(zone.get(query.name, NameReply("NXDOMAIN")))

    sim.ask, sim.servers = ask, lambda: servers  # type: ignore[method-assign]
    first = sim.prober(check="none")
    sim.loop.advance(0.5, first.tick)
    assert sim.hosts() == ["10.0.0.1"]
    if known == "a.test":
        zone = {
            "web.test.a.test": NameReply("timeout"),
            "web.test.b.test": NameReply("", ("10.0.0.2",), ttl=1.0),
        }
    else:
        zone["web.test.b.test"] = NameReply("", ("10.0.0.3",), ttl=1.0)
    second = sim.prober(SECOND, os.getpid(), check="none")
    sim.loop.advance(12.0, second.tick)
    assert sim.hosts() == ["10.0.0.1" if known == "a.test" else "10.0.0.3"]
