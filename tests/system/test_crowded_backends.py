"""A backend without room at the moment is waited for and stays up."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.lab.load import receive
from scripts.lab.network import Address
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer


def ask(address: Address) -> bytes:
    with socket.create_connection(address, 10) as client:
        client.sendall(b"ask")
        return receive(client, 2)


def test_a_queue_that_stays_full_for_a_while_takes_no_backend_down(tmp_path: Path) -> None:
    """By no check, however many meet it, and by no session."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as stack:
        listening.bind(path)
        listening.listen(0)
        filler = stack.enter_context(socket.socket(socket.AF_UNIX))
        filler.connect(path)
        options = {"check_interval": "50ms", "check_fall": 1, "queue_timeout": "60s"}
        lb = stack.enter_context(Balancer(upstreams=[f"unix:{path}"], **options))
        client = stack.enter_context(socket.create_connection(lb.address, 20))
        client.sendall(b"ask")
        wait_for(lambda: lb.status()["totals"]["queued"] == 1, "a client that waits", 20)
        time.sleep(1)  # the fault's own schedule: some twenty checks
        [backend] = lb.status()["backends"]
        assert (backend["state"], backend["downs_total"], backend["connect_failures_total"]) == ("up", 0, 0)

        def is_served() -> bool:
            with listening.accept()[0] as conn:  # the filler, checks, the client
                if conn.recv(3) != b"ask":
                    return False
                conn.sendall(b"ok")
                return True

        filler.close()
        listening.settimeout(20)
        wait_for(is_served, "the client at the backend", 20)
        assert receive(client, 2) == b"ok"


def test_a_burst_at_a_unix_backend_with_a_short_queue_is_served(tmp_path: Path) -> None:
    """connect(2) says EAGAIN where TCP would wait. Clients were reset and the backend taken down."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(1)
        done = threading.Event()

        def serve() -> None:
            while not done.wait(0.01):  # a hundred clients a second
                try:
                    conn, _ = listening.accept()
                except OSError:
                    return
                with conn:
                    if conn.recv(3):
                        conn.sendall(b"ok")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with Balancer(upstreams=[f"unix:{tmp_path / 's'}"], check_interval="200ms") as lb:
                with ThreadPoolExecutor(40) as pool:
                    assert list(pool.map(ask, [lb.address] * 40)) == [b"ok"] * 40
                [backend] = lb.status()["backends"]
                assert (backend["state"], backend["connect_failures_total"], backend["downs_total"]) == (
                    "up",
                    0,
                    0,
                )
        finally:
            done.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(5)
