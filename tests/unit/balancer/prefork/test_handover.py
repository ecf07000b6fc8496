"""The old master's side of an upgrade."""

import os
import signal

import pytest

from balancer.eventloop.log import Log
from balancer.prefork import handover
from balancer.prefork.handover import Handover
from balancer.prefork.sockets import Sockets
from balancer.prefork.upgrade import Successor


@pytest.mark.parametrize("is_reaped", [False, True])
def test_only_a_successor_that_is_not_reaped_yet_is_killed(
    monkeypatch: pytest.MonkeyPatch, is_reaped: bool
) -> None:
    """A pid that was waited for may be somebody else's by now."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(handover, "send", lambda pid, number: sent.append((pid, number)))
    reader, writer = os.pipe2(os.O_NONBLOCK)
    monkeypatch.setattr(
        handover,
        "start_successor",
        lambda _heirlooms, _pidfile, _legacy, now: Successor(4711, reader, now + 30),
    )
    hand = Handover(Log("master", os.devnull), Sockets())
    hand.start(1.0, None)
    assert not hand.hear(1.0) and hand.fds() == [reader]
    if is_reaped:
        hand.unknown_child_died(4711, -9)
    os.close(writer)
    assert not hand.hear(2.0) and hand.fds() == []
    assert sent == ([] if is_reaped else [(4711, signal.SIGKILL)])
