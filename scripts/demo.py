"""`make demo`: sample pictures, three resizers, one balancer, the client; then status, a contact sheet, and an end.

    python -m scripts.demo [DIRECTORY] [--count 36]

Everything happens in DIRECTORY (samples/): originals/, resized/, logs/, contact-sheet.jpg. Ports are the kernel's
choice, so that it disturbs no program that runs already. Exit code 0 only when every sample came back in the wanted size
and every program ended by itself.
"""

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image

from scripts import contact_sheet, samples
from scripts.lab.process import ROOT, LabProcess, clean_environment
from scripts.lab.waiting import WaitFailed

WIDTH, HEIGHT = 320, 200
BOOT_SECONDS = 20.0
STOP_SECONDS = 20.0
MOST_SOCKET_PATH = 107  # bytes, of the whole path


class DemoFailed(Exception):
    """The demo cannot go on; the text says why."""


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def show(words: list[str]) -> None:
    print(f"$ {shlex.join(words)}", flush=True)


class Program(LabProcess):
    """One daemon of the demo, its log in a file."""

    def __init__(self, name: str, module: str, log: Path, *words: str) -> None:
        super().__init__([sys.executable, "-m", module, *words], log)
        self.name = name
        log.unlink(missing_ok=True)
        show([{"balancer": "balancer", "workers.resizer": "resizer"}[module], *words])
        self.start()

    def wait_address(self) -> str:
        """host:port, once it serves there."""
        try:
            self.wait_line(r"info master pid=\d+ ready\b", BOOT_SECONDS)
            return self.wait_line(r"\bbind address=(127\.0\.0\.1:\d+)\b")[1]
        except WaitFailed:
            raise DemoFailed(
                f"{self.name} did not start; {self.log_path} ends with:\n{self.log()[-1500:]}"
            ) from None

    def end(self) -> str:
        """Stop it; what went wrong, if anything."""
        try:
            code = self.stop(seconds=STOP_SECONDS) if not self.has_ended else self.wait_exit()
        except WaitFailed:
            return f"{self.name} had to be killed; see {self.log_path}"
        return f"{self.name} ended with exit code {code}; see {self.log_path}" if code else ""


def run(program: str, module: str, words: list[str]) -> None:
    show([program, *words])
    code = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=ROOT, env=clean_environment()
    ).returncode
    if code:
        raise DemoFailed(f"{program} ended with exit code {code}")


def draw_samples(originals: Path, count: int) -> None:
    """The sample pictures, unless an earlier demo has drawn them all."""
    if originals.is_dir() and sum(path.is_file() for path in originals.rglob("*")) == count:
        print(f"{count} pictures are there from an earlier run")
        return
    began = time.monotonic()
    drawn = samples.draw(originals, count, 1)
    size = sum(path.stat().st_size for path in drawn)
    print(
        f"{len(drawn)} pictures, {size / 1e6:.1f} MB, drawn in {time.monotonic() - began:.1f} s: {originals}"
    )


def check_results(originals: Path, resized: Path) -> int:
    """How many there are; DemoFailed when one is missing or has another size than asked."""
    sources = [path for path in originals.rglob("*") if path.is_file()]
    results = list(contact_sheet.pairs(originals, resized))
    if len(results) != len(sources):
        raise DemoFailed(f"{len(sources) - len(results)} of {len(sources)} pictures have no result")
    for _, result in results:
        with Image.open(result) as picture:
            if picture.size != (WIDTH, HEIGHT):
                raise DemoFailed(f"{result} is {picture.size}, asked for {WIDTH}x{HEIGHT}")
    return len(results)


def start(directory: Path, programs: list[Program]) -> tuple[str, str]:
    """Three resizers, then the balancer before them; (its address, its admin socket)."""
    logs = directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    cpus = max(1, len(os.sched_getaffinity(0)) // 3)
    for number in (1, 2, 3):
        name = f"backend-{number}"
        words = ["--port=0", "--bind=127.0.0.1", f"--name={name}", f"--cpus={cpus}"]
        programs.append(Program(name, "workers.resizer", logs / f"{name}.log", *words))
    upstreams = [f"--upstream={program.wait_address()} name={program.name}" for program in programs]
    place = directory / "admin.sock"
    is_short = directory.is_relative_to(Path.cwd()) and len(os.fsencode(place)) <= MOST_SOCKET_PATH
    admin = str(place.relative_to(Path.cwd())) if is_short else f"/tmp/prefork-demo-{os.getpid()}.sock"
    words = ["--port=0", "--bind=127.0.0.1", *upstreams, "--mode=framed", "--frame=gowork", "--order=any"]
    words += ["--loglevel=1", f"--admin={admin}"]
    programs.append(Program("balancer", "balancer", logs / "balancer.log", *words))
    return programs[-1].wait_address(), admin


def show_processes(programs: list[Program]) -> None:
    pids = ",".join(str(program.pid) for program in programs)
    show(["ps", "-o", "pid,args"])
    with contextlib.suppress(FileNotFoundError):  # a slim container may have no ps; the demo goes on without
        subprocess.run(["ps", "-o", "pid,args", "--pid", pids, "--ppid", pids], check=False)


def stop(programs: list[Program]) -> None:
    """End every program, the balancer first; DemoFailed when one does not end by itself."""
    problems = [problem for program in reversed(programs) if (problem := program.end())]
    if problems:
        raise DemoFailed("; ".join(problems))
    print(f"{len(programs)} programs ended")


def demo(directory: Path, count: int, programs: list[Program]) -> None:
    originals, resized = directory / "originals", directory / "resized"
    say("Sample pictures")
    draw_samples(originals, count)
    say("Three resizers, one balancer before them")
    address, admin = start(directory, programs)
    say("The client sends every picture through the balancer")
    size = ["-w", str(WIDTH), "-h", str(HEIGHT), "--fit", "cover"]
    folders = ["--input", str(originals), "--output", str(resized)]
    run(
        "resize-client",
        "workers.client",
        ["--proxy", address, "--minconns", "3", "--maxconns", "6", *folders, *size],
    )
    saved = check_results(originals, resized)
    say("What runs, and what the balancer has to say")
    show_processes(programs)
    run("balancerctl", "balancer.ctl", ["--admin", admin, "status"])
    say("Before and after")
    sheet = directory / "contact-sheet.jpg"
    contact_sheet.make(originals, resized, sheet)
    print(f"{saved} pictures of {WIDTH}x{HEIGHT} in {resized}, side by side with their originals in {sheet}")
    say("The end")
    stop(programs)


def main() -> int:
    parser = argparse.ArgumentParser(description="the whole system at work, in one directory")
    parser.add_argument("directory", type=Path, nargs="?", default=Path("samples"))
    parser.add_argument("--count", type=int, default=36, help="sample pictures (36)")
    chosen = parser.parse_args()
    directory = chosen.directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    programs: list[Program] = []
    began = time.monotonic()
    try:
        demo(directory, chosen.count, programs)
    except (DemoFailed, OSError, ValueError) as failure:
        print(f"\ndemo: {failure}", file=sys.stderr)
        return 1
    finally:
        for program in programs:
            program.kill_everything()
    print(f"\nAll done in {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
