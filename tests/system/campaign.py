"""Tools of the fault campaign: who holds what by the kernel's own account, arrivals at a steady rate, samples of the
status, churning clients and a backend that counts at each accept.

    Arrivals     new connections at a fixed rate, whatever became of the earlier ones: delays are not hidden
    Sampler      the status at 20 Hz: gauges never negative, totals never fall
    Churn        many clients in a process of their own, each counting the connections that are open at once
    Counting     a backend process that peeks at every connection whenever it accepts one

RULES: a count is the kernel's (its socket table, a peek), never this suite's memory of what it did. The only sleeps are
the faults' own schedule. `report` prints one JSON line per scenario and appends it to $CAMPAIGN_REPORT where that is set.
"""

import contextlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

if __name__ == "__main__":  # as a process of its own it is started by path
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.system.backends import is_open
from tests.system.harness import Address, Balancer, wait_for
from tests.system.kernel import LISTEN, inodes_of, kernel_sockets

SAMPLE_SECONDS = 0.05
REAPED = r"\breap\b|signal|\bhang\b|\bsteer\b"


def report(scenario: str, **figures: object) -> None:
    """One line of figures per scenario."""
    line = json.dumps({"scenario": scenario} | figures)
    print(line)
    if path := os.environ.get("CAMPAIGN_REPORT"):
        with open(path, "a") as out:
            out.write(line + "\n")


# --- what the kernel says


def accepted(port: int) -> set[int]:
    """Inodes of the connections that a listener on `port` has accepted and not closed."""
    return {s.inode for s in kernel_sockets(port) if s.local == port and s.state != LISTEN and s.inode}


def dialled(port: int) -> set[int]:
    """Inodes of the connections to `port`, attempts included, whose dialling side is held by a process."""
    return {s.inode for s in kernel_sockets(port) if s.remote == port and s.inode}


def state_of(pid: int) -> str:
    """The kernel's letter for a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """Neither gone nor dead and waiting for whoever adopted it to notice."""
    return state_of(pid) not in ("", "Z", "X")


# --- faults


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until it stands still."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state_of(pid) in ("T", ""), f"process {pid} stopped", every=0.0005)


def kill_counted(pid: int, port: int) -> int:
    """kill -9 at whatever instant it is; the number of clients it held then. Frozen first, so that this is exact."""
    freeze(pid)
    held = len(inodes_of(pid) & accepted(port))
    os.kill(pid, signal.SIGKILL)
    return held


def ready_pids(lb: Balancer) -> dict[int, int]:
    """slot -> pid of the workers that serve."""
    workers = lb.status()["workers"]
    return {worker["slot"]: worker["pid"] for worker in workers if worker["state"] == "ready"}


def living(lb: Balancer, rng: random.Random) -> int:
    """A random worker that has not died since the status was written; 0 when there is none."""
    pids = [pid for pid in sorted(ready_pids(lb).values()) if is_running(pid)]
    return rng.choice(pids) if pids else 0


def wait_whole(lb: Balancer, workers: int, but: set[int], seconds: float = 5.0) -> None:
    """Until `workers` slots are served, none of them by a process of `but`."""

    def whole() -> bool:
        pids = ready_pids(lb)
        return len(pids) == workers and not but & set(pids.values())

    wait_for(whole, f"{workers} workers ready, none of {but}", seconds, every=0.002)


def kill_at_random(
    lb: Balancer, workers: int, kills: int, every: float, seed: int, counted: bool = False
) -> tuple[int, list[float]]:
    """kill -9 a random worker `kills` times, one each `every` seconds.

    Returns (clients the killed held in all, if they are to be `counted`; seconds until each replacement was ready)."""
    rng = random.Random(seed)
    port = lb.address[1]
    held, respawns = 0, []
    due = time.monotonic()
    for _ in range(kills):
        victim = wait_for(lambda: living(lb, rng), "a worker")
        if counted:
            held += kill_counted(victim, port)
        else:
            os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        wait_whole(lb, workers, {victim})
        respawns.append(time.monotonic() - killed)
        due = max(due + every, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
    return held, respawns


# --- arrivals at a steady rate


@dataclass
class Arrival:
    """One connection: times are monotonic seconds; `ended` None = not answered yet."""

    began: float
    sock: socket.socket
    ended: float | None = None
    error: str = ""

    @property
    def delay(self) -> float:
        return (self.ended or time.monotonic()) - self.began


class Arrivals:
    """`rate` new connections a second to something that echoes: connect, one byte, its echo, close."""

    def __init__(self, address: Address, rate: float = 100.0) -> None:
        self.address = address
        self.rate = rate
        self.all: list[Arrival] = []
        self.patience = 5.0
        self.selector = selectors.DefaultSelector()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, patience: float = 5.0) -> list[Arrival]:
        """No new ones; wait for those under way; all of them. Unanswered ones have an error."""
        if not self.stopping.is_set():
            self.patience = patience
            self.stopping.set()
            self.thread.join(patience + 5)
        return self.all

    def since(self, when: float) -> list[Arrival]:
        return [arrival for arrival in self.all if arrival.began >= when]

    def run(self) -> None:
        due = time.monotonic()
        while not self.stopping.is_set():
            while due <= time.monotonic():
                self.arrive()
                due += 1 / self.rate
            self.turn(max(0.0, due - time.monotonic()))
        limit = time.monotonic() + self.patience
        while self.selector.get_map() and time.monotonic() < limit:
            self.turn(0.05)
        for key in list(self.selector.get_map().values()):
            self.end(key.data, "no answer")
        self.selector.close()

    def arrive(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        arrival = Arrival(time.monotonic(), sock)
        self.all.append(arrival)
        self.selector.register(sock, selectors.EVENT_WRITE, arrival)
        try:
            sock.connect(self.address)
        except BlockingIOError:
            pass
        except OSError as error:
            self.end(arrival, repr(error))

    def turn(self, timeout: float) -> None:
        for key, mask in self.selector.select(timeout):
            arrival: Arrival = key.data
            try:
                if mask & selectors.EVENT_WRITE:
                    arrival.sock.send(b"x")
                    self.selector.modify(arrival.sock, selectors.EVENT_READ, arrival)
                else:
                    self.end(arrival, "" if arrival.sock.recv(1) == b"x" else "end of stream")
            except OSError as error:
                self.end(arrival, repr(error))

    def end(self, arrival: Arrival, error: str) -> None:
        arrival.ended, arrival.error = time.monotonic(), error
        self.selector.unregister(arrival.sock)
        arrival.sock.close()


# --- samples of the status


class Sampler:
    """Asks the status 20 times a second in a thread of its own and keeps what must never be seen."""

    def __init__(self, lb: Balancer) -> None:
        self.lb = lb
        self.samples = 0
        self.longest_gap = 0.0
        self.faults: list[str] = []
        self.totals: dict[str, int] = {}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stopping.set()
        self.thread.join(10)

    def run(self) -> None:
        last = time.monotonic()
        while not self.stopping.wait(SAMPLE_SECONDS):
            try:
                self.look(self.lb.status())
            except (OSError, ValueError, AssertionError) as error:
                self.faults.append(f"no status: {error!r}")
                continue
            now = time.monotonic()
            self.longest_gap = max(self.longest_gap, now - last)
            last = now

    def look(self, status: dict[str, Any]) -> None:
        self.samples += 1
        for name, value in gauges(status).items():
            if value < 0:
                self.faults.append(f"sample {self.samples}: {name} is {value}")
        for name, value in totals(status).items():
            before = self.totals.get(name, 0)
            if value < before:
                self.faults.append(f"sample {self.samples}: {name} fell from {before} to {value}")
            self.totals[name] = value

    def check(self) -> None:
        assert not self.faults, "\n".join(self.faults[:20])
        assert self.samples, "not one sample was taken"


def gauges(status: dict[str, Any]) -> dict[str, int]:
    """Every gauge of a status under a name."""
    found = {"sessions": status["totals"]["sessions"], "queued": status["totals"]["queued"]}
    found |= {f"worker {row['pid']}": row["sessions"] for row in status["workers"]}
    return found | {f"backend {row['name']}": row["sessions"] for row in status["backends"]}


def totals(status: dict[str, Any]) -> dict[str, int]:
    """Every total of a status under a name."""
    found = {key: value for key, value in status["totals"].items() if key.endswith("_total")}
    for row in status["backends"]:
        found |= {f"{row['name']} {key}": value for key, value in row.items() if key.endswith("_total")}
    return found


# --- processes of their own


class Helper:
    """This file as a process: `start` says what it is, the end of its standard input ends it, a JSON line is its word."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def finish(self, seconds: float = 20.0) -> dict[str, Any]:
        """Let it end; what it counted."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(seconds)
        figures: dict[str, Any] = json.loads(self.process.stdout.read())
        return figures


class Counting(Helper):
    """A backend that greets, echoes, and at each accept counts the connections that the other side has not closed."""

    def __init__(self) -> None:
        super().__init__("counting")
        assert self.process.stdout
        self.address = ("127.0.0.1", int(self.process.stdout.readline()))

    @property
    def name(self) -> str:
        return f"{self.address[0]}:{self.address[1]}"


class Churn(Helper):
    """`clients` that connect, wait for the greeting, hold the connection up to `hold` seconds, close, and come again.

    Who is turned away comes again within the same time."""

    def __init__(self, address: Address, clients: int, hold: float, seed: int = 1) -> None:
        super().__init__("churn", address[0], address[1], clients, hold, seed)


@dataclass
class Counts:
    """What a helper saw; `most` is the most connections open at one instant."""

    most: int = 0
    ever: int = 0
    turned_away: int = 0
    broken: int = 0
    refused: int = 0
    by_size: dict[str, int] = field(default_factory=dict)

    def see(self, holding: Iterator[socket.socket]) -> None:
        """An accept, or a greeting: how many are open now, by a peek at each.

        Never too many: every one looked at existed before this instant, and who is open now was open then."""
        self.ever += 1
        self.most = max(self.most, sum(map(is_open, holding)))


def wants_end(selector: selectors.BaseSelector) -> None:
    selector.register(sys.stdin, selectors.EVENT_READ, None)


def count_connections() -> Counts:
    """The backend's process."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    counts = Counts()
    selector = selectors.DefaultSelector()
    wants_end(selector)
    selector.register(listener, selectors.EVENT_READ, listener)
    holding: set[socket.socket] = set()
    while True:
        for key, _ in selector.select():
            if key.data is None:
                return counts
            if key.data is listener:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        conn, _ = listener.accept()
                        conn.setblocking(False)
                        holding.add(conn)
                        counts.see(iter(holding))
                        with contextlib.suppress(OSError):
                            conn.send(b"hello")
                        selector.register(conn, selectors.EVENT_READ, conn)
                continue
            try:
                data = key.data.recv(4096)
                if data:
                    key.data.send(data)
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass
            selector.unregister(key.data)
            holding.discard(key.data)
            key.data.close()


class Churner:
    """One client of many in one loop."""

    def __init__(self, crowd: "Crowd") -> None:
        self.crowd = crowd
        self.sock: socket.socket | None = None
        self.wake = 0.0  # when to act next: connect, or hang up
        self.greeted = False

    def act(self, now: float) -> None:
        """Its time has come."""
        if self.sock is not None:
            self.leave()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.wake = now + 8.0  # a client that nobody serves for so long gives up
        self.greeted = False
        with contextlib.suppress(BlockingIOError):
            self.sock.connect(self.crowd.address)
        self.crowd.selector.register(self.sock, selectors.EVENT_READ, self)

    def leave(self) -> None:
        assert self.sock is not None
        self.crowd.holding.discard(self.sock)
        self.crowd.selector.unregister(self.sock)
        self.sock.close()
        self.sock = None

    def hear(self, now: float) -> None:
        """The greeting, or the end."""
        assert self.sock is not None
        counts, rng = self.crowd.counts, self.crowd.rng
        try:
            data = self.sock.recv(64)
        except ConnectionRefusedError:
            counts.refused += 1
            data = b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data and not self.greeted:
            self.greeted = True
            self.wake = now + rng.random() * self.crowd.hold
            self.crowd.holding.add(self.sock)
            counts.see(iter(self.crowd.holding))
        elif not data:
            if self.greeted:
                counts.broken += 1
            else:
                counts.turned_away += 1
            self.leave()
            self.wake = now + rng.random() * self.crowd.hold


class Crowd:
    """All churning clients of a process."""

    def __init__(self, address: Address, clients: int, hold: float, seed: int) -> None:
        self.address = address
        self.hold = hold
        self.rng = random.Random(seed)
        self.counts = Counts()
        self.holding: set[socket.socket] = set()
        self.selector = selectors.DefaultSelector()
        self.clients = [Churner(self) for _ in range(clients)]

    def run(self) -> Counts:
        wants_end(self.selector)
        while True:
            now = time.monotonic()
            for client in self.clients:
                if client.wake <= now:
                    client.act(now)
            for key, _ in self.selector.select(0.002):
                if key.data is None:
                    return self.counts
                client = key.data
                if client.sock is key.fileobj:
                    client.hear(time.monotonic())


def main(words: list[str]) -> None:
    if words[0] == "counting":
        counts = count_connections()
    else:
        host, port, clients, hold, seed = words[1:]
        counts = Crowd((host, int(port)), int(clients), float(hold), int(seed)).run()
    print(json.dumps(vars(counts)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
