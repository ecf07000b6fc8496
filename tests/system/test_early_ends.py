"""Backends that accept and then end without a word: what checks see of them, and what their sessions tell."""

import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Echo, Scripted
from scripts.lab.network import close_with_reset
from scripts.lab.waiting import wait_for
from tests.system.test_console_web import WithMetrics, ask

PATIENCE = 20.0  # seconds; a passing run does not wait for them

Script = Callable[[socket.socket], None]


def end_at_once(conn: socket.socket) -> None:
    """The server closes the connection when this returns."""


def reset_at_once(conn: socket.socket) -> None:
    close_with_reset(conn)


def end_soon(conn: socket.socket) -> None:
    time.sleep(0.05)


def end_later(conn: socket.socket) -> None:
    time.sleep(0.3)


def reset_later(conn: socket.socket) -> None:
    time.sleep(0.3)
    close_with_reset(conn)


def end_when_asked(conn: socket.socket) -> None:
    conn.recv(100)


def reset_when_asked(conn: socket.socket) -> None:
    if conn.recv(100):
        close_with_reset(conn)


def greet_and_end(conn: socket.socket) -> None:
    """As daytime servers and busy mail servers do."""
    conn.sendall(b"421 come again\n")


def wait_for_the_client(conn: socket.socket) -> None:
    while conn.recv(100):
        pass


def end_a_silent_client(conn: socket.socket) -> None:
    """As web servers do with connections on which no request comes."""
    conn.settimeout(1.5)
    wait_for_the_client(conn)


def visit(lb: WithMetrics, words: bytes = b"hi") -> bytes:
    """The first bytes that a client is given, b"" when it is given none."""
    with socket.create_connection(lb.address, PATIENCE) as client:
        client.sendall(words)
        try:
            return client.recv(100)
        except ConnectionResetError:
            return b""


def start(stack: ExitStack, *scripts: Script, **options: object) -> WithMetrics:
    """A balancer of backends called bad with these scripts, and a good one that greets."""
    texts = [f"{stack.enter_context(Scripted(script)).name} name=bad" for script in scripts]
    texts.append(f"{stack.enter_context(Echo(greeting=True)).name} name=good")
    defaults = {"metrics": "127.0.0.1:0", "check_interval": "200ms", "balance": "roundrobin"}
    return stack.enter_context(WithMetrics(upstreams=texts, **(defaults | options)))


@pytest.mark.parametrize("script", [end_at_once, reset_at_once, end_soon])
def test_a_tcp_check_sees_a_backend_that_accepts_and_closes(script: Script) -> None:
    with ExitStack() as stack:
        lb = start(stack, script)
        lb.wait_line(r"\bdown backend=bad address=\S+ check=closed failures=3/3 up=1/2", PATIENCE)
        assert lb.backend("bad")["check"] == "closed"
        assert all(visit(lb) for _ in range(20))
        assert (lb.backend("good")["state"], lb.backend("good")["check"]) == ("up", "ok")


@pytest.mark.parametrize("check", ["tcp", "none"])
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (end_later, b""),
        (end_later, b"hi"),
        (reset_later, b"hi"),
        (end_when_asked, b"hi"),
        (reset_when_asked, b"hi"),
    ],
)
def test_sessions_that_it_ends_without_a_word_take_it_out(script: Script, words: bytes, check: str) -> None:
    with ExitStack() as stack:
        lb = start(stack, script, check=check)
        visited = []

        def is_out() -> bool:
            visited.append(visit(lb, words))
            return lb.backend("bad")["state"] == "down"

        wait_for(is_out, "the bad backend out", PATIENCE)
        found = lb.backend("bad")
        assert found["check"] == "early-end" and found["early_ends_total"] >= 3
        lb.wait_line(
            r"\bdown backend=bad address=\S+ check=early-end failures=\d+/3 up=1/2 then=next try in 5s"
        )
        sample = f'balancer_backend_early_ends_total{{pool="main",backend="bad"}} {found["early_ends_total"]}'
        assert sample in ask(lb.http, "/metrics")[2]
        assert "early-end" in lb.ctl("status").stdout
        assert lb.backend("good")["early_ends_total"] == 0


def test_the_penalty_grows_and_no_check_clears_it() -> None:
    with ExitStack() as stack:
        lb = start(stack, end_when_asked)

        def again() -> bool:
            visit(lb)
            return bool(re.search(r"check=early-end failures=\d+/1 up=1/2 then=next try in 10s", lb.log()))

        wait_for(again, "a second penalty", 2 * PATIENCE, every=0.05)
        down, up = (lb.log().count(f" {verb} backend=bad ") for verb in ("down", "up"))
        assert (down, up) == (2, 1)
        assert lb.backend("bad")["checks_total"] > lb.backend("bad")["check_failures_total"] == 0


@pytest.mark.parametrize(
    ("script", "words", "served"),
    [
        (greet_and_end, b"", True),
        (greet_and_end, b"hi", True),
        (wait_for_the_client, b"", False),
        (wait_for_the_client, b"hi", False),
        (end_a_silent_client, b"", False),
    ],
)
def test_what_is_no_fault_of_the_backend_costs_it_nothing(script: Script, words: bytes, served: bool) -> None:
    with ExitStack() as stack:
        lb = start(stack, script, workers=1)
        clients = []
        for _ in range(12):
            client = stack.enter_context(socket.create_connection(lb.address, PATIENCE))
            client.sendall(words)
            clients.append(client)
        for client in clients:
            if served:
                assert client.recv(100)
            if script is not end_a_silent_client:  # the client leaves first
                client.close()
        if script is end_a_silent_client:
            assert [client.recv(100) for client in clients].count(b"") == 6
        wait_for(lambda: lb.backend("bad")["sessions"] == 0, "its sessions over", PATIENCE)
        wait_for(lambda: lb.backend("bad")["checks_total"] > 0, "a check", PATIENCE)
        found = lb.backend("bad")
        assert (found["state"], found["check"], found["early_ends_total"]) == ("up", "ok", 0)
        assert found["sessions_total"] == 6
