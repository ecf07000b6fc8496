"""Servers that change their role while clients hold sessions: the pool leaves them in the time that its options promise,
and its sessions end as DD."""

import socket
import struct
import time
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path

from scripts.lab.helpers import BackgroundThread
from scripts.lab.network import Address, text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, ini_section
from tests.system.services import Postgres, Redis

PATIENCE = 20.0  # seconds; a passing run does not wait for them
INTERVAL, FALL = 0.5, 3
PROMISED = INTERVAL * (1 + (FALL - 1) / 2) + 0.2  # seconds


class Lateness(BackgroundThread):
    """How slow this machine is: `worst` is the most that a sleep of 5 ms was too long, in seconds."""

    def __init__(self) -> None:
        super().__init__(self._measure)
        self.worst = 0.0

    def _measure(self) -> None:
        while not self.stopping.is_set():
            began = time.monotonic()
            time.sleep(0.005)
            self.worst = max(self.worst, time.monotonic() - began - 0.005)

    def allowed(self, answer: float) -> float:
        """PROMISED, and twice what FALL checks and the line in the log may be late; `answer` is the longest that a server
        took to answer this process, in seconds."""
        return PROMISED + 2 * FALL * (answer + self.worst)


def when_down(lb: FileBalancer, backend: str) -> float:
    """Calendar seconds at which the log says that a backend has gone down."""
    line = lb.wait_line(rf"^(\S+) warning prober pid=\d+ down .*\bbackend={backend} ", PATIENCE)
    return datetime.fromisoformat(line[1]).timestamp()


def listening(lb: FileBalancer, name: str) -> Address:
    match = lb.wait_line(rf"\bbind address=(\S+):(\d+) .*\blistener={name}\b")
    return match[1], int(match[2])


def is_ended(sock: socket.socket) -> bool:
    """Waits for the end of what the peer sends."""
    with suppress(ConnectionResetError):
        while sock.recv(1000):
            pass
    return True


class PostgresSession:
    """A session of user `check`; `is_standby` is what the server has said at its begin, `took` how long that was."""

    def __init__(self, address: Address) -> None:
        began = time.monotonic()
        self.sock = socket.create_connection(address, PATIENCE)
        body = struct.pack(">I", 196608) + b"user\0check\0database\0postgres\0\0"
        self.sock.sendall(struct.pack(">I", len(body) + 4) + body)
        said = b""
        while not said.endswith(b"Z\0\0\0\5I"):
            data = self.sock.recv(1000)
            if not data:
                raise ConnectionResetError(said)
            said += data
        self.is_standby = b"in_hot_standby\0on\0" in said
        self.took = time.monotonic() - began

    def __enter__(self) -> "PostgresSession":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def is_alive(self) -> bool:
        """It answers an empty query."""
        self.sock.sendall(b"Q\0\0\0\5\0")
        return self.sock.recv(1000).endswith(b"Z\0\0\0\5I")


def wait_promoted(server: Postgres) -> tuple[float, float]:
    """Promote a standby; returns the calendar seconds at which it was surely none yet, and its longest answer."""
    longest, last = 0.0, time.time()
    server.promote()
    deadline = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < deadline:
        before = time.time()
        with PostgresSession(server.address) as found:
            longest = max(longest, found.took)
            if not found.is_standby:
                return last, longest
        last = before
    raise AssertionError("it has not been promoted")


def test_two_postgresql_servers_change_their_roles() -> None:
    """One that is promoted keeps its clients, and is no replica any longer; one that is demoted begins again."""
    with ExitStack() as stack:
        old, new = stack.enter_context(Postgres()), stack.enter_context(Postgres())
        new.demote()
        text = ini_section("balancer", check_interval=f"{INTERVAL}s", check_fall=FALL, loglevel=1)
        for pool, role in (("w", "primary"), ("r", "replica")):
            upstream = [f"{text_of(old.address)} name={pool}-old", f"{text_of(new.address)} name={pool}-new"]
            text += ini_section(f"listener {pool}", bind="127.0.0.1:0", pool=pool)
            check = f"pgsql user=check role={role}"
            text += ini_section(f"pool {pool}", upstream=upstream, check=check, on_down="close")
        lb = stack.enter_context(FileBalancer(text))
        lb.expect("all-down")
        lb.wait_backend("w-new", "down", PATIENCE)
        lb.wait_backend("r-old", "down", PATIENCE)
        writers, readers = listening(lb, "w"), listening(lb, "r")
        writer = stack.enter_context(PostgresSession(writers))
        reader = stack.enter_context(PostgresSession(readers))
        assert reader.is_standby and not writer.is_standby
        lateness = stack.enter_context(Lateness())

        since, answer = wait_promoted(new)
        took, allowed = when_down(lb, "r-new") - since, lateness.allowed(answer)
        assert took <= allowed, f"left after {took:.2f} s, {allowed:.2f} s allowed"
        print(f"promoted: {took:.2f} s of {PROMISED:.2f} and {allowed:.2f}")
        assert is_ended(reader.sock)
        lb.wait_line(r" session client=\S* .*\bbackend=r-new end=DD ", PATIENCE)
        assert writer.is_alive()
        lb.wait_backend("w-new", "up", PATIENCE)

        lateness.worst, since = 0.0, time.time()
        old.demote()
        took, allowed = when_down(lb, "w-old") - since, lateness.allowed(answer)
        assert took <= allowed, f"left after {took:.2f} s, {allowed:.2f} s allowed"
        print(f"demoted: {took:.2f} s of {PROMISED:.2f} and {allowed:.2f}")
        assert is_ended(writer.sock)  # by the server itself
        lb.wait_backend("r-old", "up", PATIENCE)
        states = {each["name"]: each["state"] for each in lb.status()["backends"]}
        assert states == {"w-old": "down", "w-new": "up", "r-old": "up", "r-new": "down"}
        for address, is_standby in ((writers, False), (readers, True)):
            with PostgresSession(address) as session:
                assert session.is_standby == is_standby


def test_a_redis_that_is_demoted_keeps_its_clients_and_the_balancer_ends_them(tmp_path: Path) -> None:
    with Redis(tmp_path) as redis, ExitStack() as stack:
        text = ini_section("balancer", check_interval=f"{INTERVAL}s", check_fall=FALL, loglevel=1)
        text += ini_section("listener a", bind="127.0.0.1:0", pool="a")
        upstream = f"{text_of(redis.address)} name=redis"
        text += ini_section("pool a", upstream=upstream, check="redis role=primary", on_down="close")
        lb = stack.enter_context(FileBalancer(text))
        lb.expect("all-down")
        wait_for(lambda: lb.backend("redis")["checks_total"] >= 2, "checks", PATIENCE)
        client = stack.enter_context(socket.create_connection(lb.address, PATIENCE))
        client.sendall(b"PING\r\n")
        assert client.recv(100) == b"+PONG\r\n"
        lateness = stack.enter_context(Lateness())
        since, began = time.time(), time.monotonic()
        redis.demote()
        answer = time.monotonic() - began
        took, allowed = when_down(lb, "redis") - since, lateness.allowed(answer)
        assert took <= allowed, f"left after {took:.2f} s, {allowed:.2f} s allowed"
        print(f"demoted: {took:.2f} s of {PROMISED:.2f} and {allowed:.2f}")
        lb.wait_line(r"\bdown pool=a backend=redis .*\bgot=\"slave ")
        assert is_ended(client)
        lb.wait_line(r" session client=\S* .*\bbackend=redis end=DD ", PATIENCE)
        redis.promote()
        lb.wait_backend("redis", "up", PATIENCE)
