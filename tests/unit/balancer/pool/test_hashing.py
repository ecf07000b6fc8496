"""Hashing: balancers with the same backends agree, shares are even, a change moves few, loads keep to their bound."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from balancer.options import HASHES
from balancer.pool.choice import Candidate, Choice
from balancer.pool.policies import POLICIES
from tests.unit.balancer.pool.test_policies import CLIENTS, built, owners, picks

MANY = [f"{number >> 16}.{number >> 8 & 255}.{number & 255}.7" for number in range(100_000)]


def hosts(count: int, weight: int = 1) -> list[Candidate]:
    return [Candidate(place, f"name-{place}", weight, f"10.0.0.{place}:80") for place in range(count)]


def elsewhere(candidates: list[Candidate]) -> list[Candidate]:
    """The same backends as another balancer writes them: in another order, with other names and blocks."""
    others = [replace(one, index=900 - one.index, name=f"other {one.key}") for one in candidates]
    random.Random(3).shuffle(others)
    return others


@pytest.mark.parametrize("policy", HASHES)
@pytest.mark.parametrize("balancers", [2, 5])
def test_balancers_with_the_same_set_agree_on_every_client(policy: str, balancers: int) -> None:
    candidates = hosts(10)
    key_of = {one.index: one.key for one in candidates} | {
        one.index: one.key for one in elsewhere(candidates)
    }
    first = built(policy, candidates)
    wanted = [key_of[first(one, ()) or 0] for one in MANY]
    for _ in range(balancers - 1):
        second = built(policy, elsewhere(candidates))
        assert [key_of[second(one, ()) or 0] for one in MANY] == wanted


@pytest.mark.parametrize("policy", HASHES)
@pytest.mark.parametrize("count", [3, 10, 30])
def test_a_changed_set_moves_few(policy: str, count: int) -> None:
    """Also between two balancers of which one has seen the change and the other has not yet."""
    before = owners(built(policy, hosts(count)))
    after = owners(built(policy, hosts(count + 1)))
    moved = sum(before[client] != after[client] for client in CLIENTS) / len(CLIENTS)
    assert moved <= 1 / (count + 1) + (0.02 if policy == "maglev" else 0.05)


@pytest.mark.parametrize("policy", HASHES)
def test_one_that_is_down_moves_its_own_clients_only_to_all_others(policy: str) -> None:
    candidates = hosts(10)
    before = owners(built(policy, candidates))
    after = owners(built(policy, candidates[1:], everyone=candidates))
    assert all(after[client] == owner for client, owner in before.items() if owner != 0)
    taken = Counter(after[client] for client, owner in before.items() if owner == 0)
    assert len(taken) == 9 and max(taken.values()) < 3 * len(CLIENTS) / 100


def test_maglev_gives_even_shares_by_weight() -> None:
    weights = [1, 1, 2, 4]
    candidates = [replace(one, weight=weight) for one, weight in zip(hosts(4), weights, strict=True)]
    pick = built("maglev", candidates)
    given = Counter(pick(one, ()) for one in MANY)
    for one in candidates:
        assert given[one.index] / len(MANY) == pytest.approx(one.weight / 8, rel=0.05)


@pytest.mark.parametrize("policy", HASHES)
def test_two_backends_of_one_address_both_have_clients(policy: str) -> None:
    candidates = [replace(one, key="10.0.0.1:80") for one in hosts(2)]
    assert min(Counter(owners(built(policy, candidates)).values()).values()) > len(CLIENTS) / 3


@pytest.mark.parametrize("policy", HASHES)
@pytest.mark.parametrize("percent", [125, 150, 200])
def test_no_backend_is_given_more_than_its_bound(policy: str, percent: int) -> None:
    """All clients of one address, and then of all."""
    candidates, loads = (
        [replace(one, weight=1 + one.index % 2) for one in hosts(6)],
        dict.fromkeys(range(6), 0),
    )
    pick = built(policy, candidates, loads, hash_load=percent)
    for client in ["10.1.1.1"] * 300 + CLIENTS[:600]:
        index = pick(client, ())
        assert index is not None
        loads[index] += 1
        share = (1 + index % 2) / 9
        assert loads[index] <= percent / 100 * share * sum(loads.values()) + 1
    free = built(policy, candidates, dict.fromkeys(range(6), 0), hash_load=percent)
    assert owners(free).keys() == set(CLIENTS)


@pytest.mark.parametrize("policy", HASHES)
def test_a_bound_moves_nobody_while_it_is_not_reached(policy: str) -> None:
    loads = dict.fromkeys(range(6), 100)
    assert owners(built(policy, hosts(6), loads, hash_load=150)) == owners(built(policy, hosts(6)))


@pytest.mark.parametrize("policy", HASHES)
def test_beyond_every_bound_the_own_backend_serves(policy: str) -> None:
    """Those that the skip leaves are all beyond their bound: better more than none."""
    loads = {0: 50, 1: 0}
    pick = built(policy, hosts(2), loads, hash_load=125)
    assert pick("10.1.1.1", {1}) == 0


def test_first_fills_in_the_order_of_the_configuration() -> None:
    pick = built("first", hosts(3))
    assert picks(pick, 5) == [0] * 5
    assert pick("", {0}) == 1 and pick("", {0, 1}) == 2 and pick("", {0, 1, 2}) is None


def test_nq_takes_the_idle_first_and_then_the_shortest_delay() -> None:
    candidates = [replace(one, weight=weight) for one, weight in zip(hosts(3), [1, 1, 4], strict=True)]
    loads = dict.fromkeys(range(3), 0)
    pick = built("nq", candidates, loads)
    order = []
    for _ in range(8):
        index = pick("", ())
        assert index is not None
        loads[index] += 1
        order.append(index)
    assert order[0] == 2 and set(order[1:3]) == {0, 1}, "idle ones, the heaviest first"
    assert order[3:6] == [2, 2, 2], "then 2/4, 3/4, 4/4 before 2/1"
    loads.update({0: 0})
    assert pick("", ()) == 0
    assert built("nq", hosts(4), dict.fromkeys(range(4), 0), start=1)("", ()) is not None


def test_nq_turns_among_equals() -> None:
    pick = built("nq", hosts(4))
    assert sorted(picks(pick, 4)) == [0, 1, 2, 3] and len(set(picks(pick, 4))) == 4


def test_every_policy_is_an_option() -> None:
    from balancer.options import POLICIES as OPTIONS

    assert tuple(POLICIES) == OPTIONS


def test_the_key_of_a_candidate_is_its_address_and_else_its_name() -> None:
    assert Candidate(1, "a", 1, "10.0.0.1:80").identity == "10.0.0.1:80" and Candidate(1, "a").identity == "a"
    assert Choice.__dataclass_fields__["hash_load"].default == 0
