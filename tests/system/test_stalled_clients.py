"""Clients that stop at each byte of what a listener waits for before it dials: each costs little and is closed in time.

A way of talking yields what the client sends, and receives what it has to know in between. A client stops after so many
bytes of it, and keeps its connection open.
"""

import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from balancer.edge.proxy_protocol import write_v1, write_v2
from balancer.relay.postgres import SSL_REQUEST
from scripts.lab.backends import Echo
from scripts.lab.network import Address, text_of
from scripts.lab.waiting import wait_for
from tests.authority import Authority
from tests.system.harness import FileBalancer, ini_section

Talk = Callable[[socket.socket], Iterator[bytes]]
MOST_BYTES = 20_000  # of memory for one stalled client, on the average of all places
MOST_HANDSHAKES = 900  # a worker stops accepting at 1,000 that are not finished
CLIENT, SERVER = ("192.0.2.7", 56324), ("198.51.100.9", 443)


def hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sent = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="a.example")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


HELLO = hello()
AUTHORITY = Authority()


def behind_v1(sock: socket.socket) -> Iterator[bytes]:
    yield write_v1(CLIENT, SERVER)
    yield HELLO


def behind_v2(sock: socket.socket) -> Iterator[bytes]:
    yield write_v2(CLIENT, SERVER, {}, checksum=True)
    yield HELLO


def in_small_records(sock: socket.socket) -> Iterator[bytes]:
    yield write_v2(None, None)
    message = HELLO[5:]
    for at in range(0, len(message), 20):
        piece = message[at : at + 20]
        yield b"\x16\3\1" + len(piece).to_bytes(2) + piece


def postgres(sock: socket.socket) -> Iterator[bytes]:
    yield SSL_REQUEST
    assert sock.recv(1) == b"S"
    yield HELLO


def handshake(sock: socket.socket) -> Iterator[bytes]:
    """The hello, then what ends the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=AUTHORITY.pem.decode())
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(received, sent, server_hostname="a.example")
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            if sent.pending:
                yield sent.read()
            received.write(sock.recv(65536))
        else:
            yield sent.read()
            return


WAYS: dict[str, list[Talk]] = {
    "proxied": [behind_v1, behind_v2, in_small_records],
    "postgres": [postgres],
    "secure": [handshake],
}
SIZES = {
    behind_v1: len(write_v1(CLIENT, SERVER)) + len(HELLO),
    behind_v2: len(write_v2(CLIENT, SERVER, {}, checksum=True)) + len(HELLO),
    in_small_records: 16 + len(HELLO),
    postgres: len(SSL_REQUEST) + len(HELLO),
    handshake: len(HELLO) + 80,
}  # bytes at most before the last one


def listeners(timeout: str, certificate: Path) -> str:
    certificate.write_bytes(AUTHORITY.issue("a.example"))
    common = {"bind": "127.0.0.1:0", "route": ["sni a.example -> a"], "preread_timeout": timeout}
    text = ini_section("listener proxied", **common, proxy_protocol="yes", proxy_trusted="127.0.0.0/8")
    text += ini_section("listener postgres", **common, preread="postgres")
    return text + ini_section(
        "listener secure", bind="127.0.0.1:0", pool="a", tls_cert=certificate, tls_handshake_timeout=timeout
    )


def stop_after(address: Address, talk: Talk, count: int) -> socket.socket:
    """A client that has sent so many bytes."""
    sock = socket.create_connection(address, 60)
    for piece in talk(sock):
        sock.sendall(piece[:count])
        count -= len(piece)
        if count <= 0:
            break
    return sock


def stall(lb: FileBalancer, stack: ExitStack, count: int) -> int:
    """So many clients stall, at all places of all ways alike; those of no way cost the workers more than they may. Return
    how many there are."""
    addresses = {one["name"]: one["addresses"][0] for one in lb.status()["listeners"]}
    ways = [(name, talk) for name, talks in WAYS.items() for talk in talks]
    total = 0
    for name, talk in ways:
        each = min(count // len(ways), MOST_HANDSHAKES if talk is handshake else count)
        total += each
        before, held = lb.memory(lb.worker_pids()), lb.status()["totals"]["accepted_total"]
        host, _, port = addresses[name].rpartition(":")
        for number in range(each):
            stack.enter_context(stop_after((host, int(port)), talk, number * SIZES[talk] // each))
        wanted = held + each
        wait_for(lambda wanted=wanted: lb.status()["totals"]["accepted_total"] >= wanted, "all accepted", 20)
        cost = (lb.memory(lb.worker_pids()) - before) // each
        assert cost <= MOST_BYTES, f"{talk.__name__}: {cost} bytes each"
    return total


def closed_in_time(lb: FileBalancer) -> int:
    ends = lb.status()["totals"]["ends"]
    assert sum(ends.values()) == ends["cR"], f"other ends: {ends}"
    return int(ends["cR"])


def test_clients_that_stop_at_any_byte_are_cheap_and_closed_in_time(tmp_path: Path) -> None:
    count = 800
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        text = listeners("6s", tmp_path / "a.pem") + ini_section(
            "pool a", upstream=text_of(backend.address), check="none"
        )
        lb = stack.enter_context(FileBalancer(text))
        clients = stack.enter_context(ExitStack())
        total = stall(lb, clients, count)
        wait_for(lambda: closed_in_time(lb) == total, "each closed with its end", 20)
        assert backend.ever == 0, "none was worth a dial"
        clients.close()
        lb.check_at_rest()


@pytest.mark.soak
def test_ten_thousand_clients_twice(tmp_path: Path) -> None:
    """What the second ten thousand need was left by the first."""
    count = 10_000
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < count + 1_000:
        pytest.skip("needs 11,000 open files")
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        text = listeners("40s", tmp_path / "a.pem") + ini_section(
            "pool a", upstream=text_of(backend.address), check="none"
        )
        lb = stack.enter_context(FileBalancer(text))
        left, total = [], 0
        for _ in range(2):
            with ExitStack() as clients:
                total += stall(lb, clients, count)
                wait_for(lambda total=total: closed_in_time(lb) == total, "each closed", 100)
            left.append(lb.memory(lb.worker_pids()))
        assert left[1] - left[0] < 500 * count, f"bytes after each turn: {left}"
        lb.check_at_rest()
