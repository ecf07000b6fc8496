"""Busy, draining, dying and absent servers, full disks, kill -9: each picture is saved once or reported as failed."""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from scripts.lab.waiting import wait_for
from tests.system.client_fixture import COMMAND, ROOT, ClientFixture
from tests.system.fake_resizer import FakeResizer, ServerConnection, right_answer
from workers.wire.messages import Request, Response


@pytest.fixture
def client(tmp_path: Path) -> ClientFixture:
    return ClientFixture(tmp_path)


@pytest.mark.parametrize("status", [429, 503])
def test_busy_and_draining_are_tried_again_on_a_new_connection(client: ClientFixture, status: int) -> None:
    client.fill(6)
    refused_on: dict[str, int] = {}
    answered_on: dict[str, int] = {}

    def refuse_once(connection: ServerConnection, request: Request) -> None:
        if request.original_name not in refused_on:
            refused_on[request.original_name] = connection.number
            connection.send(
                Response(request.original_name, id=request.id, status=status, error="later, please")
            )
        else:
            answered_on[request.original_name] = connection.number
            connection.send(right_answer(request))

    with FakeResizer(refuse_once) as server:
        done = client.run(server.address)
    assert done.code == 0, done.err
    assert len(client.saved()) == 6
    assert all(answered_on[name] > refused_on[name] for name in refused_on)
    assert "6 retries" in done.out


def test_always_busy_is_given_up_after_three_retries(client: ClientFixture) -> None:
    client.fill(2)

    def busy(connection: ServerConnection, request: Request) -> None:
        connection.send(
            Response(request.original_name, id=request.id, status=429, error="64 pictures wait already")
        )

    with FakeResizer(busy) as server:
        done = client.run(server.address)
    assert done.code == 1
    assert "failed: p0000.jpg: busy: 64 pictures wait already" in done.err
    assert len(server.requests) == 8
    assert re.search(r"^Failures:\n +2 +busy$", done.out, re.MULTILINE)


def test_final_statuses_are_not_tried_again(client: ClientFixture) -> None:
    client.fill(4)

    def refuse(connection: ServerConnection, request: Request) -> None:
        connection.send(Response(request.original_name, id=request.id, status=422, error="not a picture"))

    with FakeResizer(refuse) as server:
        done = client.run(server.address)
    assert done.code == 1
    assert len(server.requests) == 4


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_lost_with_requests_in_flight(client: ClientFixture, how: str) -> None:
    client.fill(40)

    def close_after_seven(connection: ServerConnection, request: Request) -> None:
        if connection.number < 5 and connection.requests > 7:
            connection.reset() if how == "reset" else connection.sock.close()
        else:
            connection.send(right_answer(request))

    with FakeResizer(close_after_seven) as server:
        done = client.run(server.address)
    assert done.code == 0, done.err
    assert len(client.saved()) == 40
    assert server.connections >= 5


def test_a_picture_that_makes_the_server_close_the_connection_fails_alone(client: ClientFixture) -> None:
    """As an original backend does with a picture it cannot read."""
    client.fill(30)

    def close_on_13(connection: ServerConnection, request: Request) -> None:
        if request.original_name == "p0013.jpg":
            connection.sock.close()
        else:
            connection.send(right_answer(request))

    with FakeResizer(close_on_13) as server:
        done = client.run(server.address)
    assert done.code == 1
    assert len(client.saved()) == 29
    assert done.err.count("failed:") == 1
    assert "failed: p0013.jpg: lost" in done.err


def test_a_reply_that_never_comes_is_a_timeout(client: ClientFixture) -> None:
    client.fill(3)

    def forget_one(connection: ServerConnection, request: Request) -> None:
        if request.original_name != "p0001.jpg":
            connection.send(right_answer(request))

    with FakeResizer(forget_one) as server:
        began = time.monotonic()
        done = client.run(server.address, "--timeout", "300ms", "--retries", "1")
    assert done.code == 1
    assert time.monotonic() - began < 30
    assert "failed: p0001.jpg: timeout" in done.err
    assert len(client.saved()) == 2


def test_an_address_without_a_listener(client: ClientFixture) -> None:
    client.fill(3)
    with FakeResizer() as server:
        address = server.address
    began = time.monotonic()
    done = client.run(address)
    assert done.code == 1
    assert time.monotonic() - began < 30
    assert done.err == (
        f"resize-client: cannot connect to {address}: Connection refused; 3 pictures not done\n"
    )
    assert "0 answered, 0 saved, 0 skipped, 0 failed, 0 retries, 3 not done" in done.out


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.2p1\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * 99]
)
def test_an_address_where_another_service_listens_is_one_sentence(
    client: ClientFixture, greeting: bytes
) -> None:
    client.fill(50)
    with FakeResizer(lambda connection, request: connection.sock.sendall(greeting)) as server:
        done = client.run(server.address)
    assert done.code == 1
    assert re.fullmatch(
        rf"resize-client: {server.address}: protocol: not a frame: begins with [0-9a-f ]+; 50 pictures not done\n",
        done.err,
    )
    assert server.connections == 1


def test_a_service_that_closes_every_connection_does_not_hold_up_the_run(client: ClientFixture) -> None:
    client.fill(200)

    def close_at_once(connection: ServerConnection, request: Request) -> None:
        connection.sock.close()

    with FakeResizer(close_at_once) as server:
        began = time.monotonic()
        done = client.run(server.address)
    assert done.code == 1
    assert time.monotonic() - began < 45
    assert server.connections < 20
    lines = done.err.splitlines()
    assert len(lines) < 8, "a line for each connection that took a picture down, not for each picture"
    assert lines[-1].startswith(f"resize-client: {server.address}: lost: closed by the other side; ")
    assert lines[-1].endswith(" pictures not done")


def test_a_service_that_comes_back_in_time_loses_nothing(client: ClientFixture) -> None:
    client.fill(120)
    gone_until = [0.0]

    def away_for_a_while(connection: ServerConnection, request: Request) -> None:
        if len(server.requests) == 30:
            gone_until[0] = time.monotonic() + 1.5
        if time.monotonic() < gone_until[0]:
            connection.reset()
        else:
            connection.send(right_answer(request))

    with FakeResizer(away_for_a_while) as server:
        done = client.run(server.address, "--minconns", "3", "--maxconns", "3")
    assert done.code == 0, done.err
    assert len(client.saved()) == 120


# -- the output directory --------------------------------------------------------------------------------------


def test_an_output_directory_that_cannot_be_made(client: ClientFixture) -> None:
    client.fill(1)
    client.results = client.pictures / "p0000.jpg" / "below a file"
    done = client.run("127.0.0.1:1")
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1


def test_an_output_directory_deleted_during_the_run(client: ClientFixture) -> None:
    client.fill(20, "sub")

    def delete(connection: ServerConnection, request: Request) -> None:
        if len(server.requests) == 5:
            for path in sorted(client.results.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            client.results.rmdir()
        connection.send(right_answer(request))

    with FakeResizer(delete) as server:
        done = client.run(server.address, "--in-flight", "1")
    assert done.code == 1
    assert done.err.count("cannot save: No such file or directory") == 16
    assert not client.results.exists()


@pytest.fixture
def small_disk(client: ClientFixture) -> Path:
    client.results.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(client.results)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    return client.results


def test_a_full_disk_leaves_no_truncated_result(client: ClientFixture, small_disk: Path) -> None:
    client.fill(30)

    def big(connection: ServerConnection, request: Request) -> None:
        answer = right_answer(request)
        answer.data = bytes(answer.data) + b"x" * 6000
        connection.send(answer)

    try:
        with FakeResizer(big) as server:
            done = client.run(server.address)
        assert done.code == 1
        (sentence,) = done.err.splitlines()
        assert re.fullmatch(
            r"resize-client: cannot save p00\d\d-20x10.jpg: No space left on device; \d+ pictures not done",
            sentence,
        )
        assert len(server.requests) < 30, "the run ended"
        undone = int(sentence.split("; ")[1].split()[0])
        assert undone + len(client.saved()) == 30
        sizes = {len(content) for content in client.saved().values()}
        assert len(sizes) == 1
        assert not client.parts()
        assert 0 < len(client.saved()) < 30
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


@pytest.mark.parametrize(
    "words",
    [
        ["--report", "{absent}/r.json"],
        ["--report", "{file}/r.csv"],
        ["--log", "{absent}/client.log"],
        ["--debug", "--debug-dir", "{file}/profiles"],
        ["--output", "{file}/results"],
    ],
)
def test_a_path_that_cannot_be_written_is_told_before_any_work(
    client: ClientFixture, words: list[str]
) -> None:
    client.fill(3)
    file = client.directory / "file"
    file.write_text("")
    words = [word.format(absent=client.directory / "absent", file=file) for word in words]
    with FakeResizer() as server:
        done = client.run(server.address, *words)
    assert done.code in (1, 2)
    assert len(done.err.splitlines()) == 1
    assert str(client.directory) in done.err
    assert server.connections == 0
    assert done.out == ""


def test_a_report_that_is_lost_at_the_end_keeps_the_figures(client: ClientFixture) -> None:
    client.fill(3)
    report = client.directory / "r.json"

    def spoil(connection: ServerConnection, request: Request) -> None:
        report.mkdir(exist_ok=True)
        connection.send(right_answer(request))

    with FakeResizer(spoil) as server:
        done = client.run(server.address, "--report", str(report))
    assert done.code == 1
    assert "3 answered, 3 saved" in done.out
    assert done.err == f"resize-client: cannot write the report {report}: Is a directory\n"


def test_the_log_is_opened_again_on_usr1(client: ClientFixture) -> None:
    client.fill(40)
    log, old = client.directory / "client.log", client.directory / "client.log.1"
    is_renamed = threading.Event()

    def wait_at_20(connection: ServerConnection, request: Request) -> None:
        if len(server.requests) == 20:
            is_renamed.wait(60)
        connection.send(right_answer(request))

    with FakeResizer(wait_at_20) as server:
        words = ["--log", str(log), "--loglevel", "1", "--in-flight", "1", "--timeout", "5m"]
        process = client.start(server.address, *words)
        wait_for(lambda: len(server.requests) >= 20, "requests", 20)
        log.rename(old)
        process.send_signal(signal.SIGUSR1)
        wait_for(log.exists, "the new log", 20)
        is_renamed.set()
        _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    lines = log.read_text().splitlines() + old.read_text().splitlines()
    assert log.stat().st_size and old.stat().st_size
    assert sum("request picture=" in line for line in lines) == 40


def test_killed_and_resumed_nothing_is_done_twice(client: ClientFixture) -> None:
    client.fill(60)
    client.fill(20, "sub", "PNG")

    most = 0  # requests that are answered

    def slow(connection: ServerConnection, request: Request) -> None:
        time.sleep(0.004)
        if len(server.requests) <= most:
            connection.send(right_answer(request))

    with FakeResizer(slow) as server:
        for run in range(1, 5):
            before = len(server.requests)
            most = before + 15
            process = client.start(server.address, "--resume")
            wait_for(lambda before=before: len(server.requests) >= before + 12, "requests", 30)
            wait_for(lambda run=run: len(client.saved()) >= 7 * run, "results", 30)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        (client.results / ".resize-client-1-1.part").write_bytes(b"of a killed run")
        with (client.results / ".resize-client.journal").open("ab") as journal:
            journal.write(b'{"source": "p0059.jpg", "siz')
        kept = {
            name: os.stat(client.results / name).st_mtime_ns
            for name in client.saved()
            if not name.endswith(".part")
        }
        most = 1_000
        before = server.connections  # the killed run's last requests may still arrive
        done = client.run(server.address, "--resume")
    assert done.code == 0, done.err
    assert len(client.saved()) == 80
    assert not client.parts()
    assert len(kept) >= 4 * (12 - 5)
    asked = sum(count for number, count in server.by_connection.items() if number > before)
    assert asked == 80 - len(kept), "renamed results were not requested again"
    assert all(os.stat(client.results / name).st_mtime_ns == mtime for name, mtime in kept.items())


def test_a_signal_before_the_run_is_one_sentence_too(client: ClientFixture) -> None:
    """The client waits for the journal, which another process has locked."""
    client.fill(1)
    client.results.mkdir()
    with (client.results / ".resize-client.journal").open("wb") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        process = client.start("127.0.0.1:1")
        waiter = re.compile(rf"-> FLOCK +ADVISORY +READ +{process.pid} ")
        wait_for(lambda: waiter.search(Path("/proc/locks").read_text()), "the client waits", 30)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "resize-client: stopped by SIGINT\n")


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_its_statistics(
    client: ClientFixture, number: signal.Signals, processes: int
) -> None:
    client.fill(50)
    report = client.directory / "report.json"

    def ten_and_no_more(connection: ServerConnection, request: Request) -> None:
        if len(server.requests) <= 10:
            connection.send(right_answer(request))

    with FakeResizer(ten_and_no_more) as server:
        process = client.start(
            server.address, "--processes", str(processes), "--report", str(report), "--in-flight", "1"
        )
        wait_for(lambda: len(server.requests) >= 10 + processes, "each process waits for a reply", 20)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert "-- [ Network Statistics ] --" in out
    figures = re.search(r"(\d+) answered, (\d+) saved, 0 skipped, 0 failed, 0 retries, (\d+) not done", out)
    assert figures is not None, out
    answered, saved, undone = map(int, figures.groups())
    assert answered == saved == len(client.saved())
    assert saved + undone == 50
    assert err == f"resize-client: stopped by {number.name}; {undone} pictures not done\n"
    rows = json.loads(report.read_text())
    assert len({row["picture"] for row in rows}) == len(rows) == 50
    assert sum(not row["error"] for row in rows) == saved
    assert not client.parts()


def test_children_end_when_their_parent_is_killed(client: ClientFixture) -> None:
    client.fill(10)

    def slow(connection: ServerConnection, request: Request) -> None:
        time.sleep(0.1)
        connection.send(right_answer(request))

    with FakeResizer(slow) as server:
        process = client.start(server.address, "--processes", "2", "--times", "100", "--dry-run")
        wait_for(lambda: server.at_once >= 2, "two clients", 30)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # returns when the last process that holds the pipes has exited
    assert process.returncode == -signal.SIGKILL


def test_a_run_outlives_the_shell_that_started_it(client: ClientFixture) -> None:
    client.fill(30)

    def slow(connection: ServerConnection, request: Request) -> None:
        time.sleep(0.03)
        connection.send(right_answer(request))

    with FakeResizer(slow) as server:
        command = " ".join(map(shlex.quote, [*COMMAND, *client.arguments(server.address)]))
        subprocess.run(["sh", "-c", f"{command} >/dev/null 2>&1 &"], cwd=ROOT, check=True, timeout=60)
        wait_for(lambda: len(list(client.results.glob("*.jpg"))) == 30, "30 results", 20)


def test_debug_leaves_a_profile_and_a_log(client: ClientFixture) -> None:
    client.fill(2)
    log = client.directory / "client.log"
    with FakeResizer() as server:
        done = client.run(
            server.address,
            "--debug",
            "--debug-dir",
            str(client.directory),
            "--loglevel",
            "2",
            "--log",
            str(log),
        )
    assert done.code == 0, done.err
    assert list(client.directory.glob("client-*.pstats"))
    assert "request picture=p0000.jpg " in log.read_text()
    assert "dial" in log.read_text()
