"""Memory of CPU processes: what is reckoned is what is taken, the limit is the limit, and pages go back."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from http.client import HTTPConnection

import pytest
from PIL import Image

from scripts.lab.process import ROOT
from scripts.lab.waiting import wait_for
from tests.system.harness import Resizer
from workers.imaging import memory

SIDES = (2400, 1800)
SMALL, LARGE = (160, 120), (2000, 1500)
# In a process of its own, for each result: the peak of its address space above that before the first picture.
MEASURE = """
import os, sys
from workers import imaging
from workers.imaging import PictureLimits, ResizeJob

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

imaging.prepare()
data = sys.stdin.buffer.read()
for words in sys.argv[1:]:
    width, height, out = words.split(",")
    if not os.fork():
        before = status("VmSize")
        imaging.resize(data, ResizeJob(int(width), int(height), format=out), PictureLimits())
        print(status("VmPeak") - before, flush=True)
        os._exit(0)
    os.wait()
"""


def noise(mode: str) -> Image.Image:
    picture = Image.effect_noise((SIDES[0] // 4, SIDES[1] // 4), 60).resize(SIDES).convert("RGB")
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(SIDES))
    return picture


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


SOURCES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(noise("RGB"), "JPEG"),
    "jpeg of many scans": lambda: saved(noise("RGB"), "JPEG", progressive=True, subsampling=0),
    "png": lambda: saved(noise("RGB"), "PNG", compress_level=1),
    "png with alpha": lambda: saved(noise("RGBA"), "PNG", compress_level=1),
    "gif with alpha": lambda: saved(noise("RGB").convert("P"), "GIF"),
    "webp": lambda: saved(noise("RGB"), "WEBP", method=0),
    "webp with alpha": lambda: saved(noise("RGBA"), "WEBP", method=0),
    "avif": lambda: saved(noise("RGB"), "AVIF", speed=10),
    "avif with alpha": lambda: saved(noise("RGBA"), "AVIF", speed=10),
}
RESULTS = [(SMALL, "jpeg"), *((LARGE, out) for out in memory.ENCODING)]


@pytest.mark.parametrize("source", SOURCES)
def test_no_picture_takes_more_than_is_reckoned(source: str) -> None:
    kind, pixels = source.split()[0], SIDES[0] * SIDES[1]
    words = [f"{width},{height},{out}" for (width, height), out in RESULTS]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, *words],
        input=SOURCES[source](),
        capture_output=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    for (size, out), line in zip(RESULTS, found.stdout.split(), strict=True):
        target = size[0] * size[1]
        reckoned = memory.reckon(kind, pixels, out, target, "alpha" in source, "scans" in source)
        taken = int(line)
        measure = f"{source} to {out}: {taken / 1e6:.0f} MB, reckoned {reckoned / 1e6:.0f}"
        assert taken <= reckoned, measure
        assert reckoned <= 2.5 * taken + (24 << 20), measure


# -- the running service --


def figure(pid: int, name: str) -> int:
    """A line of /proc/PID/status, in bytes."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def post(resizer: Resizer, data: bytes, query: str) -> tuple[int, bytes]:
    connection = HTTPConnection(*resizer.address, timeout=120)
    connection.request("POST", f"/resize?{query}", data)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def workers_of(resizer: Resizer) -> list[int]:
    return resizer.pids("cpu") + resizer.pids("express")


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("WEBP", "RGB", {"method": 0}),
        ("AVIF", "RGB", {"speed": 10}),
        ("PNG", "RGBA", {"compress_level": 1}),
        ("GIF", "P", {}),
    ],
)
def test_pages_of_a_big_picture_go_back(kind: str, mode: str, options: dict[str, object]) -> None:
    size = (8000, 6000) if mode == "RGBA" else (6000, 4000)  # an AVIF that large takes the test 1.6 GB
    data = saved(Image.linear_gradient("L").resize(size).convert("RGB").convert(mode), kind, **options)
    with Resizer(cpus=1, job_timeout="60s") as resizer:
        assert post(resizer, data, "w=100&format=png")[0] == 200
        assert max(figure(pid, "VmHWM") for pid in workers_of(resizer)) > 150e6, "it has taken a lot"

        def is_small() -> bool:
            return max(figure(pid, "VmRSS") for pid in workers_of(resizer)) <= 150e6

        wait_for(is_small, "at most 150 MB resident", 30)


def test_the_limit_is_the_limit_and_a_picture_that_needs_more_is_refused() -> None:
    data = saved(Image.linear_gradient("L").resize((5000, 4000)).convert("RGB"), "WEBP", method=0)
    with Resizer(cpus=1, memory_limit="400m") as resizer:
        for pid in workers_of(resizer):
            with open(f"/proc/{pid}/limits") as limits:
                line = next(line for line in limits if line.startswith("Max address space"))
            assert line.split()[3] == str(400 << 20)
        status, body = post(resizer, data, "w=100")
        assert status == 422 and "MiB of memory to resize" in json.loads(body)["error"]
        assert post(resizer, saved(noise("RGB"), "JPEG"), "w=100")[0] == 200
