"""Elections of requests: what the own worker does counts at once, what others do once in LOOK seconds."""

import random
from collections import Counter

import pytest

from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.board import (
    ADMIN_DRAIN,
    ADMIN_READY,
    B_BYTES_IN,
    B_BYTES_OUT,
    B_SESSIONS,
    B_SESSIONS_ODD,
    B_SESSIONS_TOTAL,
    DOWN,
    W_VERDICT,
    Board,
)
from balancer.pool.election import Elector
from balancer.pool.policies import POLICIES
from balancer.pool.request_election import FEW, LOOK, NOWHERE, RequestElector
from balancer.pool.verdicts import VerdictWriter
from balancer.shm.layout import FIRST_LEASE
from tests.unit.balancer.pool.boards import make_board, pool_of
from tests.unit.balancer.pool.test_election import pool, slot_words

OWN, OTHER = FIRST_LEASE, FIRST_LEASE + 1
CLIENT = "10.9.9.9"


@pytest.fixture
def board() -> Board:
    made = make_board(16)
    for row in (OWN, OTHER):
        made.counts.zero(row)
    return made


def elector(
    board: Board, backends: tuple[Backend, ...], policy: str = "leastconn", row: int = OWN
) -> RequestElector:
    return RequestElector(board, pool_of(board, backends, policy), row)


def cell(board: Board, backend: Backend, column: int) -> int:
    return int(board.counts.row(OWN)[Board.backend_at(backend.index) + column])


def hold(board: Board, backend: Backend, requests: int) -> None:
    """Another worker has so many requests under way."""
    board.counts.row(OTHER)[Board.backend_at(backend.index) + B_SESSIONS] = requests


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_request_is_counted_until_it_is_released(board: Board, policy: str) -> None:
    backends = pool("", "", "")
    elect = elector(board, backends, policy)
    place = elect.elect_request(CLIENT, 1.0)
    assert elect.place_of(backends[place]) == place
    assert [cell(board, each, B_SESSIONS) for each in backends] == [int(n == place) for n in range(3)]
    assert cell(board, backends[place], B_SESSIONS_TOTAL) == 1
    elect.release_request(place)
    elect.count_bytes(backends[place], 5, 7)
    assert [cell(board, each, B_SESSIONS) for each in backends] == [0, 0, 0]
    columns = (B_SESSIONS_TOTAL, B_BYTES_IN, B_BYTES_OUT)
    assert [cell(board, backends[place], column) for column in columns] == [1, 5, 7]


@pytest.mark.parametrize(
    "texts", [("", "", ""), ("weight=2", "weight=2", "weight=2"), ("",) * FEW, ("",) * (FEW + 4)]
)
def test_requests_that_stay_spread_evenly(board: Board, texts: tuple[str, ...]) -> None:
    backends = pool(*texts) if len(texts) <= 6 else many(len(texts))
    elect = elector(board, backends)
    places = [elect.elect_request(CLIENT, 1.0) for _ in range(10 * len(texts))]
    assert set(Counter(places).values()) == {10}


def many(count: int) -> tuple[Backend, ...]:

    named = [parse_upstream(f"10.0.0.1:{9000 + place} name=n{place}") for place in range(count)]
    return with_indexes(named, {backend.name: place for place, backend in enumerate(named)})


def test_weights_are_kept(board: Board) -> None:
    elect = elector(board, pool("weight=3", "", ""))
    places = [elect.elect_request(CLIENT, 1.0) for _ in range(50)]
    assert Counter(places) == {0: 30, 1: 10, 2: 10}


def test_requests_one_at_a_time_go_round(board: Board) -> None:
    elect = elector(board, pool("", "", ""))
    shares: Counter[int] = Counter()
    for turn in range(300):
        place = elect.elect_request(CLIENT, 1.0 + turn * LOOK / 3)
        elect.release_request(place)
        shares[place] += 1
    assert set(shares.values()) == {100}


def test_workers_do_not_begin_with_the_same_backend(board: Board) -> None:
    backends = pool("", "", "")
    first = [elector(board, backends, row=OWN + n).elect_request(CLIENT, 1.0) for n in range(2)]
    assert len(set(first)) == 2


def test_the_requests_of_other_workers_count_after_a_look(board: Board) -> None:
    backends = pool("", "")
    elect = elector(board, backends)
    first = elect.elect_request(CLIENT, 1.0)
    elect.release_request(first)
    hold(board, backends[1 - first], 10)
    assert elect.elect_request(CLIENT, 1.0 + LOOK / 2) == 1 - first  # not seen yet
    assert [elect.elect_request(CLIENT, 1.0 + LOOK) for _ in range(10)] == [first] * 10


def test_a_backend_that_was_elsewhere_for_long_does_not_get_all_its_turns_back(board: Board) -> None:
    """One has had no part for 1,000 requests: among equals it comes first for a while only."""
    backends = pool("", "")
    elect = elector(board, backends)
    hold(board, backends[0], 5)
    for turn in range(1000):
        elect.release_request(elect.elect_request(CLIENT, 1.0 + turn))
    hold(board, backends[0], 0)
    shares: Counter[int] = Counter()
    for turn in range(300):
        place = elect.elect_request(CLIENT, 2000.0 + turn)
        elect.release_request(place)
        shares[place] += 1
    assert 100 < shares[1] < 150


@pytest.mark.parametrize("policy", list(POLICIES))
def test_a_backend_that_is_not_eligible_gets_nothing_from_the_next_look_on(board: Board, policy: str) -> None:
    backends = pool("", "")
    elect = elector(board, backends, policy)
    before = [elect.elect_request(CLIENT, 1.0) for _ in range(4)]
    board.set_admin_state(backends[0].index, ADMIN_DRAIN)
    assert {elect.elect_request(CLIENT, 1.1) for _ in range(20)} == {1}
    for place in (*before, *[1] * 20):
        elect.release_request(place)
    board.set_admin_state(backends[0].index, ADMIN_READY)
    board.set_admin_state(backends[1].index, ADMIN_DRAIN)
    assert {elect.elect_request(CLIENT, 1.2) for _ in range(20)} == {0}
    board.set_admin_state(backends[0].index, ADMIN_DRAIN)
    assert elect.elect_request(CLIENT, 1.3) == NOWHERE
    assert elect.elect(CLIENT) is None
    assert elect.why == "down"
    board.set_admin_state(backends[1].index, ADMIN_READY)
    assert elect.elect_request(CLIENT, 1.4) == 1


def test_a_pool_with_limits_is_for_elect(board: Board) -> None:
    backends = pool("maxconn=1", "")
    elect = elector(board, backends)
    assert elect.elect_request(CLIENT, 1.0) == NOWHERE
    assert {elect.elect(CLIENT) for _ in range(2)} == set(backends)
    assert [cell(board, each, B_SESSIONS) for each in backends] == [1, 1]


def test_what_elect_and_release_do_counts_in_the_next_election(board: Board) -> None:
    backends = pool("", "")
    elect = elector(board, backends)
    elected = [elect.elect(CLIENT, {backends[0].index}) for _ in range(4)]
    assert elected == [backends[1]] * 4
    assert [elect.elect_request(CLIENT, 1.0) for _ in range(4)] == [0] * 4
    for _ in range(3):
        elect.release(backends[1])
    assert [elect.elect_request(CLIENT, 1.0) for _ in range(3)] == [1] * 3


@pytest.mark.parametrize("policy", list(POLICIES))
def test_backups_serve_when_no_other_does(board: Board, policy: str) -> None:
    backends = pool("", "backup", "backup")
    elect = elector(board, backends, policy)
    assert {elect.elect_request(CLIENT, 1.0) for _ in range(6)} == {0}
    assert elect.elect(CLIENT, {backends[0].index}) in backends[1:]
    board.write_verdict(backends[0].index, [(W_VERDICT, DOWN)])
    places = [elect.elect_request(CLIENT, 1.1) for _ in range(5)]
    assert set(places) <= {1, 2}
    if policy == "leastconn":
        assert Counter(places) in (Counter({1: 3, 2: 2}), Counter({1: 2, 2: 3}))


@pytest.mark.parametrize("policy", ["source", "maglev", "first", "nq"])
@pytest.mark.parametrize("seed", range(30))
def test_a_request_goes_where_a_session_would(policy: str, seed: int) -> None:
    """Weights, backups, loads and states by chance; a tie is the worker's own business."""
    dice = random.Random(seed)
    kinds = [
        f"weight={dice.randint(1, 4)}" + " backup" * (dice.random() < 0.2) for _ in range(dice.randint(1, 6))
    ]
    boards = [make_board(16), make_board(16)]
    for made in boards:
        for row in (OWN, OTHER):
            made.counts.zero(row)
    backends = pool(*kinds)
    loads = [dice.randint(0, 9) for _ in backends]
    down, drained = (dice.sample(backends, dice.randint(0, len(backends) // 2)) for _ in range(2))
    for made in boards:
        for backend, load in zip(backends, loads, strict=True):
            hold(made, backend, load)
        for backend in down:
            made.write_verdict(backend.index, [(W_VERDICT, DOWN)])
        for backend in drained:
            made.set_admin_state(backend.index, ADMIN_DRAIN)
    requests = elector(boards[0], backends, policy)
    sessions = Elector(boards[1], pool_of(boards[1], backends, policy), OWN)
    for number in range(12):
        client = f"10.0.{number}.1"
        elected, place = sessions.elect(client), requests.elect_request(client, 1.0 + number)
        assert (elected is None) == (place == NOWHERE)
        if elected is not None:
            same = backends[place]
            assert elected == same or (
                policy == "nq" and loads_of(boards[1], elected) == loads_of(boards[0], same)
            )


def loads_of(board: Board, backend: Backend) -> tuple[int, int]:
    """Requests of all workers and the weight: what `nq` compares."""
    return board.tenant_sessions(backend.index), backend.weight


def test_first_fills_one_and_nq_goes_to_the_idle_ones(board: Board) -> None:
    backends = pool("", "", "")
    hold(board, backends[0], 1)
    assert {elector(board, backends, "first").elect_request(CLIENT, 1.0) for _ in range(5)} == {0}
    for backend in backends:
        board.counts.row(OWN)[Board.backend_at(backend.index) + B_SESSIONS] = 0
    idle = elector(board, backends, "nq")
    assert {idle.elect_request(CLIENT, 1.0) for _ in range(2)} == {1, 2}
    assert sorted(idle.elect_request(CLIENT, 1.0) for _ in range(3)) == [0, 1, 2]


def test_no_count_is_lost_whatever_happens_between_elections(board: Board) -> None:
    """Random acts of this worker, another one and an operator: the own gauges are the requests under way."""
    rng = random.Random(3)
    for texts in (("", "", ""), ("weight=2", "", "backup"), ("maxconn=3", "", "")):
        backends = pool(*texts)
        elect = elector(board, backends, rng.choice(list(POLICIES)))
        under_way: Counter[int] = Counter()
        for turn in range(600):
            act = rng.random()
            if act < 0.4:
                place = elect.elect_request(CLIENT, 1.0 + turn * LOOK / 4)
                if place == NOWHERE:
                    backend = elect.elect(CLIENT)
                    place = elect.place_of(backend) if backend else NOWHERE
                if place != NOWHERE:
                    under_way[place] += 1
            elif act < 0.8 and +under_way:
                place = rng.choice([*(+under_way).elements()])
                under_way[place] -= 1
                if rng.random() < 0.5:
                    elect.release_request(place)
                else:
                    elect.release(backends[place], 1, 1)
            elif act < 0.9:
                hold(board, rng.choice(backends), rng.randrange(4))
            else:
                board.set_admin_state(rng.choice(backends).index, rng.choice([ADMIN_DRAIN, ADMIN_READY]))
            assert [cell(board, backends[n], B_SESSIONS) for n in range(3)] == [
                under_way[n] for n in range(3)
            ]
        for backend in backends:
            hold(board, backend, 0)
            board.set_admin_state(backend.index, ADMIN_READY)
            board.counts.row(OWN)[Board.backend_at(backend.index) + B_SESSIONS] = 0


# -- what each policy promises, of requests that stay and of requests that end at random


def shares_of(board: Board, policy: str, *texts: str, requests: int = 600) -> list[int]:
    """How many of the requests each backend has got; half of them stay."""
    rng = random.Random(7)
    elect = elector(board, pool(*texts), policy)
    shares: Counter[int] = Counter()
    for number in range(requests):
        place = elect.elect_request(f"10.0.{number >> 8}.{number & 255}", 1.0 + number * LOOK / 5)
        shares[place] += 1
        if rng.random() < 0.5:
            elect.release_request(place)
    return [shares[place] for place in range(len(texts))]


def test_roundrobin_is_exact_for_each_request(board: Board) -> None:
    assert shares_of(board, "roundrobin", "weight=3", "", "") == [360, 120, 120]


def test_p2c_keeps_to_the_less_loaded() -> None:
    """The one with 50 requests of another worker gets nothing until the others have as many. Chance has a part in it, so
    that the middle one of some trials is looked at."""
    trials = sorted(spreads_of_p2c() for _ in range(7))
    assert trials[3][0] <= 6
    assert sorted(spread for _, spread in trials)[3] <= 6


def spreads_of_p2c() -> tuple[int, int]:
    """By how much the loads of those it chooses from differ: of two, and of all three."""
    board, backends = make_board(16), pool("", "", "")
    for row in (OWN, OTHER):
        board.counts.zero(row)
    elect = elector(board, backends, "p2c")
    hold(board, backends[0], 50)
    places = [elect.elect_request(CLIENT, 1.0) for _ in range(80)]
    assert 0 not in places
    of_two = abs(places.count(1) - places.count(2))
    places += [elect.elect_request(CLIENT, 1.0) for _ in range(220)]
    loads = [places.count(0) + 50, places.count(1), places.count(2)]
    return of_two, max(loads) - min(loads)


@pytest.mark.parametrize("policy", ["source", "maglev"])
def test_a_hash_gives_a_client_the_same_backend_for_each_request(board: Board, policy: str) -> None:
    backends = pool("", "", "")
    elect = elector(board, backends, policy)
    clients = [f"10.1.2.{number}" for number in range(90)]
    first = [elect.elect_request(client, 1.0) for client in clients]
    assert min(Counter(first).values()) > 10
    assert [elect.elect_request(client, 1.1) for client in clients] == first
    board.set_admin_state(backends[0].index, ADMIN_DRAIN)
    moved = [elect.elect_request(client, 1.2) for client in clients]
    assert 0 not in moved
    stayed = [place for place, before in zip(moved, first, strict=True) if place == before]
    assert len(stayed) >= 0.8 * sum(before != 0 for before in first)


def test_tenants_from_before_framed_mode_are_counted_in_the_one_gauge_too(board: Board) -> None:
    slots = with_indexes(
        parse_upstream("dns:web.test:80 slots=2 name=web").expanded(), {"web-1": 6, "web-2": 5}
    )
    for slot in slots:
        VerdictWriter(board, OTHER).restore(slot, 0.0)
        board.write_verdict(slot.index, slot_words(f"10.0.0.{slot.index}", 1).items())
    elect = elector(board, slots)
    gauges = [(slot, column) for slot in slots for column in (B_SESSIONS, B_SESSIONS_ODD)]
    backend = elect.elect(CLIENT)
    assert backend is not None
    elect.release_request(elect.place_of(backend))
    assert [cell(board, *gauge) for gauge in gauges] == [0, 0, 0, 0]
    elect.release(elect.present(slots[elect.elect_request(CLIENT, 1.0)]))
    assert [cell(board, *gauge) for gauge in gauges] == [0, 0, 0, 0]
