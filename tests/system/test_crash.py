"""kill -9, one worker after another and all at once: only connections that a killed worker held are lost."""

import os
import signal
import socket
import statistics
import time
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.kernel import accepted, kernel_sockets
from scripts.lab.load import Load, receive, run_load
from scripts.lab.network import held
from scripts.lab.process import freeze, is_running
from scripts.lab.waiting import best_of, wait_for
from tests.system.faults import REAPED, kill_at_random, ready_pids, report, wait_whole
from tests.system.harness import Balancer

RESPAWN = 0.2  # seconds from kill -9 to a ready replacement
QUEUE_SERVED = 0.5  # seconds from the death of all workers to the last queued client's answer


def kill_one_after_another(kills: int) -> None:
    workers = 4
    with (
        Digest() as backend,
        Balancer(upstreams=[backend.address], workers=workers) as lb,
        ExitStack() as stack,
    ):
        lb.expect(REAPED)
        load = stack.enter_context(Load(lb.address, clients=16, pause=0.01))
        wait_for(lambda: lb.status()["totals"]["accepted_total"] > 100, "load")
        lost, respawns = kill_at_random(lb, workers, kills, every=0.5, seed=25, counted=True)
        outcome = load.finish()
        report(
            "25",
            kills=kills,
            attempts=outcome.attempts,
            failed=outcome.failed,
            held_by_the_killed=lost,
            refused=outcome.refused,
            respawn_median=round(statistics.median(respawns), 3),
            respawn_longest=round(max(respawns), 3),
        )
        assert outcome.refused == outcome.timeout == outcome.corrupt == 0, outcome
        assert outcome.failed <= lost, outcome
        assert statistics.median(respawns) <= RESPAWN, respawns
        lb.check_at_rest()


def test_a_worker_killed_every_half_second_loses_only_what_it_held() -> None:
    """Fails where workers bind their own sockets: the queue of a dead worker is reset."""
    kill_one_after_another(8)


@pytest.mark.soak
def test_fifty_workers_killed_lose_only_what_they_held() -> None:
    kill_one_after_another(50)


def kill_all_at_once(rounds: int) -> None:
    workers, clients = 4, 40
    with Echo() as backend, Balancer(upstreams=[backend.address], workers=workers) as lb:
        lb.expect(REAPED)
        slowest: list[float] = []  # of each round

        def kill_all() -> float:
            pids = set(ready_pids(lb).values())
            for pid in pids:
                freeze(pid)
            with held(lb.address, clients) as queued:
                for client in queued:
                    client.sendall(b"x")
                assert not accepted(lb.address[1]), "no connection can have been accepted"
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                killed = time.monotonic()
                for client in queued:
                    assert receive(client, 1) == b"x"
                slowest.append(time.monotonic() - killed)
            wait_whole(lb, workers, pids)
            born = time.monotonic()  # a worker that dies within half a second of its birth is a crash loop's
            wait_for(lambda: time.monotonic() - born > 0.6, "workers old enough to die again")
            return slowest[-1]

        for _ in range(rounds):
            best_of(kill_all, QUEUE_SERVED, "the last queued client served", 3)
        report("all workers killed at once", rounds=rounds, clients=clients, slowest=round(max(slowest), 3))
        lb.check_at_rest()


def test_all_workers_killed_at_once_their_queues_are_served_by_the_next() -> None:
    """Fails where workers bind their own sockets (resets), and with a fixed second between death and rebirth."""
    kill_all_at_once(3)


@pytest.mark.soak
def test_all_workers_killed_ten_times() -> None:
    kill_all_at_once(10)


def kill_the_master(rounds: int) -> None:
    slowest = gone_after = 0.0
    with Digest() as backend, ExitStack() as stack:
        lb = Balancer(upstreams=[backend.address])
        pidfile = lb.directory / "pid"
        lb.arguments.append(f"--pidfile={pidfile}")
        admin = lb.admin
        stack.enter_context(lb)
        port = lb.address[1]
        for _ in range(rounds):
            lb.expected_exit = None
            with Load(lb.address, clients=8, pause=0.01), ExitStack() as idle:
                idle.enter_context(held(lb.address, 4))
                wait_for(lambda lb=lb: lb.status()["totals"]["accepted_total"] > 50, "load")
                children = [child.pid for child in lb.processes()[1:]]
                os.kill(lb.pid, signal.SIGKILL)
                killed = time.monotonic()
                lb.wait_exit()
                assert len(children) == 4
                wait_for(lambda c=children: not any(map(is_running, c)), "no child left", every=0.001)
                gone_after = max(gone_after, time.monotonic() - killed)
                lb = Balancer(
                    "--admin", admin, f"--pidfile={pidfile}", upstreams=[backend.address], port=port
                )
                lb.admin = admin
                began = time.monotonic()
                stack.enter_context(lb)
                slowest = max(slowest, time.monotonic() - began)
                assert pidfile.read_text().strip() == str(lb.pid)
            run_load(lb.address, requests=20, clients=2).check_nothing_lost(20)
        report(
            "master killed",
            rounds=rounds,
            children_gone=round(gone_after, 3),
            serving_again=round(slowest, 3),
        )
        lb.check_at_rest()


def test_the_master_killed_takes_its_children_along_and_the_next_one_serves() -> None:
    """Fails without the parent-death signal and the life-line: the orphans keep the port and its clients."""
    kill_the_master(1)


@pytest.mark.soak
def test_the_master_killed_ten_times() -> None:
    kill_the_master(10)


def test_a_connection_in_the_queue_has_no_owner_yet() -> None:
    """The counts of these tests rest on it: a connection that is not accepted has no inode in the kernel's list."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            assert not accepted(port)
            assert [s.inode for s in kernel_sockets(port) if s.local == port and s.state == 1] == [0]
            conn, _ = listener.accept()
            with conn:
                assert len(accepted(port)) == 1
            assert not accepted(port)
