"""What is waited for: which states meet a condition, and what will never be met."""

from dataclasses import replace
from typing import Any

import pytest

from balancer.console.waits import OF_BACKENDS, OF_BALANCER, NeverMet, after, called, condition
from balancer.ctl_options import WAITS_OF_BACKENDS, WAITS_OF_BALANCER
from balancer.pool.backend import is_called, parse_upstream
from tests.unit.balancer.console.sample_status import backend, status


def of(*states: str, sessions: int = 0) -> dict[str, Any]:
    """A status with backends a, b ... in these states."""
    return status(
        backends=[backend("abc"[place], state=state, sessions=sessions) for place, state in enumerate(states)]
    )


def test_the_command_line_knows_every_condition() -> None:
    assert (tuple(OF_BALANCER), tuple(OF_BACKENDS)) == (WAITS_OF_BALANCER, WAITS_OF_BACKENDS)


@pytest.mark.parametrize(
    ("words", "found", "left"),
    [
        ("a up", of("up"), ""),
        ("a up", of("down"), "not up yet: a"),
        ("a b up", of("up", "drain"), "not up yet: b"),
        ("a up", of("up", "down"), ""),
        ("[ab] up", of("unresolved", "maint", "down"), "not up yet: a, b"),
        ("main/a up", of("up"), ""),
        ("a down", of("down"), ""),
        ("* down", of("down", "drain"), "not down yet: b is drain"),
        ("a drained", of("drain"), ""),
        ("a drained", of("down"), ""),
        ("a drained", of("maint", sessions=3), "3 sessions left"),
        ("a drained", of("up"), "new sessions still go to a"),
        ("idle", status(totals={"sessions": 0, "queued": 0}), ""),
        ("idle", status(totals={"sessions": 2, "queued": 1}), "2 sessions open"),
        ("ready", status(serving=True, reason="pool b: every backend is down"), ""),
        ("ready", status(serving=False, reason="all are down"), "no client can be served: all are down"),
    ],
)  # fmt: skip
def test_a_condition_is_met_or_says_what_it_lacks(words: str, found: dict[str, Any], left: str) -> None:
    assert condition(tuple(words.split()), set(), found) == left


@pytest.mark.parametrize(
    ("words", "waits"),
    [("idle", True), ("a drained", True), ("a up", False), ("b down", False), ("ready", False)],
)
def test_sessions_of_the_master_before_an_upgrade_are_waited_for(words: str, waits: bool) -> None:
    found = status(
        backends=[backend("a", sessions=0), backend("b", state="down")],
        former_master=4700,
        totals={"sessions": 0, "queued": 0},
    )
    if words == "a drained":
        found["backends"][0]["state"] = "drain"
    left = condition(tuple(words.split()), set(), found)
    assert left == ("the master before the upgrade (pid 4700) still has its sessions" if waits else "")
    for act in ("drain", "maint"):
        found["backends"][0]["state"] = act
        assert "4700" in after(act, {"a"}, found)
        assert after(act, {"a"}, found | {"former_master": None}) == ""


def test_a_name_that_no_backend_has_is_never_met() -> None:
    for name in ("x", "other/a", "x*"):
        with pytest.raises(NeverMet, match="no backend is called"):
            condition((name, "up"), set(), of("up"))


NAMES = (
    "a",
    "[::1]:80",
    "[::1]:81",
    'unix:"/run/so ck"',
    "unix:/run/sock",
    "we*",
    "web",
    "q[a]",
    "[fe80::1%eth0]:80",
)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("[::1]:*", 2), ("main/[::1]:8?", 2), ("[::1]:80", 1), ("unix:/run/so ck", 1), ("main/unix:/run/so ck", 1),
        ('unix:"/run/so ck"', 1), ("unix:*", 2), ("we*", 1), ("q[a]", 1), ("main/*", 9), ("[fe80::1%eth0]:*", 1),
        ("[wq]*", 3), ("[", 0), ("", 0), ("other/*", 0),
    ],
)  # fmt: skip
def test_a_name_means_the_backends_that_it_means_to_acts(pattern: str, meant: int) -> None:
    addresses = [parse_upstream(one if one[0] in "[u" else "10.0.0.1:80") for one in NAMES]
    known = [replace(one, name=name) for one, name in zip(addresses, NAMES, strict=True)]
    rows = [backend(one.name, address=str(one.address)) for one in known]
    acts = [one for one in known if pattern in one.spellings()]
    acts = acts or [one for one in known if is_called(one.spellings(), pattern)]
    assert [one["name"] for one in called(pattern, rows)] == [one.name for one in acts]
    assert len(acts) == meant


def test_a_backend_that_has_gone_meanwhile_is_drained_and_never_up() -> None:
    for words in (("a", "drained"), ("a*", "drained"), ("b", "a", "drained")):
        known: set[str] = set()
        assert condition(words, known, of("drain", "drain", sessions=1)).endswith(" left")
        gone = status(backends=[backend("b", state="drain", sessions=0)])
        assert condition(words, known, gone) == ""
        with pytest.raises(NeverMet, match="no longer there: a"):
            condition((*words[:-1], "up"), known, gone)


@pytest.mark.parametrize(
    ("act", "found", "left"),
    [
        ("drain", of("drain"), ""),
        ("drain", of("drain", sessions=1), "1 session left"),
        ("maint", of("maint"), ""),
        ("ready", of("up"), ""),
        ("ready", of("down"), "not up yet: a"),
        ("drain", of("up"), NeverMet),
        ("maint", of("up", sessions=1), NeverMet),
        ("ready", of("drain"), NeverMet),
        ("ready", of("weight-0"), NeverMet),
        ("ready", status(backends=[backend("other")]), NeverMet),
    ],
)
def test_after_an_act(act: str, found: dict[str, Any], left: str | type[NeverMet]) -> None:
    if isinstance(left, str):
        assert after(act, {"a"}, found) == left
    else:
        with pytest.raises(left):
            after(act, {"a"}, found)
