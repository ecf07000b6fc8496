"""Busy, leaving, dying and absent servers, full disks, kill -9: what can be done is done once, and the rest is told."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.client_bench import COMMAND, ROOT, Bench
from tests.system.fake_resizer import FakeResizer, Talk, right_answer
from tests.system.harness import wait_for
from workers.wire.messages import Request, Response


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("status", [429, 503])
def test_busy_and_draining_are_tried_again_on_a_new_connection(bench: Bench, status: int) -> None:
    bench.fill(6)
    refused_on: dict[str, int] = {}
    answered_on: dict[str, int] = {}

    def refuse_once(talk: Talk, request: Request) -> None:
        if request.original_name not in refused_on:
            refused_on[request.original_name] = talk.number
            talk.send(Response(request.original_name, id=request.id, status=status, error="later, please"))
        else:
            answered_on[request.original_name] = talk.number
            talk.send(right_answer(request))

    with FakeResizer(refuse_once) as server:
        done = bench.run(server.address)
    assert done.code == 0, done.err
    assert len(bench.saved()) == 6
    assert all(answered_on[name] > refused_on[name] for name in refused_on)
    assert "6 retries" in done.out


def test_always_busy_is_given_up_after_three_retries(bench: Bench) -> None:
    bench.fill(2)

    def busy(talk: Talk, request: Request) -> None:
        talk.send(
            Response(request.original_name, id=request.id, status=429, error="64 pictures wait already")
        )

    with FakeResizer(busy) as server:
        done = bench.run(server.address)
    assert done.code == 1
    assert "failed: p0000.jpg: busy: 64 pictures wait already" in done.err
    assert len(server.requests) == 8
    assert re.search(r"^Failures:\n +2 +busy$", done.out, re.MULTILINE)


def test_final_statuses_are_not_tried_again(bench: Bench) -> None:
    bench.fill(4)

    def refuse(talk: Talk, request: Request) -> None:
        talk.send(Response(request.original_name, id=request.id, status=422, error="not a picture"))

    with FakeResizer(refuse) as server:
        done = bench.run(server.address)
    assert done.code == 1
    assert len(server.requests) == 4


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_lost_with_requests_in_flight(bench: Bench, how: str) -> None:
    bench.fill(40)

    def leave_after_seven(talk: Talk, request: Request) -> None:
        if talk.number < 5 and talk.requests > 7:
            talk.reset() if how == "reset" else talk.sock.close()
        else:
            talk.send(right_answer(request))

    with FakeResizer(leave_after_seven) as server:
        done = bench.run(server.address)
    assert done.code == 0, done.err
    assert len(bench.saved()) == 40
    assert server.connections >= 5


def test_a_picture_that_ends_connections_fails_alone(bench: Bench) -> None:
    """As an original backend does with a picture it cannot read."""
    bench.fill(30)

    def die_of_13(talk: Talk, request: Request) -> None:
        if request.original_name == "p0013.jpg":
            talk.sock.close()
        else:
            talk.send(right_answer(request))

    with FakeResizer(die_of_13) as server:
        done = bench.run(server.address)
    assert done.code == 1
    assert len(bench.saved()) == 29
    assert done.err.count("failed:") == 1
    assert "failed: p0013.jpg: lost" in done.err


def test_a_reply_that_never_comes_is_a_timeout(bench: Bench) -> None:
    bench.fill(3)

    def forget_one(talk: Talk, request: Request) -> None:
        if request.original_name != "p0001.jpg":
            talk.send(right_answer(request))

    with FakeResizer(forget_one) as server:
        began = time.monotonic()
        done = bench.run(server.address, "--timeout", "300ms", "--retries", "1")
    assert done.code == 1
    assert time.monotonic() - began < 8
    assert "failed: p0001.jpg: timeout" in done.err
    assert len(bench.saved()) == 2


def test_nobody_there(bench: Bench) -> None:
    bench.fill(3)
    with FakeResizer() as server:
        address = server.address
    began = time.monotonic()
    done = bench.run(address)
    assert done.code == 1
    assert time.monotonic() - began < 6
    assert done.err.count("cannot connect: Connection refused") == 3


def test_a_service_that_hangs_up_on_everybody_does_not_hold_a_directory(bench: Bench) -> None:
    bench.fill(200)

    def hang_up(talk: Talk, request: Request) -> None:
        talk.sock.close()

    with FakeResizer(hang_up) as server:
        began = time.monotonic()
        done = bench.run(server.address)
    assert done.code == 1
    assert time.monotonic() - began < 15
    assert server.connections < 20
    assert "... and 100 more" in done.err


def test_a_service_that_comes_back_in_time_loses_nothing(bench: Bench) -> None:
    bench.fill(120)
    gone_until = [0.0]

    def away_for_a_while(talk: Talk, request: Request) -> None:
        if len(server.requests) == 30:
            gone_until[0] = time.monotonic() + 1.5
        if time.monotonic() < gone_until[0]:
            talk.reset()
        else:
            talk.send(right_answer(request))

    with FakeResizer(away_for_a_while) as server:
        done = bench.run(server.address, "--minconns", "3", "--maxconns", "3")
    assert done.code == 0, done.err
    assert len(bench.saved()) == 120


# -- the output directory --------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_made(bench: Bench) -> None:
    bench.fill(1)
    bench.results = bench.pictures / "p0000.jpg" / "below a file"
    done = bench.run("127.0.0.1:1")
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1


def test_an_output_deleted_under_way(bench: Bench) -> None:
    bench.fill(20, "sub")

    def delete(talk: Talk, request: Request) -> None:
        if len(server.requests) == 5:
            for path in sorted(bench.results.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            bench.results.rmdir()
        talk.send(right_answer(request))

    with FakeResizer(delete) as server:
        done = bench.run(server.address, "--in-flight", "1")
    assert done.code == 1
    assert done.err.count("cannot save: No such file or directory") == 16
    assert not bench.results.exists()


@pytest.fixture
def small_disk(bench: Bench) -> Path:
    bench.results.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(bench.results)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    return bench.results


def test_a_full_disk_leaves_no_truncated_result(bench: Bench, small_disk: Path) -> None:
    bench.fill(30)

    def big(talk: Talk, request: Request) -> None:
        answer = right_answer(request)
        answer.data = bytes(answer.data) + b"x" * 6000
        talk.send(answer)

    try:
        with FakeResizer(big) as server:
            done = bench.run(server.address)
        assert done.code == 1
        assert "cannot save: No space left on device" in done.err
        sizes = {len(content) for content in bench.saved().values()}
        assert len(sizes) == 1
        assert not bench.parts()
        assert 0 < len(bench.saved()) < 30
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


def test_killed_and_resumed_nothing_is_done_twice(bench: Bench) -> None:
    bench.fill(60)
    bench.fill(20, "sub", "PNG")

    def slow(talk: Talk, request: Request) -> None:
        time.sleep(0.004)
        talk.send(right_answer(request))

    with FakeResizer(slow) as server:
        for _ in range(4):
            before = len(server.requests)
            client = bench.start(server.address, "--resume")
            while len(server.requests) < before + 12:
                time.sleep(0.002)
            client.send_signal(signal.SIGKILL)
            client.communicate()
        (bench.results / ".resize-client-1-1.part").write_bytes(b"left by a killed run")
        with (bench.results / ".resize-client.journal").open("ab") as journal:
            journal.write(b'{"source": "p0059.jpg", "siz')
        kept = {
            name: os.stat(bench.results / name).st_mtime_ns
            for name in bench.saved()
            if not name.endswith(".part")
        }
        before = server.connections  # the killed run's last requests may still be on their way
        done = bench.run(server.address, "--resume")
    assert done.code == 0, done.err
    assert len(bench.saved()) == 80
    assert not bench.parts()
    assert len(kept) >= 4 * (12 - 5)
    asked = sum(count for number, count in server.by_connection.items() if number > before)
    assert asked == 80 - len(kept), "what had its name was not asked for again"
    assert all(os.stat(bench.results / name).st_mtime_ns == mtime for name, mtime in kept.items())


def test_a_signal_ends_the_run_with_its_account(bench: Bench) -> None:
    bench.fill(50)

    def slow(talk: Talk, request: Request) -> None:
        time.sleep(0.05)
        talk.send(right_answer(request))

    with FakeResizer(slow) as server:
        client = bench.start(server.address)
        while len(server.requests) < 5:
            time.sleep(0.01)
        client.send_signal(signal.SIGTERM)
        out, err = client.communicate(timeout=5)
    assert client.returncode == 1
    assert "-- [ Network Statistics ] --" in out
    assert "stopped by SIGTERM" in err
    assert not bench.parts()


def test_children_end_when_their_parent_is_killed(bench: Bench) -> None:
    bench.fill(10)

    def slow(talk: Talk, request: Request) -> None:
        time.sleep(0.1)
        talk.send(right_answer(request))

    with FakeResizer(slow) as server:
        client = bench.start(server.address, "--processes", "2", "--times", "100", "--dry-run")
        while server.at_once < 2:
            time.sleep(0.01)
        client.send_signal(signal.SIGKILL)
        client.communicate(timeout=10)  # returns when the last holder of the pipes is gone
    assert client.returncode == -signal.SIGKILL


def test_a_run_outlives_the_shell_that_started_it(bench: Bench) -> None:
    bench.fill(30)

    def slow(talk: Talk, request: Request) -> None:
        time.sleep(0.03)
        talk.send(right_answer(request))

    with FakeResizer(slow) as server:
        command = " ".join(map(shlex.quote, [*COMMAND, *bench.arguments(server.address)]))
        subprocess.run(["sh", "-c", f"{command} >/dev/null 2>&1 &"], cwd=ROOT, check=True, timeout=10)
        wait_for(lambda: len(list(bench.results.glob("*.jpg"))) == 30, "30 results", 20)


def test_debug_leaves_a_profile_and_a_log(bench: Bench) -> None:
    bench.fill(2)
    log = bench.room / "client.log"
    with FakeResizer() as server:
        done = bench.run(
            server.address, "--debug", "--debug-dir", str(bench.room), "--loglevel", "2", "--log", str(log)
        )
    assert done.code == 0, done.err
    assert list(bench.room.glob("client-*.pstats"))
    assert "close picture='p0000.jpg'" in log.read_text()
    assert "dial" in log.read_text()
