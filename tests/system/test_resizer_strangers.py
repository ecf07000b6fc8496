"""The resizer among strangers: what one of them does costs the others little."""

import contextlib
import http.client
import io
import json
import os
import random
import signal
import socket
import struct
import threading
from urllib.request import urlopen

import pytest
from PIL import Image

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


@pytest.mark.parametrize("address", ["127.0.0.2", "127.0.0.1"], ids=["another address", "one address"])
def test_a_small_picture_of_a_modest_client_waits_for_none_that_was_sent_ahead(address: str) -> None:
    """Greedy connections keep the one core at work: each process has a picture and the next one. That of a client that
    asks now and then goes to the express process, which has none. Counted are the pictures of that process."""
    request = post(picture(400, 300), "w=40")
    resizer = Resizer()
    resizer.wrapper = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    with resizer, contextlib.ExitStack() as stack:
        stop = threading.Event()

        def ask_greedily() -> None:
            with socket.create_connection(resizer.address, 15, source_address=(address, 0)) as sock:
                while not stop.is_set():
                    answer_to(sock, request)

        crowd = [threading.Thread(target=ask_greedily) for _ in range(24)]
        for thread in crowd:
            thread.start()
        stack.callback(lambda: [thread.join() for thread in crowd])
        stack.callback(stop.set)
        modest = stack.enter_context(socket.create_connection(resizer.address, 15))
        done, not_waited = 0, 0
        for _ in range(12):
            wait_for(lambda done=done: pictures_of(resizer, "cpu") >= done + 60, "the greedy ones' turns", 30)
            before = pictures_of(resizer, "express")
            answer_to(modest, request)
            not_waited += pictures_of(resizer, "express") > before
            done = pictures_of(resizer, "cpu")
        assert not_waited >= 8, "of 12; the greedy ones may have stood still for a moment"


def answer_to(sock: socket.socket, request: bytes) -> None:
    """Send a request and read its whole answer."""
    sock.sendall(request)
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    assert answer.status == 200 and answer.read()


def pictures_of(resizer: Resizer, role: str) -> int:
    """Pictures that the processes of a role have worked on."""
    return sum(one["pictures"] for one in resizer.status()["processes"] if one["role"] == role)


@pytest.mark.parametrize("is_http", [True, False], ids=["http", "frames"])
@pytest.mark.parametrize("sent", [1, 100_000], ids=["a byte", "a part"])
def test_clients_that_send_slowly_keep_nobody_out(is_http: bool, sent: int) -> None:
    """More of them than there are slots; they would be cut for their slowness a minute later."""
    body = bytes(1 << 20)
    request = post(body, "w=40") if is_http else framed(id=1, data=body, target_width=40)
    head = len(request) - len(body)
    data = picture(400, 300)
    with Resizer(cpus=1, frame_timeout="60s") as resizer, contextlib.ExitStack() as stack:
        for _ in range(120):
            sock = stack.enter_context(
                socket.create_connection(resizer.address, 15, source_address=("127.0.0.2", 0))
            )
            sock.sendall(request[: head + sent])
        wait_for(lambda: resizer.status()["totals"]["bytes_in_total"] >= 120 * sent, "the slow bytes", 20)
        for number in range(5):
            conn = http.client.HTTPConnection(*resizer.address, timeout=15)
            conn.request("POST", f"/resize?w={40 + number}", data)
            assert conn.getresponse().status == 200
            conn.close()
        with urlopen("http://{}:{}/health".format(*resizer.address), timeout=15) as answer:
            assert answer.status == 200


def test_clients_that_do_not_read_their_answers_keep_nobody_out() -> None:
    """More clients than slots, answers of 5 MB, which the kernel does not buffer. Fails where no slow holder yields."""
    noise = io.BytesIO()
    Image.frombytes("RGB", (400, 300), random.Random(5).randbytes(360_000)).save(noise, "JPEG", quality=90)
    request, small = post(noise.getvalue(), "w=1600&h=1200&format=png"), picture(400, 300)
    with Resizer(cpus=1, queue=2, frame_timeout="60s") as resizer, contextlib.ExitStack() as stack:
        for number in range(1, 27):  # 22 slots
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.bind(("127.0.0.2", 0))
            sock.connect(resizer.address)
            sock.sendall(request)
            wait_for(
                lambda n=number: resizer.status()["totals"]["pictures_total"] >= n, "its picture", 10, 0.05
            )
        assert resizer.status()["slots"] >= 20, "the answers are in the kernel's buffers: nothing is tried"
        for number in range(3):
            conn = http.client.HTTPConnection(*resizer.address, timeout=15)
            conn.request("POST", f"/resize?w={40 + number}", small)
            assert conn.getresponse().status == 200
            conn.close()


def test_a_refusal_is_seen_by_clients_that_send_all_and_those_that_wait_alike() -> None:
    """The queue is full: the body is not wanted. The connection goes on."""
    data = picture(2400, 1800)
    with Resizer(cpus=1, express_bytes=1024, job_timeout="100s", queue=1) as resizer:
        (cpu,) = resizer.pids("cpu")
        os.kill(cpu, signal.SIGSTOP)
        crowd = [socket.create_connection(resizer.address, 15) for _ in range(2)]
        for number, sock in enumerate(crowd):
            sock.sendall(post(data, "w=40"))
            wait_for(lambda number=number: pictures(resizer) == number + 1, "the picture to be there", 20)
        whole = http.client.HTTPConnection(*resizer.address, timeout=15)
        for _ in range(3):
            whole.request("POST", "/resize?w=40", data)
            answer = whole.getresponse()
            assert (answer.status, json.loads(answer.read())["status"]) == (429, 429)
            assert int(answer.getheader("Retry-After") or 0) >= 1
        with socket.create_connection(resizer.address, 15) as waiting:
            waiting.sendall(post(data, "w=40")[: -len(data)])
            assert waiting.recv(12) == b"HTTP/1.1 429", "before a byte of the body"
        os.kill(cpu, signal.SIGCONT)
        wait_for(lambda: pictures(resizer) == 0, "the queue to be empty", 20)
        whole.request("POST", "/resize?w=40", data)
        assert whole.getresponse().status == 200
        for sock in (*crowd, whole):
            sock.close()
