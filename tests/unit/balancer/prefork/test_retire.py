"""The end of a generation: told once, cut once, killed in time."""

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from balancer.prefork import retire
from balancer.prefork.children import Children, Leases
from balancer.prefork.plan import Plan, Role
from balancer.prefork.retire import KILL_GRACE, Retirement

PLAN = Plan("toy", (Role("worker", 1, lambda _child: 0),), (), columns=16, drain_timeout=5.0)


class Deaf:
    """A processes of one process that answers no signal."""

    def __init__(self) -> None:
        self.plans = {1: PLAN}
        self.children = Children(Leases(3, 8))
        self.log = SimpleNamespace(warning=lambda *_words, **_fields: None)
        place = self.children.want(1, "worker", 0, 0.0)
        self.children.spawned(place, 4711, 3, 0.0)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(retire, "send", lambda _pid, number: found.append(number))
    return found


def test_who_asks_for_the_cut_again_does_not_put_off_the_kill(sent: list[int]) -> None:
    """A reload that waits for the oldest generation asks every turn; so does an operator who is in a hurry."""
    processes: Any = Deaf()
    going = Retirement(processes, 1, is_final=False, now=10.0)
    now = 11.0
    while now < 11.0 + KILL_GRACE + 0.5:
        going.cut(now)
        going.advance(now)
        now += 0.25
    assert sent[:2] == [signal.SIGTERM, signal.SIGQUIT] and set(sent[2:]) == {signal.SIGKILL}
