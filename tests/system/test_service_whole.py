"""The whole service: HTTP through the balancer to three resizers, with the clients that people have."""

import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.harness import Balancer, Resizer
from tests.system.resizer_peer import picture, size_of

Address = tuple[str, int]
HEAD = b"POST /resize?w=%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def address() -> Iterator[Address]:
    with ExitStack() as stack:
        resizers = [stack.enter_context(Resizer(name=f"backend-{n}", cpus=1)) for n in (1, 2, 3)]
        upstreams = [resizer.address for resizer in resizers]
        yield stack.enter_context(Balancer(upstreams=upstreams, workers=2)).address


def ask_many(address: Address, count: int, clients: int, per_connection: int) -> Counter[tuple[int, object]]:
    """`count` pictures by http.client, `per_connection` on each kept one; (status, size) and how often."""
    found: Counter[tuple[int, object]] = Counter()
    bodies = [picture(120, 90, kind, seed) for kind in ("JPEG", "PNG") for seed in (1, 2, 3)]
    lock = threading.Lock()

    def client(number: int) -> None:
        own: Counter[tuple[int, object]] = Counter()
        for begin in range(number, count, clients * per_connection):
            conn = http.client.HTTPConnection(*address, timeout=30)
            for at in range(begin, min(count, begin + clients * per_connection), clients):
                width = 10 + at % 50
                conn.request("POST", f"/resize?w={width}&h=20", bodies[at % len(bodies)])
                response = conn.getresponse()
                body = response.read()
                own[response.status, size_of(body) == (width, 20) if response.status == 200 else body] += 1
            conn.close()
        with lock:
            found.update(own)

    crowd = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    return found


def test_a_thousand_requests_on_kept_and_on_short_connections_are_all_right(address: Address) -> None:
    assert ask_many(address, 800, 8, 50) == {(200, True): 800}
    assert ask_many(address, 200, 8, 1) == {(200, True): 200}


@pytest.mark.soak
def test_twenty_thousand_requests_are_all_right(address: Address) -> None:
    assert ask_many(address, 18_000, 8, 100) == {(200, True): 18_000}
    assert ask_many(address, 2_000, 8, 1) == {(200, True): 2_000}


def curl(address: Address, path: Path, *more: str) -> tuple[subprocess.CompletedProcess[bytes], float]:
    """One call as one would type it; the seconds it took."""
    url = "http://{}:{}/resize?w=200&h=200".format(*address)
    began = time.monotonic()
    command = ["curl", "-sS", "--max-time", "20", "--data-binary", f"@{path}", *more, url]
    done = subprocess.run(command, capture_output=True, timeout=30)
    return done, time.monotonic() - began


def photo(path: Path) -> Path:
    """2.7 MB: more than a megabyte makes curl ask for 100-continue, and more than any socket buffer holds at once."""
    whole = picture(3000, 2000)
    path.write_bytes(whole + bytes(2_700_000 - len(whole)))
    return path


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize(
    "more", [(), ("-H", "Expect:"), ("-H", "Transfer-Encoding: chunked"), ("--http1.0",)]
)
def test_curl_and_a_photograph(address: Address, tmp_path: Path, more: tuple[str, ...]) -> None:
    path = photo(tmp_path / "photo.jpg")
    took = []
    for _ in range(8):
        done, seconds = curl(address, path, *more)
        assert done.returncode == 0, done.stderr
        assert size_of(done.stdout) == (200, 200), done.stdout[:200]
        took.append(seconds)
    # curl sends its body after a second without 100-continue: an answer that was forgotten would show.
    assert min(took) < 0.9, took


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_many_curls_at_once(address: Address, tmp_path: Path) -> None:
    path = photo(tmp_path / "photo.jpg")
    url = "http://{}:{}/resize?w=50".format(*address)
    words = [
        "curl",
        "-sS",
        "--max-time",
        "30",
        "--data-binary",
        f"@{path}",
        "-o",
        os.devnull,
        "-w",
        "%{http_code}",
        url,
    ]
    crowd = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(20)]
    heard = [one.communicate(timeout=60) for one in crowd]
    assert [out for out, _ in heard] == [b"200"] * 20, heard


@pytest.mark.skipif(shutil.which("wrk") is None, reason="no wrk here")
def test_wrk_keeps_asking(address: Address, tmp_path: Path) -> None:
    body = tmp_path / "body.jpg"
    body.write_bytes(picture(120, 90))
    script = tmp_path / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\nlocal f = io.open("{body}", "rb")\nwrk.body = f:read("*a")\n'
        'done = function(s) local e = s.errors print("errors " .. e.status + e.connect + e.read + e.timeout) end\n'
    )
    url = "http://{}:{}/resize?w=20".format(*address)
    done = subprocess.run(
        ["wrk", "-t1", "-c8", "-d3s", "--timeout", "20s", "-s", str(script), url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "errors 0" in done.stdout, done.stdout + done.stderr
    assert int(done.stdout.split(" requests in")[0].split()[-1]) > 50


def heard_from(sock: socket.socket) -> bytes:
    heard = b""
    while data := sock.recv(1 << 16):
        heard += data
    return heard


def test_pipelined_chunked_and_slow_requests_come_through_the_balancer(address: Address) -> None:
    body = picture(120, 90)
    with socket.create_connection(address, 15) as sock:
        stream = b"".join(HEAD % (width, len(body)) + body for width in range(10, 40))
        sock.sendall(stream + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = heard_from(sock)
        at = [answer.find(b"X-Picture-Size: %dx" % width) for width in range(10, 40)]
        assert -1 not in at and at == sorted(at)
        assert answer.count(b"HTTP/1.1 200 OK") == 31
    with socket.create_connection(address, 15) as sock:
        sock.sendall(
            b"POST /resize?w=30 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        for begin in range(0, len(body), 97):
            piece = body[begin : begin + 97]
            sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")
        assert b"X-Picture-Size: 30x" in heard_from(sock)
    with socket.create_connection(address, 15) as sock:
        slow = (HEAD % (25, len(body))).replace(b"Host", b"Connection: close\r\nHost") + body
        for begin in range(0, len(slow), max(1, len(slow) // 40)):
            sock.sendall(slow[begin : begin + max(1, len(slow) // 40)])
            time.sleep(0.02)
        assert b"X-Picture-Size: 25x" in heard_from(sock)


def test_a_client_that_ends_its_side_after_megabytes_is_answered_and_let_go(address: Address) -> None:
    whole = picture(3000, 2000)
    body = whole + bytes((6 << 20) - len(whole))
    with socket.create_connection(address, 15) as sock:
        sock.sendall(HEAD % (40, len(body)) + body)
        sock.shutdown(socket.SHUT_WR)
        assert heard_from(sock).startswith(b"HTTP/1.1 200 OK")


def test_errors_keep_their_status_through_the_balancer(address: Address) -> None:
    conn = http.client.HTTPConnection(*address, timeout=15)
    for target, body, status in (
        ("/resize", b"x", 400),
        ("/nothing", b"x", 404),
        ("/resize?w=9", b"%PDF-1.4 is none", 415),
        ("/resize?w=65535&h=65535", picture(60, 40), 422),
        ("/resize?w=9", picture(60, 40), 200),
    ):
        conn.request("POST", target, body)
        response = conn.getresponse()
        answer = response.read()
        assert response.status == status, answer
        assert status == 200 or len(json.loads(answer)["error"]) > 10
        if response.getheader("Connection") == "close":
            conn.close()
    conn.close()
