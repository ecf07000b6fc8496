"""Backends die and come back: sessions are dialled elsewhere at once, verdicts follow."""

import socket
import time
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Digest, Echo, Stuck
from scripts.lab.load import Load, run_load
from scripts.lab.network import free_port
from scripts.lab.waiting import best_of, wait_for
from tests.system.harness import Balancer

INTERVAL = 0.2


def balancer(*backends: Digest | Echo | Stuck, **options: object) -> Balancer:
    options.setdefault("check_interval", f"{INTERVAL}s")
    return Balancer(upstreams=[backend.address for backend in backends], **options)


def test_a_killed_backend_costs_no_new_session_goes_down_and_comes_back() -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(3)]
        lb = stack.enter_context(balancer(*backends))
        load = stack.enter_context(
            Load(lb.address, clients=8, payload=(64, 256), reply=(64, 256), pause=0.005)
        )
        wait_for(lambda: lb.status()["totals"]["accepted_total"] > 100, "some load")
        port, kills = backends[2].address[1], 0

        def kill_and_restart() -> float:
            nonlocal kills
            backends[-1].kill()
            killed, kills = time.monotonic(), kills + 1
            lb.wait_backend(backends[-1].name, "down")
            took = time.monotonic() - killed
            backends.append(stack.enter_context(Digest(8 + kills, port)))
            again = backends[-1].name
            lb.wait_backend(again, "up")
            reached = lb.backend(again)["sessions_total"]
            wait_for(lambda: lb.backend(again)["sessions_total"] > reached + 5, "sessions at it again")
            return took

        best_of(kill_and_restart, 3 * INTERVAL + 0.5, "a killed backend down")
        outcome = load.finish()
        # What it held when it was killed ends with it; a connect that it refuses is made elsewhere.
        assert outcome.refused == outcome.timeout == outcome.corrupt == 0, outcome
        assert outcome.failed <= 8 * kills, outcome
        assert lb.wait_line(rf"prober pid=\d+ down backend=\S*{port}\b|prober pid=\d+ down .*{port}\b")
        lb.check_at_rest()


def test_a_refused_connect_is_made_elsewhere_before_any_probe_has_noticed() -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(3)]
        lb = stack.enter_context(balancer(*backends, check_interval="60s"))
        run_load(lb.address, requests=50, clients=5).check_nothing_lost(50)
        backends[0].kill()
        run_load(lb.address, requests=300, clients=10).check_nothing_lost(300)
        assert lb.status()["totals"]["retries_total"] > 0
        assert lb.backend(backends[0].name)["connect_failures_total"] > 0


def test_a_backend_that_never_answers_a_connect_is_left_after_the_timeout() -> None:
    with (
        Stuck() as stuck,
        Digest(1) as good,
        balancer(stuck, good, connect_timeout="300ms", check="none") as lb,
    ):
        outcome = run_load(lb.address, requests=40, clients=8, timeout=5)
        outcome.check_nothing_lost(40)
        assert outcome.by_backend == {"1": 40}
        lb.check_at_rest()


def test_all_down_is_logged_once_refused_quickly_and_ends_by_itself() -> None:
    port = free_port()
    lb = Balancer(upstreams=[("127.0.0.1", port)], check_interval=f"{INTERVAL}s")
    lb.expect(r"\bdown\b|no backend|all backends|backends=0")
    with lb:
        lb.wait_backend(f"127.0.0.1:{port}", "down")

        def refusal() -> float:
            began = time.monotonic()
            with (
                socket.create_connection(lb.address, 30) as client,
                pytest.raises((ConnectionError, EOFError)),
            ):
                client.sendall(b"x")
                if not client.recv(1):
                    raise EOFError
            return time.monotonic() - began

        for _ in range(10):
            best_of(refusal, 1.0, "refused")
        with Digest(3, port) as backend:
            lb.wait_backend(backend.name, "up", 2 * INTERVAL + 2)
            run_load(lb.address, requests=20, clients=2).check_nothing_lost(20)
            lb.check_at_rest()


def test_drain_by_command_ends_new_sessions_and_leaves_the_old() -> None:
    with Echo() as one, Echo() as two, ExitStack() as outer:
        lb = outer.enter_context(Balancer(upstreams=[f"{one.name} name=one", two.name], check="none"))
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(lb.address, 5)) for _ in range(10)]
            wait_for(lambda: one.now + two.now == 10, "ten sessions")
            before, kept = one.ever, one.now
            answer = lb.ctl("drain", "one")
            assert answer.returncode == 0, answer.stderr
            lb.wait_backend("one", "drain")
            more = [stack.enter_context(socket.create_connection(lb.address, 5)) for _ in range(10)]
            wait_for(lambda: one.now + two.now == 20, "twenty sessions")
            assert one.ever == before and one.now == kept
            for client in (*clients, *more):
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        assert lb.ctl("ready", "one").returncode == 0
        lb.wait_backend("one", "up")
        wrong = lb.ctl("drain", "unknown")
        assert wrong.returncode == 1 and "unknown" in wrong.stderr
        lb.check_at_rest()


def test_a_reset_after_a_reply_has_begun_is_not_retried() -> None:
    """Retries are for sessions whose client has sent nothing upstream yet; anything else could run twice."""
    with Digest(1) as backend, balancer(backend) as lb:
        with socket.create_connection(lb.address, 5) as client:
            client.sendall(b"half a request")
            wait_for(lambda: lb.status()["totals"]["sessions"] == 1, "the session")
            backend.kill()
            with pytest.raises((ConnectionError, EOFError)):
                if not client.recv(1):
                    raise EOFError
        assert lb.status()["totals"]["accepted_total"] == 1
        lb.wait_idle()
