"""No descriptors, no disk, no log reader, a storm of signals, a drain with a deadline: traffic goes on."""

import fcntl
import os
import random
import re
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import Load, receive, run_load
from scripts.lab.network import held
from scripts.lab.process import freeze, is_running
from scripts.lab.waiting import best_of, wait_for
from tests.system.faults import report
from tests.system.harness import Balancer

# --- descriptors


def answered(selector: selectors.BaseSelector, seconds: float) -> set[socket.socket]:
    """Who got an echo within that time."""
    found: set[socket.socket] = set()
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for key, _ in selector.select(min(left, 0.05)):
            sock: socket.socket = key.fileobj  # type: ignore[assignment]
            selector.unregister(sock)
            if sock.recv(1) == b"x":
                found.add(sock)
    return found


def run_out_of_descriptors(limit: int, clients: int, seconds: float) -> None:
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = Balancer(upstreams=[echo.address], check="none")
        lb.wrapper = ["prlimit", f"--nofile={limit}:{limit}"]
        stack.enter_context(lb)
        pids = lb.worker_pids()
        crowd = stack.enter_context(held(lb.address, clients))
        selector = stack.enter_context(selectors.DefaultSelector())
        for client in crowd:
            client.sendall(b"x")
            selector.register(client, selectors.EVENT_READ)
        served = answered(selector, 1.0)
        while len(served) <= 100 and (more := answered(selector, 5.0)):
            served |= more
        assert 100 < len(served) < limit, len(served)
        at = len(lb.log())
        share = lb.cpu_share(seconds)
        lines = lb.log()[at:].count("\n")
        room, open_ones = 60, list(served)

        def make_room() -> float:
            """Seconds until as many have been served as have gone."""
            for _ in range(room):
                open_ones.pop().close()
            freed = time.monotonic()
            later: set[socket.socket] = set()
            while len(later) < room and time.monotonic() - freed < 20:
                later |= answered(selector, 0.02)
            open_ones.extend(later)
            return time.monotonic() - freed

        resumed = best_of(make_room, 1.0, "the next accepted", 3)
        report(
            "62",
            nofile=limit,
            clients=clients,
            served=len(served),
            cpu_percent=round(share * 100, 1),
            lines_per_second=round(lines / seconds, 2),
            resumed_ms=round(resumed * 1000),
        )
        assert share <= 0.10, f"{share:.0%} of a core"
        assert lines <= seconds, f"{lines} log lines in {seconds} s"
        assert lb.worker_pids() == pids
        for client in crowd:
            client.close()
        wait_for(lambda: lb.status()["totals"]["sessions"] == 0, "all gone", 10)
        lb.check_at_rest()


def test_out_of_descriptors_no_process_dies_spins_or_floods_the_log() -> None:
    """Fails with an accept loop that tries again at once: a full core, and a log line each time."""
    run_out_of_descriptors(256, 1000, 4.0)


@pytest.mark.soak
def test_out_of_descriptors_for_half_a_minute() -> None:
    run_out_of_descriptors(256, 1000, 30.0)


# --- where the log goes


@contextmanager
def tiny_disk(directory: Path) -> Iterator[Path]:
    """A file system of 256 KiB; skips where it cannot be mounted."""
    place = directory / "disk"
    place.mkdir()
    if os.getuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def dropped_in(text: str) -> int:
    return sum(map(int, re.findall(r" log dropped=(\d+)", text)))


def test_a_full_disk_costs_log_lines_and_nothing_else(tmp_path: Path) -> None:
    """They are counted, and told when there is room again; a reopened log gets everything from then on. Fails where a
    failed write is raised, or tried again."""
    with ExitStack() as stack:
        disk = stack.enter_context(tiny_disk(tmp_path))
        backend = stack.enter_context(Digest())
        log = disk / "log"
        lb = Balancer(upstreams=[backend.address], log=log, loglevel=1)
        lb.log_path = log
        stack.enter_context(lb)
        ballast = disk / "ballast"
        with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        outcome = run_load(lb.address, requests=1500, clients=8)
        outcome.check_nothing_lost(1500)
        assert log.stat().st_size < 200_000
        ballast.unlink()
        run_load(lb.address, requests=200, clients=8).check_nothing_lost(200)
        wait_for(lambda: dropped_in(lb.log()) > 500, "the count of what was dropped", 5)
        dropped = dropped_in(lb.log())
        written = len(re.findall(r" session client=", lb.log()))
        log.rename(disk / "old")
        lb.signal(signal.SIGUSR1)
        wait_for(log.exists, "the log opened again")
        run_load(lb.address, requests=50, clients=2).check_nothing_lost(50)
        wait_for(lambda: len(re.findall(r" session client=", lb.log())) == 50, "50 lines in the new file")
        report("log without room", requests=1750, failed=0, dropped=dropped, written=written)
        assert dropped + written >= 1700
        lb.check_at_rest()


def test_a_log_on_dev_full_harms_no_session() -> None:
    """Fails where an error of the log reaches its caller."""
    with Digest() as backend:
        lb = Balancer(upstreams=[backend.address], log="/dev/full", loglevel=1)
        with lb_without_log(lb):
            run_load(lb.address, requests=500, clients=8).check_nothing_lost(500)
            lb.signal(signal.SIGUSR1)
            run_load(lb.address, requests=100, clients=8).check_nothing_lost(100)
            lb.check_at_rest()


@contextmanager
def lb_without_log(lb: Balancer) -> Iterator[None]:
    """A balancer that can say nothing: ready when its status says so; where it listens, the kernel knows."""
    lb.start()
    try:
        wait_for(lambda: has_status(lb), "a status", 15, every=0.05)
        master = lb.processes()[0]
        ports = [c.laddr.port for c in master.net_connections("tcp") if c.status == "LISTEN"]
        vars(lb)["address"] = ("127.0.0.1", ports[0])
        lb.baseline = lb.descriptors_by_place()
        yield
        assert lb.stop() == 0
    finally:
        left = lb.kill_everything()
    assert not left


def has_status(lb: Balancer) -> bool:
    try:
        return len(lb.worker_pids()) == 2
    except OSError:
        return False


def test_a_stopped_reader_of_the_log_stops_no_process(tmp_path: Path) -> None:
    """The log is a pipe whose reader is stopped: 64 KiB later every line is dropped, until it reads again. Fails with a
    blocking write: the whole balancer stands still with its log's reader."""
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 65536)
        lb = Balancer(upstreams=[backend.address], loglevel=1)
        with open(lb.log_path, "wb") as file:
            cat = stack.enter_context(subprocess.Popen(["cat"], stdin=reader, stdout=file))
        os.close(reader)
        stack.callback(cat.kill)
        lb.output = writer
        stack.enter_context(lb)
        os.close(writer)
        calm = run_load(lb.address, requests=300, clients=4, pause=0.002)
        freeze(cat.pid)
        stalled = run_load(lb.address, requests=1500, clients=4, pause=0.002)
        stalled.check_nothing_lost(1500)
        for number, count in (
            (signal.SIGTTIN, 3),
            (signal.SIGTTOU, 2),
        ):  # the master's words go nowhere either
            lb.signal(number)
            wait_for(
                lambda c=count: len(lb.status()["workers"]) == c, f"{count} workers, and the log is not read"
            )
        os.kill(cat.pid, signal.SIGCONT)
        run_load(lb.address, requests=50, clients=2).check_nothing_lost(50)
        wait_for(lambda: dropped_in(lb.log()) > 100, "the count of what was dropped")
        report(
            "69",
            requests=1500,
            failed=stalled.failed,
            dropped=dropped_in(lb.log()),
            p99_ms=(round(calm.p99 * 1000, 1), round(stalled.p99 * 1000, 1)),
        )
        lb.check_at_rest(more_descriptors=1)  # the third slot's socket


# --- signals


def rain(count: int, seconds: float) -> None:
    with Digest() as backend, Balancer(upstreams=[backend.address]) as lb:
        processes = [process.pid for process in lb.processes()]
        master, *children = processes
        harmless = [
            signal.SIGPIPE,
            signal.SIGWINCH,
            signal.SIGCHLD,
            signal.SIGALRM,
            signal.SIGURG,
            signal.SIGUSR1,
        ]
        only_master = [signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGINT]
        rng = random.Random(36)
        with Load(lb.address, clients=8, pause=0.005) as load:
            wait_for(lambda: lb.status()["totals"]["accepted_total"] > 20, "load")
            began = time.monotonic()
            for turn in range(count):
                pid = rng.choice(processes)
                os.kill(pid, rng.choice(harmless if pid == master else harmless + only_master))
                if not turn % 100:
                    time.sleep(
                        max(0.0, began + seconds * turn / count - time.monotonic())
                    )  # the rain's schedule
            outcome = load.finish()
        report("stray signals", signals=count, requests=outcome.attempts, failed=outcome.failed)
        outcome.check_nothing_lost(100)
        assert [process.pid for process in lb.processes()] == processes
        assert all(map(is_running, children))
        assert lb.status()["generation"] == 1
        lb.check_at_rest()


def test_ten_thousand_stray_signals_kill_no_process() -> None:
    """To master and children, theirs and others'. Fails where a child forgets to give up its parent's dispositions."""
    rain(10_000, 3.0)


@pytest.mark.soak
def test_a_hundred_thousand_stray_signals_kill_no_process() -> None:
    rain(100_000, 50.0)


# --- the gradual drain


def test_a_drain_lets_idle_sessions_go_one_after_another_then_the_rest() -> None:
    """Idle sessions leave in the second half of the window, spread over it; busy ones in its last quarter, spread over
    that; none leaves before. All of them are counted, and logged as `KD`; the exit code of a later stop does not speak
    of them. Fails with a cut at the deadline: then all clients come back in the same instant."""
    window, idle, busy = 4.0, 40, 20
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = Balancer(upstreams=[echo.address], workers=1, reload_timeout=f"{window:g}s", loglevel=1)
        lb.with_file()
        stack.enter_context(lb)
        clients = stack.enter_context(held(lb.address, idle + busy))
        for client in clients:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
        talkers = set(clients[idle:])
        selector = stack.enter_context(selectors.DefaultSelector())
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        ends: dict[socket.socket, float] = {}
        lb.change_file()
        lb.signal(signal.SIGHUP)
        lb.wait_line(r"worker 0 pid=\d+ drain sessions=60")
        began = time.monotonic()
        while len(ends) < idle + busy and time.monotonic() - began < window + 2:
            for key, _ in selector.select(0.05):
                sock: socket.socket = key.fileobj  # type: ignore[assignment]
                if not is_heard(sock):
                    ends[sock] = time.monotonic() - began
                    selector.unregister(sock)
            for talker in talkers - ends.keys():
                try:
                    talker.send(b"y")
                except OSError:
                    pass  # its end is read next
        quiet = sorted(when for sock, when in ends.items() if sock not in talkers)
        loud = sorted(when for sock, when in ends.items() if sock in talkers)
        report(
            "drain",
            idle=[round(quiet[0], 2), round(quiet[-1], 2)],
            busy=[round(loud[0], 2), round(loud[-1], 2)],
            most_in_a_quarter_second=[crowding(quiet), crowding(loud)],
        )
        assert len(quiet) == idle and len(loud) == busy
        assert window * 0.45 <= quiet[0] <= window * 0.75 and quiet[-1] <= window + 0.7
        assert window * 0.7 <= loud[0] and loud[-1] <= window + 0.7
        assert crowding(quiet) <= idle / 3 and crowding(loud) <= busy / 2
        wait_for(lambda: len(lb.status()["workers"]) == 1, "the old generation gone")
        assert lb.status()["totals"]["cut_total"] == idle + busy
        assert len(re.findall(r"session client=\S+ .* end=KD ", lb.log())) == idle + busy
        lb.check_at_rest()


def is_heard(sock: socket.socket) -> bool:
    try:
        return sock.recv(4096) != b""
    except OSError:
        return False


def crowding(times: list[float]) -> int:
    """The most ends within a quarter of a second."""
    return max(sum(when <= other < when + 0.25 for other in times) for when in times)
