"""What is waited for: which states meet a condition, and what will never be met."""

from typing import Any

import pytest

from balancer.console.waits import OF_BACKENDS, OF_BALANCER, NeverMet, after, condition
from balancer.ctl_options import WAITS_OF_BACKENDS, WAITS_OF_BALANCER
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
    assert condition(tuple(words.split()), found) == left


def test_a_name_that_no_backend_has_is_never_met() -> None:
    for name in ("x", "other/a", "x*"):
        with pytest.raises(NeverMet, match="no backend is called"):
            condition((name, "up"), of("up"))


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
