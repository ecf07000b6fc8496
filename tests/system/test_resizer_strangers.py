"""The resizer among strangers: what one of them does costs the others little."""

import contextlib
import json
import os
import signal
import socket
import struct

import pytest

from scripts.lab.waiting import wait_for
from tests.system.harness import Resizer
from tests.system.resizer_peer import framed, picture

GONE = 30


def post(body: bytes, query: str) -> bytes:
    return f"POST /resize?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("is_http", [True, False], ids=["http", "frames"])
@pytest.mark.parametrize("is_reset", [True, False], ids=["reset", "close"])
def test_pictures_of_clients_that_are_gone_are_not_worked_on(is_http: bool, is_reset: bool) -> None:
    """While the one CPU process stands still, nothing is begun but the first. A frame peer may have half-closed: only a
    reset says that it is gone."""
    if not (is_http or is_reset):
        pytest.skip("the end of a frame peer's side is no end of the peer")
    data = picture(400, 300)
    request = post(data, "w=40") if is_http else framed(id=1, data=data, target_width=40)
    with Resizer(cpus=1, express_bytes=1024, job_timeout="100s", queue=2 * GONE) as resizer:
        (cpu,) = resizer.pids("cpu")
        os.kill(cpu, signal.SIGSTOP)
        for _ in range(GONE):
            with socket.create_connection(resizer.address, 15) as sock:
                sock.sendall(request)
                if is_reset:
                    wait_for(lambda: pictures(resizer) == 1, "the picture to be there", 20)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wait_for(lambda: resizer.status()["queued"] == 0, "the queue to be empty again", 20)
        assert resizer.status()["totals"]["abandoned_total"] >= GONE - 1
        os.kill(cpu, signal.SIGCONT)
        with socket.create_connection(resizer.address, 15) as sock:
            sock.sendall(post(data, "w=40"))
            assert sock.recv(12) == b"HTTP/1.1 200"
        assert resizer.status()["totals"]["pictures_total"] <= 2, "the live one, and one that had begun"


def pictures(resizer: Resizer) -> int:
    """Complete pictures of clients that are there."""
    status = resizer.status()
    return int(status["queued"] + status["working"])


def test_a_modest_client_waits_for_none_of_the_many_of_another_address() -> None:
    """Forty connections of one address have their pictures in the queue before the one of another address comes."""
    data = picture(400, 300)
    with Resizer(cpus=1, express_bytes=1024, job_timeout="100s") as resizer, contextlib.ExitStack() as stack:
        (cpu,) = resizer.pids("cpu")
        os.kill(cpu, signal.SIGSTOP)
        for number in range(40):
            sock = stack.enter_context(
                socket.create_connection(resizer.address, 15, source_address=("127.0.0.2", 0))
            )
            sock.sendall(post(data, "w=40"))
            wait_for(lambda number=number: pictures(resizer) == number + 1, "the picture to be there", 20)
        with socket.create_connection(resizer.address, 15) as modest:
            # The second request is answered by the front at once after the first: what it counts is as of then.
            modest.sendall(
                post(data, "w=41") + b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            wait_for(lambda: pictures(resizer) == 41, "the modest one's picture to be there", 20)
            os.kill(cpu, signal.SIGCONT)
            heard = b"".join(iter(lambda: modest.recv(65536), b""))
        assert heard.startswith(b"HTTP/1.1 200")
        status = json.loads(heard[heard.rindex(b"\r\n\r\n") :])
        assert status["totals"]["pictures_total"] <= 3, (
            "its own, between the one at work when it came and the next"
        )
