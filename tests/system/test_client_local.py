"""resize-client --local: the same pipeline and the same ends without a server, in real processes."""

import io
import json
import os
import re
import signal
from pathlib import Path

import psutil
import pytest
from PIL import Image

from scripts.lab.waiting import wait_for
from tests.system.client_fixture import ClientFixture
from workers import imaging
from workers.imaging.job import ResizeJob
from workers.imaging.limits import PictureLimits


@pytest.fixture
def client(tmp_path: Path) -> ClientFixture:
    return ClientFixture(tmp_path)


def noise(width: int, height: int, format: str = "JPEG") -> bytes:
    """A picture that takes its time."""
    out = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(out, format)
    return out.getvalue()


def cpu_processes(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()


def test_results_are_those_of_the_pipeline(client: ClientFixture) -> None:
    sources = {"a.jpg": noise(90, 60), "sub/b.png": noise(70, 50, "PNG"), "c.webp": noise(50, 40, "WEBP")}
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(io.BytesIO(noise(60, 40))).save(turned, "JPEG", exif=exif)
    sources["turned.jpg"] = turned.getvalue()
    for name, content in sources.items():
        (client.pictures / name).parent.mkdir(exist_ok=True)
        (client.pictures / name).write_bytes(content)
    done = client.run_local("--fit", "cover", "--quality", "91", "--gravity", "north", "--cpus", "2")
    assert done.code == 0, done.err
    imaging.prepare()
    job = ResizeJob(20, 10, "cover", quality=91, gravity="north", orient=True)
    saved = client.saved()
    assert len(saved) == len(sources)
    for name, content in sources.items():
        stem, ending = os.path.splitext(name)
        assert saved[f"{stem}-20x10{ending}"] == imaging.resize(content, job, PictureLimits()).data
    assert done.out.startswith("-- [ Network Statistics ] --\n\tbytes sent: ")
    assert "4 answered, 4 saved, 0 skipped, 0 failed, 0 retries" in done.out


def test_no_server_is_needed_and_none_is_asked(client: ClientFixture) -> None:
    client.fill(3)
    assert client.run_local("--proxy", "name.invalid:1").code == 0
    assert len(client.saved()) == 3


def test_the_journal_the_report_and_the_times_are_as_with_a_server(client: ClientFixture) -> None:
    client.fill(4)
    report = client.directory / "r.json"
    os.utime(client.pictures / "p0000.jpg", ns=(1, 981_173_106_000_000_007))
    (client.pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(20))
    done = client.run_local("--report", str(report), "--preserve")
    assert done.code == 1
    assert re.fullmatch(r"failed: broken.png: 422: .+\n", done.err)
    rows = {row["picture"]: row for row in json.loads(report.read_text())}
    assert len(rows) == 5
    assert rows["broken.png"]["error"].startswith("422: ")
    assert rows["p0001.jpg"]["target"] == "p0001-20x10.jpg"
    assert rows["p0001.jpg"]["server"].startswith("cpu ")
    assert os.stat(client.results / "p0000-20x10.jpg").st_mtime_ns == 981_173_106_000_000_007
    again = client.run_local("--resume", "--preserve")
    assert "1 answered, 0 saved, 4 skipped, 1 failed" in again.out


@pytest.mark.parametrize("words", [["--dry-run"], ["--flood"], ["--processes", "2"]])
def test_what_asks_a_server_is_refused(client: ClientFixture, words: list[str]) -> None:
    client.fill(1)
    done = client.run_local(*words)
    assert done.code == 2
    assert "asks a server, and --local has none" in done.err


def test_cpu_processes_are_killed_and_nothing_is_lost(client: ClientFixture) -> None:
    content = noise(1600, 1200)
    for number in range(40):
        (client.pictures / f"p{number:04}.jpg").write_bytes(content)
    process = client.start_local("--cpus", "2", "--retries", "20")
    killed = 0
    while killed < 6 and process.poll() is None:
        for child in cpu_processes(process.pid)[:1]:
            child.kill()
            killed += 1
        before = len(list(client.results.glob("*.jpg"))) if client.results.exists() else 0
        wait_for(
            lambda before=before: (
                process.poll() is not None  # type: ignore[misc]
                or len(list(client.results.glob("*.jpg"))) > before
            ),
            "the next result",
            60,
        )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert killed >= 3
    assert len(client.saved()) == 40
    assert not client.parts()
    assert "40 answered, 40 saved" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_ends_it_with_the_right_numbers(
    client: ClientFixture, number: signal.Signals
) -> None:
    content = noise(1600, 1200)
    for index in range(100):
        (client.pictures / f"p{index:04}.jpg").write_bytes(content)
    process = client.start_local("--cpus", "2")

    def wait_for_results(count: int) -> None:
        wait_for(lambda: len(list(client.results.glob("*.jpg"))) >= count, f"{count} results", 60)

    wait_for_results(3)
    children = cpu_processes(process.pid)
    for child in children:
        child.send_signal(number)
    wait_for_results(len(list(client.results.glob("*.jpg"))) + 5)
    assert cpu_processes(process.pid) == children, "the signal is the run's to obey"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    undone = re.fullmatch(rf"resize-client: stopped by {number.name}; (\d+) pictures? not done\n", err)
    assert undone is not None, err
    assert int(undone[1]) + len(client.saved()) == 100
    assert f"{len(client.saved())} saved, 0 skipped, 0 failed, 0 retries, {undone[1]} not done" in out
    assert not any(child.is_running() for child in children)


def test_cpu_processes_end_when_the_run_is_killed(client: ClientFixture) -> None:
    content = noise(1600, 1200)
    for index in range(40):
        (client.pictures / f"p{index:04}.jpg").write_bytes(content)
    process = client.start_local("--cpus", "2")
    wait_for(lambda: len(list(client.results.glob("*.jpg"))) >= 1, "a result", 60)
    children = cpu_processes(process.pid)
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=60)  # returns when the last process that holds the pipes has exited
    wait_for(lambda: not any(child.is_running() for child in children), "the CPU processes end", 30)


def test_a_cpu_process_has_no_file_but_its_own_order(client: ClientFixture) -> None:
    for index in range(30):
        (client.pictures / f"p{index:04}.jpg").write_bytes(noise(1600, 1200))
    process = client.start_local("--cpus", "2")
    try:
        wait_for(lambda: len(list(client.results.glob("*.jpg"))) >= 1, "a result", 60)
        for child in cpu_processes(process.pid):
            links = []
            try:
                names = os.listdir(f"/proc/{child.pid}/fd")
            except PermissionError:
                pytest.skip("the descriptors of a process in the sandbox are root's to see")
            for name in names:
                try:
                    links.append(os.readlink(f"/proc/{child.pid}/fd/{name}"))
                except FileNotFoundError:  # closed meanwhile
                    continue
            files = [link for link in links if link.startswith(str(client.directory))]
            assert len(files) <= 1, files
            assert sum(link.startswith("socket:") for link in links) <= 1, links
            assert not any("epoll" in link or "journal" in link for link in links), links
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_cpu_processes_are_in_the_sandbox(client: ClientFixture) -> None:
    for index in range(30):
        (client.pictures / f"p{index:04}.jpg").write_bytes(noise(1600, 1200))
    log = client.directory / "client.log"
    process = client.start_local("--cpus", "2", "--log", str(log), "--loglevel", "2")
    try:
        wait_for(lambda: len(list(client.results.glob("*.jpg"))) >= 1, "a result", 60)
        fields = []
        for child in cpu_processes(process.pid):
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            fields.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert len(fields) == 2
    text = log.read_text()
    for status in fields:
        assert int(status["NoNewPrivs"]) == 1
        assert int(status["CapEff"], 16) == 0
        assert int(status["Seccomp"]) == 2 or "seccomp:" in text.partition("without")[2]


def test_many_small_pictures_of_every_format(client: ClientFixture) -> None:
    for format in ("JPEG", "PNG", "GIF"):
        client.fill(20, format, format)
    (client.pictures / "text.jpg").write_bytes(b"no picture")
    done = client.run_local("--format", "webp")
    assert done.code == 1
    assert done.err.startswith("failed: text.jpg: 415: not a picture of a known format")
    assert len(client.saved()) == 60
    assert all(content[8:12] == b"WEBP" for content in client.saved().values())
