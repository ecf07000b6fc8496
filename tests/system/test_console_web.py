"""The console's HTTP server: the same figures as everywhere, reading only, bounded clients."""

import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import Address, free_port, held, is_open, text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer
from tests.system.upgradable import UpgradableBalancer, status_or_none, subreaper


class WithMetrics(Balancer):
    """A balancer whose console answers HTTP on a port of the kernel's choice."""

    @property
    def http(self) -> Address:
        lines = re.findall(r"bind address=(127\.0\.0\.1):(\d+) slots=1 role=console", self.log())
        host, port = lines[-1]
        return host, int(port)


class UpgradableWithMetrics(WithMetrics, UpgradableBalancer):
    """And one that a successor may replace."""


@pytest.fixture
def lb() -> Iterator[WithMetrics]:
    with Echo() as backend, WithMetrics(upstreams=[backend.address], metrics="localhost:0") as balancer:
        balancer.wait_backend(text_of(backend.address), "up")
        yield balancer


def ask(
    address: Address, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, dict[str, str], str]:
    """(status, headers, body) of one request on a connection of its own."""
    conn = http.client.HTTPConnection(*address, timeout=5)
    try:
        conn.request(method, path, body=body)
        reply = conn.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read().decode()
    finally:
        conn.close()


def raw(address: Address, request: bytes) -> bytes:
    """Everything that comes back until the other side closes."""
    with socket.create_connection(address, 5) as sock:
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def is_closed(port: int) -> bool:
    """Whether connections are refused there. While the sockets are being shut down, a client may be reset."""
    try:
        ask(("127.0.0.1", port), "/health")
    except ConnectionRefusedError:
        return True
    except ConnectionError:
        return False
    return False


def relay(address: Address, data: bytes) -> None:
    with socket.create_connection(address, 5) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: sock.recv(65536), b"")) == data


def test_every_view_tells_the_same_as_balancerctl(lb: WithMetrics) -> None:
    for size in (1, 1000, 70000):
        relay(lb.address, b"x" * size)
    status = lb.wait_idle()
    time.sleep(0.25)  # an answer may be 0.2 s old
    assert json.loads(ask(lb.http, "/status.json")[2])["totals"] == status["totals"]
    code, headers, text = ask(lb.http, "/metrics")
    assert (code, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert int(samples["balancer_accepted_total"]) == status["totals"]["accepted_total"] == 3
    assert int(samples["balancer_bytes_in_total"]) == status["totals"]["bytes_in_total"] == 71001
    name = status["backends"][0]["name"]
    assert int(samples[f'balancer_backend_bytes_out_total{{pool="main",backend="{name}"}}']) == 71001
    assert samples['balancer_workers{state="ready"}'] == "2"
    [session] = [one["times"]["session"] for one in status["listeners"]]
    assert session["count"] == 3 and 0 < session["p99_s"] < 10
    assert samples['balancer_listener_session_seconds_count{listener="main"}'] == "3"
    assert "1 of 1 backend up, 0 sessions" in ask(lb.http, "/")[2]
    title = f"balancer: console [127.0.0.1:{lb.http[1]}]"
    wait_for(lambda: title in lb.titles().values(), "the title")
    lb.check_at_rest()


def test_health_follows_the_backends() -> None:
    port = free_port()
    with WithMetrics(f"--upstream=127.0.0.1:{port}", metrics="127.0.0.1:0", check_interval="100ms") as lb:
        lb.expect("prober .* all-down")
        wait_for(lambda: ask(lb.http, "/health")[0] == 503, "503 without a backend")
        with Echo(port=port):
            wait_for(lambda: ask(lb.http, "/health")[::2] == (200, "ok\n"), "200 with a backend")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(lb: WithMetrics, method: str) -> None:
    for body in (None, b"x" * 200_000):  # read past and thrown away, or a reset would overtake the answer
        code, headers, _ = ask(lb.http, "/", method, body)
        assert (code, headers["Allow"]) == (405, "GET, HEAD")


def test_a_request_has_no_body_and_a_head_of_8_kib(lb: WithMetrics) -> None:
    assert raw(lb.http, b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").startswith(
        b"HTTP/1.1 413 "
    )
    head = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX: "
    assert raw(lb.http, head + b"a" * 7900 + b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert raw(lb.http, head + b"a" * 8200 + b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    assert raw(lb.http, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    lb.check_at_rest()


def test_one_connection_for_many_requests(lb: WithMetrics) -> None:
    conn = http.client.HTTPConnection(*lb.http, timeout=5)
    for path, code in (("/health", 200), ("/nowhere", 404), ("/metrics", 200), ("/", 200)):
        conn.request("GET", path)
        reply = conn.getresponse()
        assert (reply.status, reply.will_close) == (code, False)
        reply.read()
    conn.request("HEAD", "/")
    reply = conn.getresponse()
    assert int(reply.headers["Content-Length"]) > 1000 and reply.read() == b""
    conn.close()
    pipelined = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 50
    last = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert raw(lb.http, pipelined + last).count(b"HTTP/1.1 200 ") == 51


def test_a_slow_client_is_cut(lb: WithMetrics) -> None:
    began = time.monotonic()
    with socket.create_connection(lb.http, 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost:")
        while is_open(sock):
            assert time.monotonic() - began < 60, "a byte now and then buys no time"
            with contextlib.suppress(ConnectionError):
                sock.sendall(b" a")
            time.sleep(0.5)
    assert time.monotonic() - began > 4
    lb.check_at_rest()


HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
OTHERS = {
    "silent": b"",
    "half a head": HEALTH[:-2],
    "idle": HEALTH,
    "not closing": HEALTH.replace(b"Host", b"Connection: close\r\nHost"),
    "not reading": HEALTH.replace(b"/health", b"/") * 200,
}


@pytest.mark.parametrize("said", OTHERS.values(), ids=OTHERS)
def test_health_is_answered_whatever_other_clients_do(lb: WithMetrics, said: bytes) -> None:
    with held(lb.http, 150) as others:
        for sock in others:
            with contextlib.suppress(ConnectionError):  # it has yielded already
                sock.sendall(said)
        for _ in range(20):
            assert ask(lb.http, "/health")[0] == 200
    lb.check_at_rest(seconds=8.0)


@pytest.mark.parametrize("said", [b"", b"sta", b"status\n"])
def test_the_admin_socket_answers_whatever_other_clients_do(lb: WithMetrics, said: bytes) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(
                str(lb.admin)
            )  # waits while the queue is full, which a socket with a timeout does not
            sock.settimeout(5)
            with contextlib.suppress(ConnectionError):
                sock.sendall(said)
        for _ in range(20):
            assert lb.status()["schema"] == 2
    lb.check_at_rest(seconds=8.0)


def everything(family: socket.AddressFamily, address: object, request: bytes) -> bytes:
    """What one client of a window gets, who reads only when all have asked."""
    with socket.socket(family) as sock:
        sock.connect(address)  # type: ignore[arg-type]
        sock.settimeout(30)
        sock.sendall(request)
        return b"".join(iter(lambda: sock.recv(1 << 20), b""))


def test_32_clients_of_each_kind_at_once_with_a_thousand_backends(tmp_path: Path) -> None:
    path = tmp_path / "many.ini"
    backends = "".join(f"    127.0.0.1:{20000 + n} name=backend-{n}\n" for n in range(1000))
    path.write_text(f"[balancer]\nupstream =\n{backends}")
    with WithMetrics("-c", str(path), "--bind=127.0.0.1", metrics="127.0.0.1:0", check="none") as lb:
        before = [pid for pid, title in lb.titles().items() if "console" in title]
        kinds: list[tuple[socket.AddressFamily, object, bytes]] = [
            (socket.AF_INET, lb.http, f"GET {path} HTTP/1.0\r\nHost: a\r\n\r\n".encode())
            for path in ("/", "/status.json", "/metrics", "/health")
        ]
        kinds.append((socket.AF_UNIX, str(lb.admin), b"status\n"))
        with ThreadPoolExecutor(160) as threads:
            for kind in kinds:
                for reply in threads.map(everything, *zip(*[kind] * 32, strict=True)):
                    assert len(reply) > 100_000 or b"\r\n\r\nok\n" in reply
            replies = list(threads.map(everything, *zip(*kinds * 32, strict=True)))
        assert all(replies)
        assert [pid for pid, title in lb.titles().items() if "console" in title] == before
        assert " hang " not in lb.log()


def test_a_reload_opens_moves_and_closes_the_http_server(tmp_path: Path) -> None:
    path = tmp_path / "balancer.ini"

    def configure(*lines: str) -> None:
        path.write_text("\n".join(["[balancer]", f"upstream = {text_of(backend.address)}", *lines, ""]))

    with Echo() as backend:
        configure()
        with WithMetrics("-c", str(path), "--bind=127.0.0.1") as lb:
            first, second = free_port(), free_port()
            assert not lb.ctl("reload").returncode
            configure(f"metrics = 127.0.0.1:{first}")
            assert f"bind 127.0.0.1:{first}" in lb.ctl("reload").stdout
            assert ask(("127.0.0.1", first), "/health")[0] in (200, 503)
            configure(f"metrics = 127.0.0.1:{second}")
            assert not lb.ctl("reload").returncode
            wait_for(lambda: ask(("127.0.0.1", second), "/health")[0] == 200, "the new place")
            wait_for(lambda: is_closed(first), "the old place closed")
            configure()
            assert not lb.ctl("reload").returncode
            wait_for(lambda: is_closed(second), "the HTTP server closed")
            wait_for(lambda: len(lb.processes()) == 5, "one generation", 8)
            assert lb.cpu_share(0.5) < 0.3, "a listener that was shut down spins"


def hour(lb: WithMetrics) -> str:
    """The points of the chart of sessions, as the page's script is told them."""
    items = json.loads(ask(lb.http, "/status.json?since=nothing")[2])["items"]
    return str(items["tile sessions"][2])


def consoles(lb: Balancer) -> set[int]:
    return {pid for pid, title in lb.titles().items() if "console" in title}


def test_a_reload_and_an_upgrade_go_on_with_the_history(tmp_path: Path) -> None:
    """The console that they start shows the points of the one before, at once: its own first ones take 30 s."""
    with (
        subreaper(),
        Echo() as backend,
        UpgradableWithMetrics(tmp_path, upstreams=[backend.address], metrics="localhost:0").with_file() as lb,
    ):
        lb.wait_backend(text_of(backend.address), "up")
        with held(lb.address, 3):
            before = wait_for(lambda: hour(lb), "points of a chart", 60, every=1.0)
            last = before.split()[-1].partition(",")[2]
            old = consoles(lb)
            lb.change_file()
            assert lb.ctl("reload").returncode == 0
            wait_for(lambda: (now := consoles(lb)) and not now & old, "another console alone", 20)
            assert last in {point.partition(",")[2] for point in hour(lb).split()}, "the height that it had"
        lb.upgrade()
        wait_for(lambda: status_or_none(lb), "a status of the new version")
        assert last in {point.partition(",")[2] for point in hour(lb).split()}, "after the upgrade"
        assert lb.old.wait(10) == 0


def test_an_http_server_off_loopback_is_warned_of() -> None:
    environment = {"BALANCER_UPSTREAMS": "a:1"}
    with (
        Echo() as backend,
        Balancer(upstreams=[backend.address], metrics="*:0", environment=environment) as lb,
    ):
        assert re.search(r"warning master pid=\d+ config note=.*password", lb.log())
        assert re.search(r"warning master pid=\d+ config note=.*did you mean BALANCER_UPSTREAM\?", lb.log())


def test_http_on_a_unix_socket(tmp_path: Path) -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], metrics=f"unix:{tmp_path}/w") as lb:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(tmp_path / "w"))
            sock.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            reply = b"".join(iter(lambda: sock.recv(65536), b""))
        assert b"balancer_build_info" in reply
        lb.check_at_rest()
    assert not (tmp_path / "w").exists()


def test_the_page_says_that_no_client_is_accepted_where_files_run_out() -> None:
    """96 files are places for 16 sessions; whoever comes later waits in the kernel's queue, and no check sees it."""
    with Echo() as backend:
        lb = WithMetrics(upstreams=[backend.address], metrics="127.0.0.1:0", workers=1)
        lb.wrapper = ["prlimit", "--nofile=96:96"]
        with lb:
            lb.wait_backend(text_of(backend.address), "up")
            with held(lb.address, 40):
                said = "every worker has reached a limit of this machine"
                # A worker looks again every 0.2 s, so each answer is waited for.
                for path, words in (
                    ("/", f"<h1>No client can be served: {said}"),
                    ("/pool/main", f"Pool main: no client can be served: {said}"),
                    ("/ready", said),
                    ("/ready/main", said),
                    ("/metrics", "balancer_serving 0\n"),
                ):
                    wait_for(lambda: words in ask(lb.http, path)[2], path, 20)  # noqa: B023 - called at once
                wait_for(lambda: f"no client comes in: {said}" in lb.ctl("explain").stdout, "explain", 20)
            lb.wait_idle(10)
            wait_for(lambda: ask(lb.http, "/ready")[2] == "ok\n", "the all-clear", 20)
            assert "No client can be served" not in ask(lb.http, "/")[2]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_finds_nothing_to_mend_in_the_metrics(lb: WithMetrics) -> None:
    relay(lb.address, b"x")
    lb.wait_idle()
    text = ask(lb.http, "/metrics")[2]
    found = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
