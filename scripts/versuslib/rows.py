"""The faults: each a function that runs a peer and returns its figures and one cell of the table.

RULES: the clients and the kernel's socket table count what happens; the peer is asked only where the question is whether
its own count is right.
"""

import os
import random
import selectors
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from scripts.lab.arrivals import Arrivals
from scripts.lab.backends import Digest, Echo
from scripts.lab.kernel import accepted, inodes_of
from scripts.lab.load import FAILURES, Load, LoadOutcome
from scripts.lab.measure import cpu_of
from scripts.lab.network import held
from scripts.lab.process import freeze
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


LONG = Size(reloads=20, requests=100_000, kills=50, stopped=10.0, held=40, hold_seconds=20.0)


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


@dataclass(frozen=True)
class FaultRow:
    number: int
    name: str
    run: Callable[[Made, Size], tuple[Figures, str]]


ROWS = (
    FaultRow(13, "reload under load, 32 clients", reload_under_load),
    FaultRow(25, "kill -9 of a worker every 0.5 s under load", kill_under_load),
    FaultRow(27, "SIGSTOP of one worker, 50 new connections/s", stop_a_worker),
    FaultRow(31, "its own session count after kill -9 with sessions held", count_after_kills),
    FaultRow(62, "256 descriptors, 1,000 clients that stay", out_of_descriptors),
)


def run(row: FaultRow, kind: PeerKind, size: Size) -> tuple[Figures, str]:
    """One cell. That a peer does not go on is a figure too."""
    with tempfile.TemporaryDirectory(prefix="versus-") as name:
        Path(name).chmod(0o755)
        try:
            return row.run(lambda backend, nofile=0: Peer(kind, backend, Path(name), nofile), size)
        except (OSError, AssertionError) as error:
            return {"error": str(error)}, f"did not go on: {str(error).splitlines()[0]}"
