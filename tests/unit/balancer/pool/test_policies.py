"""The policies, pure: shares, ties, skipped backends, and which clients move when one is removed."""

import inspect
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.pool.choice import Candidate, Choice, Pick
from balancer.pool.policies import FEW, POLICIES

WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def crowd(weights: Sequence[int]) -> list[Candidate]:
    """Candidates whose indexes are no positions: a policy that mixes the two up must fail."""
    return [Candidate(10 * place + 7, f"b{place}", weight) for place, weight in enumerate(weights)]


def built(
    policy: str,
    candidates: Sequence[Candidate],
    loads: dict[int, int] | None = None,
    start: int = 0,
    everyone: Sequence[Candidate] = (),
    ended: set[int] | None = None,
    hash_load: int = 0,
) -> Pick:
    def load(index: int) -> int:
        return (loads or {}).get(index, 0)

    return POLICIES[policy](
        Choice(
            candidates,
            everyone or candidates,
            lambda: [load(c.index) for c in candidates],
            load,
            start,
            set() if ended is None else ended,
            hash_load,
        )
    )


def picks(pick: Pick, count: int) -> list[int]:
    chosen = []
    for number in range(count):
        index = pick(f"10.0.{number // 250}.{number % 250}", ())
        assert index is not None
        chosen.append(index)
    return chosen


@pytest.mark.parametrize("policy", POLICIES)
@given(weights=WEIGHTS, data=st.data())
def test_a_pick_is_eligible_never_skipped_and_none_only_when_all_are(
    policy: str, weights: list[int], data: st.DataObject
) -> None:
    candidates = crowd(weights)
    indexes = [candidate.index for candidate in candidates]
    loads = {index: data.draw(st.integers(0, 20)) for index in indexes}
    pick = built(policy, candidates, loads, start=data.draw(st.integers(0, 9)))
    for _ in range(4):
        skip = data.draw(st.sets(st.sampled_from(indexes)))
        index = pick("192.0.2.1", skip)
        if len(skip) == len(indexes):
            assert index is None
        else:
            assert index in indexes and index not in skip


# -- leastconn


def test_leastconn_takes_the_least_sessions_per_weight() -> None:
    light, heavy = crowd([1, 4])
    assert built("leastconn", [light, heavy], {light.index: 1, heavy.index: 3})("", ()) == heavy.index
    assert built("leastconn", [light, heavy], {light.index: 1, heavy.index: 9})("", ()) == light.index


@pytest.mark.parametrize("count", [3, 3 * FEW])
def test_leastconn_ties_rotate(count: int) -> None:
    candidates = crowd([1] * count)
    chosen = picks(built("leastconn", candidates), 3 * count)
    assert Counter(chosen) == {candidate.index: 3 for candidate in candidates}
    assert all(len(set(chosen[turn : turn + count])) == count for turn in (0, count, 2 * count))


def test_workers_do_not_all_begin_with_the_same_backend() -> None:
    candidates = crowd([1, 1, 1])
    for policy in ("leastconn", "roundrobin"):
        assert len({built(policy, candidates, start=start)("", ()) for start in range(3)}) == 3


def test_leastconn_sends_nothing_to_the_one_with_long_sessions_until_the_others_catch_up() -> None:
    candidates = crowd([1, 1, 1])
    loads = {candidate.index: 0 for candidate in candidates}
    busy = candidates[1].index
    loads[busy] = 50
    pick = built("leastconn", candidates, loads)
    for _ in range(100):
        index = pick("", ())
        assert index is not None and index != busy
        loads[index] += 1
    caught_up = [pick("", ()) for _ in range(3)]
    assert busy in caught_up


@pytest.mark.parametrize("count", [2, 3 * FEW])
def test_leastconn_who_comes_back_to_the_ties_is_not_flooded(count: int) -> None:
    candidates = crowd([1] * count)
    loads = {candidate.index: 0 for candidate in candidates}
    ended: set[int] = set()
    away = candidates[0].index
    pick = built("leastconn", candidates, loads, ended=ended)
    loads[away] = 5
    for _ in range(500 * count):  # one session at a time
        index = pick("", ())
        assert index is not None
        ended.add(index)
    loads[away] = 0
    chosen = []
    for _ in range(10 * count):
        index = pick("", ())
        assert index is not None
        ended.add(index)
        chosen.append(index)
    assert 0 < Counter(chosen)[away] <= 11


@pytest.mark.parametrize(
    "weights", [[1, 1, 2], [5, 1, 1], [3, 1], [1, 1, 1], [1, 2, 3, 4] * 3, [9, *[1] * (FEW + 1)]]
)
@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 8, 50])
def test_leastconn_shares_follow_the_weights_at_every_load(weights: list[int], at_once: int) -> None:
    """4 workers, 1,000 sessions of about equal length, `at_once` of them at a time."""
    candidates = crowd(weights)
    loads = {candidate.index: 0 for candidate in candidates}
    ended: list[set[int]] = [set() for _ in range(4)]
    workers = [built("leastconn", candidates, loads, start, ended=ended[start]) for start in range(4)]
    dice = random.Random(at_once)
    running: list[tuple[int, int]] = []
    count: Counter[int] = Counter()
    for _ in range(1000):
        if len(running) == at_once:
            worker, index = running.pop(0)
            loads[index] -= 1
            ended[worker].add(index)
        worker = dice.randrange(4)
        chosen = workers[worker]("", ())
        assert chosen is not None
        loads[chosen] += 1
        count[chosen] += 1
        running.append((worker, chosen))
    for candidate in candidates:
        share = 1000 * candidate.weight / sum(weights)
        assert abs(count[candidate.index] - share) <= 50, count


EVENTS = st.lists(
    st.tuples(st.sampled_from(["pick", "other elects", "end"]), st.integers(0, 99)), max_size=120
)


@given(
    backends=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=3 * FEW),
    events=EVENTS,
)
def test_leastconn_is_exact_about_what_others_elect_and_what_the_worker_itself_ends(
    backends: list[tuple[int, int]], events: list[tuple[str, int]]
) -> None:
    weights = [weight for weight, _ in backends]
    candidates = crowd(weights)
    by_index = {candidate.index: candidate for candidate in candidates}
    loads = {index: load for index, (_, load) in zip(by_index, backends, strict=True)}
    ended: set[int] = set()
    own = [index for index, load in loads.items() for _ in range(load)]
    pick = built("leastconn", candidates, loads, ended=ended)

    def cost(index: int) -> int:
        return (loads[index] * min(weights) + min(weights) - 1) // by_index[index].weight

    for what, number in events:
        if what == "pick":
            index = pick("", ())
            assert index is not None and cost(index) == min(map(cost, loads))
            own.append(index)
            loads[index] += 1
        elif what == "other elects":
            loads[candidates[number % len(candidates)].index] += 1
        elif own:
            index = own.pop(number % len(own))
            loads[index] -= 1
            ended.add(index)


def test_leastconn_finds_what_others_have_ended_within_a_pick_for_each_backend() -> None:
    candidates = crowd([1] * 3 * FEW)
    loads = {candidate.index: 9 for candidate in candidates}
    away = candidates[20].index
    loads[away] = 50
    pick = built("leastconn", candidates, loads, start=21)
    loads[away] = 0
    chosen = []
    for _ in candidates:
        index = pick("", ())
        assert index is not None
        chosen.append(index)
        loads[index] += 1
    assert away in chosen


def test_leastconn_picks_again_what_was_skipped() -> None:
    first, *others = crowd([1] * 3 * FEW)
    loads = {other.index: 5 for other in others}
    pick = built("leastconn", [first, *others], loads)
    assert pick("", {first.index}) != first.index
    assert pick("", ()) == first.index


def test_leastconn_puts_the_one_that_lost_a_session_and_got_another_behind_its_equals() -> None:
    candidates = crowd([1] * 3 * FEW)
    loads = {candidate.index: 5 for candidate in candidates}
    ended: set[int] = set()
    pick = built("leastconn", candidates, loads, ended=ended)
    back = candidates[3].index
    loads[back] -= 1
    ended.add(back)
    assert pick("", ()) == back
    loads[back] += 1
    chosen = []
    for _ in candidates:
        index = pick("", ())
        assert index is not None
        chosen.append(index)
        loads[index] += 1
    assert chosen[-1] == back


@pytest.mark.parametrize("count", [3 * FEW, 1000])
def test_leastconn_of_many_asks_for_two_loads_however_big_the_pool_is(count: int) -> None:
    """In an only worker: of the one that is next, and of the one whose turn it is."""
    candidates = crowd([1] * count)
    loads: Counter[int] = Counter()
    asked: list[int] = []

    def load(index: int) -> int:
        asked.append(index)
        return loads[index]

    pick = POLICIES["leastconn"](Choice(candidates, candidates, lambda: [0] * count, load))
    for _ in range(3 * count):
        index = pick("", ())
        assert index is not None
        loads[index] += 1
    assert len(asked) == 2 * 3 * count


def test_leastconn_keeps_no_more_than_a_few_entries_for_each_backend() -> None:
    candidates = crowd([1] * 3 * FEW)
    loads = {candidate.index: 50 for candidate in candidates}
    pick = built("leastconn", candidates, loads)
    heap = inspect.getclosurevars(pick).nonlocals["order"].heap
    dice = random.Random(1)
    for _ in range(3000):
        loads[dice.choice(candidates).index] = dice.randrange(40, 60)
        pick("", ())
        assert len(heap) <= 5 * len(candidates)


# -- roundrobin


@given(WEIGHTS, st.integers(0, 7), st.integers(1, 5))
def test_roundrobin_gives_each_exactly_its_weight_per_round(
    weights: list[int], start: int, rounds: int
) -> None:
    candidates = crowd(weights)
    count = Counter(picks(built("roundrobin", candidates, start=start), rounds * sum(weights)))
    assert count == {candidate.index: rounds * candidate.weight for candidate in candidates}


@given(WEIGHTS, st.integers(1, 60))
def test_roundrobin_is_never_far_from_the_share(weights: list[int], length: int) -> None:
    candidates = crowd(weights)
    count = Counter(picks(built("roundrobin", candidates), length))
    for candidate in candidates:
        share = length * candidate.weight / sum(weights)
        assert abs(count[candidate.index] - share) <= 1 + candidate.weight * len(weights) / sum(weights)


def test_roundrobin_spreads_the_heavy_one() -> None:
    heavy, *light = crowd([5, 1, 1])
    chosen = picks(built("roundrobin", [heavy, *light]), 70)
    longest = max(len(run) for run in "".join("H" if c == heavy.index else " " for c in chosen).split())
    assert longest <= 6  # 2.5 on average; two rounds back to back would be 10 in a row


def test_roundrobin_with_a_skip_takes_the_next_due_and_keeps_its_place() -> None:
    a, b, c = (candidate.index for candidate in crowd([1, 1, 1]))
    pick = built("roundrobin", crowd([1, 1, 1]))
    assert pick("", {a}) == b
    assert [pick("", ()), pick("", ())] == [a, c]


# -- random, p2c


@pytest.mark.parametrize("policy", ["random", "p2c"])
def test_random_ones_are_fair_within_noise(policy: str) -> None:
    candidates = crowd([1, 1, 1, 1])
    count = Counter(picks(built(policy, candidates), 4000))
    assert all(abs(count[candidate.index] - 1000) < 200 for candidate in candidates)  # 7 sigma


def test_random_follows_weights_with_and_without_a_skip() -> None:
    light, heavy, other = crowd([1, 3, 1])
    pick = built("random", [light, heavy, other])
    count = Counter(pick("", {other.index}) for _ in range(4000))
    assert abs(count[heavy.index] - 3000) < 200
    count = Counter(picks(pick, 4000))
    assert abs(count[heavy.index] - 2400) < 220


@pytest.mark.parametrize("order", [1, -1])
def test_p2c_of_two_always_takes_the_less_loaded(order: int) -> None:
    """Drawing the same one twice would send a quarter of the sessions to the busy one."""
    idle, busy = crowd([1, 1])
    pick = built("p2c", [idle, busy][::order], {busy.index: 1})
    assert set(picks(pick, 200)) == {idle.index}


def test_p2c_compares_per_weight() -> None:
    light, heavy = crowd([1, 4])
    assert built("p2c", [light, heavy], {light.index: 1, heavy.index: 3})("", ()) == heavy.index


def test_p2c_asks_for_two_loads_however_big_the_pool_is() -> None:
    asked: list[int] = []

    def load(index: int) -> int:
        asked.append(index)
        return 0

    candidates = crowd([1] * 1000)
    pick = POLICIES["p2c"](Choice(candidates, candidates, lambda: 1 / 0, load))  # type: ignore[arg-type,return-value]
    pick("", ())
    assert len(set(asked)) == 2


# -- source

CLIENTS = [f"10.{number // 256}.{number % 256}.9" for number in range(2000)]


def owners(pick: Pick) -> dict[str, int | None]:
    return {client: pick(client, ()) for client in CLIENTS}


def test_source_gives_an_address_the_same_backend_in_every_worker() -> None:
    candidates = crowd([1, 1, 2])
    assert owners(built("source", candidates)) == owners(built("source", candidates, start=3))
    assert owners(built("source", candidates)) == owners(built("source", candidates[::-1]))


@settings(max_examples=20)  # each hashes 6,000 addresses
@given(weights=st.lists(st.integers(1, 4), min_size=2, max_size=5), data=st.data())
def test_source_moves_only_the_clients_of_the_one_that_left(weights: list[int], data: st.DataObject) -> None:
    candidates = crowd(weights)
    gone = data.draw(st.sampled_from(candidates))
    left = [candidate for candidate in candidates if candidate != gone]
    before = owners(built("source", candidates))
    for after in (
        owners(built("source", left, everyone=candidates)),  # down
        owners(built("source", left)),  # removed from the configuration
    ):
        assert all(after[client] == owner for client, owner in before.items() if owner != gone.index)
        assert gone.index not in after.values()


def test_source_a_skip_moves_nobody_else() -> None:
    candidates = crowd([1, 1, 1])
    pick = built("source", candidates)
    before = owners(pick)
    full = candidates[0].index
    for client, owner in before.items():
        if owner != full:
            assert pick(client, {full}) == owner


def test_source_shares_follow_the_weights() -> None:
    count = Counter(owners(built("source", crowd([1, 1, 2]))).values())
    assert abs(count[27] - 1000) < 200
    assert abs(count[7] - 500) < 150


def test_source_adding_one_takes_about_its_share_and_moves_nobody_between_the_others() -> None:
    candidates = crowd([1] * 10)
    before, after = owners(built("source", candidates[:9])), owners(built("source", candidates))
    moved = [client for client in CLIENTS if before[client] != after[client]]
    assert all(after[client] == candidates[9].index for client in moved)
    assert 100 < len(moved) < 320
