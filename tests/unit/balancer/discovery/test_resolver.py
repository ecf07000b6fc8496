"""Names beside the loop: one question at a time per name, the last good answer kept, the address in use as well."""

import threading
from itertools import permutations

import pytest

from balancer.discovery.resolver import MOST_LOOKUPS, Resolver, merge, usable
from balancer.pool.targets import NameAddresses
from scripts.lab.waiting import is_readable

BOTH = (4, 6)


def known(*hosts: str, in_use: int = 0) -> NameAddresses:
    return NameAddresses(hosts, in_use)


@pytest.mark.parametrize(
    ("before", "answer", "after"),
    [
        (known(), ["10.0.0.2", "10.0.0.1"], known("10.0.0.2", "10.0.0.1")),
        (
            known("10.0.0.1"),
            ["10.0.0.2", "10.0.0.1"],
            known("10.0.0.2", "10.0.0.1", in_use=1),
        ),  # stays in use
        (known("10.0.0.1"), ["10.0.0.2", "10.0.0.3"], known("10.0.0.2", "10.0.0.3")),
        (known("::1", "127.0.0.1", in_use=1), ["127.0.0.1"], known("127.0.0.1")),
        (known("::1"), ["::1", "127.0.0.1"], known("::1", "127.0.0.1")),
    ],
)
def test_the_address_in_use_stays_while_it_is_an_answer(
    before: NameAddresses, answer: list[str], after: NameAddresses
) -> None:
    assert merge(before, answer) == after


def test_an_answer_in_another_order_changes_nothing() -> None:
    """Most servers rotate; each change would have every worker rebuild its lists."""
    before = known("10.0.0.1", "10.0.0.2", "10.0.0.3", in_use=2)
    for answer in permutations(before.hosts):
        assert merge(before, list(answer)) is before


def test_of_many_addresses_eight_are_kept_and_the_one_in_use_among_them() -> None:
    answer = [f"10.0.0.{number}" for number in range(20)]
    assert merge(known(), answer).hosts == tuple(answer[:8])
    kept = merge(known("10.0.0.15"), answer)
    assert len(kept.hosts) == 8 and kept.host == "10.0.0.15"


def test_what_cannot_be_dialled_is_left_out() -> None:
    answers = ["fe80::1%eth0", "::1", "127.0.0.1", "::1", "10.0.0.1"]
    assert usable(answers, BOTH) == ["::1", "127.0.0.1", "10.0.0.1"]
    assert usable(answers, (4,)) == ["127.0.0.1", "10.0.0.1"]  # source= is an IPv4 address
    assert usable(answers, (6,)) == ["::1"]


@pytest.mark.parametrize(
    "answer",
    [
        "0.0.0.0",
        "::",
        "::ffff:0.0.0.0",
        "169.254.169.254",
        "::ffff:169.254.1.1",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
    ],
)
def test_an_answer_that_is_no_machine_s_address_is_left_out(answer: str) -> None:
    assert usable([answer], BOTH) == []
    assert usable([answer, "127.0.0.1"], BOTH) == ["127.0.0.1"]


def collect(resolver: Resolver) -> list[tuple[str, list[str], str]]:
    assert is_readable(resolver.wake_fd, within=60)
    return resolver.collect()


def test_an_answer_wakes_and_is_collected_once() -> None:
    resolver = Resolver(lambda name: [f"10.0.0.{len(name)}"])
    assert resolver.ask("web")
    assert collect(resolver) == [("web", ["10.0.0.3"], "")]
    assert resolver.collect() == []
    assert not is_readable(resolver.wake_fd)


def test_a_failure_is_an_answer_too() -> None:
    def fail(name: str) -> list[str]:
        raise OSError("no such host")

    resolver = Resolver(fail)
    resolver.ask("web")
    assert collect(resolver) == [("web", [], "no such host")]
    assert resolver.ask("web")


def test_a_silent_server_holds_up_its_own_name_only() -> None:
    answer = threading.Event()

    def look_up(name: str) -> list[str]:
        if name == "silent":
            assert answer.wait(60)
        return ["10.0.0.1"]

    resolver = Resolver(look_up)
    assert resolver.ask("silent")
    assert resolver.ask("web")
    assert collect(resolver) == [("web", ["10.0.0.1"], "")]
    assert resolver.ask("silent") is False  # still being asked: no second thread
    answer.set()
    assert collect(resolver) == [("silent", ["10.0.0.1"], "")]
    assert resolver.ask("silent") is True


def test_a_thousand_names_do_not_cost_a_thousand_threads() -> None:
    answer, begun = threading.Event(), threading.Semaphore(0)
    most, running, lock = [0], [0], threading.Lock()

    def look_up(name: str) -> list[str]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        begun.release()
        assert answer.wait(60)
        with lock:
            running[0] -= 1
        return ["10.0.0.1"]

    resolver = Resolver(look_up)
    names = {f"web-{number}" for number in range(3 * MOST_LOOKUPS)}
    for name in names:
        assert resolver.ask(name)
    for _ in range(MOST_LOOKUPS):
        assert begun.acquire(timeout=60)
    assert not begun.acquire(blocking=False)
    answer.set()
    ended: set[str] = set()
    while ended < names:
        ended |= {name for name, _, _ in collect(resolver)}
    assert most[0] <= MOST_LOOKUPS
