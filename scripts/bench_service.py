"""The picture service: CPU of dispatch, rate beside the bare function, latency of small pictures behind big ones.

    python -m scripts.bench_service [--designs ours,fifo,prefork,reuseport] [--seconds 2] [--rounds 3]
    [--what dry,rate,line] [--input DIR]

dry    CPU of all server processes for one dry run, one connection
rate   4 connections, one picture after another: pictures a second beside those of the bare function running in
       one process for each core, and the CPU a picture costs in all server processes beside the bare function's
line   two clients send 20-megapixel pictures back to back while six send small ones ten times a second:
       latency of the small ones from the moment each was due, rate of the big ones

Designs are taken in turn, round after round, and the bare function is timed right before each of them, so that
what disturbs the machine disturbs all of them; figures are medians over the rounds. The clients share the cores
with the servers, so they do little: a frame made beforehand, one send, one buffer, the first answer decoded and
the others compared with it by their length. Their CPU is a row of its own; CPU a picture does not depend on it.
The plain designs are in plain_designs.py. Writes service.md (a table) and service.json into bench-out/.
"""

import argparse
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from PIL import Image

from scripts.lab.choices import add_choices, add_rounds
from scripts.lab.network import free_port
from scripts.lab.process import ROOT, LabProcess
from workers import imaging
from workers.wire.frames import HEADER, frame, parse_header
from workers.wire.messages import Request, decode_response, encode_request

OUT = ROOT / "bench-out"
CPUS = len(os.sched_getaffinity(0))
FORK = get_context("fork")
DESIGNS = ("ours", "fifo", "prefork", "reuseport")
SIZES = {"small": (640, 480, 160, 120), "middle": (3264, 2448, 800, 600), "big": (5216, 3912, 1920, 1440)}
REPLY_BYTES = 8 << 20
SEND_BYTES = 4 << 20  # of the clients' socket buffers: a request leaves in one call
SAME_BYTES = (
    24  # by which two good answers to one request may differ: the lengths of a few numbers; errors are short
)
FIGURES = {
    "dry_us": "dry run: server CPU, us",
    "dry_p50_us": "dry run: p50, us",
    "small_per_s": "0.3 MP to 160x120: pictures/s",
    "small_of_pure": "of the bare function's rate on every core",
    "small_cpu_of_pure": "server CPU a picture, bare function = 1",
    "small_client_of_pure": "clients' CPU a picture, the same",
    "small_p50_ms": "p50, ms",
    "small_p99_ms": "p99, ms",
    "middle_per_s": "8 MP to 800x600: pictures/s",
    "middle_of_pure": "of the bare function's rate on every core",
    "middle_cpu_of_pure": "server CPU a picture, bare function = 1",
    "middle_client_of_pure": "clients' CPU a picture, the same",
    "middle_p50_ms": "p50, ms",
    "middle_p99_ms": "p99, ms",
    "line_p50_ms": "0.3 MP beside two clients with 20 MP: p50, ms",
    "line_p99_ms": "the same: p99, ms",
    "line_big_per_s": "the 20 MP ones: pictures/s",
}


# -- pictures --


def drawn(width: int, height: int) -> bytes:
    """Noise at several scales: costs a decoder about as much as a photograph of that size."""
    noise = random.Random(5)
    image = Image.frombytes("L", (96, 72), noise.randbytes(96 * 72)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = Image.effect_noise((width, height), 18)
    mixed = Image.blend(image, fine, 0.35)
    out = BytesIO()
    Image.merge("RGB", (mixed, image, mixed)).save(out, "JPEG", quality=85)
    return out.getvalue()


@cache
def picture(size: str, folder: Path | None) -> bytes:
    """A JPEG of about that size: the nearest in `folder` when one is within a third, else a drawn one."""
    width, height = SIZES[size][:2]
    near: list[tuple[float, Path]] = []
    for path in sorted(folder.rglob("*.[jJ][pP]*[gG]")) if folder else []:
        with Image.open(path) as image:
            near.append((abs(image.width * image.height / (width * height) - 1), path))
    distance, path = min(near, default=(1.0, Path()))
    return path.read_bytes() if distance < 1 / 3 else drawn(width, height)


def request_for(size: str, folder: Path | None = None) -> bytes:
    to_width, to_height = SIZES[size][2:]
    return frame(
        encode_request(
            Request(data=picture(size, folder), target_width=to_width, target_height=to_height, id=1)
        )
    )


# -- servers --


@contextmanager
def running(design: str) -> Iterator[tuple[int, psutil.Process]]:
    """One server, ready: its port and its first process."""
    port = free_port()
    words = ["-m", "scripts.plain_designs", design, str(port), str(CPUS)]
    if design == "ours":
        words = [
            "-m",
            "workers.resizer",
            "--bind=127.0.0.1",
            f"--port={port}",
            f"--cpus={CPUS}",
            "--name=bench",
        ]
    with LabProcess([sys.executable, *words], Path("/dev/null")) as server:
        wait_ready(port)
        yield port, psutil.Process(server.pid)


def wait_ready(port: int) -> None:
    """Until a dry run is answered."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with connect(port) as sock:
                ask(sock, frame(encode_request(Request(dry_run=True, id=1))), memoryview(bytearray(4096)))
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def cpu_of(server: psutil.Process) -> float:
    """Seconds that all processes of a server have run, to the nanosecond: psutil's come in ticks of 10 ms."""
    pids = [server.pid, *(child.pid for child in server.children(recursive=True))]
    # The number clock_getcpuclockid(3) gives for another process, which Python does not offer.
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


# -- clients --


def ask(sock: socket.socket, request: bytes, space: memoryview) -> memoryview:
    """One request and its whole answer."""
    sock.sendall(request)
    filled, end = 0, HEADER
    while filled < end:
        count = sock.recv_into(space[filled:])
        if not count:
            raise ConnectionError("the server ended the connection")
        filled += count
        if end == HEADER and filled >= HEADER:
            end += parse_header(space)
    return space[HEADER:end]


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    return sock


def client(port: int, request: bytes, seconds: float, period: float, start: Any, tell: Any) -> None:
    """Latencies in seconds, and the CPU seconds of it all; one request after another, or one each `period`, timed
    from when it was due."""
    found = []
    with connect(port) as sock:
        space = memoryview(bytearray(REPLY_BYTES))
        first = ask(sock, request, space)
        assert decode_response(first).is_ok()
        usual = len(first)
        start.wait()
        spent = -time.process_time()
        begin = time.monotonic()
        due = begin + random.random() * period
        while due - begin < seconds and time.monotonic() - begin < seconds * 1.5:
            if period:
                time.sleep(max(0.0, due - time.monotonic()))
            answer = ask(sock, request, space)
            now = time.monotonic()
            if abs(len(answer) - usual) < SAME_BYTES and (period or now - begin <= seconds):
                found.append(now - due)
            due = due + period if period else now
        spent += time.process_time()
    tell.send((found, spent))


def swarm(port: int, jobs: list[tuple[bytes, float]], seconds: float) -> tuple[list[list[float]], float]:
    """The latencies of one client process for each (request, period), and the CPU seconds of all; all begin
    together."""
    start, ears, crowd = FORK.Barrier(len(jobs)), [], []
    for request, period in jobs:
        ear, tell = FORK.Pipe(False)
        crowd.append(
            FORK.Process(target=client, args=(port, request, seconds, period, start, tell), daemon=True)
        )
        ears.append(ear)
        crowd[-1].start()
        tell.close()
    found = [ear.recv() for ear in ears]
    for one in crowd:
        one.join()
    return [waits for waits, _ in found], sum(spent for _, spent in found)


# -- the bare function --


def work(data: bytes, job: imaging.ResizeJob, seconds: float, start: Any, tell: Any) -> None:
    limits = imaging.PictureLimits()
    imaging.resize(data, job, limits)
    start.wait()
    begin, before, count = time.monotonic(), time.process_time(), 0
    while (took := time.monotonic() - begin) < seconds:
        imaging.resize(data, job, limits)
        count += 1
    tell.send((count / took, (time.process_time() - before) / count))


def pure(size: str, folder: Path | None, seconds: float) -> tuple[float, float]:
    """Pictures a second of all cores together that run the function alone, and its CPU seconds a picture."""
    data, job = picture(size, folder), imaging.ResizeJob(*SIZES[size][2:])
    start, (ear, tell) = FORK.Barrier(CPUS), FORK.Pipe(False)
    crowd = [
        FORK.Process(target=work, args=(data, job, seconds, start, tell), daemon=True) for _ in range(CPUS)
    ]
    for one in crowd:
        one.start()
    found = [ear.recv() for _ in crowd]
    for one in crowd:
        one.join()
    return sum(rate for rate, _ in found), sum(cpu for _, cpu in found) / CPUS


# -- the benches --


@dataclass(frozen=True)
class Bench:
    """`seconds` of each rate; a dry run takes half of it, the line twice."""

    seconds: float
    folder: Path | None

    def dry(self, design: str) -> dict[str, float]:
        request = frame(encode_request(Request(dry_run=True, id=1, target_width=200)))
        with running(design) as (port, server):
            before = cpu_of(server)
            [waits], _ = swarm(port, [(request, 0.0)], self.seconds / 2)
            spent = cpu_of(server) - before
        return {"dry_us": spent / (len(waits) + 1) * 1e6, "dry_p50_us": median(waits) * 1e6}

    def rate(self, design: str) -> dict[str, float]:
        row = {}
        with running(design) as (port, server):
            for size in ("small", "middle"):
                request = request_for(size, self.folder)
                most, alone = pure(size, self.folder, self.seconds / 2)
                swarm(port, [(request, 0.0)] * 4, 0.2)
                before = cpu_of(server)
                runs, clients = swarm(port, [(request, 0.0)] * 4, self.seconds)
                spent = cpu_of(server) - before
                waits = [one for run in runs for one in run]
                count = max(1, len(waits))
                row[f"{size}_per_s"] = count / self.seconds
                row[f"{size}_of_pure"] = count / self.seconds / most
                # Each client asked once before the clock ran; about half of four were still under way at its end.
                row[f"{size}_cpu_of_pure"] = spent / (count + 6) / alone
                row[f"{size}_client_of_pure"] = clients / (count + 2) / alone
                row[f"{size}_p50_ms"] = quantile(waits, 0.5) * 1e3
                row[f"{size}_p99_ms"] = quantile(waits, 0.99) * 1e3
        return row

    def line(self, design: str) -> dict[str, float]:
        small, big = request_for("small", self.folder), request_for("big", self.folder)
        seconds = self.seconds * 2
        with running(design) as (port, _):
            runs, _ = swarm(port, [(big, 0.0)] * 2 + [(small, 0.1)] * 6, seconds)
        waits = [one for run in runs[2:] for one in run]
        return {
            "line_p50_ms": quantile(waits, 0.5) * 1e3,
            "line_p99_ms": quantile(waits, 0.99) * 1e3,
            "line_big_per_s": sum(map(len, runs[:2])) / seconds,
        }


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each figure, a column for each design."""
    lines = [f"| | {' | '.join(results)} |", "| --- |" + " ---: |" * len(results)]
    for figure, words in FIGURES.items():
        cells = [f"{row[figure]:.3g}" if figure in row else "-" for row in results.values()]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=about)
    add_choices(parser, "--designs", DESIGNS)
    add_choices(parser, "--what", ("dry", "rate", "line"))
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of one measurement (the line takes twice)"
    )
    add_rounds(parser, 3)
    parser.add_argument("--input", type=Path, help="directory of pictures; default: drawn for the occasion")
    choice = parser.parse_args()
    imaging.prepare()
    bench = Bench(choice.seconds, choice.input)
    acts: dict[str, Callable[[str], dict[str, float]]] = {
        "dry": bench.dry,
        "rate": bench.rate,
        "line": bench.line,
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in choice.designs}
    for number in range(choice.rounds):
        for what in choice.what:
            for design, figures in found.items():
                for key, value in acts[what](design).items():
                    figures.setdefault(key, []).append(value)
                print(f"round {number + 1}/{choice.rounds} {what} {design}", file=sys.stderr)
    results = {name: {key: median(values) for key, values in row.items()} for name, row in found.items()}
    load = (
        f"{CPUS} cores, shared with the clients; load {os.getloadavg()[0]:.1f}; medians of {choice.rounds} "
        f"rounds of {choice.seconds:g} s"
    )
    OUT.mkdir(exist_ok=True)
    (OUT / "service.md").write_text(f"{table(results)}\n\n{load}\n")
    (OUT / "service.json").write_text(
        json.dumps({"about": load, "results": results, "rounds": found}, indent=2)
    )
    print(f"{table(results)}\n\n{load}")


if __name__ == "__main__":
    main()
