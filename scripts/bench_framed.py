"""Framed mode as clients see it: pictures a second on one connection, and the work the original programs measure.

    python -m scripts.bench_framed [--rounds 3] [--what pictures,jobs]

pictures   300 pictures of 0.3 megapixels through the balancer to three resizers: one connection of our client in
           framed mode beside three in byte mode
jobs       100 connections, each sends a directory of three pictures as dry runs; jobs (connections) a second in the
           first pass of a fresh balancer and over 20 passes. Client, balancer and resizers are ours, or the original Go
           programs where GOWORK_FRONTEND, GOWORK_PROXY and GOWORK_BACKEND in the environment name them

The rows take turns, round after round, and each has a fresh balancer; figures are medians. Writes framed.md into
bench-out/.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

from scripts.bench_service import picture
from scripts.benchlib.peers import start
from scripts.lab.choices import add_choices, add_rounds
from scripts.lab.network import Address, free_port, text_of
from scripts.lab.original import OriginalServer, program, run_client
from scripts.lab.process import ROOT

PICTURES, SIZE, RESIZERS = 300, 640, 3
CONNECTIONS, IN_DIRECTORY, PASSES = 100, 3, 20
FRAMED = ("--mode=framed", "--frame=gowork", "--order=any")

Row = tuple[str, Callable[[], float]]


@contextmanager
def ours(directory: Path, module: str, *words: str) -> Iterator[Address]:
    """One of our daemons on a port of 127.0.0.1."""
    port = free_port()
    command = [sys.executable, "-m", module, f"--port={port}", "--bind=127.0.0.1", *words]
    process = start(command, directory / f"{module}-{port}.log", port)
    try:
        yield ("127.0.0.1", port)
    finally:
        process.kill_everything()


@contextmanager
def balancer(directory: Path, upstreams: Sequence[Address], *words: str) -> Iterator[Address]:
    named = [f"--upstream={text_of(upstream)}" for upstream in upstreams]
    with ours(directory, "balancer", "--admin=off", "--workers=2", *named, *words) as address:
        yield address


def client(address: Address, source: Path, what: str, *words: str) -> float:
    """Run our client; `what` a second as it says at its end."""
    command = [sys.executable, "-m", "workers.client", "--proxy", text_of(address), "--input", str(source)]
    with tempfile.TemporaryDirectory() as results:
        command += ["--output", results, "-w", "160", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    return float(re.findall(rf"{what} Per Second: ([\d.]+)", done.stdout)[0])


def directory_of(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"p{number:04}.jpg").write_bytes(picture("small", None))
    return folder


def picture_rows(folder: Path, resizers: Sequence[Address]) -> list[Row]:
    source = directory_of(folder / "pictures", PICTURES)

    def run(connections: int, *mode: str) -> float:
        with balancer(folder, resizers, *mode) as address:
            limits = (f"--minconns={connections}", f"--maxconns={connections}")
            return client(address, source, "Pictures", *limits)

    return [
        ("pictures/s, three connections in byte mode", partial(run, 3)),
        ("pictures/s, one connection in framed mode", partial(run, 1, *FRAMED)),
    ]


def job_rows(folder: Path, resizers: Sequence[Address], originals: Sequence[Address]) -> Iterator[Row]:
    source = directory_of(folder / "directory", IN_DIRECTORY)
    load = (f"--minconns={CONNECTIONS}", f"--maxconns={CONNECTIONS}", "--dry-run")

    def run_ours(passes: int, *mode: str) -> float:
        with balancer(folder, resizers, *mode) as address:
            return client(address, source, "Requests", *load, "--flood", f"--times={passes}")

    def run_original(passes: int) -> float:
        with balancer(folder, resizers, *FRAMED[:2]) as address:
            words = (load[0], load[2], f"--times={passes}")
            return run_client(address, source, folder / "results", *words).jobs_per_s

    def run_all_original(passes: int) -> float:
        with OriginalServer(folder, originals) as proxy:
            words = (load[0], load[2], f"--times={passes}")
            return run_client(proxy.address, source, folder / "results", *words, seconds=120).jobs_per_s

    for passes in (1, PASSES):
        title = f"jobs/s, {passes} x {CONNECTIONS} connections: "
        yield title + "ours, framed mode", partial(run_ours, passes, *FRAMED)
        yield title + "ours, byte mode", partial(run_ours, passes)
        if originals:
            yield (
                title + "the original client, ours in framed mode",
                partial(run_original, passes),
            )
            yield title + "the original programs", partial(run_all_original, passes)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_rounds(parser, 3)
    add_choices(parser, "--what", ("pictures", "jobs"))
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    chosen = parser.parse_args()
    found = all(program(role) for role in ("frontend", "proxy", "backend"))
    if not found:
        print(
            "missing: the original programs; to have their rows: GOWORK_FRONTEND, GOWORK_PROXY, GOWORK_BACKEND"
        )
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name, ExitStack() as stack:
        folder = Path(name)
        words = ("--cpus=1", "--loglevel=0")
        resizers = [
            stack.enter_context(ours(folder, "workers.resizer", *words, f"--name=r{n}"))
            for n in range(RESIZERS)
        ]
        originals = [stack.enter_context(OriginalServer(folder)) for _ in range(RESIZERS if found else 0)]
        rows: list[Row] = []
        if "pictures" in chosen.what:
            rows += picture_rows(folder, resizers)
        if "jobs" in chosen.what:
            rows += job_rows(folder, resizers, [server.address for server in originals])
        for turn in range(chosen.rounds):
            for title, act in (*rows[turn % len(rows) :], *rows[: turn % len(rows)]):
                figures.setdefault(title, []).append(act())
                print(f"round {turn + 1}/{chosen.rounds} {title}: {figures[title][-1]:,.0f}", file=sys.stderr)
        text = "| work | median |\n| --- | --- |\n"
        text += "".join(f"| {title} | {median(figures[title]):,.0f} |\n" for title, _ in rows)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "framed.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
