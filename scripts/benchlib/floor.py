"""What no proxy can save: the kernel's part of a request, and the packets of a short connection.

    unshare -rn python -m scripts.benchlib.floor PEER    in a network namespace of its own, where nothing else counts

RULES: the namespace needs no privileges where users may make one; elsewhere there is no figure.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.benchlib.peers import BenchBackend, Proxy, Scene
from scripts.benchlib.works import Work, drive
from scripts.lab.network import free_port
from scripts.lab.process import ROOT

REQUESTS = 20_000
ROUNDS = 5
CONNECTIONS = 2000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def kernel_floor() -> float:
    """CPU microseconds of the kernel for what a proxy must do with a request of 40 bytes and its answer: two sends and
    two receives on loopback. The least of a few rounds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client, proxy = socket.create_connection(server.getsockname()), server.accept()[0]
        proxys, backend = socket.create_connection(server.getsockname()), server.accept()[0]
    ways = ((client, proxy), (proxys, backend), (backend, proxys), (proxy, client))
    data = bytes(40)
    for sock in (client, proxy, proxys, backend):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    least = float("inf")
    for _ in range(ROUNDS):
        began = os.times().system
        for _ in range(REQUESTS):
            for sender, receiver in ways:
                sender.send(data)
                receiver.recv(100)
        least = min(least, os.times().system - began)
    for sock in (client, proxy, proxys, backend):
        sock.close()
    return least / 2 / REQUESTS * 1e6  # the other half is the client's and the backend's


def packets_of(peer: str) -> float | None:
    """Packets of a connection with one request through this peer, to the client and to the backend; None where a network
    namespace is not allowed."""
    command = ["unshare", "-rn", sys.executable, "-m", "scripts.benchlib.floor", peer]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
        return float(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def count_packets(peer: str) -> float:
    """As `packets_of`, of everything in this network namespace."""
    with socket.socket() as sock:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack("16xH", fcntl.ioctl(sock, SIOCGIFFLAGS, name + bytes(2)))[0]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH", name, flags | IFF_UP))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        scene_directory = Path(directory, "proxy")
        scene_directory.mkdir()
        backend = BenchBackend(Path(directory))
        try:
            scene = Scene(free_port(), backend.addresses(3), 2, False, scene_directory)
            with Proxy(peer, scene) as proxy:
                work = Work("", connections=8, close=True, requests=CONNECTIONS)
                drive(work, proxy.port, 1)
                before = sent_packets()
                load = drive(work, proxy.port, 1)
                return (sent_packets() - before) / load.requests
        finally:
            backend.close()


def sent_packets() -> int:
    """TCP segments that this network namespace has sent."""
    names, values = [
        line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Tcp:")
    ]
    return int(values[names.index("OutSegs")])


if __name__ == "__main__":
    print(json.dumps(count_packets(sys.argv[1])))
