"""A toy service under test (prefork_toy.py): its master, log and configuration file; and a fixture that makes them."""

import json
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.process import LabProcess, children_of, clean_environment, title_of
from scripts.lab.waiting import wait_for


class Toy(LabProcess):
    """A running toy service: its master, its log, its configuration file."""

    def __init__(self, directory: Path, environment: dict[str, str] | None = None, **config: Any) -> None:
        self.config_path = directory / "toy.json"
        super().__init__(
            [sys.executable, "-m", "tests.system.prefork_toy", str(self.config_path)],
            directory / "log",
            environment=clean_environment(environment),
        )
        self.config = {"workers": 2, **config}
        self.configure()

    def configure(self, **changes: Any) -> None:
        self.config |= changes
        self.config_path.write_text(json.dumps(self.config))

    def boot(self) -> "Toy":
        self.start()
        self.wait_lines(r" ready ")
        return self

    def wait_lines(self, pattern: str, count: int = 1, seconds: float = 10.0) -> None:
        """Wait until `count` lines of the log match."""
        wanted = re.compile(pattern)
        wait_for(
            lambda: sum(bool(wanted.search(line)) for line in self.log().splitlines()) >= count,
            f"{count} of /{pattern}/ in the log",
            seconds,
        )

    @property
    def port(self) -> int:
        return int(self.wait_line(r" bind address=127\.0\.0\.1:(\d+)")[1])

    def ports(self, listener: str) -> list[int]:
        """Where a listener was bound at boot."""
        return [
            int(port) for port in re.findall(rf" bind address=\S+:(\d+) .*listener={listener} ", self.log())
        ]

    def reload(self, **changes: Any) -> dict[str, Any]:
        """Change the file, HUP, and wait for the report."""
        self.configure(**changes)
        before = self.notice()
        self.signal(signal.SIGHUP)
        wait_for(lambda: self.notice() != before, "the report of the reload", 15)
        found: dict[str, Any] = json.loads(self.notice())
        return found

    def notice(self) -> str:
        return str(self.ask_board()["notice"])

    def children(self, role: str = "") -> list[int]:
        """Living children of the master, by title."""
        return [pid for pid in children_of(self.pid) if role in title_of(pid)]

    def worker(self, slot: int) -> int:
        pid: int = self.ask_board()["slots"][slot][2]
        return pid

    def connect(self, port: int | None = None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.port), timeout=10)

    def ask(self, word: str, port: int | None = None) -> str:
        with self.connect(port) as sock:
            return talk(sock, word)

    def ask_board(self) -> dict[str, Any]:
        board: dict[str, Any] = json.loads(self.ask("board"))
        return board


def talk(sock: socket.socket, word: str) -> str:
    sock.sendall(word.encode() + b"\n")
    data = b""
    while not data.endswith(b"\n"):
        chunk = sock.recv(65536)
        if not chunk:
            raise ConnectionError(f"closed after {data!r}")
        data += chunk
    return data.decode().strip()


@pytest.fixture
def make_toy(tmp_path: Path) -> Iterator[Callable[..., Toy]]:
    toys: list[Toy] = []

    def make(**config: Any) -> Toy:
        directory = tmp_path / f"toy{len(toys)}"
        directory.mkdir()
        toys.append(Toy(directory, **config))
        return toys[-1]

    yield make
    for toy in toys:
        toy.kill_everything()
        assert "traceback" not in toy.log() or "told to fail at boot" in toy.log(), toy.log()
