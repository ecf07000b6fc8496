"""A backend without room at the moment is waited for and stays up."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.lab.load import receive
from scripts.lab.network import Address
from tests.system.harness import Balancer


def ask(address: Address) -> bytes:
    with socket.create_connection(address, 10) as client:
        client.sendall(b"ask")
        return receive(client, 2)


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
