"""HTTP on the port of the frames: requests as of curl and browsers, wrong ones, hostile ones."""

import http.client
import json
import shutil
import socket
import subprocess
import time

import pytest

from tests.system.harness import Resizer
from tests.system.resizer_peer import ENDLESS, Peer, picture, size_of

Address = tuple[str, int]


def talk(address: Address) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*address, timeout=15)


def ask(
    conn: http.client.HTTPConnection, method: str, target: str, body: object = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    chunked = {"encode_chunked": True} if headers.get("Transfer_Encoding") else {}
    conn.request(method, target, body, {k.replace("_", "-"): v for k, v in headers.items()}, **chunked)  # type: ignore[arg-type]
    response = conn.getresponse()
    return response, response.read()


def raw(address: Address, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send bytes as they are; returns what comes back until the end of the stream."""
    with socket.create_connection(address, 15) as sock:
        for piece in pieces:
            try:
                sock.sendall(piece)
            except OSError:
                break
            time.sleep(pause)
        heard = b""
        try:
            while data := sock.recv(65_536):
                heard += data
        except ConnectionResetError:
            pass
        return heard


def test_a_picture_goes_in_and_comes_out_smaller_over_one_kept_connection() -> None:
    with Resizer(cpus=2) as resizer:
        conn = talk(resizer.address)
        for kind, mime in (("JPEG", "image/jpeg"), ("PNG", "image/png"), ("GIF", "image/gif")):
            response, body = ask(conn, "POST", "/resize?w=90&h=70", picture(300, 200, kind))
            assert (response.status, response.getheader("Content-Type")) == (200, mime)
            assert size_of(body) == (90, 70)
        response, body = ask(conn, "POST", "/resize?w=90&h=90&fit=contain&format=png", picture(300, 200))
        assert (response.getheader("Content-Type"), size_of(body)) == ("image/png", (90, 60))
        pieces = (picture(300, 200)[at : at + 999] for at in range(0, len(picture(300, 200)), 999))
        response, body = ask(conn, "POST", "/resize?h=20", pieces, Transfer_Encoding="chunked")
        assert (response.status, size_of(body)) == (200, (30, 20))
        response, body = ask(conn, "GET", "/health")
        assert (response.status, json.loads(body)["status"]) == (200, "ok")
        response, body = ask(conn, "HEAD", "/health")
        assert (response.status, body) == (200, b"")
        response, body = ask(conn, "GET", "/status")
        status = json.loads(body)
        assert (status["name"], status["clients"], status["workers"]) == ("backend-1", 1, 2)
        assert status["totals"]["http_requests_total"] == 8
        response, body = ask(conn, "GET", "/metrics")
        assert response.status == 200 and (response.getheader("Content-Type") or "").startswith(
            "text/plain; version="
        )
        lines = body.decode().splitlines()
        assert 'resizer_pictures_total{format="png",status="200",reason=""} 2' in lines
        assert "resizer_picture_seconds_count 5" in lines
        assert [ask(conn, "GET", path)[0].status for path in ("/live", "/ready")] == [200, 200]
        response, body = ask(conn, "GET", "/")
        assert (response.getheader("Content-Type") or "").startswith(
            "text/html"
        ) and b"2 CPU processes" in body
        conn.close()


@pytest.mark.parametrize(
    ("status", "method", "target", "body"),
    [
        (400, "POST", "/resize", b"x"),
        (400, "POST", "/resize?w=0&h=0", b"x"),
        (400, "POST", "/resize?w=-5", b"x"),
        (400, "POST", "/resize?w=1&w=2", b"x"),
        (400, "POST", "/resize?width=10", b"x"),
        (400, "POST", "/resize?w=10&fit=funny", b"x"),
        (400, "POST", "/resize?w=10&format=tiff", b"x"),
        (400, "POST", "/resize?w=" + "9" * 5000, b"x"),
        (404, "GET", "/favicon.ico", None),
        (405, "GET", "/resize?w=10", None),
        (405, "POST", "/health", b"x"),
        (413, "POST", "/resize?w=10", bytes((1 << 20) + 1)),
        (415, "POST", "/resize?w=10", b""),
        (415, "POST", "/resize?w=10", b"%PDF-1.4 and so on"),
        (422, "POST", "/resize?w=65535&h=65535", b"x"),
        (422, "POST", "/resize?w=10", picture(60, 40)[:300]),
    ],
)
def test_every_error_has_its_status_and_a_sentence(
    status: int, method: str, target: str, body: bytes | None
) -> None:
    with Resizer(cpus=1, max_frame="1m") as resizer:
        conn = talk(resizer.address)
        response, answer = ask(conn, method, target, body)
        assert response.status == status, answer
        assert json.loads(answer)["status"] == status
        assert len(json.loads(answer)["error"]) > 10
        if status == 405:
            assert response.getheader("Allow")
        conn.close()
        conn = talk(resizer.address)
        assert ask(conn, "POST", "/resize?w=9", picture(60, 40))[0].status == 200
        conn.close()


def test_busy_and_over_time_have_their_status_and_a_full_service_is_healthy() -> None:
    options = {"queue": 1, "job_timeout": "1s", "max_enlarge": 0}
    with Resizer(cpus=1, **options) as resizer, Peer(resizer.address) as peer:
        resizer.expect("reap")
        for number in range(1, 9):
            peer.say(id=number, data=picture(600, 400), **ENDLESS)
        peer.say(id=9, dry_run=True)
        early = []
        while 9 not in early:  # then all have been read, and those beyond the queue have been refused
            early += [reply.id for reply in peer.hear_all(1)]
        conn = talk(resizer.address)
        response, body = ask(conn, "POST", "/resize?w=9", picture(60, 40))
        assert (response.status, response.getheader("Retry-After")) == (429, "1"), body
        response, _ = ask(conn, "GET", "/health")
        assert response.status == 200, "a full service is healthy, and the connection was kept"
        peer.hear_all(9 - len(early))
        response, body = ask(conn, "POST", "/resize?w=5600&h=5600&format=avif&quality=100", picture(60, 40))
        assert response.status == 504, body
        conn.close()


def test_pipelined_requests_are_answered_in_order() -> None:
    body = picture(60, 40)
    one = b"POST /resize?w=%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
    stream = b"".join(one % (width, len(body), body) for width in (10, 20, 30))
    stream += b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with Resizer(cpus=2) as resizer:
        answer = raw(resizer.address, stream)
        at = [answer.find(b"X-Picture-Size: %dx" % width) for width in (10, 20, 30)]
        assert -1 not in at and at == sorted(at)
        assert answer.count(b"HTTP/1.1 200 OK") == 4


def test_a_request_may_arrive_byte_by_byte() -> None:
    body = picture(60, 40)
    head = b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    with Resizer(cpus=1) as resizer:
        answer = raw(resizer.address, *(head[at : at + 1] for at in range(len(head))), body[:7], body[7:])
        assert answer.startswith(b"HTTP/1.1 200 OK")


def test_expect_100_continue_is_answered_before_the_body_and_not_for_what_is_refused() -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with Resizer(cpus=1, max_frame="1m") as resizer:
        with socket.create_connection(resizer.address, 15) as sock:
            body = picture(60, 40)
            sock.sendall(head % (b"/resize?w=9", len(body)))
            assert sock.recv(4096).startswith(b"HTTP/1.1 100")
            sock.sendall(body)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        for target, length, status in ((b"/resize?w=9", 5 << 20, b"413"), (b"/nothing", 9, b"404")):
            assert raw(resizer.address, head % (target, length)).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", b"431"),
        (b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", b"400"),
        (b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", b"400"),
        (b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
        (b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", b"400"),  # TLS on a plain port
    ],
)
def test_bytes_that_are_not_http_are_answered_with_an_error_and_closed(sent: bytes, status: bytes) -> None:
    with Resizer(cpus=1) as resizer:
        assert raw(resizer.address, sent).startswith(b"HTTP/1.1 " + status)
        assert ask(talk(resizer.address), "GET", "/health")[0].status == 200


def test_a_chunked_body_without_end_is_cut_at_the_limit() -> None:
    head = b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
    with Resizer(cpus=1, max_frame="1m") as resizer:
        assert raw(resizer.address, head, *[chunk] * 64).startswith(b"HTTP/1.1 413")


def test_slow_clients_are_cut() -> None:
    with Resizer(cpus=1, frame_timeout="1s") as resizer:
        for slow in (b"GET /hea", b"POST /resize?w=9 HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\nabc"):
            began = time.monotonic()
            assert raw(resizer.address, slow) == b""
            assert 0.9 < time.monotonic() - began < 30


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_gets_its_picture() -> None:
    with Resizer(cpus=1) as resizer:
        host, port = resizer.address
        command = [
            "curl",
            "-sS",
            "--max-time",
            "10",
            "--data-binary",
            "@-",
            f"http://{host}:{port}/resize?w=200",
        ]
        done = subprocess.run(command, input=picture(4000, 3000), capture_output=True, timeout=20)
        assert done.returncode == 0, done.stderr
        assert size_of(done.stdout) == (200, 150)


def test_frames_only_when_http_is_off() -> None:
    with Resizer("--no-http", cpus=1) as resizer:
        assert raw(resizer.address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        with Peer(resizer.address) as peer:
            assert peer.ask(id=1, dry_run=True).status == 200
