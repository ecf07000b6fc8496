"""The log: never raises, never blocks, no value can forge a line, dropped lines are counted."""

import errno
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balancer.eventloop.log import BUFFERED_LINES, Log
from balancer.eventloop.log_format import LogSettings, fields_in
from balancer.eventloop.log_sink import LONGEST_LINE, Sink

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (info|warning|error|debug) worker 2 pid=\d+ ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def stderr() -> Iterator[None]:
    """Restores fd 2 after a test that redirects it."""
    kept = os.dup(2)
    yield
    os.dup2(kept, 2)
    os.close(kept)


def test_the_grammar(path: Path) -> None:
    log = Log("worker 2", str(path))
    log.info("refuse", client="10.0.0.9:5012", sessions="8/8", reason="no place", then="close the client")
    line = path.read_text()
    assert LINE.match(line)
    told = 'refuse client=10.0.0.9:5012 sessions=8/8 reason="no place" then=close the client\n'
    assert line.endswith(f"worker 2 pid={os.getpid()} {told}")


@pytest.mark.parametrize(
    "value", ["a\nb", "a\r\n2026", "\x1b[31m", 'say "x"', "\u202egnp.exe", "\x00", "a\\b", "", "\ud800"]
)
def test_no_value_can_end_a_line_or_control_the_terminal(path: Path, value: str) -> None:
    log = Log("worker 2", str(path), level=1)
    log.info("open", name=value, then=value)
    log.session(f"close name={value}")
    log.flush()
    text = path.read_bytes().decode()
    assert text.count("\n") == 2
    assert all(line.isprintable() and LINE.match(line) for line in text.splitlines())


def test_levels(path: Path) -> None:
    for level, expected in ((0, ["info"]), (1, ["info", "info"]), (2, ["info", "info", "debug"])):
        path.unlink(missing_ok=True)
        log = Log("worker 2", str(path), level=level)
        log.info("up")
        log.session("close")
        log.debug("turn")
        log.flush()
        assert [line.split()[1] for line in path.read_text().splitlines()] == expected


def test_session_lines_wait_for_the_flush_and_keep_their_order(path: Path) -> None:
    log = Log("worker 2", str(path), level=1)
    log.session("close n=1")
    log.session("close n=2")
    assert path.read_text() == ""
    log.info("down")
    assert [line.split(" ", 5)[5] for line in path.read_text().splitlines()] == [
        "close n=1",
        "close n=2",
        "down",
    ]


def test_session_lines_go_out_early_in_a_flood(path: Path) -> None:
    log = Log("worker 2", str(path), level=1)
    for number in range(BUFFERED_LINES + 1):
        log.session(f"close n={number}")
    assert path.read_text().count("\n") == BUFFERED_LINES


def test_a_line_is_never_longer_than_an_atomic_write_to_a_pipe(path: Path) -> None:
    log = Log("worker 2", str(path), level=1)
    log.info("open", name="ü" * 5000)
    log.session("x" * 9000)
    log.flush()
    lines = path.read_bytes().splitlines(keepends=True)
    assert [len(line) <= LONGEST_LINE for line in lines] == [True, True]
    assert lines[0].decode().endswith('ü..."\n') and lines[1].endswith(b"...\n")


@pytest.mark.parametrize(
    "value", ["x" * 5000, "ü" * 3000, '"\\\n' * 1500, "\U0001f600" * 2000, "\x1b\udcff" * 900]
)
@pytest.mark.parametrize("form", ["text", "logfmt", "json"])
def test_a_line_that_is_cut_is_whole_in_its_form(path: Path, form: str, value: str) -> None:
    log = Log("worker 2", str(path), form=form)
    log.error("fault", pool="a", traceback=value, retries=3, then="leave it")
    [line] = path.read_bytes().splitlines(keepends=True)
    assert len(line) <= LONGEST_LINE
    found: dict[str, Any] = json.loads(line) if form == "json" else fields_in(line.decode())
    text, dots = str(found["traceback"])[:-3], str(found["traceback"])[-3:]
    assert value.startswith(text) and dots == "..." and len(text) > 10
    assert (found["pool"], found["retries"]) == ("a", 3) and str(found["then"]).startswith("leave")


def fill(fd: int) -> int:
    done = 0
    os.set_blocking(fd, False)
    while True:
        try:
            done += os.write(fd, bytes(4096))
        except BlockingIOError:
            return done


def test_a_stalled_pipe_neither_blocks_nor_cuts_a_line_and_the_loss_is_logged(stderr: None) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 2)  # blocking, as a shell's pipe is
    assert os.get_blocking(2)
    log = Log("worker 2", level=1)
    full = fill(writer)
    os.set_blocking(writer, True)
    log.info("up")
    for number in range(3):
        log.session(f"close n={number}")
    log.flush()
    assert log.dropped == 4
    assert os.get_blocking(2), "the flag of the shared description must stay as it was"
    while full:
        full -= len(os.read(reader, min(full, 65536)))
    log.info("up", backend="a")
    lines = os.read(reader, 65536).decode().splitlines()
    assert [line.split(" ", 5)[5] for line in lines] == ["log dropped=4", "up backend=a"]
    assert log.dropped == 4
    os.close(reader)
    log.info("up")
    assert log.dropped == 5
    os.close(writer)


def test_a_flood_into_a_pipe_loses_whole_lines_only(stderr: None) -> None:
    reader, writer = os.pipe()
    os.dup2(writer, 2)
    log = Log("worker 2", level=1)
    full = fill(writer)
    while full > 54321:  # room for a few lines, and no whole number of them
        full -= len(os.read(reader, full - 54321))
    for number in range(500):
        log.session(f"close n={number} {'x' * (number % 300)} end")
    log.flush()
    text = os.read(reader, 1 << 20)[full:].decode()
    assert text.endswith(" end\n")
    lines = text.splitlines()
    assert all(LINE.match(line) and line.endswith(" end") for line in lines)
    assert len(lines) > 0 < log.dropped
    assert len(lines) + log.dropped == 500
    log.info("up")
    assert f" log dropped={log.dropped}\n" in os.read(reader, 4096).decode()
    os.close(reader)
    os.close(writer)


def test_journald_stream_is_a_socket(stderr: None) -> None:
    ours, theirs = socket.socketpair()
    os.dup2(ours.fileno(), 2)
    log = Log("worker 2", level=1)
    log.info("up")
    assert theirs.recv(4096).endswith(b" up\n")
    for number in range(20000):
        log.session(f"close n={number}")
    log.flush()
    assert 0 < log.dropped < 20000
    assert ours.getblocking()
    ours.close()
    theirs.close()


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "dev-log"))
        server.settimeout(5)
        yield server


def test_syslog_gets_a_datagram_a_line_and_is_found_again(syslog: socket.socket, tmp_path: Path) -> None:
    place = f"syslog:{tmp_path / 'dev-log'}"
    log = Log("worker 2", place, level=1, program="lb")
    log.session("session n=1")
    log.session("session n=2")
    log.flush()
    for number in (1, 2):
        line = syslog.recv(4096).decode()
        assert re.fullmatch(rf"<30>1 \S+Z - lb {os.getpid()} session - worker 2 session n={number}", line)
    os.unlink(tmp_path / "dev-log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as restarted:
        syslog.close()
        restarted.bind(str(tmp_path / "dev-log"))
        restarted.settimeout(5)
        log.error("down", backend="a")
        assert restarted.recv(4096).startswith(b"<27>1 ")
        assert log.dropped == 0


def test_a_syslog_that_is_not_there_is_a_problem_and_its_lines_are_counted(tmp_path: Path) -> None:
    log = Log("worker 2", f"syslog:{tmp_path / 'nothing'}")
    assert "nothing: No such file" in log.problem
    log.info("up")
    assert log.dropped == 1


@pytest.mark.parametrize("is_journal", [True, False])
def test_lines_for_the_journal_have_their_priority(
    stderr: None, is_journal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    os.dup2(ours.fileno(), 2)
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + (not is_journal)}")
    log = Log("worker 2", level=1)
    log.warning("down")
    log.session("session n=1")
    log.flush()
    prefixes = re.findall(r"^(?:<\d>)?", theirs.recv(4096).decode(), re.MULTILINE)[:2]
    assert prefixes == (["<4>", "<6>"] if is_journal else ["", ""])
    ours.close()
    theirs.close()


def test_a_reload_changes_the_form_and_the_sample(path: Path) -> None:
    log = Log("worker 2", str(path), level=1)
    assert log.wants_session(is_clean=True)
    log.apply(LogSettings(1, "json", "bad"))
    assert not log.wants_session(is_clean=True) and log.wants_session(is_clean=False)
    log.session("session n=1")
    log.flush()
    assert path.read_text().startswith('{"time":') and path.read_text().endswith('"verb":"session","n":1}\n')
    log.apply(LogSettings(0))
    assert not log.wants_session(is_clean=False)


class Disk(Sink):
    """A file system with `room` bytes left."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.room = 1 << 30
        self.fails = errno.ENOSPC

    def write(self, data: bytes) -> int:
        done = super().write(data[: self.room]) if self.room else 0
        self.room -= done
        return done


def test_a_full_disk_drops_and_a_cut_line_does_not_swallow_the_next(path: Path) -> None:
    disk = Disk(str(path))
    log = Log("worker 2", level=1, sink=disk)
    log.info("up")
    disk.room = 40  # in the middle of a line
    log.info("down")
    log.info("up")
    assert log.dropped == 2
    disk.room = 1 << 30
    log.info("ready")
    first, _torn, told, last = path.read_text().splitlines()
    assert (first.endswith(" up"), told.endswith(" log dropped=2"), last.endswith(" ready")) == (
        True,
        True,
        True,
    )


def test_a_batch_cut_by_a_full_disk_counts_exactly_the_lines_lost(path: Path) -> None:
    disk = Disk(str(path))
    log = Log("worker 2", level=1, sink=disk)
    for _ in range(3):  # from the second round on, a cut line stands before the batch
        for number in range(10):
            log.session(f"close n={number} end")
        disk.room = 400
        log.flush()
    lines = path.read_text().split("\n")
    whole = [line for line in lines if line.endswith(" end")]
    told = [line for line in lines if " log dropped=" in line]
    assert log.dropped == 30 - len(whole)
    assert len(told) == 2
    assert len(whole) > 3


def test_a_count_that_is_cut_itself_is_written_again(path: Path) -> None:
    disk = Disk(str(path))
    log = Log("worker 2", sink=disk)
    for room in (40, 20, 20):
        disk.room = room
        log.info("down")
    disk.room = 1 << 30
    log.info("ready")
    assert [line.split(" ", 5)[5] for line in path.read_text().splitlines()[-2:]] == [
        "log dropped=3",
        "ready",
    ]


def test_the_loss_is_logged_without_a_further_line(path: Path) -> None:
    disk, now = Disk(str(path)), [100.0]
    log = Log("worker 2", sink=disk, clock=lambda: now[0])
    disk.room = 0
    log.info("up")
    log.flush()
    disk.room = 1 << 20
    log.flush()
    assert path.read_text() == "", "not asked again in every turn"
    now[0] += 1.0
    log.flush()
    assert path.read_text().endswith(" log dropped=1\n")


def test_a_closed_stderr_is_survived(stderr: None) -> None:
    os.close(2)
    try:
        log = Log("worker 2")
        log.error("down")
        log.reopen()
        assert log.dropped >= 1
    finally:
        os.open("/dev/null", os.O_WRONLY)


def test_reopen_follows_a_rotation(path: Path) -> None:
    log = Log("worker 2", str(path))
    log.info("up")
    path.rename(path.with_suffix(".1"))
    log.info("still", where="old")
    log.reopen()
    log.info("now", where="new")
    assert path.with_suffix(".1").read_text().count("\n") == 2
    assert path.read_text().endswith(" now where=new\n")


def test_a_failed_reopen_keeps_the_old_file(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    log = Log("worker 2", str(directory / "log"))
    kept = os.open(directory / "log", os.O_RDONLY)
    (directory / "log").unlink()
    directory.rmdir()
    log.reopen()
    log.info("up")
    text = os.read(kept, 4096).decode()
    assert "then=keep the old file" in text
    assert text.endswith(" up\n")
    os.close(kept)


def test_a_path_that_cannot_be_opened_is_a_problem_a_boot_can_see(tmp_path: Path) -> None:
    log = Log("worker 2", str(tmp_path / "absent" / "log"))
    assert log.problem == f"cannot open log {tmp_path}/absent/log: No such file or directory"


def test_a_child_shares_the_file_and_not_the_buffer(path: Path) -> None:
    log = Log("master", str(path), level=1)
    log.session("close of=parent")
    child = log.child("worker 2", LogSettings(1))
    child.info("up")
    assert path.read_text().count("\n") == 1
    assert LINE.match(path.read_text())
    assert child.level == 1


def test_redirected_stderr_is_appended_to(path: Path, stderr: None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # as `2>file`, without O_APPEND
    os.dup2(fd, 2)
    log = Log("worker 2")
    log.info("up")
    os.write(2, b"Traceback\n")
    log.info("down")
    assert [line.split()[-1] for line in path.read_text().splitlines()] == ["up", "Traceback", "down"]
    os.close(fd)


@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "dangling"])
def test_a_log_that_is_a_symbolic_link_is_refused(tmp_path: Path, exists: bool) -> None:
    """Fails where it is followed: root would write to, and give away, what the link points to."""
    target, link = tmp_path / "precious", tmp_path / "log"
    if exists:
        target.write_text("precious")
    link.symlink_to(target)
    log = Log("master", str(link))
    assert log.problem == f"cannot open log {link}: it is a symbolic link"
    log.info("ready")
    assert target.exists() == exists and (not exists or target.read_text() == "precious")


def test_a_link_of_the_kernel_to_an_open_file_may_be_the_log(tmp_path: Path) -> None:
    with open(tmp_path / "log", "ab") as file:
        log = Log("master", f"/proc/self/fd/{file.fileno()}")
        assert not log.problem
        log.info("ready")
    assert " ready\n" in (tmp_path / "log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize("existed", [True, False])
def test_only_a_log_that_was_created_here_is_given_away(tmp_path: Path, existed: bool) -> None:
    path = tmp_path / "log"
    if existed:
        path.touch()
    Log("master", str(path)).chown(65534, 65534)
    assert path.stat().st_uid == (0 if existed else 65534)
