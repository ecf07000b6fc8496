"""The rows: each a function that runs a peer and returns its figures and one cell of the table.

RULES: the clients and the kernel's socket table count what happens; the peer is asked only where the question is whether
its own count is right.
"""

import os
import random
import selectors
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from balancer.config.units import counted
from scripts.lab.arrivals import Arrivals
from scripts.lab.backends import Digest, Echo, Scripted, SlowUnix
from scripts.lab.kernel import accepted, inodes_of
from scripts.lab.load import FAILURES, Load, LoadOutcome
from scripts.lab.measure import cpu_of
from scripts.lab.network import Address, held, is_open
from scripts.lab.process import children_of, freeze
from scripts.lab.waiting import wait_for
from scripts.versuslib.peers import Peer, PeerKind

Figures = dict[str, object]
Made = Callable[..., Peer]


@dataclass(frozen=True)
class Size:
    """How long each fault lasts; `make versus VERSUS=--long` multiplies."""

    reloads: int = 5
    requests: int = 20_000
    kills: int = 10
    stopped: float = 10.0
    held: int = 40
    hold_seconds: float = 8.0
    pause: float = 8.0  # four times what a peer may be without an answer
    pause_bytes: int = 20_000_000
    window: float = 7.0  # a reload's, which is 5 s for all peers, and some time after it


LONG = Size(reloads=20, requests=100_000, kills=50, hold_seconds=20.0, pause=60.0)


def classes(outcome: LoadOutcome) -> str:
    """Failures by class, those that happened."""
    kinds = {name: getattr(outcome, name) for name in FAILURES}
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in kinds.items() if count)
    return f" ({told})" if told else ""


def reload_under_load(make: Made, size: Size) -> tuple[Figures, str]:
    """Reloads while 32 clients send requests, each on a connection of its own."""
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        peer = stack.enter_context(make(backend.address))
        load = stack.enter_context(Load(peer.address, clients=32))
        began = time.monotonic()
        for _ in range(size.reloads):
            time.sleep(size.requests / 2500 / size.reloads)  # the fault's own schedule
            peer.reload()
        time.sleep(0.5)
        outcome = load.finish()
    figures = vars(outcome) | {"reloads": size.reloads, "took": time.monotonic() - began}
    cell = f"{outcome.failed} of {outcome.attempts:,} failed{classes(outcome)}"
    return figures, f"{cell}; longest {outcome.longest * 1000:.0f} ms"


def kill_under_load(make: Made, size: Size) -> tuple[Figures, str]:
    """kill -9 of a random worker every half second under load; only the connections that it held then may be lost."""
    rng = random.Random(25)
    lost, respawns = 0, []
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        peer = stack.enter_context(make(backend.address))
        load = stack.enter_context(Load(peer.address, clients=16, pause=0.01))
        time.sleep(0.5)
        for _ in range(size.kills):
            due = time.monotonic() + 0.5
            victim = rng.choice(peer.workers())
            freeze(victim)
            lost += len(inodes_of(victim) & accepted(peer.port))
            os.kill(victim, signal.SIGKILL)
            respawns.append(peer.wait_replaced(victim))
            time.sleep(max(0.0, due - time.monotonic()))
        outcome = load.finish()
    figures = vars(outcome) | {"held": lost, "respawn_s": max(respawns), "restarts": peer.restarts}
    cell = f"{outcome.failed} of {outcome.attempts:,} failed{classes(outcome)}, {lost} held by the killed"
    ended = f"; ended as a whole {peer.restarts} times" if peer.restarts else ""
    return figures, f"{cell}; whole again after {max(respawns) * 1000:.0f} ms at most{ended}"


def stop_a_worker(make: Made, size: Size) -> tuple[Figures, str]:
    """SIGSTOP of one worker under 50 new connections a second, SIGCONT at the end of the window."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        peer = stack.enter_context(make(echo.address))
        arrivals = stack.enter_context(Arrivals(peer.address, rate=50))
        time.sleep(0.3)
        victim = peer.workers()[0]
        freeze(victim)
        began = time.monotonic()
        replaced = None
        while time.monotonic() - began < size.stopped:
            if (
                replaced is None
                and victim not in peer.workers()
                and len(peer.workers()) >= peer.kind.worker_count
            ):
                replaced = time.monotonic() - began
            time.sleep(0.02)
        window = arrivals.since(began)
        waiting = sum(arrival.ended is None for arrival in window)
        try:
            os.kill(victim, signal.SIGCONT)
        except ProcessLookupError:
            pass
        arrivals.stop(2.0)
    failed = sum(bool(arrival.error) for arrival in window)
    late = sum(arrival.delay > 1.5 for arrival in window)
    longest = max(arrival.delay for arrival in window)
    figures: Figures = {"arrivals": len(window), "failed": failed, "late": late, "longest_s": longest}
    figures |= {"waiting_at_the_end": waiting, "replaced_s": replaced}
    fate = f"replaced after {replaced:.1f} s" if replaced else "never replaced"
    return (
        figures,
        f"{late} of {len(window)} waited over 1.5 s (longest {longest:.1f} s), {failed} failed; {fate}",
    )


def count_after_kills(make: Made, size: Size) -> tuple[Figures, str]:
    """A storm of kill -9 with connections held; then the peer's count beside the kernel's: with some held, with none."""
    rng = random.Random(31)
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        peer = stack.enter_context(make(echo.address))
        for _ in range(size.kills):
            with held(peer.address, size.held) as clients:
                for client in clients:
                    client.sendall(b"x")
                    client.recv(1)
                victim = rng.choice(peer.workers())
                os.kill(victim, signal.SIGKILL)
                peer.wait_replaced(victim)
        told: list[tuple[int | None, int]] = []
        for count in (size.held, 0):
            with held(peer.address, count) as clients:
                for client in clients:
                    client.sendall(b"x")
                    client.recv(1)
                told.append(settle(peer))
    figures: Figures = {"kills": size.kills, "told_and_true": told, "restarts": peer.restarts}
    words = [f"{said} told, {true} true" for said, true in told]
    return figures, "; ".join(words) + (" (counters start anew at each restart)" if peer.restarts else "")


def settle(peer: Peer) -> tuple[int | None, int]:
    """(told, true) as soon as they agree, or after two seconds of disagreement."""
    deadline = time.monotonic() + 2.0
    while True:
        true, said = len(accepted(peer.port)), peer.sessions()
        if said == true or time.monotonic() > deadline:
            return said, true
        time.sleep(0.05)


def out_of_descriptors(make: Made, size: Size) -> tuple[Figures, str]:
    """256 descriptors, 1,000 clients that stay; then 60 of those served leave."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        peer = stack.enter_context(make(echo.address, nofile=256))
        crowd = stack.enter_context(held(peer.address, 1000))
        selector = stack.enter_context(selectors.DefaultSelector())
        for client in crowd:
            try:
                client.sendall(b"x")
            except OSError:
                continue
            selector.register(client, selectors.EVENT_READ)
        served, turned_away = answers(selector, 1.5)
        pids = set(peer.workers())
        at, cpu, began = peer.log_size(), cpu_of(peer.pid), time.monotonic()
        more, gone = answers(selector, size.hold_seconds)
        served |= more
        turned_away += gone
        took = time.monotonic() - began
        used = cpu_of(peer.pid) - cpu
        lines = peer.process.log()[at:].count("\n") / took
        for client in list(served)[:60]:
            client.close()
        freed, later = time.monotonic(), 0
        while later < min(60, 1000 - len(served) - turned_away) and time.monotonic() - freed < 5:
            later += len(answers(selector, 0.02)[0])
        resumed = time.monotonic() - freed
        survived = pids <= set(peer.workers()) and not peer.restarts
    share = (used.user + used.system) / took
    figures: Figures = {"served": len(served), "turned_away": turned_away, "cpu": share, "lines_per_s": lines}
    figures |= {"resumed_s": resumed, "survived": survived}
    fate = (
        f"{later} served within {resumed * 1000:.0f} ms of room" if later else "no client left to be served"
    )
    cell = f"{len(served)} served, {turned_away} turned away; {share:.1%} of a core, {lines:.1f} log lines/s"
    return figures, f"{cell}; {fate}" + ("" if survived else "; a process died")


def answers(selector: selectors.BaseSelector, seconds: float) -> tuple[set[socket.socket], int]:
    """(clients that got an echo, number of clients whose connection ended instead) within that time."""
    served: set[socket.socket] = set()
    ended = 0
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for key, _ in selector.select(min(left, 0.05)):
            sock: socket.socket = key.fileobj  # type: ignore[assignment]
            selector.unregister(sock)
            try:
                answered = sock.recv(1) == b"x"
            except OSError:
                answered = False
            if answered:
                served.add(sock)
            else:
                ended += 1
    return served, ended


def reload_without_a_change(make: Made, size: Size) -> tuple[Figures, str]:
    """A reload of the same configuration while sessions are held that move a byte now and then."""
    with ExitStack() as stack:
        peer = stack.enter_context(make(stack.enter_context(Echo()).address))
        clients = stack.enter_context(held(peer.address, size.held))
        time.sleep(1)  # helpers that start after the workers
        began, before, forked = time.monotonic(), set(children_of(peer.pid)), set()
        peer.reload_nothing()
        while time.monotonic() - began < size.window:
            forked |= set(children_of(peer.pid)) - before
            living = [client for client in clients if is_open(client)]
            with suppress(OSError):
                for client in living:
                    client.sendall(b"x")
                for client in living:
                    client.recv(100)
            time.sleep(0.2)
        cut = sum(not is_open(client) for client in clients)
    figures: Figures = {"forked": len(forked), "held": size.held, "cut": cut}
    return (
        figures,
        f"{counted(len(forked), 'process', 'processes')} forked, {cut} of {size.held} sessions cut",
    )


USER_TIMEOUT = 2  # seconds


def pauses(make: Made, size: Size) -> tuple[Figures, str]:
    """A client and a backend that do not read for a while, in the middle of many bytes."""
    received: list[int] = []

    def serve(conn: socket.socket) -> None:
        wanted = conn.recv(1)  # nothing from a client that only looks whether the peer accepts
        if wanted == b"r":
            conn.sendall(bytes(size.pause_bytes))
        elif wanted == b"w":
            time.sleep(size.pause)
            received.append(1 + read_all(conn))

    with ExitStack() as stack:
        backend = stack.enter_context(Scripted(serve))
        peer = stack.enter_context(make(backend.address, user_timeout=USER_TIMEOUT))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        reading = pool.submit(read_after_a_pause, peer.address, size.pause)
        pool.submit(write_and_wait, peer.address, size.pause_bytes).result()
        by_client = reading.result()
        [by_backend] = wait_for(lambda: received, "the backend's end", size.pause + 60)
    figures: Figures = {"bytes": size.pause_bytes, "to_client": by_client, "to_backend": by_backend}
    whole = f"of {size.pause_bytes / 1e6:.0f} MB"
    return figures, f"client {by_client / 1e6:.1f} {whole}, backend {by_backend / 1e6:.1f} {whole}"


def small_window(address: Address) -> socket.socket:
    client = socket.socket()
    client.settimeout(60)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect(address)
    return client


def read_after_a_pause(address: Address, pause: float) -> int:
    with small_window(address) as client:
        client.sendall(b"r")
        time.sleep(pause)
        return read_all(client)


def write_and_wait(address: Address, size: int) -> None:
    """Send that much and an end, and wait until the backend has ended too."""
    with small_window(address) as client, suppress(OSError):
        client.sendall(b"w" + bytes(size - 1))
        client.shutdown(socket.SHUT_WR)
        read_all(client)


def read_all(conn: socket.socket) -> int:
    """Bytes until the end, or until a reset."""
    got = 0
    with suppress(OSError):
        while data := conn.recv(1 << 20):
            got += len(data)
    return got


NAME = "backend.versus"


def name_with_two_addresses(make: Made, size: Size) -> tuple[Figures, str]:
    """A name for ::1 and 127.0.0.1, as localhost often is, and a server on the second of them only."""
    with ExitStack() as stack:
        port = stack.enter_context(Echo()).address[1]
        hosts = f"127.0.0.1 localhost\n::1 {NAME}\n127.0.0.1 {NAME}\n"
        peer = stack.enter_context(make((NAME, port), hosts=hosts))
        return asked(peer.address, clients=10, requests=50)


def why_no_names() -> str:
    """What this machine lacks for a name of its own making; "" when nothing."""
    if os.geteuid() or not shutil.which("unshare"):
        return "root and unshare(1), for an /etc/hosts of the peer's own"
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return "the address ::1"
    return ""


def full_unix_backend(make: Made, size: Size) -> tuple[Figures, str]:
    """60 clients at once for a backend that accepts 50 a second on a unix socket with a queue of 4."""
    with tempfile.TemporaryDirectory(prefix="versus-") as name, ExitStack() as stack:
        Path(name).chmod(0o755)
        backend = stack.enter_context(SlowUnix(Path(name) / "s", backlog=4, seconds=0.02))
        peer = stack.enter_context(make(backend.path))
        return asked(peer.address, clients=60, requests=60)


def asked(address: Address, clients: int, requests: int) -> tuple[Figures, str]:
    """Requests of one byte, each on a connection of its own."""

    def ask(_: int) -> tuple[bool, float]:
        began = time.monotonic()
        try:
            with socket.create_connection(address, 20) as client:
                client.sendall(b"x")
                ok = client.recv(1) == b"x"
        except OSError:
            ok = False
        return ok, time.monotonic() - began

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(requests)))
    failed, longest = sum(not ok for ok, _ in answers), max(took for _, took in answers)
    figures: Figures = {"requests": requests, "failed": failed, "longest_s": longest}
    return figures, f"{failed} of {requests} failed; longest {longest * 1000:.0f} ms"


@dataclass(frozen=True)
class Row:
    """`lacks` says what this machine does not have for it, "" when nothing."""

    number: int
    name: str
    run: Callable[[Made, Size], tuple[Figures, str]]
    lacks: Callable[[], str] = str


ROWS = (
    Row(13, "reload under load, 32 clients", reload_under_load),
    Row(25, "kill -9 of a worker every 0.5 s under load", kill_under_load),
    Row(27, "SIGSTOP of one worker, 50 new connections/s", stop_a_worker),
    Row(31, "its own session count after kill -9 with sessions held", count_after_kills),
    Row(62, "256 descriptors, 1,000 clients that stay", out_of_descriptors),
    Row(70, "a reload that changes nothing, 40 sessions held", reload_without_a_change),
    Row(71, "a client and a backend that pause, dead peers given up after 2 s", pauses),
    Row(72, "a name for ::1 and 127.0.0.1, a server on the second", name_with_two_addresses, why_no_names),
    Row(73, "a unix backend with a full accept queue, 60 clients at once", full_unix_backend),
)


def run(row: Row, kind: PeerKind, size: Size) -> tuple[Figures, str]:
    """One cell. That a peer does not go on is a figure too."""
    with tempfile.TemporaryDirectory(prefix="versus-") as name:
        Path(name).chmod(0o755)
        try:
            return row.run(lambda backend, **setting: Peer(kind, backend, Path(name), **setting), size)
        except (OSError, AssertionError) as error:
            return {"error": str(error)}, f"did not go on: {str(error).splitlines()[0]}"
