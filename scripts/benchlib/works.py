"""The works, and how one sample of one work at one peer is taken.

RULES: a fresh proxy for every sample, a warm-up before the marks, CPU between the marks divided by the requests in
between. The backend lives through the whole run and is the same for all.
"""

import json
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from scripts.benchlib import tls_flood
from scripts.benchlib.peers import BenchBackend, Proxy, Scene, find, make_certificate
from scripts.lab.helpers import HelperProcess
from scripts.lab.measure import cpu_of, memory_of
from scripts.lab.network import free_port

UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}
WARM_UP = 1  # seconds


@dataclass(frozen=True)
class Work:
    """A load and its surroundings. `requests`: that many instead of a time."""

    title: str
    path: str = "/"
    connections: int = 64
    close: bool = False
    requests: int = 0
    backends: int = 3
    workers: int = 2
    p2c: bool = False
    idle: int = 0
    only: tuple[str, ...] = ()
    frame: tuple[int, int] | None = None  # payload bytes of a request and of its reply
    tls: str = (
        ""  # the proxy ends TLS: kept, or a connection per request with a "full" or "resumed" handshake
    )
    key: str = "ec"  # of the certificate: P-256, or "rsa" with 2,048 bits
    hellos: int = (
        0  # so many ClientHellos at once, again and again; the times are those of kept connections meanwhile
    )
    compared: str = "cpu"  # attribute of Sample whose ratio the table shows


TLS_PEERS = ("ours", "haproxy", "nginx")
FLOOD = (
    "TLS: slowest answer of a kept connection while 300 hellos come at once (requests: hellos; ratio: of p50)"
)
WORKS = {
    "keepalive": Work("keep-alive request, 5-byte reply, 64 connections"),
    "close": Work("one connection per request, 5-byte reply", close=True),
    "100k": Work("100 KB reply, keep-alive", path="/100k"),
    "100m": Work("100 MB reply", path="/100m", connections=4, requests=48),
    "idle": Work("1,000 idle connections beside the keep-alive load", idle=1000),
    "connections-1": Work("keep-alive, 1 connection", connections=1),
    "connections-100": Work("keep-alive, 100 connections", connections=100),
    "connections-1000": Work("keep-alive, 1,000 connections", connections=1000),
    "connections-5000": Work("keep-alive, 5,000 connections", connections=5000),
    "backends-3": Work("one connection per request, p2c over 3 backends", close=True, p2c=True),
    "backends-100": Work(
        "one connection per request, p2c over 100 backends", close=True, p2c=True, backends=100
    ),
    "backends-1000": Work(
        "one connection per request, p2c over 1,000 backends", close=True, p2c=True, backends=1000
    ),
    "workers-1": Work("one connection per request, 1 worker", close=True, workers=1, only=("ours",)),
    "framed-small": Work("framed: 100-byte request, 100-byte reply, 64 connections", frame=(100, 100)),
    "framed-100k": Work("framed: 100-byte request, 100 KB reply", frame=(100, 102_400)),
    "framed-new": Work("framed: one connection per request", frame=(100, 100), close=True),
    "tls-keepalive": Work(
        "TLS: keep-alive request, 5-byte reply, 64 connections", tls="kept", only=TLS_PEERS
    ),
    "tls-100k": Work("TLS: 100 KB reply", path="/100k", connections=16, tls="kept", only=TLS_PEERS),
    "tls-100m": Work(
        "TLS: 100 MB reply", path="/100m", connections=4, requests=24, tls="kept", only=TLS_PEERS
    ),
    "tls-new": Work(
        "TLS: one connection per request, full handshake",
        connections=32,
        close=True,
        tls="full",
        only=TLS_PEERS,
    ),
    "tls-resumed": Work(
        "TLS: one connection per request, resumed", connections=32, close=True, tls="resumed", only=TLS_PEERS
    ),
    "tls-new-rsa": Work(
        "TLS: one connection per request, full handshake, RSA-2048",
        connections=32,
        close=True,
        tls="full",
        key="rsa",
        only=TLS_PEERS,
    ),
    "tls-flood": Work(FLOOD, tls="kept", hellos=300, compared="p50", only=TLS_PEERS),
    "tls-flood-rsa": Work(
        f"{FLOOD}, RSA-2048", tls="kept", key="rsa", hellos=300, compared="p50", only=TLS_PEERS
    ),
    "workers-64": Work("one connection per request, 64 workers", close=True, workers=64, only=("ours",)),
}


@dataclass
class Sample:
    """One measurement. Times in microseconds, CPU in microseconds per request, memory in bytes."""

    rate: float
    p50: float
    p99: float
    errors: int
    user: float | None = None
    system: float | None = None
    memory: int | None = None
    memory_per_idle: float | None = None
    p99_alone: float | None = None

    @property
    def cpu(self) -> float | None:
        return None if self.user is None or self.system is None else self.user + self.system


@dataclass(frozen=True)
class LoadFigures:
    """Figures of the load generator, its own or wrk's, in one form."""

    requests: int
    errors: int
    seconds: float
    p50: float
    p99: float


def drive(work: Work, port: int, seconds: float) -> LoadFigures:
    if work.hellos:
        slowest, errors, took = tls_flood.run(port, work.hellos)
        times = [round(one * 1e6) for one in slowest]
        return LoadFigures(work.hellos * len(times) - errors, errors, took, median(times), max(times))
    if find("wrk") and not work.requests and not work.frame and not (work.tls and work.close):
        return drive_wrk(work, port, seconds)
    processes = 1 if work.connections < 2 or work.requests else 2
    plan: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "path": work.path,
        "connections": work.connections // processes,
        "close": work.close,
        "frame": work.frame,
        "resume": work.tls == "resumed",
        "requests": work.requests,
        "seconds": seconds if not work.requests else 600,
    }
    program = "scripts.benchlib.tls_load" if work.tls else "scripts.benchlib.load"
    with ExitStack() as stack:
        running = [stack.enter_context(HelperProcess(program, json.dumps(plan))) for _ in range(processes)]
        parts = [process.figures(stop=False, seconds=plan["seconds"] + 60) for process in running]
    times = sorted(time for part in parts for time in part["times"]) or [0]
    return LoadFigures(
        sum(part["requests"] for part in parts),
        sum(part["errors"] for part in parts),
        max(part["seconds"] for part in parts),
        times[len(times) // 2],
        times[min(len(times) - 1, len(times) * 99 // 100)],
    )


def drive_wrk(work: Work, port: int, seconds: float) -> LoadFigures:
    threads = 1 if work.connections < 2 else 2
    command = [find("wrk") or "", f"-t{threads}", f"-c{work.connections}", f"-d{max(1, round(seconds))}s"]
    command += ["--latency", "--timeout", "10s", *(["-H", "Connection: close"] if work.close else [])]
    command.append(f"{'https' if work.tls else 'http'}://127.0.0.1:{port}{work.path}")
    return parse_wrk(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def parse_wrk(text: str) -> LoadFigures:
    """The figures of wrk's report (with --latency)."""

    def latency(percent: str) -> float:
        match = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.MULTILINE)
        return float(match[1]) * UNITS[match[2]] if match else 0.0

    total = re.search(r"(\d+) requests in ([\d.]+)(s|m)", text)
    if not total:
        raise SystemExit(f"wrk said something unknown:\n{text}")
    errors = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", text)))
    rejected = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors += int(rejected[1]) if rejected else 0
    return LoadFigures(
        int(total[1]), errors, float(total[2]) * UNITS[total[3]] / 1e6, latency("50"), latency("99")
    )


def take_together(work: Work, peers: Sequence[str], backend: BenchBackend, seconds: float) -> list[Sample]:
    """A sample of each peer, all at the same time: what disturbs the machine disturbs all of them."""
    are_warm = threading.Barrier(len(peers))
    with ThreadPoolExecutor(len(peers)) as threads:
        return list(threads.map(lambda peer: take_sample(work, peer, backend, seconds, are_warm.wait), peers))


def take_sample(
    work: Work, peer: str, backend: BenchBackend, seconds: float, wait: Callable[[], object] = lambda: None
) -> Sample:
    """Start the peer, warm it up, `wait`, measure it, end it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        backends = backend.addresses(work.backends, bool(work.frame))
        pem = make_certificate(Path(name), work.key) if work.tls else None
        scene = Scene(free_port(), backends, work.workers, work.p2c, Path(name), pem)
        with Proxy(peer, scene) as proxy:
            warm = Work(
                "warm-up",
                connections=min(work.connections, 64),
                close=work.close,
                path=work.path,
                frame=work.frame,
                tls=work.tls,
            )
            before = drive(warm, proxy.port, WARM_UP)
            wait()
            if work.idle:
                return sample_idle(work, proxy, before, seconds)
            return measure(work, proxy, seconds)


def measure(work: Work, proxy: Proxy, seconds: float) -> Sample:
    if proxy.pid is None:
        load = drive(work, proxy.port, seconds)
        return Sample(load.requests / load.seconds, load.p50, load.p99, load.errors)
    memories: list[int] = []
    pid = proxy.pid
    # Half-way through: at the end the connections are gone, and with them what they cost.
    watch = threading.Timer(seconds / 2, lambda: memories.append(memory_of(pid)))
    mark = cpu_of(pid)
    watch.start()
    load = drive(work, proxy.port, seconds)
    used = cpu_of(pid) - mark
    watch.cancel()
    watch.join()
    share = 1e6 / max(1, load.requests)
    memory = memories[0] if memories else memory_of(pid)
    rate = load.requests / load.seconds
    return Sample(rate, load.p50, load.p99, load.errors, used.user * share, used.system * share, memory)


def sample_idle(work: Work, proxy: Proxy, before: LoadFigures, seconds: float) -> Sample:
    """The load again, with connections beside it that had one request and then nothing more."""
    plan = {"hold": True, "host": "127.0.0.1", "port": proxy.port, "path": "/", "close": False}
    empty = memory_of(proxy.pid) if proxy.pid else 0
    with HelperProcess("scripts.benchlib.load", json.dumps(plan | {"connections": work.idle})) as holder:
        holder.read_line()
        full = memory_of(proxy.pid) if proxy.pid else 0
        sample = measure(work, proxy, seconds)
    sample.p99_alone = before.p99
    if proxy.pid:
        sample.memory_per_idle = (full - empty) / work.idle
    return sample
