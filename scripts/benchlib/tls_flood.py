"""A flood of ClientHellos beside kept TLS connections: how long the kept ones wait for an answer meanwhile.

    python -m scripts.benchlib.tls_flood '{"host": ..., "port": ..., "path": ..., "close": false}'
is the kept connections: it says when they stand, asks in each once a millisecond until its standard input ends, and
prints when it asked and how long the slowest answer took, in seconds of the monotonic clock.

RULES: hellos are sent on connections that stand already, all at once, and are read until the first byte of the answer; no
client work of a handshake takes the CPU from the proxy. The kept connections are in a process of their own.
"""

import json
import select
import socket
import ssl
import sys
import time
from contextlib import ExitStack
from typing import Any

from scripts.benchlib.load import length_of, request_for
from scripts.benchlib.tls_load import client_context
from scripts.lab.helpers import HelperProcess
from scripts.lab.waiting import is_readable

KEPT = 4  # connections, so that each of two workers mostly has one
PAUSE = 0.001  # seconds between two questions
FLOODS = 7
QUIET = 0.1  # seconds before a flood, and behind it
LONGEST = 10.0  # seconds until a hello without an answer is an error


def hello() -> bytes:
    sent = ssl.MemoryBIO()
    tls = client_context().wrap_bio(ssl.MemoryBIO(), sent)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return sent.read()


def flood(address: tuple[str, int], data: bytes, count: int) -> tuple[float, float, int]:
    """Send `data` on `count` connections at once; return when it began and ended, and how many had an answer."""
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(address, LONGEST)) for _ in range(count)]
        poll = select.epoll()
        stack.callback(poll.close)
        for sock in socks:
            poll.register(sock, select.EPOLLIN | select.EPOLLONESHOT)
        time.sleep(QUIET)
        began = time.monotonic()
        for sock in socks:
            sock.send(data)
        answered = 0
        while answered < count and (left := began + LONGEST - time.monotonic()) > 0:
            answered += sum(bool(events & select.EPOLLIN) for _, events in poll.poll(left))
        ended = time.monotonic()
    time.sleep(QUIET)
    return began, ended, answered


def run(port: int, hellos: int) -> tuple[list[float], int, float]:
    """Flood the proxy FLOODS times; return the slowest answer of a kept connection in each, in seconds, how many hellos
    had none, and the seconds that the floods took."""
    plan = {"host": "127.0.0.1", "port": port, "path": "/", "close": False}
    data = hello()
    with HelperProcess("scripts.benchlib.tls_flood", json.dumps(plan)) as kept:
        kept.read_line()
        floods = [flood(("127.0.0.1", port), data, hellos) for _ in range(FLOODS)]
        answers = kept.figures()["answers"]
    slowest = [
        max((took for at, took in answers if at <= ended and at + took >= began), default=0.0)
        for began, ended, _ in floods
    ]
    return (
        slowest,
        sum(hellos - answered for _, _, answered in floods),
        sum(ended - began for began, ended, _ in floods),
    )


def ask(plan: dict[str, Any]) -> list[tuple[float, float]]:
    """Ask in all kept connections until standard input ends; return when, and how long the slowest answer took."""
    context, request = client_context(), request_for(plan)
    with ExitStack() as stack:
        socks = []
        for _ in range(KEPT):
            raw = socket.create_connection((plan["host"], plan["port"]), LONGEST)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            socks.append(stack.enter_context(context.wrap_socket(raw)))
        socks[0].sendall(request)
        length = length_of(socks[0])
        print(json.dumps({"kept": KEPT}), flush=True)
        answers = []
        while not is_readable(sys.stdin):
            at = time.monotonic()
            for sock in socks:
                sock.sendall(request)
            for sock in socks:
                left = length
                while left:
                    got = len(sock.recv(left))
                    if not got:
                        raise SystemExit("a kept connection has ended")
                    left -= got
            answers.append((at, time.monotonic() - at))
            time.sleep(PAUSE)
    return answers


if __name__ == "__main__":
    print(json.dumps({"answers": ask(json.loads(sys.argv[1]))}))
