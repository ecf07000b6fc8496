"""Signals to the master: stop, stop now, reload, one worker more, one fewer, reopen the log."""

import os
import re
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import Load, receive, run_load
from scripts.lab.network import held, text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer

SAME_STOP = 1.1  # seconds after which a second TERM or INT is one more


def ping(sock: socket.socket) -> None:
    sock.sendall(b"x")
    assert receive(sock, 1) == b"x"


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def test_term_lets_sessions_end_and_refuses_new_ones() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb, ExitStack() as stack:
        clients = stack.enter_context(held(lb.address, 5))
        wait_for(lambda: backend.now == 5, "five sessions")
        lb.signal(signal.SIGTERM)
        lb.wait_line(r"worker \d pid=\d+ drain")

        def refused() -> bool:
            try:
                socket.create_connection(lb.address, 1).close()
            except OSError:
                return True
            return False

        wait_for(refused, "new connections refused")
        for client in clients:
            ping(client)
            client.close()
        assert lb.wait_exit() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_means_now(number: signal.Signals) -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], drain_timeout="30s") as lb:
        lb.expected_exit = 5
        with socket.create_connection(lb.address, 5) as client:
            ping(client)
            lb.signal(number)
            lb.wait_line(r"worker \d pid=\d+ drain")
            time.sleep(SAME_STOP)
            lb.signal(number)
            assert lb.wait_exit(5) == 5
            assert ended(client)


def test_quit_means_now_and_without_sessions_it_is_a_clean_end() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb:
        lb.signal(signal.SIGQUIT)
        assert lb.wait_exit(5) == 0


def test_the_drain_has_an_end() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], drain_timeout="1s") as lb:
        lb.expected_exit = 5
        with socket.create_connection(lb.address, 5) as client:
            ping(client)
            began = time.monotonic()
            lb.signal(signal.SIGTERM)
            assert lb.wait_exit() == 5
            assert 0.0 < time.monotonic() - began < 15
            assert ended(client)


def test_one_worker_more_and_one_fewer_lose_nothing() -> None:
    with Digest() as backend, Balancer(upstreams=[backend.address]) as lb, ExitStack() as stack:
        load = stack.enter_context(Load(lb.address, clients=16))

        def count() -> int:
            return sum(worker["state"] == "ready" for worker in lb.status()["workers"])

        for number, wanted in (
            (signal.SIGTTIN, 3),
            (signal.SIGTTIN, 4),
            (signal.SIGTTOU, 3),
            (signal.SIGTTOU, 2),
        ):
            lb.signal(number)
            wait_for(lambda w=wanted: count() == w, f"{wanted} workers", 5)
            before = lb.status()["totals"]["accepted_total"]
            wait_for(lambda b=before: lb.status()["totals"]["accepted_total"] > b + 100, "load on it")
        load.finish().check_nothing_lost(100)
        wait_for(lambda: len(lb.status()["workers"]) == 2, "two workers")
        lb.check_at_rest(more_descriptors=2)  # the two sockets of slots 2 and 3 stay with the master for ever


def configured(directory: Path, backends: list[Digest], **more: object) -> str:
    lines = ["[balancer]", "upstream ="]
    lines += [f"    {text_of(backend.address)} name=b{backend.index}" for backend in backends]
    lines += [f"{key.replace('_', '-')} = {value}" for key, value in more.items()]
    path = directory / "balancer.ini"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_reload_brings_backends_in_and_takes_them_out_without_loss(tmp_path: Path) -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(3)]
        config = configured(tmp_path, backends[:2])
        lb = stack.enter_context(Balancer("--bind=127.0.0.1", "-c", config))
        load = stack.enter_context(Load(lb.address, clients=16))
        wait_for(lambda: lb.status()["totals"]["accepted_total"] > 100, "some load")
        accepted = lb.status()["totals"]["accepted_total"]
        configured(tmp_path, backends[1:])
        lb.signal(signal.SIGHUP)
        wait_for(lambda: {b["name"] for b in lb.status()["backends"]} == {"b1", "b2"}, "the new backends", 10)
        assert lb.status()["totals"]["accepted_total"] >= accepted
        wait_for(
            # for a moment the old console may still answer, which does not know it
            lambda: any(b["name"] == "b2" and b["sessions_total"] > 50 for b in lb.status()["backends"]),
            "sessions at the new backend",
        )
        wait_for(lambda: len(lb.status()["workers"]) == 2, "the old generation gone", 8)
        outcome = load.finish()
        outcome.check_nothing_lost(200)
        assert set(outcome.by_backend) == {"0", "1", "2"}
        lb.check_at_rest()


def test_a_broken_configuration_leaves_the_old_one_serving(tmp_path: Path) -> None:
    with Digest() as backend:
        config = configured(tmp_path, [backend])
        lb = Balancer("--bind=127.0.0.1", "-c", config)
        lb.expect(r"reload|configuration|connect-timeout|soon")
        with lb:
            pids = lb.worker_pids()
            configured(tmp_path, [backend], connect_timeout="soon")
            at = len(lb.log())
            answer = lb.ctl("reload")
            assert answer.returncode == 1 and "connect-timeout" in answer.stderr, answer
            lb.wait_line(r"connect-timeout", after=at)
            run_load(lb.address, requests=20, clients=2).check_nothing_lost(20)
            assert lb.worker_pids() == pids
            assert "connect-timeout" in str(lb.status()["reload"])
            lb.check_at_rest()


def test_usr1_opens_the_log_again(tmp_path: Path) -> None:
    log = tmp_path / "balancer.log"
    with Echo() as backend:
        lb = Balancer(f"--log={log}", upstreams=[backend.address], loglevel=1)
        lb.log_path = log
        with lb:
            with socket.create_connection(lb.address, 5) as client:
                ping(client)
            lb.wait_line(r"session client=\S+ backend=")
            moved = log.rename(tmp_path / "balancer.log.1")
            lb.signal(signal.SIGUSR1)

            def logged_anew() -> bool:
                with socket.create_connection(lb.address, 5) as client:
                    ping(client)
                return log.exists() and "session client=" in log.read_text()

            wait_for(logged_anew, "session lines in the new file", 5, every=0.05)
            assert re.search(r"\bready\b", moved.read_text())
            lb.check_at_rest()


def test_other_signals_change_nothing() -> None:
    with Digest() as backend, Balancer(upstreams=[backend.address]) as lb:
        pids = lb.worker_pids()
        for process in lb.processes():
            for number in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGURG, signal.SIGCONT):
                process.send_signal(number)
        for pid in pids:
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2):
                os.kill(pid, number)
        run_load(lb.address, requests=50, clients=4).check_nothing_lost(50)
        assert lb.worker_pids() == pids
        lb.check_at_rest()
