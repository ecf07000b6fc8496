"""Each kind of check against each way of a service not to work: the backend is down, and what came instead is told."""

import re
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Scripted
from scripts.lab.network import text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, ini_section

PATIENCE = 60.0  # seconds; a passing run does not wait for them
KINDS = {
    "tls": "tls sni=web.test",
    "http": "http GET /",
    "redis": "redis",
    "redis-role": "redis role=primary",
    "smtp": "smtp",
    "imap": "imap",
    "pgsql": "pgsql user=check",
    "mysql": "mysql user=check",
    "mqtt": "mqtt",
    "frame": "frame",
    "script": 'expect "welcome"',
}
GARBAGE = b"\x00\xff\x1b[31m no such service here \x07" * 3


def in_bytes(conn: socket.socket) -> None:
    for byte in GARBAGE:
        conn.sendall(bytes([byte]))


def reset(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent(conn: socket.socket) -> None:
    while conn.recv(4096):
        pass


def half(conn: socket.socket) -> None:
    conn.sendall(b"+")
    silent(conn)


FAULTS: dict[str, Callable[[socket.socket], object]] = {
    "silent": silent,
    "closes": lambda conn: None,
    "resets": reset,
    "garbage": lambda conn: conn.sendall(GARBAGE),
    "in-bytes": in_bytes,
    "64-kb": lambda conn: conn.sendall(b"\xe2\x98\xa0 " * 16384),
    "half": half,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_service_that_does_not_work_is_found_by_every_kind_of_check(fault: str) -> None:
    with ExitStack() as stack:
        service = stack.enter_context(Scripted(FAULTS[fault]))
        text = ini_section("balancer", check_interval="0.4s", check_fall=1)
        text += ini_section("listener main", bind="127.0.0.1:0", pool="http")
        for name, check in KINDS.items():
            upstream = f"{text_of(service.address)} name={name}"
            text += ini_section(f"pool {name}", upstream=upstream, check=check)
        lb = FileBalancer(text)
        lb.expect("all-down")
        lb.expect(r" down ")
        stack.enter_context(lb)
        for name in KINDS:
            wait_for(
                lambda name=name: f" down pool={name} " in lb.log(), f"{name} found to be down", PATIENCE
            )
        for name in KINDS:
            [line] = re.findall(rf"^.* down pool={name} .*$", lb.log(), re.M)
            assert re.search(r" check=(closed|reply|status|timeout|tls) ", line), line
            if came := re.search(r'got=(?:"((?:[^"\\]|\\.)*)"|(\S+))', line):
                limit = 200 if name == "tls" else 60
                shown = re.sub(r"\\(.)", r"\1", came[1] or came[2])
                assert len(shown) <= limit and shown.isprintable(), line
            elif fault in ("garbage", "in-bytes", "64-kb"):
                pytest.fail(f"nothing is told of what came: {line}")
        assert not re.search(r" up pool=", lb.log())
