"""balancerctl's questions about single sessions and elections, and its acts on them, against running workers."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import text_of
from scripts.lab.process import ROOT, clean_environment
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer

CLIENTS = 6


@pytest.fixture
def lb() -> Iterator[Balancer]:
    with Echo() as one, Echo() as two:
        upstreams = [f"{text_of(one.address)} name=web-1", f"{text_of(two.address)} name=web-2"]
        with Balancer(
            upstreams=upstreams, workers=2, balance="roundrobin", check="none", maxconns=100
        ) as balancer:
            yield balancer


def ask(lb: Balancer, *words: str) -> dict[str, Any]:
    run = lb.ctl(*words, "--json")
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    assert found["schema"] >= 1
    return found


def connected(lb: Balancer, stack: ExitStack, count: int) -> list[socket.socket]:
    """Clients whose session relays."""
    clients = []
    for _ in range(count):
        client = stack.enter_context(socket.create_connection(lb.address, 10))
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        clients.append(client)
    return clients


def is_over(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_sessions_of_all_workers_are_listed_filtered_and_killed(lb: Balancer) -> None:
    with ExitStack() as stack:
        clients = connected(lb, stack, CLIENTS)
        found = ask(lb, "sessions")
        assert found["unanswered"] == []
        by_client = {one["client"]: one for one in found["sessions"]}
        assert set(by_client) == {text_of(client.getsockname()) for client in clients}
        assert {one["pid"] for one in found["sessions"]} <= set(lb.worker_pids())
        for one in found["sessions"]:
            assert (one["state"], one["in"], one["out"], one["pool"]) == ("relaying", 5, 5, "main")
            assert 0 <= one["idle_s"] <= one["age_s"] < 60
        of_backend = ask(lb, "sessions", "--backend", "web-1")["sessions"]
        assert {one["id"] for one in of_backend} == {
            one["id"] for one in found["sessions"] if one["backend"] == "web-1"
        }
        assert len(ask(lb, "sessions", "--client", "127.0.0.0/8")["sessions"]) == CLIENTS
        for words in (
            ["--client", "10.0.0.1"],
            ["--older", "1h"],
            ["--draining"],
            ["--pool", "main", "--older", "1h"],
        ):
            assert ask(lb, "sessions", *words)["sessions"] == []
        for words in (["sessions", "--pool", "other"], ["kill", "--backend", "it's"], ["kill", "1-2-3"]):
            wrong = lb.ctl(*words)
            assert wrong.returncode == 1 and words[-1] in wrong.stderr
        assert len(ask(lb, "sessions", "--backend", "main/web-1")["sessions"]) == len(of_backend)
        first = by_client[text_of(clients[0].getsockname())]
        assert ask(lb, "kill", first["id"])["closed"] == 1
        assert is_over(clients[0])
        left = lb.ctl("sessions").stdout
        assert first["id"] not in left and all(
            one["id"] in left for one in found["sessions"] if one is not first
        )
        assert lb.ctl("kill", "--backend", "web-2", "--reason", "moved").returncode == 0
        lb.wait_line(r"operator .*act=kill sessions=\d meant=backend=web-2 reason=moved")
        wait_for(
            lambda: {one["backend"] for one in ask(lb, "sessions")["sessions"]} <= {"web-1"},
            "web-2 empty",
            10,
        )
        left_open = len(ask(lb, "sessions")["sessions"])
        assert 0 < left_open < CLIENTS and ask(lb, "kill", "--client", "127.0.0.1")["closed"] == left_open
        wait_for(lambda: lb.status()["totals"]["ends"]["KD"] == CLIENTS, "all of them killed", 10)
    lb.check_at_rest()


def test_drain_waits_for_several_backends_and_ready_takes_a_pattern(lb: Balancer) -> None:
    lb.expect("all-down")
    with ExitStack() as stack:
        clients = connected(lb, stack, 2)
        words = [sys.executable, "-m", "balancer.ctl", "--admin", str(lb.admin), "drain", "web-*", "--wait"]
        waiting = subprocess.Popen(
            words, cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True
        )
        wait_for(lambda: {one["state"] for one in lb.status()["backends"]} == {"drain"}, "drained", 10)
        gave_up = lb.ctl("drain", "web-1", "--wait", "--timeout", "1")
        assert gave_up.returncode == 1 and "gave up after --timeout 1: 1 session left" in gave_up.stderr
        assert waiting.poll() is None
        for client in clients:
            client.close()
        out, _ = waiting.communicate(timeout=20)
        assert waiting.returncode == 0 and "web-2 takes no new sessions (drain)" in out
        assert lb.ctl("ready", "web-?", "--wait").returncode == 0
        assert {one["state"] for one in lb.status()["backends"]} == {"up"}
    lb.check_at_rest()


def test_explain_says_the_route_and_why_a_backend_is_not_elected(lb: Balancer) -> None:
    lb.ctl("drain", "web-2")
    found = ask(lb, "explain", "--source", "10.0.0.9")
    assert (found["listener"], found["pool"], found["elected"]) == ("main", "main", ["web-1"])
    assert {one["name"]: one["verdict"] for one in found["backends"]} == {
        "web-1": "elected",
        "web-2": "drain",
    }
    assert [one["is_taken"] for one in found["routes"]] == [True]
    text = lb.ctl("explain").stdout
    assert "taken" in text and "each worker takes them in turn" in text
    wrong = lb.ctl("explain", "--source", "nowhere")
    assert wrong.returncode == 1 and "source: 'nowhere' does not appear to be" in wrong.stderr


@pytest.mark.parametrize("command", ["info", "listeners", "pools", "backends", "workers", "errors"])
def test_parts_of_the_status(lb: Balancer, command: str) -> None:
    found, text = ask(lb, command), lb.ctl(command).stdout
    status = lb.status()
    if command in status:
        assert len(found[command]) == len(status[command])
        assert all(str(one.get("name", one.get("pid"))) in text for one in status[command])
    elif command == "info":
        assert found["version"] == status["version"] and status["version"] in text
    else:
        assert "no session has ended uncleanly" in text and found["listeners"][0]["ends"] == {}
