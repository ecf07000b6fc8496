"""Socket files that were removed: bound again and reported, once where that fails."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from balancer.config.units import parse_address
from balancer.eventloop.log import Log
from balancer.prefork.bind import Bind
from balancer.prefork.socket_files import LOOK_EVERY, SocketFiles
from balancer.prefork.sockets import SocketGroup, Sockets


class Fixture:
    """A console's and a listener's socket file in a directory of their own, and a TCP address."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "run"
        self.directory.mkdir()
        self.log_file = directory / "log"
        self.now = 10.0
        self.sockets = Sockets()
        binds = [
            Bind("console", parse_address(f"unix:{self.directory}/admin"), per_slot=False),
            Bind("worker", parse_address(f"unix:{self.directory}/web"), mode=0o660),
            Bind("worker", parse_address("127.0.0.1:0")),
            Bind("worker", parse_address(f"unix:@{directory}")),
        ]
        self.sockets.open(binds, 2)
        self.admin, self.web = self.sockets.groups[:2]
        self.files = SocketFiles(self.sockets, Log("master", str(self.log_file)))

    def look(self) -> list[SocketGroup]:
        self.now += LOOK_EVERY
        return self.files.look(self.now)

    def lines(self) -> list[str]:
        return self.log_file.read_text().splitlines()


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    for group in fixture.sockets.groups:
        group.close()


def is_served(group: SocketGroup) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(group.address.path)
        except OSError:
            return False
        group.sockets[-1].accept()[0].close()
        return True


def test_a_removed_file_comes_back_with_its_mode_and_is_reported(master: Fixture) -> None:
    assert master.look() == [] and master.lines() == []
    for path in master.directory.iterdir():
        path.unlink()
    assert not is_served(master.web)
    assert master.look() == [master.admin, master.web]
    for group, mode, slots in ((master.admin, 0o600, 1), (master.web, 0o660, 2)):
        assert is_served(group) and len(group.sockets) == slots
        assert stat.S_IMODE(os.stat(group.address.path).st_mode) == mode
    assert [line.split(" pid=")[0][25:] for line in master.lines()] == ["warning master"] * 2
    assert "rebind address=unix:" in master.lines()[0]
    assert master.look() == [] and len(master.lines()) == 2
    master.sockets.unlink()
    assert list(master.directory.iterdir()) == [], "the new files are ours as the first ones were"


def test_it_is_looked_for_once_a_second(master: Fixture) -> None:
    master.look()
    os.unlink(master.admin.address.path)
    assert master.files.look(master.now + LOOK_EVERY / 2) == []
    assert master.look() == [master.admin]


def test_what_cannot_be_bound_is_reported_once_and_tried_again(master: Fixture) -> None:
    for path in master.directory.iterdir():
        path.unlink()
    master.directory.rmdir()
    for _ in range(5):
        assert master.look() == []
    assert len(master.lines()) == 2 and all("No such file or directory" in line for line in master.lines())
    master.directory.mkdir()
    assert master.look() == [master.admin, master.web]
    assert is_served(master.admin) and len(master.lines()) == 4


@pytest.mark.parametrize("what", ["a listening socket", "a file"])
def test_what_another_process_put_there_is_left_alone(master: Fixture, what: str) -> None:
    path = Path(master.admin.address.path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        if what == "a file":
            path.write_text("x")
        else:
            other.bind(str(path))
            other.listen()
        inode = path.stat().st_ino
        for _ in range(3):
            assert master.look() == []
        assert path.stat().st_ino == inode
        if what != "a file":
            other.accept()[0].close()
            other.setblocking(False)
            with pytest.raises(BlockingIOError):  # it was asked once whether it listens
                other.accept()
    assert len(master.lines()) == 1 and "its file was replaced" in master.lines()[0]
    path.unlink()
    assert master.look() == [master.admin] and is_served(master.admin)


def test_a_stale_socket_in_its_place_is_replaced(master: Fixture) -> None:
    os.unlink(master.admin.address.path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(master.admin.address.path)
    assert master.look() == [master.admin] and is_served(master.admin)


def test_a_service_managers_file_is_not_ours(master: Fixture) -> None:
    master.admin.is_external = True
    os.unlink(master.admin.address.path)
    assert master.look() == []
