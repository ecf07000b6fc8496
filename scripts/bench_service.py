"""The picture service: what dispatch costs, what rate is left of the pure function's, who waits behind whom.

    python scripts/bench_service.py [--designs ours,fifo,prefork,reuseport] [--seconds 5] [--rounds 2]
    [--what dry,rate,line]

dry    CPU of all server processes for one dry run, one connection
rate   4 connections, one picture after another: pictures a second beside cores x the pure function's rate, and
       the CPU a picture costs in all server processes beside the pure function's
line   two clients send 20-megapixel pictures back to back while six send small ones ten times a second:
       latency of the small ones from the moment each was due, rate of the big ones

Designs are taken in turn, round after round, so that what disturbs the machine disturbs all of them; each
client is a process of its own. The plain designs live in plain_designs.py. Writes service.md and service.json
into bench-out/.
"""

import argparse
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from workers import imaging  # noqa: E402
from workers.wire.frames import FrameReader, frame  # noqa: E402
from workers.wire.messages import Request, Response, decode_response, encode_request  # noqa: E402

OUT = ROOT / "bench-out"
CPUS = len(os.sched_getaffinity(0))
SIZES = {"small": (640, 480, 160, 120), "middle": (3264, 2448, 800, 600), "big": (5216, 3912, 1920, 1440)}


def picture(width: int, height: int) -> bytes:
    """Noise at several scales: about as much for a decoder to do as a photograph of that size."""
    noise = random.Random(5)
    image = Image.frombytes("L", (96, 72), noise.randbytes(96 * 72)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = Image.effect_noise((width, height), 18)
    mixed = Image.blend(image, fine, 0.35)
    out = io.BytesIO()
    Image.merge("RGB", (mixed, image, mixed)).save(out, "JPEG", quality=85)
    return out.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(design: str) -> Iterator[tuple[int, psutil.Process]]:
    """One server, ready: its port and its first process."""
    port = free_port()
    if design == "ours":
        words = [
            "-m",
            "workers.resizer",
            "--bind=127.0.0.1",
            f"--port={port}",
            f"--cpus={CPUS}",
            "--name=bench",
        ]
    else:
        words = [str(ROOT / "scripts" / "plain_designs.py"), design, str(port), str(CPUS)]
    server = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_ready(port)
        yield port, psutil.Process(server.pid)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_ready(port: int) -> None:
    """Until a dry run is answered."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                ask(sock, FrameReader(), frame(encode_request(Request(dry_run=True, id=1))))
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def ask(sock: socket.socket, reader: FrameReader, request: bytes) -> Response:
    sock.sendall(request)
    while True:
        data = sock.recv(1 << 18)
        if not data:
            raise ConnectionError("the server ended the connection")
        for payload in reader.feed(data):
            return decode_response(payload)


def cpu_of(server: psutil.Process) -> float:
    """Seconds of CPU that all processes of a server have taken."""
    return sum(sum(p.cpu_times()[:2]) for p in [server, *server.children(recursive=True)])


def client(port: int, request: bytes, seconds: float, period: float) -> list[float]:
    """Latencies in seconds; one request after another, or one each `period`, timed from when it was due."""
    found = []
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = FrameReader()
        begin = due = time.monotonic() + (random.random() * period)
        while due - begin < seconds and time.monotonic() - begin < seconds * 2:
            if period:
                time.sleep(max(0.0, due - time.monotonic()))
            reply = ask(sock, reader, request)
            now = time.monotonic()
            if reply.is_ok():
                found.append(now - due)
            due = due + period if period else now
    return found


def swarm(port: int, jobs: list[tuple[bytes, float]], seconds: float) -> list[list[float]]:
    """The latencies of one client process for each (request, period)."""
    with ProcessPoolExecutor(len(jobs), get_context("fork")) as pool:
        runs = [pool.submit(client, port, request, seconds, period) for request, period in jobs]
        return [run.result() for run in runs]


def request_for(size: str) -> bytes:
    width, height, to_width, to_height = SIZES[size]
    return frame(
        encode_request(
            Request(data=picture(width, height), target_width=to_width, target_height=to_height, id=1)
        )
    )


def pure_cpu(size: str) -> float:
    """Seconds of CPU that one picture takes without any service around it."""
    width, height, to_width, to_height = SIZES[size]
    data, job, limits = picture(width, height), imaging.Job(to_width, to_height), imaging.Limits()
    found = []
    for _ in range(12):
        begin = time.process_time()
        imaging.resize(data, job, limits)
        found.append(time.process_time() - begin)
    return median(found)


def bench_dry(design: str, seconds: float) -> dict[str, float]:
    request = frame(encode_request(Request(dry_run=True, id=1, target_width=200)))
    with running(design) as (port, server):
        before = cpu_of(server)
        [latencies] = swarm(port, [(request, 0.0)], seconds)
        spent = cpu_of(server) - before
    return {"dry_us": spent / len(latencies) * 1e6, "dry_p50_us": median(latencies) * 1e6}


def bench_rate(design: str, seconds: float) -> dict[str, float]:
    row = {}
    for size in ("small", "middle"):
        request, alone = request_for(size), pure_cpu(size)
        with running(design) as (port, server):
            before, begin = cpu_of(server), time.monotonic()
            latencies = [one for run in swarm(port, [(request, 0.0)] * 4, seconds) for one in run]
            spent, took = cpu_of(server) - before, time.monotonic() - begin
        rate = len(latencies) / took
        row[f"{size}_per_s"] = rate
        row[f"{size}_of_pure"] = rate * alone / CPUS
        row[f"{size}_cpu_of_pure"] = spent / len(latencies) / alone
        row[f"{size}_p99_ms"] = quantile(latencies, 0.99) * 1e3
    return row


def bench_line(design: str, seconds: float) -> dict[str, float]:
    small, big = request_for("small"), request_for("big")
    with running(design) as (port, _):
        runs = swarm(port, [(big, 0.0)] * 2 + [(small, 0.1)] * 6, seconds)
    waits = [one for run in runs[2:] for one in run]
    return {
        "line_p50_ms": median(waits) * 1e3,
        "line_p99_ms": quantile(waits, 0.99) * 1e3,
        "line_big_per_s": sum(map(len, runs[:2])) / seconds,
    }


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


BENCHES: dict[str, Callable[[str, float], dict[str, float]]] = {
    "dry": bench_dry,
    "rate": bench_rate,
    "line": bench_line,
}


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each figure, a column for each design."""
    names = list(results)
    figures = list(dict.fromkeys(key for row in results.values() for key in row))
    lines = [f"| figure | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for figure in figures:
        cells = [f"{results[name].get(figure, float('nan')):.4g}" for name in names]
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--designs", default="ours,fifo,prefork,reuseport")
    parser.add_argument("--what", default="dry,rate,line")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    imaging.prepare()
    found: dict[str, dict[str, list[float]]] = {name: {} for name in options.designs.split(",")}
    for number in range(options.rounds):
        for what in options.what.split(","):
            for design, figures in found.items():
                for key, value in BENCHES[what](design, options.seconds).items():
                    figures.setdefault(key, []).append(value)
                print(f"round {number + 1}/{options.rounds} {what} {design}", file=sys.stderr)
    results = {name: {key: median(values) for key, values in row.items()} for name, row in found.items()}
    OUT.mkdir(exist_ok=True)
    load = f"{CPUS} cores, load {os.getloadavg()[0]:.1f}; medians of {options.rounds} rounds of {options.seconds:g} s"
    (OUT / "service.md").write_text(f"{table(results)}\n\n{load}\n")
    (OUT / "service.json").write_text(json.dumps({"about": load, "results": results}, indent=2) + "\n")
    print(f"{table(results)}\n\n{load}")


if __name__ == "__main__":
    main()
