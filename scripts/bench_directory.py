"""Resizes a directory of JPEGs with `resize-client --local`, vipsthumbnail, sharp-cli and mogrify, those that are found.

    python -m scripts.bench_directory [--input DIRECTORY] [--count 2000] [--rounds 3] [--width 320]

Each program is started once for the whole directory, as a user would; the programs take turns, round after round, so that
other load on the machine affects all of them. Wall time and CPU (user + system, children included) are medians over the
rounds. Without --input, links to a few drawn pictures of up to 2 megapixels make up the directory. sharp-cli is searched
in $PATH and in $NODE_PATH/.bin. Writes directory.md into bench-out/.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from scripts import samples
from scripts.lab.choices import add_rounds

QUALITY = 75
LARGEST = 600_000  # bytes of a drawn picture that is taken
DISTINCT = 12


@dataclass
class DirectoryResult:
    """The rounds of one program, in seconds, and what it made."""

    name: str
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    pictures: int = 0
    bytes: int = 0
    error: str = ""


def command(name: str, source: Path, out: Path, width: int) -> list[str]:
    """The command line of a program; empty when it is not there."""
    pictures = sorted(map(str, source.iterdir()))
    if name == "ours":
        words = ["--local", "--input", str(source), "--output", str(out), "-w", str(width)]
        return [sys.executable, "-m", "workers.client", *words, "--quality", str(QUALITY)]
    if name == "vipsthumbnail":
        program = shutil.which("vipsthumbnail")
        return (
            [program, "--size", f"{width}x", "-o", f"{out}/%s.jpg[Q={QUALITY}]", *pictures] if program else []
        )
    if name == "sharp-cli":
        program = shutil.which(
            "sharp", path=f"{os.environ.get('NODE_PATH', '')}/.bin:{os.environ.get('PATH', '')}"
        )
        return (
            [program, "-i", *pictures, "-o", f"{out}/", "-q", str(QUALITY), "resize", str(width)]
            if program
            else []
        )
    program = shutil.which("mogrify")
    options = ["-path", str(out), "-filter", "Lanczos", "-quality", str(QUALITY), "-resize", f"{width}x"]
    return [program, *options, *pictures] if program else []


def draw(directory: Path, count: int) -> None:
    """`count` links to a few JPEGs."""
    drawn = directory / "drawn"
    number = 0
    distinct: list[Path] = []
    while len(distinct) < DISTINCT:
        path = samples.draw_one(drawn, number, seed=1)
        if path.suffix == ".jpg" and path.stat().st_size <= LARGEST:
            distinct.append(path)
        number += 1
    (directory / "in").mkdir()
    for index in range(count):
        os.link(distinct[index % len(distinct)], directory / "in" / f"{index:05}.jpg")


def measure(row: DirectoryResult, source: Path, work: Path, width: int) -> None:
    """One round of one program."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    words = command(row.name, source, out, width)
    if not words:
        row.error = "not found"
        return
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    made = [path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")]
    row.pictures, row.bytes = len(made), sum(path.stat().st_size for path in made)
    if done.returncode or row.pictures != len(list(source.iterdir())):
        row.error = (done.stderr.strip().splitlines() or [f"made {row.pictures} pictures"])[-1][:80]
        return
    row.wall.append(wall)
    row.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def table(rows: Sequence[DirectoryResult], count: int, width: int) -> str:
    """The rows in Markdown."""
    lines = [
        f"| {count} JPEGs to a width of {width} | wall s | CPU ms a picture | MB |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        if row.error:
            lines.append(f"| {row.name} | {row.error} | - | - |")
        else:
            cpu = 1000 * median(row.cpu) / count
            lines.append(f"| {row.name} | {median(row.wall):.1f} | {cpu:.2f} | {row.bytes / 1e6:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="a directory of JPEGs, ours beside others")
    parser.add_argument("--input", type=Path, help="directory of JPEGs; default: drawn ones")
    parser.add_argument("--count", type=int, default=2000, help="pictures that are drawn (2000)")
    add_rounds(parser, 3)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    arguments = parser.parse_args()
    rows = [DirectoryResult(name) for name in ("ours", "vipsthumbnail", "sharp-cli", "mogrify")]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.input is None:
            draw(work, arguments.count)
        source = arguments.input or work / "in"
        count = len(list(source.iterdir()))
        for _ in range(arguments.rounds):
            for row in rows:
                if not row.error:
                    measure(row, source.absolute(), work, arguments.width)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = table(rows, count, arguments.width)
    (arguments.out / "directory.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
