"""The policies, pure: shares, ties, skipped backends, and which clients move when one is removed."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.pool.policies import POLICIES, Candidate, Choice, Pick

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
) -> Pick:
    def load(index: int) -> int:
        return (loads or {}).get(index, 0)

    return POLICIES[policy](
        Choice(candidates, everyone or candidates, lambda: [load(c.index) for c in candidates], load, start)
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


def test_leastconn_ties_rotate() -> None:
    candidates = crowd([1, 1, 1])
    chosen = picks(built("leastconn", candidates), 9)
    assert Counter(chosen) == {candidate.index: 3 for candidate in candidates}
    assert all(len(set(chosen[turn : turn + 3])) == 3 for turn in (0, 3, 6))


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


def test_leastconn_who_comes_back_to_the_ties_is_not_flooded() -> None:
    candidates = crowd([1, 1])
    loads = {candidate.index: 0 for candidate in candidates}
    away = candidates[0].index
    pick = built("leastconn", candidates, loads)
    loads[away] = 5
    picks(pick, 1000)
    loads[away] = 0
    assert Counter(picks(pick, 20))[away] <= 11


@pytest.mark.parametrize("weights", [[1, 1, 2], [5, 1, 1], [3, 1], [1, 1, 1]])
@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 8, 50])
def test_leastconn_shares_follow_the_weights_at_every_load(weights: list[int], at_once: int) -> None:
    """4 workers, 1,000 sessions of about equal length, `at_once` of them at a time."""
    candidates = crowd(weights)
    loads = {candidate.index: 0 for candidate in candidates}
    workers = [built("leastconn", candidates, loads, start) for start in range(4)]
    dice = random.Random(at_once)
    running: list[int] = []
    count: Counter[int] = Counter()
    for _ in range(1000):
        if len(running) == at_once:
            loads[running.pop(0)] -= 1
        index = dice.choice(workers)("", ())
        assert index is not None
        loads[index] += 1
        count[index] += 1
        running.append(index)
    for candidate in candidates:
        share = 1000 * candidate.weight / sum(weights)
        assert abs(count[candidate.index] - share) <= 50, count


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
