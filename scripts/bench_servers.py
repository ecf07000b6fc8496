"""The picture service beside thumbor and a server on sharp, over HTTP: rate, head of line, overload, strangers, crashes.

    python -m scripts.bench_servers [--peers ours,thumbor,sharp] [--seconds 4] [--rounds 3] [--what rate,line,...]

rate      4 connections, 2 MP to 400x300: pictures a second, CPU a picture of all processes of the server
line      two connections ask for 20 MP back to back, a client for 0.3 MP ten times a second: its median and p99
overload  500 clients that obey Retry-After, 2 MP: good answers a second, refusals, p99 of the good ones
hostile   a connection for each of five bombs and broken files asks back to back; the client with 0.3 MP as above; memory
greedy    80 connections ask for 0.3 MP back to back; the client with 0.3 MP: median, times its calm median
slow      86 clients send a part of a request and no more; the client with 0.3 MP
gone      30 clients ask for 20 MP and end their connections at once; seconds until a picture of 0.3 MP is answered
killed    one process is killed beside a stopped one (of ours the front beside a CPU process), for 6 s: longest time
          without a good answer to clients that ask 20 times a second and give up after 1 s

Peers take turns, round after round, each round beginning with another one; figures are medians over the rounds. The
clients share the cores with the servers. Writes servers.json into bench-out/, and the table of a run with all rows and
peers into the last section of docs/versus.md.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import socket
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

from PIL import Image

from scripts.bench_service import drawn, quantile
from scripts.benchlib.http_crowd import HttpCrowd, ask_now_and_then, ask_once
from scripts.lab.choices import add_choices, add_rounds
from scripts.lab.measure import cpu_of, memory_of
from scripts.lab.process import ROOT
from scripts.picture_peers import CPUS, PEERS, PicturePeer, found

OUT = ROOT / "bench-out"
SMALL, MIDDLE, BIG = ("small.jpg", (160, 120)), ("middle.jpg", (400, 300)), ("big.jpg", (1920, 1440))
SIZES = {"small.jpg": (640, 480), "middle.jpg": (1632, 1224), "big.jpg": (5216, 3912)}
KILLED_SECONDS = 6.0
HEADING = "## Pictures: ours beside thumbor and a server on sharp"
INTRODUCTION = """
Picture services over HTTP (`python -m scripts.bench_servers`, part of `make bench-images`), each with a process for each
core, in turns, round after round. The sharp server is scripts/pipelines/sharp_server.cjs, a Node cluster as one writes
it. thumbor takes the pictures from a directory, so it receives no bodies. A connection that is refused asks again when it
was told to, else after 0.1 s.
"""
NOTES = """
How to read it:

- 80 greedy connections: ours refuses those that its queue of 64 has no place for, and a client that asks less than its
  share overtakes the others. The other two answer all in the order of asking. The client makes a connection for each
  picture, from the same address.
- Bombs and broken files: a flat PNG of 144 MP, a GIF of 400 frames of 1 MP, a JPEG that ends early, noise, and a PNG of
  one pixel that asks for 32 MP of AVIF, each asked for by a connection of its own.
- Clients that went: the picture of a client that has ended its connection is not worked on by ours.
- A killed process beside a stopped one: of ours the front is killed, which holds all clients, and one of two CPU
  processes stopped; of the others one of two processes is killed and the other one stopped.
"""
FIGURES = {
    "rate_per_s": "4 connections, 2 MP to 400x300: pictures/s",
    "rate_cpu_ms": "the same: CPU of the server a picture, ms",
    "line_p50_ms": "0.3 MP beside two connections with 20 MP: median, ms",
    "line_p99_ms": "the same: p99, ms",
    "line_big_per_s": "the 20 MP ones: pictures/s",
    "overload_per_s": "500 clients that obey Retry-After, 2 MP: good answers/s",
    "overload_refused_per_s": "the same: refusals/s",
    "overload_p99_s": "the same: p99 of the good ones, s",
    "hostile_p50_ms": "0.3 MP beside bombs and broken files: median, ms",
    "hostile_failed": "the same: of 100 not answered",
    "hostile_mb": "the same: memory of the server at most, MB",
    "greedy_calm_ms": "0.3 MP alone: median, ms",
    "greedy_ratio": "beside 80 greedy connections: times that",
    "greedy_failed": "the same: of 100 refused or not answered",
    "slow_p50_ms": "0.3 MP beside 86 requests of which a part is sent: median, ms",
    "slow_failed": "the same: of 100 not answered",
    "gone_s": "0.3 MP after 30 clients that asked for 20 MP and went: s",
    "killed_gap_s": "a killed process beside a stopped one: longest time without an answer, s",
    "killed_failed": "the same: of 100 not answered",
}


def flat_png(width: int, height: int) -> bytes:
    """A black PNG: a few KB that are `width` x `height` pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width * 3 + 1)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def draw(folder: Path) -> None:
    """The pictures of all rows."""
    for name, size in SIZES.items():
        (folder / name).write_bytes(drawn(*size))
    (folder / "bomb.png").write_bytes(flat_png(12_000, 12_000))
    frames = [Image.new("P", (1000, 1000), number % 256) for number in range(400)]
    frames[0].save(folder / "bomb.gif", save_all=True, append_images=frames[1:])
    (folder / "short.jpg").write_bytes((folder / "big.jpg").read_bytes()[:200_000])
    (folder / "noise.jpg").write_bytes(b"\xff\xd8\xff\xe0" + os.urandom(100_000))
    dot = io.BytesIO()
    Image.new("RGB", (1, 1)).save(dot, "PNG")
    (folder / "dot.png").write_bytes(dot.getvalue())


HOSTILE = [
    ("bomb.png", (100, 100), ""),
    ("bomb.gif", (900, 900), ""),
    ("short.jpg", (100, 100), ""),
    ("noise.jpg", (100, 100), ""),
    ("dot.png", (5656, 5656), "avif"),
]


class ServerBench:
    """The rows; each starts its peer anew and returns its figures."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def rate(self, peer: PicturePeer) -> dict[str, float]:
        with peer.running():
            request = peer.request(*MIDDLE)
            self._warm(peer)
            with HttpCrowd(peer.port, request, 4) as crowd:
                time.sleep(0.5)
                before, began = cpu_of(peer.pid), time.monotonic()
                time.sleep(self.seconds)
                spent, took = cpu_of(peer.pid) - before, time.monotonic() - began
                done = crowd.finish().statuses["200"]
        per_second = done / (took + 0.5)
        return {
            "rate_per_s": per_second,
            "rate_cpu_ms": (spent.user + spent.system) * 1e3 / (per_second * took),
        }

    def line(self, peer: PicturePeer) -> dict[str, float]:
        with peer.running():
            self._warm(peer)
            with HttpCrowd(peer.port, peer.request(*BIG), 2) as crowd:
                time.sleep(0.5)
                waits, _ = self._modest(peer, self.seconds * 2)
                done = crowd.finish().statuses["200"]
        return {
            "line_p50_ms": quantile(waits, 0.5) * 1e3,
            "line_p99_ms": quantile(waits, 0.99) * 1e3,
            "line_big_per_s": done / (self.seconds * 2 + 0.5),
        }

    def overload(self, peer: PicturePeer) -> dict[str, float]:
        seconds = self.seconds * 2
        with peer.running():
            self._warm(peer)
            with HttpCrowd(peer.port, peer.request(*MIDDLE), 500) as crowd:
                time.sleep(seconds)
                outcome = crowd.finish()
        good = outcome.statuses.pop("200", 0)
        return {
            "overload_per_s": good / seconds,
            "overload_refused_per_s": sum(outcome.statuses.values()) / seconds,
            "overload_p99_s": quantile(outcome.waits, 0.99),
        }

    def hostile(self, peer: PicturePeer) -> dict[str, float]:
        with peer.running():
            self._warm(peer)
            crowds = [HttpCrowd(peer.port, peer.request(*one), 1) for one in HOSTILE]
            most = 0
            with contextlib.ExitStack() as stack:
                for crowd in crowds:
                    stack.enter_context(crowd)
                waits, failed = [], []
                for _ in range(4):
                    some, lost = self._modest(peer, self.seconds / 2)
                    waits += some
                    failed.append(lost)
                    most = max(most, memory_of(peer.pid))
        return {
            "hostile_p50_ms": quantile(waits, 0.5) * 1e3,
            "hostile_failed": sum(failed) / len(failed),
            "hostile_mb": most / 1e6,
        }

    def greedy(self, peer: PicturePeer) -> dict[str, float]:
        with peer.running():
            self._warm(peer)
            calm, _ = self._modest(peer, self.seconds)
            with HttpCrowd(peer.port, peer.request(*SMALL), 80):
                time.sleep(1)
                waits, failed = self._modest(peer, self.seconds * 2, 0.3)
        return {
            "greedy_calm_ms": median(calm) * 1e3,
            "greedy_ratio": quantile(waits, 0.5) / median(calm),
            "greedy_failed": failed,
        }

    def slow(self, peer: PicturePeer) -> dict[str, float]:
        with peer.running(), contextlib.ExitStack() as stack:
            self._warm(peer)
            request = peer.request(*BIG)
            part = request[: 100_000 if len(request) > 200_000 else len(request) - 20]
            for _ in range(86):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", peer.port), 10))
                sock.sendall(part)
            waits, failed = self._modest(peer, self.seconds)
        return {"slow_p50_ms": quantile(waits, 0.5) * 1e3, "slow_failed": failed}

    def gone(self, peer: PicturePeer) -> dict[str, float]:
        with peer.running():
            self._warm(peer)
            request = peer.request(*BIG)
            for _ in range(30):
                with socket.create_connection(("127.0.0.1", peer.port), 30) as sock:
                    sock.sendall(request)
                    time.sleep(0.005)  # received, at least
            began = time.monotonic()
            ask_once(peer.port, peer.request(*SMALL), 60)
            return {"gone_s": time.monotonic() - began}

    def killed(self, peer: PicturePeer) -> dict[str, float]:
        with peer.running():
            self._warm(peer)
            request, answered, failed = peer.request(*SMALL), [], 0
            victim, stopped = peer.victims()
            os.kill(stopped, signal.SIGSTOP)
            os.kill(victim, signal.SIGKILL)
            began = time.monotonic()
            answered.append(began)
            while time.monotonic() - began < KILLED_SECONDS:
                time.sleep(0.05)
                if ask_once(peer.port, request, 1.0) == 200:
                    answered.append(time.monotonic())
                else:
                    failed += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGCONT)
        answered.append(time.monotonic())
        gap = max(later - earlier for earlier, later in pairwise(answered))
        return {"killed_gap_s": gap, "killed_failed": 100 * failed / (failed + len(answered) - 2)}

    def _warm(self, peer: PicturePeer) -> None:
        """Every process has done a picture or two."""
        for _ in range(4 * CPUS):
            ask_once(peer.port, peer.request(*SMALL), 30)

    def _modest(self, peer: PicturePeer, seconds: float, period: float = 0.1) -> tuple[list[float], float]:
        """Seconds of the answers to a client that asks for 0.3 MP now and then, and how many of 100 have failed."""
        waits, statuses = ask_now_and_then(peer.port, peer.request(*SMALL), seconds, period)
        return waits, 100 * (1 - statuses[200] / statuses.total())


def short(value: float) -> str:
    """Three digits, and all of a big number; - for none."""
    if value != value:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown: a row for each figure, a column for each peer."""
    lines = [f"| | {' | '.join(results)} |", "| --- |" + " ---: |" * len(results)]
    for figure, words in FIGURES.items():
        cells = [short(row[figure]) if figure in row else "-" for row in results.values()]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_section(path: Path, section: str) -> None:
    """Put the section in place of the one of the last run."""
    before, _, _ = path.read_text().partition(f"\n{HEADING}")
    path.write_text(f"{before.rstrip()}\n\n{section}")


def main() -> None:
    rows = ("rate", "line", "overload", "hostile", "greedy", "slow", "gone", "killed")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_choices(parser, "--peers", tuple(PEERS))
    add_choices(parser, "--what", rows)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement; some take twice")
    add_rounds(parser, 3)
    choice = parser.parse_args()
    bench = ServerBench(choice.seconds)
    acts: dict[str, Callable[[PicturePeer], dict[str, float]]] = {name: getattr(bench, name) for name in rows}
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name))
        peers = found(choice.peers, Path(name))
        figures = {peer.name: {} for peer in peers}
        for number in range(choice.rounds):
            for what in choice.what:
                first = number % len(peers)
                for peer in peers[first:] + peers[:first]:
                    for key, value in acts[what](peer).items():
                        figures[peer.name].setdefault(key, []).append(value)
                    print(f"round {number + 1}/{choice.rounds} {what} {peer.name}", file=sys.stderr)
    results = {peer: {key: median(values) for key, values in row.items()} for peer, row in figures.items()}
    about = (
        f"{CPUS} cores, shared with the clients; load {os.getloadavg()[0]:.1f}; medians of {choice.rounds} rounds of "
        f"{choice.seconds:g} s"
    )
    about += "; " + "; ".join(f"{peer.name}: {peer.version()}" for peer in peers)
    OUT.mkdir(exist_ok=True)
    (OUT / "servers.json").write_text(json.dumps({"about": about, "rounds": figures}, indent=2))
    section = f"{HEADING}\n{INTRODUCTION}\n{table(results)}\n\nMeasured on {about}.\n{NOTES}"
    print(section)
    if len(peers) == len(PEERS) and set(choice.what) == set(rows):
        write_section(ROOT / "docs" / "versus.md", section)


if __name__ == "__main__":
    main()
