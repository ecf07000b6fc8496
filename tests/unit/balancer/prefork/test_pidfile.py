"""The pid file: a lock, a text that appears whole, removal by its holder only."""

import os
from pathlib import Path

import pytest

from balancer.prefork.bind import CannotBind
from balancer.prefork.pidfile import PidFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "balancer.pid"


def test_written_whole_and_removed_on_release(path: Path) -> None:
    pidfile = PidFile.acquire(str(path))
    pidfile.write(4711)
    assert path.read_text() == "4711\n"
    pidfile.release()
    assert list(path.parent.iterdir()) == []


def test_a_second_holder_is_told_the_pid_of_the_first(path: Path) -> None:
    first = PidFile.acquire(str(path))
    first.write(4711)
    with pytest.raises(CannotBind) as error:
        PidFile.acquire(str(path))
    assert "held by process 4711" in str(error.value)
    assert isinstance(error.value.__cause__, BlockingIOError)
    assert path.read_text() == "4711\n"
    first.release()
    PidFile.acquire(str(path)).release()


def test_a_stale_file_is_no_obstacle(path: Path) -> None:
    path.write_text("123456789\n")
    pidfile = PidFile.acquire(str(path))
    pidfile.write(7)
    assert path.read_text() == "7\n"
    pidfile.release()


def test_the_file_of_another_process_is_left_alone(path: Path) -> None:
    pidfile = PidFile.acquire(str(path))
    pidfile.write(1)
    path.unlink()
    path.write_text("2\n")
    pidfile.release()
    assert path.read_text() == "2\n"


def test_a_successor_inherits_the_lock_with_the_descriptor(path: Path) -> None:
    old = PidFile.acquire(str(path))
    old.write(1)
    new = PidFile.acquire(str(path), inherited=os.dup(old.fd))
    new.write(2)
    old.release(keep=True)
    assert path.read_text() == "2\n"
    with pytest.raises(CannotBind):
        PidFile.acquire(str(path))
    new.release()
    assert not path.exists()


def test_a_symbolic_link_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    path.symlink_to(tmp_path / "target")
    with pytest.raises(CannotBind, match="cannot use pid file"):
        PidFile.acquire(str(path))
    assert (tmp_path / "target").read_text() == "precious"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotBind, match="No such file"):
        PidFile.acquire(str(tmp_path / "no" / "pid"))
