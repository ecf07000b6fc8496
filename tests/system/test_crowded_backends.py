"""A backend without room at the moment is waited for and stays up."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.lab.load import receive
from scripts.lab.network import Address
from scripts.lab.waiting import readable, wait_for
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


HOLD = """
import socket, sys, threading
def hold(conn):
    while data := conn.recv(100):
        conn.sendall(data)
def serve(server):
    while True:
        threading.Thread(target=hold, args=(server.accept()[0],), daemon=True).start()
for word in sys.argv[1:]:
    host, _, port = word.rpartition(":")
    server = socket.create_server((host, int(port)), backlog=100)
    threading.Thread(target=serve, args=(server,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""
PORTS = 10  # of the namespace, for each pair of source and destination


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "nsenter", "ip"))), reason="needs root"
)
@pytest.mark.parametrize(
    ("upstreams", "places"),
    [
        (["127.0.0.1:20001"], PORTS),
        (["127.0.0.1:20001", "127.0.0.2:20002"], 2 * PORTS),
        (["127.0.0.1:20001 source=127.0.0.3,127.0.0.4,127.0.0.5"], 3 * PORTS),
    ],
    ids=["one", "two destinations", "three sources"],
)
def test_where_the_ports_are_used_up_another_destination_or_source_has_more_and_the_rest_wait(
    tmp_path: Path, upstreams: list[str], places: int
) -> None:
    path = str(tmp_path / "clients")  # no port for a client
    lb = Balancer(f"--bind=unix:{path}", upstreams=upstreams, check="none", queue_timeout="60s")
    limits = f'ip link set lo up && echo "40000 {39999 + PORTS}" > /proc/sys/net/ipv4/ip_local_port_range'
    lb.wrapper = ["unshare", "--net", "sh", "-c", f'{limits} && exec "$@"', "sh"]
    lb.expect("error=EADDRNOTAVAIL")
    with contextlib.ExitStack() as stack:
        stack.enter_context(lb)
        inside = ["nsenter", f"--target={lb.pid}", "--net", sys.executable, "-c", HOLD]
        targets = [upstream.split()[0] for upstream in upstreams]
        backends = subprocess.Popen([*inside, *targets], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(lambda: (backends.communicate(), backends.wait()))
        assert backends.stdout is not None
        assert backends.stdout.readline() == b"ready\n"
        clients = []
        for _ in range(places + 2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(30)
            client.connect(path)
            client.sendall(b"x")
            clients.append(client)
        wait_for(lambda: lb.status()["totals"]["queued"] == 2, "two that wait", 20)
        assert sum(backend["sessions"] for backend in lb.status()["backends"]) == places
        served: list[socket.socket] = []

        def are_served() -> bool:
            served[:] = readable(clients)
            return len(served) == places

        wait_for(are_served, "an answer for each that has a place", 20)
        served[0].close()  # its port is free again after a second
        assert readable([one for one in clients if one not in served], 30), "its place is taken"
        totals = lb.status()["totals"]
        assert totals["refused_total"] == totals["failed_total"] == 0
        assert {backend["state"] for backend in lb.status()["backends"]} == {"up"}
