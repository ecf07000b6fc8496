"""The peers: ours, HAProxy and nginx as TCP proxies with two workers, each with its own reload and restart.

RULES: every peer gets the same address, the same one backend, no health checks, and otherwise its defaults; where its
own manual names a way to reload without loss, that way is taken (HAProxy: master-worker mode with its listeners exposed
to the next process; nginx: a SO_REUSEPORT socket for each worker). A peer that ends is started again after 100 ms, as
systemd does with `Restart=always`; how often is counted.
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
from dataclasses import dataclass
from pathlib import Path

from scripts.benchlib.peers import STREAM_MODULES, find
from scripts.lab.network import Address, accepts, free_port, text_of
from scripts.lab.process import LabProcess, children_of, title_of
from scripts.lab.waiting import wait_for

WORKERS = 2
RESTART_SECONDS = 0.1  # systemd's RestartSec


@dataclass
class Setting:
    """Where a peer runs. `turn` counts its reloads, `status_port` is for a status of its own. `user_timeout` is in
    seconds, 0: what the peer does by itself."""

    backend: Address | Path
    directory: Path
    port: int
    status_port: int
    turn: int = 0
    user_timeout: int = 0

    def target(self, unix: str = "unix:") -> str:
        """The backend as the peer's configuration names it, with its prefix for a path."""
        return f"{unix}{self.backend}" if isinstance(self.backend, Path) else text_of(self.backend)


@dataclass(frozen=True)
class PeerKind:
    """How one kind of proxy is configured, started, reloaded and counted."""

    name: str
    configure: Callable[[Setting], None]
    command: Callable[[Setting], list[str]]
    is_worker: Callable[[str], bool]  # by its title
    sessions: Callable[[Setting], int | None]  # client connections by its own count; None: it does not tell
    version: Callable[[], str]
    reload_signal: signal.Signals = signal.SIGHUP
    worker_count: int = WORKERS


class Peer:
    """One running proxy. `hosts` is the text of an /etc/hosts that it alone sees."""

    def __init__(
        self,
        kind: PeerKind,
        backend: Address | Path,
        directory: Path,
        nofile: int = 0,
        user_timeout: int = 0,
        hosts: str = "",
    ) -> None:
        self.kind = kind
        self.name = kind.name
        self.setting = Setting(backend, directory, free_port(), free_port(), user_timeout=user_timeout)
        self.port = self.setting.port
        self.address = ("127.0.0.1", self.port)
        self.wrapper = ["prlimit", f"--nofile={nofile}:{nofile}"] if nofile else []
        if hosts:
            (directory / "hosts").write_text(hosts)
            mount = f'mount --bind {directory}/hosts /etc/hosts && exec "$@"'
            self.wrapper += ["unshare", "--mount", "sh", "-c", mount, "sh"]
        self.restarts = -1
        kind.configure(self.setting)
        self.start()

    def start(self) -> None:
        self.restarts += 1
        command = [*self.wrapper, *self.kind.command(self.setting)]
        self.process = LabProcess(command, self.setting.directory / "log").start()

    def __enter__(self) -> "Peer":
        self.wait(lambda: accepts(self.address) and len(self.workers()) >= self.kind.worker_count, "serving")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill_everything()

    @property
    def pid(self) -> int:
        return self.process.pid

    def log_size(self) -> int:
        return len(self.process.log())

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 10.0) -> float:
        """Wait for the condition, starting the peer again when it has ended; seconds that took."""
        began = time.monotonic()

        def holds() -> bool:
            if condition():
                return True
            if self.process.has_ended:
                self.process.kill_everything()
                time.sleep(RESTART_SECONDS)
                self.start()
            return False

        wait_for(holds, f"{self.name}: {what}", seconds, every=0.002)
        return time.monotonic() - began

    def reload(self) -> None:
        """Ask for it, and wait until the processes are new ones and the old ones gone or draining."""
        before = set(self.workers())
        self.setting.turn += 1
        self.kind.configure(self.setting)
        self.process.signal(self.kind.reload_signal)
        self.wait(lambda: len(set(self.workers()) - before) >= self.kind.worker_count, "reloaded")

    def reload_nothing(self) -> None:
        """Ask for a reload of the configuration that is in force."""
        self.process.signal(self.kind.reload_signal)

    def wait_replaced(self, victim: int) -> float:
        """Wait until as many workers serve as before, `victim` not among them; seconds that took."""

        def is_whole() -> bool:
            return len(set(self.workers()) - {victim}) >= self.kind.worker_count and accepts(self.address)

        return self.wait(is_whole, "all workers again")

    def workers(self) -> list[int]:
        """Pids of the processes that serve clients, draining ones left out."""
        return [pid for pid in children_of(self.pid) if self.kind.is_worker(title_of(pid))]

    def sessions(self) -> int | None:
        return self.kind.sessions(self.setting)


def ask_unix_socket(path: str, question: bytes) -> bytes:
    """Everything that a console on a unix socket answers."""
    with socket.socket(socket.AF_UNIX) as conn:
        conn.settimeout(5)
        conn.connect(path)
        conn.sendall(question)
        return b"".join(iter(lambda: conn.recv(65536), b""))


# --- ours


def configure_ours(setting: Setting) -> None:
    text = f"[balancer]\nbind = 127.0.0.1\nport = {setting.port}\nworkers = {WORKERS}\ncheck = none\n"
    text += f"drain-timeout = 5s\nreload-timeout = 5s\nretries = {(setting.turn + 3) % 5}\n"
    text += f"admin = {setting.directory}/admin\nupstream = {setting.target()}\n"
    text += f"user-timeout = {setting.user_timeout}s\n" if setting.user_timeout else ""
    (setting.directory / "balancer.ini").write_text(text)


def ours_command(setting: Setting) -> list[str]:
    return [sys.executable, "-m", "balancer", "-c", str(setting.directory / "balancer.ini")]


def is_our_worker(title: str) -> bool:
    return title.startswith("balancer: worker") and "draining" not in title


def our_sessions(setting: Setting) -> int | None:
    reply = json.loads(ask_unix_socket(f"{setting.directory}/admin", b"status\n"))
    return int(reply["totals"]["sessions"])


def our_version() -> str:
    return f"CPython {platform.python_version()}"


# --- HAProxy


def configure_haproxy(setting: Setting) -> None:
    user_timeout = f" tcp-ut {setting.user_timeout}s" if setting.user_timeout else ""
    (setting.directory / "haproxy.cfg").write_text(f"""global
  nbthread {WORKERS}
  log stderr format raw local0
  stats socket {setting.directory}/stats mode 600 level admin expose-fd listeners
  hard-stop-after 5s
defaults
  mode tcp
  backlog 4096
  log global
  timeout connect 5s
  timeout client 10m
  timeout server 10m
listen versus
  bind 127.0.0.1:{setting.port}{user_timeout}
  server s1 {setting.target("unix@")}{user_timeout}
""")


def haproxy_command(setting: Setting) -> list[str]:
    return [find("haproxy") or "", "-W", "-db", "-f", str(setting.directory / "haproxy.cfg")]


def haproxy_sessions(setting: Setting) -> int | None:
    rows = ask_unix_socket(f"{setting.directory}/stats", b"show stat\n").decode().splitlines()
    names = rows[0].lstrip("# ").split(",")
    for row in rows[1:]:
        words = dict(zip(names, row.split(","), strict=False))
        if words.get("svname") == "FRONTEND":
            return int(words["scur"])
    return None


def haproxy_version() -> str:
    shown = subprocess.run([find("haproxy") or "", "-v"], capture_output=True, text=True).stdout
    return shown.split()[2]


# --- nginx


def configure_nginx(setting: Setting) -> None:
    modules = [f"load_module {module};" for module in STREAM_MODULES if Path(module).exists()]
    user = "user root;" if os.geteuid() == 0 else ""
    (setting.directory / "nginx.conf").write_text(f"""{" ".join(modules)}
{user}
daemon off;
pid {setting.directory}/pid;
error_log stderr;
worker_processes {WORKERS};
worker_shutdown_timeout 5s;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  server {{ listen 127.0.0.1:{setting.status_port}; location / {{ stub_status; }} }}
}}
stream {{
  server {{
    listen 127.0.0.1:{setting.port} reuseport backlog=4096;
    proxy_pass {setting.target()};
    proxy_connect_timeout 5s;
  }}
}}
""")


def nginx_command(setting: Setting) -> list[str]:
    config = str(setting.directory / "nginx.conf")
    return [find("nginx") or "", "-e", "stderr", "-p", str(setting.directory), "-c", config]


def is_nginx_worker(title: str) -> bool:
    return "worker process" in title and "shutting down" not in title


def nginx_sessions(setting: Setting) -> int | None:
    """Its only counter of connections counts those of all protocols, that of this question included."""
    with urllib.request.urlopen(f"http://127.0.0.1:{setting.status_port}/", timeout=5) as reply:
        return int(re.search(rb"Active connections: (\d+)", reply.read())[1]) - 1  # type: ignore[index]


def nginx_version() -> str:
    shown = subprocess.run([find("nginx") or "", "-v"], capture_output=True, text=True).stderr
    return shown.strip().rpartition("/")[2]


PEERS = {
    "ours": PeerKind("ours", configure_ours, ours_command, is_our_worker, our_sessions, our_version),
    "haproxy": PeerKind(
        "HAProxy",
        configure_haproxy,
        haproxy_command,
        lambda title: "haproxy" in title,
        haproxy_sessions,
        haproxy_version,
        signal.SIGUSR2,
        worker_count=1,  # one process with two threads
    ),
    "nginx": PeerKind(
        "nginx", configure_nginx, nginx_command, is_nginx_worker, nginx_sessions, nginx_version
    ),
}
