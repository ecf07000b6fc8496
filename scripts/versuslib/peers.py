"""Who is put to the test: ours, HAProxy and nginx as TCP proxies with two workers, each with its own reload and restart.

RULES: every peer gets the same address, the same one backend, no health checks, and otherwise its defaults; where its own
manual names a way to reload without loss, that way is taken (HAProxy: master-worker mode with its listeners exposed to
the next process; nginx: a SO_REUSEPORT socket for each worker). A peer that ends is started again after 100 ms, as
systemd would with `Restart=always`; how often is counted.
"""

import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from benchlib.measure import tree
from benchlib.peers import STREAM_MODULES, find, free_port

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
RESTART_SECONDS = 0.1  # systemd's RestartSec
Address = tuple[str, int]


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


class Peer:
    """One running proxy. Subclasses say how it is configured, reloaded and counted."""

    name = ""
    reload_signal = signal.SIGHUP

    def __init__(self, backend: Address, directory: Path, nofile: int = 0) -> None:
        self.backend = backend
        self.directory = directory
        self.port = free_port()
        self.address = ("127.0.0.1", self.port)
        self.log = directory / "log"
        self.wrapper = ["prlimit", f"--nofile={nofile}:{nofile}"] if nofile else []
        self.restarts = -1
        self.turn = 0
        self.process: subprocess.Popen | None = None
        self.configure()
        self.start()

    def __enter__(self) -> "Peer":
        self.wait(lambda: self.accepts() and len(self.workers()) >= self.worker_count(), "serving")
        return self

    def __exit__(self, *_: object) -> None:
        pids = tree(self.pid)
        for number in (signal.SIGCONT, signal.SIGKILL):
            for pid in pids:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        if self.process:
            self.process.wait()

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def start(self) -> None:
        self.restarts += 1
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.wrapper, *self.command()], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def supervise(self) -> None:
        """What systemd would do if it has ended."""
        if self.process and self.process.poll() is not None:
            time.sleep(RESTART_SECONDS)
            self.start()

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 10.0) -> float:
        """Until it holds; seconds that took. Supervises meanwhile."""
        began = time.monotonic()
        while not condition():
            self.supervise()
            if time.monotonic() - began > seconds:
                raise TimeoutError(
                    f"{self.name}: not {what} after {seconds} s:\n{self.log.read_text()[-1500:]}"
                )
            time.sleep(0.002)
        return time.monotonic() - began

    def accepts(self) -> bool:
        """Whether somebody listens."""
        try:
            socket.create_connection(self.address, 1).close()
        except OSError:
            return False
        return True

    def reload(self) -> None:
        """Ask for it, and wait until the processes are new ones and the old ones gone or draining."""
        before = set(self.workers())
        self.turn += 1
        self.configure()
        os.kill(self.pid, self.reload_signal)
        self.wait(lambda: len(set(self.workers()) - before) >= self.worker_count(), "reloaded")

    def workers(self) -> list[int]:
        """Processes that serve clients, draining ones not counted."""
        return [pid for pid in children(self.pid) if self.is_worker(title(pid))]

    def worker_count(self) -> int:
        return WORKERS

    def configure(self) -> None: ...
    def command(self) -> list[str]:
        raise NotImplementedError

    def is_worker(self, words: str) -> bool:
        raise NotImplementedError

    def sessions(self) -> int | None:
        """How many client connections it says it has now; None when it cannot say."""
        raise NotImplementedError

    @staticmethod
    def version() -> str:
        raise NotImplementedError


class Ours(Peer):
    name = "ours"

    def configure(self) -> None:
        text = f"[balancer]\nbind = 127.0.0.1\nport = {self.port}\nworkers = {WORKERS}\ncheck = none\n"
        text += f"drain-timeout = 5s\nretries = {self.turn % 5}\nadmin = {self.directory}/admin\n"
        text += f"upstream = {self.backend[0]}:{self.backend[1]}\n"
        (self.directory / "balancer.ini").write_text(text)

    def command(self) -> list[str]:
        return [sys.executable, "-m", "balancer", "-c", str(self.directory / "balancer.ini")]

    def is_worker(self, words: str) -> bool:
        return words.startswith("balancer: worker") and "draining" not in words

    def sessions(self) -> int | None:
        with socket.socket(socket.AF_UNIX) as conn:
            conn.settimeout(5)
            conn.connect(str(self.directory / "admin"))
            conn.sendall(b"status\n")
            conn.shutdown(socket.SHUT_WR)
            reply = json.loads(b"".join(iter(lambda: conn.recv(65536), b"")))
        return int(reply["totals"]["sessions"])

    @staticmethod
    def version() -> str:
        return f"CPython {platform.python_version()}"


class Haproxy(Peer):
    name = "HAProxy"
    reload_signal = signal.SIGUSR2

    def configure(self) -> None:
        (self.directory / "haproxy.cfg").write_text(f"""global
  nbthread {WORKERS}
  log stderr format raw local0
  stats socket {self.directory}/stats mode 600 level admin expose-fd listeners
  hard-stop-after 5s
defaults
  mode tcp
  backlog 4096
  log global
  timeout connect 5s
  timeout client 10m
  timeout server 10m
listen versus
  bind 127.0.0.1:{self.port}
  server s1 {self.backend[0]}:{self.backend[1]}
""")

    def command(self) -> list[str]:
        return [find("haproxy") or "", "-W", "-db", "-f", str(self.directory / "haproxy.cfg")]

    def worker_count(self) -> int:
        return 1  # one process with two threads

    def is_worker(self, words: str) -> bool:
        return "haproxy" in words

    def sessions(self) -> int | None:
        with socket.socket(socket.AF_UNIX) as conn:
            conn.settimeout(5)
            conn.connect(f"{self.directory}/stats")
            conn.sendall(b"show stat\n")
            rows = b"".join(iter(lambda: conn.recv(65536), b"")).decode().splitlines()
        names = rows[0].lstrip("# ").split(",")
        for row in rows[1:]:
            words = dict(zip(names, row.split(","), strict=False))
            if words.get("svname") == "FRONTEND":
                return int(words["scur"])
        return None

    @staticmethod
    def version() -> str:
        shown = subprocess.run([find("haproxy") or "", "-v"], capture_output=True, text=True).stdout
        return shown.split()[2]


class Nginx(Peer):
    name = "nginx"

    def configure(self) -> None:
        modules = [f"load_module {module};" for module in STREAM_MODULES if Path(module).exists()]
        self.status_port = getattr(self, "status_port", None) or free_port()
        user = "user root;" if os.geteuid() == 0 else ""
        (self.directory / "nginx.conf").write_text(f"""{" ".join(modules)}
{user}
daemon off;
pid {self.directory}/pid;
error_log stderr;
worker_processes {WORKERS};
worker_shutdown_timeout 5s;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server {{ listen 127.0.0.1:{self.status_port}; location / {{ stub_status; }} }}
}}
stream {{
  server {{
    listen 127.0.0.1:{self.port} reuseport backlog=4096;
    proxy_pass {self.backend[0]}:{self.backend[1]};
    proxy_connect_timeout 5s;
  }}
}}
""")

    def command(self) -> list[str]:
        config = str(self.directory / "nginx.conf")
        return [find("nginx") or "", "-e", "stderr", "-p", str(self.directory), "-c", config]

    def is_worker(self, words: str) -> bool:
        return "worker process" in words and "shutting down" not in words

    def sessions(self) -> int | None:
        """Its only counter of connections counts those of all protocols, the asking one included."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.status_port}/", timeout=5) as reply:
            return int(re.search(rb"Active connections: (\d+)", reply.read())[1]) - 1  # type: ignore[index]

    @staticmethod
    def version() -> str:
        shown = subprocess.run([find("nginx") or "", "-v"], capture_output=True, text=True).stderr
        return shown.strip().rpartition("/")[2]


PEERS: dict[str, type[Peer]] = {"ours": Ours, "haproxy": Haproxy, "nginx": Nginx}
