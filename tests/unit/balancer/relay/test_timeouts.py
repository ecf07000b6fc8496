"""What time does to sessions: limits, and what a session that lasts gets."""

import socket

import pytest

from balancer.relay.timeouts import FINEST, SLICE, SWEEP
from tests.unit.balancer.relay.simulation import Make, heard


@pytest.mark.parametrize(
    ("idle", "half", "interval"),
    [(60.0, 30.0, SWEEP), (2.0, 30.0, 0.5), (0.0, 0.4, 0.1), (0.001, 0.0, FINEST), (0.0, 0.0, SWEEP)],
)
def test_the_sweep_is_as_fine_as_the_shortest_limit_asks(
    make: Make, idle: float, half: float, interval: float
) -> None:
    worker = make(idle_timeout=idle, half_close_timeout=half)
    assert worker.relay.timeouts.interval == pytest.approx(interval)


def test_an_idle_limit_is_kept_within_a_sweep(make: Make) -> None:
    worker = make(idle_timeout=5.0)
    client, _ = worker.pair()
    worker.pass_time(4.9)
    assert heard(client) == "|open"
    worker.pass_time(1.5)
    assert heard(client) == "|end"
    assert worker.ends == ["cD idle-timeout"]


def test_without_limits_no_session_is_closed_for_silence(make: Make) -> None:
    worker = make(idle_timeout=0.0, half_close_timeout=0.0)
    client, backend = worker.pair()
    client.shutdown(socket.SHUT_WR)
    worker.pass_time(10_000.0, step=500.0)
    assert heard(backend) == "|end"
    assert worker.ends == []


def test_a_session_that_is_over_within_a_second_was_never_looked_at(make: Make) -> None:
    worker = make()
    client, backend = worker.pair()
    [session] = worker.sessions
    worker.pass_time(0.5)
    client.close()
    backend.close()
    worker.settle()
    assert worker.ends == ["--"]
    assert session.activity is None


def test_the_end_after_silence_names_the_side_whose_turn_it_was(make: Make) -> None:
    worker = make(idle_timeout=4.0, half_close_timeout=0.0)
    for talk in ("client", "backend"):
        client, backend = worker.pair()
        (client if talk == "client" else backend).shutdown(socket.SHUT_WR)
        worker.pass_time(6.0)
    assert worker.ends == ["sD half-close-timeout", "cD half-close-timeout"]


def test_a_backend_is_probed_once_a_session_has_lasted(make: Make) -> None:
    """Keepalive options cost four system calls; a short session does without them."""
    worker = make(keepalive=30.0)
    worker.pair()
    [session] = worker.sessions
    assert session.backend_socket is not None

    def is_probed() -> bool:
        assert session.backend_socket is not None
        return bool(session.backend_socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    worker.pass_time(0.5)
    assert not is_probed()
    worker.pass_time(2.0)
    assert is_probed()


def test_a_crowd_of_sessions_is_looked_at_in_slices_and_each_of_them_once_a_sweep(make: Make) -> None:
    worker = make(idle_timeout=0.0)
    clients = [worker.pair() for _ in range(SLICE + 1)]
    assert len(worker.sessions) == len(clients)

    def seen() -> int:
        return sum(session.activity is not None for session in worker.sessions)

    worker.time += SWEEP
    by_turn = []
    for _ in range(3):
        worker.loop.run_once(0)
        by_turn.append(seen())
    assert by_turn == [SLICE, len(clients), len(clients)]
    worker.pass_time(2 * SWEEP)
    assert all(one.activity is not None and one.activity.has_probes for one in worker.sessions)
