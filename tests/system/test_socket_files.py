"""Socket files that somebody has removed come back, of the console and of listeners, and the log says so."""

import signal
import socket
from functools import partial
from pathlib import Path

from scripts.lab.backends import Echo
from scripts.lab.network import text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer

CONFIGURATION = """\
[balancer]
workers = 2
metrics = unix:{directory}/metrics
[listener web]
bind = unix:{directory}/web
pool = web
[pool web]
upstream = {upstream}
"""


def answers(path: Path, request: bytes, reply: bytes) -> bool:
    """Whether the reply is in what comes back until the other side closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        try:
            sock.connect(str(path))
        except OSError:
            return False
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return reply in b"".join(iter(lambda: sock.recv(65536), b""))


def test_socket_files_come_back_and_the_log_says_so(tmp_path: Path) -> None:
    with Echo() as backend:
        text = CONFIGURATION.format(directory=tmp_path, upstream=text_of(backend.address))
        with FileBalancer(text, drain_timeout="2s") as lb:
            requests = {
                lb.admin: (b"status\n", b'"schema"'),
                tmp_path / "metrics": (b"GET /metrics HTTP/1.0\r\n\r\n", b"balancer_build_info"),
                tmp_path / "web": (b"hello", b"hello"),
            }
            for times in (1, 2, 3):
                for path in requests:
                    path.unlink()
                for path, (request, reply) in requests.items():
                    wait_for(partial(answers, path, request, reply), f"{path} for the {times}. time")
                for path in requests:
                    assert lb.log().count(f"rebind address=unix:{path}") == times
            lb.write(text + "retries = 5\n")
            lb.reload(2)
            lb.wait_one_generation()
            for path, (request, reply) in requests.items():
                assert all(answers(path, request, reply) for _ in range(8))
            (tmp_path / "web").unlink()
            lb.write(text)
            lb.signal(signal.SIGHUP)
            wait_for(partial(answers, tmp_path / "web", b"hello", b"hello"), "the listener, over a reload")
            lb.wait_idle()
        assert list(tmp_path.iterdir()) == []
