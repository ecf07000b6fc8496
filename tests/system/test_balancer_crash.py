"""Processes die: no queued client is lost, no count stays behind, no process outlives the master."""

import os
import signal
import socket
import time
from contextlib import ExitStack, suppress

import psutil

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import Load, receive, run_load
from scripts.lab.network import held
from scripts.lab.waiting import best_of, wait_for
from tests.system.harness import Balancer


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def replaced(lb: Balancer, pid: int) -> bool:
    pids = lb.worker_pids()
    return pid not in pids and len(pids) == 2 and all(w["state"] == "ready" for w in lb.status()["workers"])


def test_a_killed_worker_is_replaced_and_its_sessions_are_counted_out() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb:

        def kill_the_fullest() -> float:
            with held(lb.address, 40):
                wait_for(lambda: backend.now == 40, "40 sessions")
                wait_for(lambda: lb.status()["totals"]["sessions"] == 40, "40 sessions counted")
                victim = max(lb.status()["workers"], key=lambda worker: worker["sessions"])
                kill(victim["pid"])
                killed = time.monotonic()
                wait_for(lambda: replaced(lb, victim["pid"]), "another worker", 3)
                took = time.monotonic() - killed
                left = 40 - victim["sessions"]
                wait_for(lambda: lb.status()["totals"]["sessions"] == left, "the dead counted out")
                wait_for(lambda: backend.now == left, "the backend's side closed")
                assert lb.status()["totals"]["accepted_total"] >= 40
            lb.wait_idle()
            return took

        best_of(kill_the_fullest, 0.5, "a killed worker replaced")
        lb.expect(r"\breap\b|\bdied\b|signal")
        lb.check_at_rest()


def test_clients_queued_at_a_stopped_then_killed_worker_are_all_served() -> None:
    """Workers that bind their own sockets reset about half of these: closing a listener resets its queue."""
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb, ExitStack() as stack:
        lb.expect(r"\breap\b|signal|stale|\bhang\b|hung")
        pids = lb.worker_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        clients = stack.enter_context(held(lb.address, 60, timeout=15))  # the kernel finishes the handshakes
        for number, client in enumerate(clients):
            client.sendall(b"%4d" % number)
        for pid in pids:
            with suppress(ProcessLookupError):  # the watchdog was faster: as good
                kill(pid)
        assert [int(receive(client, 4)) for client in clients] == list(range(60))
        stack.close()
        lb.check_at_rest()


def test_a_worker_killed_again_and_again_loses_only_what_it_held() -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(2)]
        lb = stack.enter_context(Balancer(upstreams=[backend.address for backend in backends]))
        lb.expect(r"\breap\b|signal")
        clients = 16
        load = stack.enter_context(Load(lb.address, clients=clients))
        allowed = 0
        for _ in range(6):
            before = lb.status()["totals"]["accepted_total"]
            wait_for(
                lambda b=before: lb.status()["totals"]["accepted_total"] > b + 100, "load between two kills"
            )
            pids = lb.worker_pids()
            kill(pids[0])
            allowed += clients  # more than this no worker can have held
            wait_for(lambda p=pids[0]: replaced(lb, p), "another worker", 3)
        outcome = load.finish()
        assert outcome.refused == outcome.timeout == outcome.corrupt == 0, outcome
        assert outcome.failed <= allowed, outcome
        lb.check_at_rest()


def test_the_prober_and_the_console_are_replaced_too() -> None:
    with Digest() as backend, Balancer(upstreams=[backend.address]) as lb:
        lb.expect(r"\breap\b|signal")
        for name in ("prober", "console"):
            pid = next(pid for pid, title in lb.titles().items() if title.startswith(f"balancer: {name}"))
            kill(pid)

            def back(name: str = name, pid: int = pid) -> bool:
                return any(t.startswith(f"balancer: {name}") and p != pid for p, t in lb.titles().items())

            wait_for(back, f"another {name}", 3)
            run_load(lb.address, requests=20, clients=2).check_nothing_lost(20)
        wait_for(lambda: os.path.exists(lb.admin), "the admin socket", 3)
        lb.wait_backend(backend.name, "up", 3)
        lb.check_at_rest()


def test_no_process_outlives_a_killed_master_and_the_next_one_binds_at_once() -> None:
    with Digest() as backend:
        with Balancer(upstreams=[backend.address]) as lb:
            lb.expected_exit = None
            port = lb.address[1]
            children = lb.processes()[1:]
            with socket.create_connection(lb.address, 5):
                kill(lb.pid)
                lb.wait_exit()
                gone, alive = psutil.wait_procs(children, timeout=10)
                assert not alive, [child.cmdline() for child in alive]
                assert len(gone) == 4
        with Balancer(upstreams=[backend.address], port=port) as again:
            run_load(again.address, requests=20, clients=2).check_nothing_lost(20)


def test_a_stopped_worker_does_not_keep_new_clients_waiting() -> None:
    """Without adoption of its queue about half of these would hang for as long as the worker does."""
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb, ExitStack() as stack:
        lb.expect(r"stale|hang|hung|reap|signal|beat|silent")
        victim = lb.worker_pids()[0]
        os.kill(victim, signal.SIGSTOP)
        for _ in range(40):  # how long one waits at most is measured in test_hang.py
            client = stack.enter_context(socket.create_connection(lb.address, 30))
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
        wait_for(lambda: replaced(lb, victim), "another worker", 6)
        stack.close()
        lb.check_at_rest()
