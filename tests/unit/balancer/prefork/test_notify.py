"""What the service manager is sent."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.prefork.notify import Notifier, message, watchdog_seconds


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def received(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def test_messages_over_the_life_of_a_service(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("2 workers")
    notifier.status("2 workers")  # unchanged: not sent
    notifier.status("3 workers")
    notifier.reloading(12.5)
    notifier.superseded(99)
    notifier.stopping()
    assert received(manager) == [
        f"READY=1\nMAINPID={os.getpid()}\nSTATUS=2 workers",
        "STATUS=3 workers",
        "RELOADING=1\nMONOTONIC_USEC=12500000\nSTATUS=reloading",
        "MAINPID=99",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_keep_alives_come_at_half_the_asked_interval(manager: socket.socket) -> None:
    environ = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "2000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    notifier = Notifier(environ)
    for now in (0.0, 0.25, 0.99, 1.0, 1.25, 2.1):
        notifier.beat(now)
    assert received(manager) == ["WATCHDOG=1"] * 3


def test_a_watchdog_of_another_process_is_ignored() -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 2) == 0.0
    assert watchdog_seconds({"WATCHDOG_USEC": "2000000"}, 2) == 1.0
    assert watchdog_seconds({"WATCHDOG_USEC": "soon"}, 2) == 0.0


def test_a_newline_in_a_value_starts_no_field() -> None:
    assert message(STATUS="a\nREADY=1") == b"STATUS=a READY=1"


def test_without_manager_or_with_a_dead_one_nothing_happens(tmp_path: Path) -> None:
    for environ in ({}, {"NOTIFY_SOCKET": str(tmp_path / "missing")}, {"NOTIFY_SOCKET": "relative"}):
        notifier = Notifier(environ)
        notifier.ready("x")
        notifier.beat(1.0)
        notifier.close()
