"""Real servers for checks and names: Redis, PostgreSQL, Mosquitto, nginx, dnsmasq, each in a directory of its own, and a
small mail server.

A server that is not installed skips the test that asks for it.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from scripts.lab.backends import Scripted
from scripts.lab.network import Address, accepts, free_port
from scripts.lab.process import LabProcess
from scripts.lab.waiting import wait_for

PATIENCE = 20.0  # seconds; a passing run does not wait for them


def program(name: str, *places: str) -> str:
    """The path of a program, ours beside the interpreter included. Skips the test when it is not installed."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(
        name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", beside, *places))
    )
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@contextmanager
def serving(command: list[str], directory: Path, address: Address) -> Iterator[LabProcess]:
    """A server that is reachable, until the end of the block."""
    with LabProcess(command, directory / "log") as server:
        wait_for(lambda: accepts(address), f"{Path(command[0]).name} reachable", PATIENCE)
        yield server


class Dnsmasq:
    """A dnsmasq whose answers hold for 1 s. `text` is the value of `resolver`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.services: list[str] = []  # before the start: "_db._tcp.test,a.test,PORT,PRIORITY,WEIGHT"
        self.address: Address = ("127.0.0.1", free_port())
        self.text = "{}:{}".format(*self.address)
        self._hosts = directory / "hosts"
        self._hosts.write_text("")

    def __enter__(self) -> "Dnsmasq":
        command = [
            program("dnsmasq"),
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--local=/test/",  # what it does not know of .test is not there: NODATA, NXDOMAIN
        ]
        command += [
            f"--port={self.address[1]}",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--user=root",
        ]
        command += [f"--addn-hosts={self._hosts}", "--local-ttl=1", "--pid-file=", "--log-facility=-"]
        command += [f"--srv-host={record}" for record in self.services]
        self._stack = ExitStack()
        self._server = self._stack.enter_context(serving(command, self._directory, self.address))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def know(self, **hosts: Sequence[str]) -> None:
        """From now on these are the addresses of NAME.test."""
        lines = [f"{address} {name}.test\n" for name, addresses in hosts.items() for address in addresses]
        self._hosts.write_text("".join(lines))
        self._server.signal(signal.SIGHUP)


class Redis:
    """A Redis server without files."""

    def __init__(self, directory: Path) -> None:
        self.address: Address = ("127.0.0.1", free_port())
        command = [
            program("redis-server"),
            "--port",
            str(self.address[1]),
            "--save",
            "",
            "--bind",
            "127.0.0.1",
        ]
        self._serving = serving(command, directory, self.address)

    def __enter__(self) -> "Redis":
        self._serving.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._serving.__exit__(None, None, None)

    def demote(self) -> None:
        """From now on it is a replica, of a server that is not there. Its clients stay connected."""
        self.say("REPLICAOF 127.0.0.1 1")

    def promote(self) -> None:
        self.say("REPLICAOF NO ONE")

    def say(self, words: str) -> None:
        with socket.create_connection(self.address, PATIENCE) as client:
            client.sendall(f"{words}\r\n".encode())
            assert client.recv(100) == b"+OK\r\n"


class Postgres:
    """A PostgreSQL server whose user `check` needs no password. `demote` restarts it as a standby."""

    def __init__(self) -> None:
        self.address: Address = ("127.0.0.1", free_port())
        self._directory = TemporaryDirectory(prefix="pb-postgres-")  # pytest's own are closed to other users
        self.log_path = Path(self._directory.name, "log")
        self._data = Path(self._directory.name, "data")
        versions = sorted(str(path) for path in Path("/usr/lib/postgresql").glob("*/bin"))
        self._bin = Path(program("initdb", *versions[-1:])).parent
        self._user = None
        if os.geteuid() == 0:
            self._user = "postgres" if any(one.pw_name == "postgres" for one in pwd.getpwall()) else "nobody"
            shutil.chown(self._directory.name, self._user)

    def __enter__(self) -> "Postgres":
        self._run("initdb", "-D", self._data, "-U", "check", "-A", "trust", "-N")
        lines = ["listen_addresses='127.0.0.1'", f"port={self.address[1]}", "unix_socket_directories=''"]
        lines += ["log_connections=on", "fsync=off", "max_connections=20", "shared_buffers=4MB"]
        with open(self._data / "postgresql.conf", "a") as file:
            file.write("\n".join(lines) + "\n")
        self.restart("start")
        return self

    def __exit__(self, *_: object) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")
        self._directory.cleanup()

    def demote(self) -> None:
        (self._data / "standby.signal").touch()
        self.restart()

    def promote(self) -> None:
        """From now on, or soon, it is no standby any longer. Its clients stay connected."""
        self._run("pg_ctl", "-D", self._data, "-W", "promote")

    def restart(self, how: str = "restart") -> None:
        self._run("pg_ctl", "-D", self._data, "-l", self.log_path, "-w", "-m", "fast", how)

    def _run(self, name: str, *words: object) -> None:
        command = [str(self._bin / name), *map(str, words)]
        subprocess.run(
            command, user=self._user, check=True, timeout=120, stdout=subprocess.DEVNULL, cwd=self._data.parent
        )  # fmt: skip


@contextmanager
def mosquitto(directory: Path) -> Iterator[tuple[Address, LabProcess]]:
    """An MQTT broker without files."""
    address: Address = ("127.0.0.1", free_port())
    path = directory / "mosquitto.conf"
    path.write_text(f"listener {address[1]} 127.0.0.1\nallow_anonymous true\npersistence false\nuser root\n")
    with serving([program("mosquitto"), "-v", "-c", str(path)], directory, address) as server:
        yield address, server


@contextmanager
def nginx(directory: Path) -> Iterator[tuple[Address, LabProcess]]:
    """A web server: /ready is answered 200, /broken 503."""
    address: Address = ("127.0.0.1", free_port())
    path = directory / "nginx.conf"
    path.write_text(
        f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/errors; events {{}}\n"
        f"http {{ access_log {directory}/access; server {{ listen 127.0.0.1:{address[1]};\n"
        'location /ready { return 200 "yes"; } location /broken { return 503 "no"; } } }\n'
    )
    command = [program("nginx"), "-e", str(directory / "errors"), "-c", str(path)]
    with serving(command, directory, address) as server:
        yield address, server


class Mail(Scripted):
    """A mail server that notes how clients leave, as Postfix does: `lost` is those that left without QUIT."""

    def __init__(self) -> None:
        self.quits, self.lost = 0, 0
        self._lock = threading.Lock()
        super().__init__(self._serve)

    def _serve(self, conn: socket.socket) -> None:
        heard = b""
        try:
            conn.sendall(b"220-mail.test\r\n220 ESMTP\r\n")
            while not heard.endswith(b"QUIT\r\n") and (more := conn.recv(1000)):
                heard += more
            if heard.endswith(b"QUIT\r\n"):
                conn.sendall(b"221 2.0.0 Bye\r\n")
        except OSError:
            heard = b""
        with self._lock:
            self.quits += heard == b"QUIT\r\n"
            self.lost += heard != b"QUIT\r\n"
