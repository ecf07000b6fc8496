"""resize-client --local: the same pipeline and the same ends without a server, in real processes."""

import io
import json
import os
import re
import signal
import subprocess
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


def endless(client: ClientFixture, *words: str) -> "subprocess.Popen[str]":
    """A run that does not end by itself, of 10 pictures that take their time; the first result is there."""
    content = noise(1600, 1200)
    for number in range(10):
        (client.pictures / f"p{number:04}.jpg").write_bytes(content)
    process = client.start_local("--cpus", "2", "--times", "1000000", *words)
    wait_for(lambda: client.results.exists() and list(client.results.glob("*.jpg")), "a result", 30)
    wait_for(lambda: len(cpu_processes(process.pid)) == 2, "two CPU processes", 30)
    return process


def saved_lines(client: ClientFixture) -> int:
    """Results so far, by the journal."""
    return (client.results / ".resize-client.journal").read_bytes().count(b"\n")


def wait_for_more(client: ClientFixture, count: int) -> None:
    already = saved_lines(client)
    wait_for(lambda: saved_lines(client) >= already + count, f"{count} more results", 30)


def figures(out: str) -> tuple[int, int]:
    """Pictures saved and not done; no other one."""
    found = re.search(r"(\d+) saved, 0 skipped, 0 failed, \d+ retr\w+, (\d+) not done", out)
    assert found is not None, out
    return int(found[1]), int(found[2])


def test_cpu_processes_are_killed_and_nothing_is_lost(client: ClientFixture) -> None:
    process = endless(client, "--retries", "1000")
    for _ in range(6):
        cpu_processes(process.pid)[0].kill()
        wait_for_more(client, 4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    saved, undone = figures(out)
    assert saved + undone == 10_000_000
    assert saved == saved_lines(client)
    assert len(client.saved()) == 10
    assert not client.parts()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_ends_it_with_the_right_numbers(
    client: ClientFixture, number: signal.Signals
) -> None:
    process = endless(client)
    children = cpu_processes(process.pid)
    for child in children:
        child.send_signal(number)
    wait_for_more(client, 6)
    assert cpu_processes(process.pid) == children, "the signal is the run's to obey"
    process.send_signal(number)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 128 + number
    saved, undone = figures(out)
    assert saved + undone == 10_000_000
    assert saved == saved_lines(client)
    assert " 0 retries" in out
    assert err == f"resize-client: stopped by {number.name}; {undone:,} pictures not done\n"
    assert not any(child.is_running() for child in children)


def test_cpu_processes_end_when_the_run_is_killed(client: ClientFixture) -> None:
    process = endless(client)
    children = cpu_processes(process.pid)
    process.kill()
    process.communicate(timeout=180)  # returns when the last process that holds the pipes has exited
    wait_for(lambda: not any(child.is_running() for child in children), "the CPU processes end", 30)


def test_a_cpu_process_has_no_file_but_its_own_order(client: ClientFixture) -> None:
    process = endless(client)
    try:
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
    log = client.directory / "client.log"
    process = endless(client, "--log", str(log), "--loglevel", "2")
    fields: list[dict[str, str]] = []

    def entered() -> bool:
        """Both are past no_new_privs and seccomp, or the log says what they lack."""
        fields.clear()
        for child in cpu_processes(process.pid):
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            fields.append(dict(line.split(":\t", 1) for line in lines if ":\t" in line))
        states = [(one["NoNewPrivs"], one["Seccomp"]) for one in fields]
        is_known = states == [("1", "2")] * 2 or "seccomp:" in log.read_text().partition("without")[2]
        return len(states) == 2 and is_known

    try:
        wait_for(entered, "two CPU processes in the sandbox", 30)
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert len(fields) == 2
    text = log.read_text()
    for status in fields:
        assert int(status["NoNewPrivs"]) == 1
        assert int(status["CapEff"], 16) == 0
        assert int(status["Seccomp"]) == 2 or "seccomp:" in text.partition("without")[2]


@pytest.mark.parametrize("wanted", ["off", "require"])
def test_the_sandbox_that_is_asked_for(client: ClientFixture, wanted: str) -> None:
    client.fill(2, "GIF", "GIF")
    log = client.directory / "client.log"
    done = client.run_local("--sandbox", wanted, "--log", str(log), "--loglevel", "2")
    if wanted == "off":
        assert done.code == 0, done.err
        assert 'note="sandbox off"' in log.read_text()
    elif done.code == 0:
        assert "no_new_privs" in log.read_text()
        assert "seccomp" not in log.read_text().partition("without")[2]
    else:
        assert "--sandbox auto starts without" in done.err
        assert client.saved() == {}


def test_many_small_pictures_of_every_format(client: ClientFixture) -> None:
    for format in ("JPEG", "PNG", "GIF"):
        client.fill(20, format, format)
    (client.pictures / "text.jpg").write_bytes(b"no picture")
    done = client.run_local("--format", "webp")
    assert done.code == 1
    assert done.err.startswith("failed: text.jpg: 415: not a picture of a known format")
    assert len(client.saved()) == 60
    assert all(content[8:12] == b"WEBP" for content in client.saved().values())
