"""The whole system: the demo as a newcomer runs it, then dry runs and real pictures by the hundred, accounted for."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from scripts.lab.network import text_of
from scripts.lab.process import ROOT, clean_environment
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, Resizer

COPIES = 25  # of each of the dozen samples: 300 pictures


def client(*words: object, directory: Path, timeout: float = 80) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workers.client", *map(str, words)]
    env = clean_environment({"PYTHONPATH": str(ROOT)})
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=timeout, env=env)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen small pictures, JPEG and PNG, each in COPIES sub-directories under its own name."""
    many = tmp_path_factory.mktemp("samples")
    for number in range(12):
        size = (240 + 20 * number, 400 - 15 * number)
        bands = [Image.effect_noise(size, 20 + 10 * band) for band in range(3)]
        name = f"{number:03d}.{'png' if number % 3 == 0 else 'jpg'}"
        for copy in range(COPIES):
            target = many / f"set-{copy:02d}" / name
            target.parent.mkdir(exist_ok=True)
            Image.merge("RGB", bands).save(target)
    return many


@pytest.fixture
def service() -> Iterator[tuple[Balancer, list[Resizer]]]:
    with ExitStack() as stack:
        resizers = [stack.enter_context(Resizer(name=f"backend-{n}", cpus=1)) for n in (1, 2, 3)]
        upstreams = [f"{text_of(resizer.address)} name=backend-{n}" for n, resizer in enumerate(resizers, 1)]
        yield stack.enter_context(Balancer(upstreams=upstreams)), resizers


def pictures(directory: Path) -> set[Path]:
    """What lies below a directory, without the client's journal."""
    found = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(directory) for path in found}


def figure(output: str, name: str) -> float:
    match = re.search(rf"^{name}:\s+([\d.]+)", output, re.MULTILINE)
    assert match, f"no {name} in\n{output}"
    return float(match[1])


def test_the_demo_ends_well_and_every_sample_is_resized(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "scripts.demo", str(tmp_path / "samples"), "--count", "15"]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=85, env=clean_environment()
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "-- [ Network Statistics ] --" in done.stdout
    results, originals = (pictures(tmp_path / "samples" / name) for name in ("resized", "originals"))
    assert len(results) == len(originals) == 15
    with Image.open(tmp_path / "samples" / "contact-sheet.jpg") as sheet:
        assert sheet.width > 1000 and sheet.height > 1000
    assert not running(str(tmp_path)), "something of the demo still runs"


def running(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                line = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in line:
                found.append(entry.name)
    return found


def test_five_thousand_dry_runs_over_fifty_connections(
    service: tuple[Balancer, list[Resizer]], samples: Path, tmp_path: Path
) -> None:
    lb, _ = service
    size = ("-w", 64, "-h", 48)
    words = (
        "--input",
        samples,
        "--output",
        tmp_path / "out",
        "--minconns",
        50,
        "--maxconns",
        50,
        "--flood",
        *size,
    )
    # Every one of 50 connections sends the 12 pictures of 8 sets and 4 of another: 50 x 100 = 5,000.
    chosen = ["--include", "set-0[0-7]/*", "--include", "set-08/00[0-3].*"]
    done = client("--proxy", text_of(lb.address), *words, *chosen, "--dry-run", directory=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b5000 answered\b", done.stdout), done.stdout
    assert re.search(r"\b0 failed\b", done.stdout), done.stdout
    status = lb.check_at_rest()
    assert status["totals"]["accepted_total"] >= 50
    assert (
        sum(backend["sessions_total"] for backend in status["backends"]) == status["totals"]["accepted_total"]
    )
    assert all(backend["sessions_total"] > 0 for backend in status["backends"])


def test_three_hundred_pictures_come_back_in_the_size_asked_for(
    service: tuple[Balancer, list[Resizer]], samples: Path, tmp_path: Path
) -> None:
    lb, _ = service
    out = tmp_path / "out"
    words = ("--proxy", text_of(lb.address), "--input", samples, "--output", out, "--maxconns", 6)
    done = client(*words, "--minconns", 3, "-w", 96, "-h", 64, directory=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    sources = pictures(samples)
    assert len(sources) == 12 * COPIES
    results = pictures(out)
    assert results == {path.with_name(f"{path.stem}-96x64{path.suffix}") for path in sources}
    for result in results:
        with Image.open(out / result) as picture:
            picture.load()
            assert picture.size == (96, 64), result
    assert figure(done.stdout, "Bytes sent") > sum((samples / path).stat().st_size for path in sources)
    status = lb.check_at_rest()
    totals = status["totals"]
    assert totals["failed_total"] == totals["refused_total"] == 0
    assert sum(backend["bytes_in_total"] for backend in status["backends"]) == totals["bytes_in_total"]
    wait_for(
        lambda: lb.status()["totals"]["closed_total"] == totals["accepted_total"], "every session closed"
    )
