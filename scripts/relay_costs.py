"""What a session costs a worker: in instructions, which other processes do not change.

    .venv/bin/python scripts/relay_costs.py               bytecode instructions of the relay; cost of an election
    .venv/bin/python scripts/relay_costs.py --callgrind   machine instructions of the relay; needs valgrind and cc

Relay: a worker's loop, acceptor, sessions and elector over real sockets, with the clients and the backends in the same
process; only the turns of the loop are counted. Three backends, leastconn. `near` is a connection with one request whose
client has sent it before the accept; `late` one whose client sends it after the connect; `routed` as near, by a listener
with three routes; `message` a request and its answer on a connection that is kept; `framed` the same in framed mode, over
connections to the backends that are kept, and `framed-new` with a connection of the client for each request.

Election: elect (counted in the worker's row before the dial), then release with the bytes it moved. CPU time of this
process; the small and the large case in turns and the least of all rounds each, because the rest of the machine only
adds. Beside it the bytecode instructions.

Two checkouts are compared with the script of each. Machine instructions are those of the interpreter without libc: what
malloc costs differs by 10 % with the layout of the heap, from one checkout to the next without any change of code.
"""

import argparse
import contextlib
import ctypes
import gc
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from balancer.edge.route import Route
from balancer.eventloop.loop import Loop
from balancer.options import MAIN, Listener, Pool
from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.board import BACKENDS, LISTENERS, POOLS, Board, columns_for
from balancer.pool.election import Elector
from balancer.relay.assembly import WorkerRelay
from balancer.relay.context import WorkerContext
from balancer.relay.framed.frame_format import PRESETS
from balancer.relay.session import Session
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, make_shared
from workers.wire.frames import frame

SESSIONS = 3000
ROUNDS = 7
KINDS = ("near", "late", "routed", "message", "framed", "framed-new")
WARM_UP = 20
FRAMED_WARM_UP = 100  # requests after which no connection to a backend is new
COUNTED = 100  # connections or messages
ROUTES = (Route(MAIN, ip_network("10.0.0.0/8")), Route(MAIN, ip_network("127.0.0.0/8")), Route(MAIN))
REQUEST = frame(bytes(100))
TOGGLE = "#include <valgrind/callgrind.h>\nvoid toggle(void) { CALLGRIND_TOGGLE_COLLECT; }\n"


def make_board(backends: int, rows: int) -> Board:
    shared = make_shared(columns_for(backends), rows=FIRST_LEASE + rows)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + rows
    board = Board(shared, backends, rows)
    for kind, count in ((LISTENERS, 1), (POOLS, 1), (BACKENDS, backends)):
        board.give_out(kind, range(count), ())
    board.assign_pool(0, range(backends))
    return board


def make_backends(addresses: list[str]) -> tuple[Backend, ...]:
    return with_indexes(map(parse_upstream, addresses), {text: n for n, text in enumerate(addresses)})


# --- the relay


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=64)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


@dataclass(frozen=True)
class OneSocket:
    """A listening socket as the prefork machine hands it over."""

    sock: socket.socket
    slot: int = 0

    @property
    def address(self) -> object:
        return self.sock.getsockname()


class RelayRun:
    """A worker's relay with its clients and backends. `counted(act)` calls `act` and counts what it costs."""

    def __init__(self, kind: str, counted: Callable[[Callable[[], None]], None]) -> None:
        self.kind = kind
        self.counted = counted
        self.servers = [listening() for _ in range(3)]
        self.queue = listening()
        loop = Loop(clock=lambda: 100.0)  # a clock that stands still: no sweep falls into the count
        self.run_once = partial(loop.run_once, 0)
        backends = make_backends([f"127.0.0.1:{server.getsockname()[1]}" for server in self.servers])
        log: Any = SimpleNamespace(level=0, info=print, warning=print)  # no line is written
        context: WorkerContext[Session] = WorkerContext(loop, make_board(3, 2), FIRST_LEASE, log)
        routes = ROUTES if kind == "routed" else (Route(MAIN),)
        self.relay = WorkerRelay(
            context,
            [Listener(MAIN, (), routes=routes, index=0)],
            [self.pool(backends)],
            lambda name: [OneSocket(self.queue)],
            lambda row: None,
        )
        self.relay.serve([0])
        self.kept = self.connection() if kind == "message" else None

    def pool(self, backends: tuple[Backend, ...]) -> Pool:
        return Pool(MAIN, backends, balance="leastconn", index=0)

    def turn(self) -> None:
        self.counted(self.run_once)

    def until(self, act: Callable[[], Any]) -> Any:
        """Turn the loop until a call does not block."""
        for _ in range(9):
            with contextlib.suppress(BlockingIOError):
                return act()
            self.turn()
        raise RuntimeError("nothing arrives")

    def dialled(self) -> socket.socket:
        """The backend's end of the new session."""
        for server in self.servers:
            with contextlib.suppress(BlockingIOError):
                return server.accept()[0]
        raise BlockingIOError

    def connection(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(self.queue.getsockname())
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.kind != "late":
            client.send(bytes(100))
        backend: socket.socket = self.until(self.dialled)
        for sock in (client, backend):
            sock.setblocking(False)
        if self.kind == "late":
            self.turn()
            client.send(bytes(100))
        assert len(self.until(lambda: backend.recv(1000))) == 100
        backend.send(bytes(200))
        assert len(self.until(lambda: client.recv(1000))) == 200
        return client, backend

    def once(self) -> None:
        """One connection, or one message on the connection that is kept."""
        if self.kept is None:
            client, backend = self.connection()
            client.close()
            assert self.until(lambda: backend.recv(1)) == b""
            backend.close()
            self.turn()
        else:
            client, backend = self.kept
            client.send(bytes(100))
            assert len(self.until(lambda: backend.recv(1000))) == 100
            backend.send(bytes(200))
            assert len(self.until(lambda: client.recv(1000))) == 200

    def repeat(self, times: int) -> None:
        for _ in range(times):
            self.once()


class FramedRun(RelayRun):
    """As RelayRun, in framed mode: each request may arrive on another of the kept connections."""

    def __init__(self, kind: str, counted: Callable[[Callable[[], None]], None]) -> None:
        self.backends: list[socket.socket] = []
        self.client: socket.socket | None = None
        super().__init__(kind, counted)

    def pool(self, backends: tuple[Backend, ...]) -> Pool:
        return Pool(
            MAIN, backends, balance="leastconn", index=0, mode="framed", frame=PRESETS["gowork"], order="any"
        )

    def request(self) -> socket.socket:
        """The backend's connection that a request has arrived on."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.backends.append(self.dialled())
                self.backends[-1].setblocking(False)
        for backend in self.backends:
            with contextlib.suppress(BlockingIOError):
                if len(backend.recv(1000)) == len(REQUEST):
                    return backend
        raise BlockingIOError

    def once(self) -> None:
        client = self.client
        if client is None:
            client = socket.create_connection(self.queue.getsockname())
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.client = client if self.kind == "framed" else None
        client.setblocking(False)
        client.send(REQUEST)
        self.until(self.request).send(REQUEST)
        assert len(self.until(lambda: client.recv(1000))) == len(REQUEST)
        if self.client is None:
            client.close()
            self.turn()


def run_of(kind: str, counted: Callable[[Callable[[], None]], None]) -> tuple[RelayRun, int]:
    """The run of a kind, and how often it is to be done before it counts."""
    if kind.startswith("framed"):
        return FramedRun(kind, counted), FRAMED_WARM_UP
    return RelayRun(kind, counted), WARM_UP


class BytecodeCounter:
    """Counts the bytecode instructions of the calls made through it."""

    def __init__(self) -> None:
        self.total = 0
        self(lambda: None)  # Python 3.12 counts no opcodes in the first call that is traced
        self.total = 0

    def trace(self, frame: Any, event: str, _: Any) -> Any:
        frame.f_trace_opcodes = True
        self.total += event == "opcode"
        return self.trace

    def __call__(self, act: Callable[[], None]) -> None:
        sys.settrace(self.trace)
        act()
        sys.settrace(None)


def bytecode_of(kind: str) -> float:
    counter = BytecodeCounter()
    run, warm_up = run_of(kind, counter)
    run.repeat(warm_up)
    counter.total = 0
    run.repeat(COUNTED)
    return counter.total / COUNTED


def run_under_callgrind(kind: str, times: int, library: str) -> None:
    """What the process under callgrind does: the calls of `toggle` turn its counting on and off."""
    toggle = ctypes.PyDLL(library).toggle

    def counted(act: Callable[[], None]) -> None:
        toggle()
        act()
        toggle()

    run, warm_up = run_of(kind, counted)
    gc.collect()
    gc.freeze()
    gc.disable()
    run.repeat(warm_up + times)


def machine_instructions_of(kind: str, library: str) -> int:
    """Instructions of the interpreter for one connection or message: the difference of a long and a short run."""
    counts = []
    for times in (COUNTED, 3 * COUNTED):
        with tempfile.NamedTemporaryFile() as out:
            subprocess.run(
                ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", "--collect-atstart=no",
                 sys.executable, __file__, "--run", kind, "--times", str(times), "--library", library],
                check=True, capture_output=True, env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            )  # fmt: skip
            counts.append(by_object(Path(out.name).read_text())["python"])
    return (counts[1] - counts[0]) // (2 * COUNTED)


def by_object(profile: str) -> Counter[str]:
    """The instructions of a callgrind profile by the program or library that they belong to (`python`, `libc`)."""
    names: dict[str, str] = {}
    counts: Counter[str] = Counter()
    current, skip = "", False
    for line in profile.splitlines():
        if match := re.match(r"(c?)ob=(\(\d+\))(?: (.+))?", line):
            if match[3]:
                names[match[2]] = (re.match(r"[a-z_]+", Path(match[3]).name) or [match[3]])[0]
            if not match[1]:
                current = match[2]
        elif line.startswith("calls="):
            skip = True  # the next line has what the called function costs
        elif re.match(r"[0-9+*-]", line):
            counts[names.get(current, "")] += 0 if skip else int(line.split()[1])
            skip = False
    return counts


def report_relay(callgrind: bool) -> None:
    if not callgrind:
        for kind in KINDS:
            print(f"{kind:46} {bytecode_of(kind):8.1f} bytecode instructions")
        return
    with tempfile.TemporaryDirectory() as directory:
        source, library = Path(directory, "toggle.c"), Path(directory, "toggle.so")
        source.write_text(TOGGLE)
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        for kind in KINDS:
            print(f"{kind:46} {machine_instructions_of(kind, str(library)):8} instructions", flush=True)


# --- election


def election(backends: int, rows: int, policy: str) -> Callable[[], None]:
    """A worker's part of one session, ready to be run."""
    addresses = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:80" for n in range(backends)]
    pool = Pool(MAIN, make_backends(addresses), balance=policy, index=0)
    elector = Elector(make_board(backends, rows), pool, FIRST_LEASE)

    def one() -> None:
        backend = elector.elect("10.9.8.7")
        assert backend is not None
        elector.release(backend, 1000, 1000)

    return one


def microseconds(act: Callable[[], None]) -> float:
    began = time.process_time()
    for _ in range(SESSIONS):
        act()
    return (time.process_time() - began) / SESSIONS * 1e6


def instructions(act: Callable[[], None]) -> int:
    """Bytecode instructions of one call, the median of a few."""
    counts = []
    for _ in range(9):
        counter = BytecodeCounter()
        counter(act)
        counts.append(counter.total)
    return sorted(counts)[len(counts) // 2]


def compare(title: str, small: Callable[[], None], large: Callable[[], None]) -> bool:
    """Print both costs and their ratio; whether it stays below 2."""
    times = [(microseconds(small), microseconds(large)) for _ in range(ROUNDS)]
    low, high = (min(column) for column in zip(*times, strict=True))
    few, many = instructions(small), instructions(large)
    print(f"{title:46} {low:5.2f} -> {high:6.2f} us  x{high / low:4.2f}   {few:4} -> {many:5} instructions")
    return bool(high < 2 * low)


def report_election() -> bool:
    print(f"{SESSIONS} sessions a round, {ROUNDS} rounds, {os.cpu_count()} cores")
    is_bounded = [
        compare(f"{policy}, 3 -> 1000 backends, 2 rows", election(3, 2, policy), election(1000, 2, policy))
        for policy in ("leastconn", "p2c", "roundrobin", "random", "source")
    ]
    for policy in ("leastconn", "p2c"):
        for count in (3, 1000):
            few, many = election(count, 1, policy), election(count, 64, policy)
            is_bounded.append(compare(f"{policy}, {count} backends, 1 -> 64 rows", few, many))
    return all(is_bounded)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--callgrind", action="store_true", help="machine instructions of the relay")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.run:
        run_under_callgrind(chosen.run, chosen.times, chosen.library)
        return 0
    report_relay(chosen.callgrind)
    return 0 if chosen.callgrind or report_election() else 1


if __name__ == "__main__":
    sys.exit(main())
