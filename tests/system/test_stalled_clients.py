"""Clients that stop at each byte of what a listener waits for before it dials: each costs little and is closed in time.

A way of talking yields what the client sends, and receives what it has to know in between. A client stops after so many
bytes of it, and keeps its connection open.
"""

import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from balancer.edge.proxy_protocol import write_v1, write_v2
from balancer.relay.postgres import SSL_REQUEST
from scripts.lab.backends import Echo
from scripts.lab.kernel import all_read
from scripts.lab.network import Address, text_of
from scripts.lab.waiting import wait_for
from tests.authority import Authority
from tests.system.faults import report
from tests.system.harness import FileBalancer, ini_section

Talk = Callable[[socket.socket], Iterator[bytes]]
MOST_BYTES = 20_000  # of memory for one stalled client, on the average of all places; see PHASES for each
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


@dataclass(frozen=True)
class Phase:
    """Clients that stop after so many bytes, on a listener. `most` is the memory that one may cost the workers, in bytes;
    `end` its end state."""

    name: str
    listener: str
    talk: Talk
    stops: range
    most: int
    end: str = "cR"


V1, V2 = len(write_v1(CLIENT, SERVER)), len(write_v2(CLIENT, SERVER, {}, checksum=True))
ASKED, SAID = len(SSL_REQUEST), len(HELLO)
FINISHED = 80  # bytes of the client's last flight, with its ChangeCipherSpec
FEW = 8_000  # bytes of memory where there is no TLS yet: 0.6 to 4 KB, and the noise of a few clients
# In the middle of a handshake 46 KB are OpenSSL's own, and 12 more while it has half a record (OpenSSL 3.0; ours are 2).
ANSWERED, HALF_RECORD = 60_000, 75_000
PHASES = (
    Phase("PROXY v1", "proxied", behind_v1, range(V1), FEW),
    Phase("hello behind PROXY v1", "proxied", behind_v1, range(V1, V1 + SAID), FEW),
    Phase("PROXY v2", "proxied", behind_v2, range(V2), FEW),
    Phase("hello behind PROXY v2", "proxied", behind_v2, range(V2, V2 + SAID), FEW),
    Phase("hello in small records", "proxied", in_small_records, range(16, 16 + SAID), FEW),
    Phase("SSLRequest", "postgres", postgres, range(ASKED), FEW),
    Phase("hello behind SSLRequest", "postgres", postgres, range(ASKED, ASKED + SAID), FEW),
    Phase("hello", "secure", handshake, range(SAID), FEW),
    Phase("behind ServerHello", "secure", handshake, range(SAID, SAID + 1), ANSWERED),
    Phase("Finished", "secure", handshake, range(SAID + 1, SAID + FINISHED), HALF_RECORD),
    Phase("session", "session", handshake, range(SAID + FINISHED, SAID + FINISHED + 1), 30_000, "cD"),
)
LEAST = 60  # clients of a phase: with fewer the noise of the measurement is too much of each


def listeners(timeout: str, certificate: Path) -> str:
    certificate.write_bytes(AUTHORITY.issue("a.example"))
    common = {"bind": "127.0.0.1:0", "route": ["sni a.example -> a"], "preread_timeout": timeout}
    text = ini_section("listener proxied", **common, proxy_protocol="yes", proxy_trusted="127.0.0.0/8")
    text += ini_section("listener postgres", **common, preread="postgres")
    tls = {"bind": "127.0.0.1:0", "pool": "a", "tls_cert": certificate, "tls_handshake_timeout": timeout}
    text += ini_section("listener secure", **tls)
    return text + ini_section("listener session", **tls, idle_timeout=timeout)


def stop_after(address: Address, talk: Talk, count: int) -> socket.socket:
    """A client that has sent so many bytes, and has had the answer to what was whole."""
    sock = socket.create_connection(address, 60)
    for piece in talk(sock):
        sock.sendall(piece[:count])
        count -= len(piece)
        if count < 0:
            break
    return sock


def stall(lb: FileBalancer, stack: ExitStack, count: int) -> dict[str, int]:
    """So many clients stall in all, at all places alike, and LEAST in each phase. No phase costs the workers more than it
    may, nor the average of all places more than MOST_BYTES. Return how many clients have which end."""
    addresses = {one["name"]: one["addresses"][0] for one in lb.status()["listeners"]}
    ports = {name: int(address.rpartition(":")[2]) for name, address in addresses.items()}
    places = sum(len(phase.stops) for phase in PHASES)
    ends: Counter[str] = Counter()
    costs: dict[str, int] = {}
    if not lb.status()["totals"]["accepted_total"]:
        ends["cR"] += warm_up(ports, stack)
    for phase in PHASES:
        each = max(LEAST, min(count * len(phase.stops) // places, MOST_HANDSHAKES))
        ends[phase.end] += each
        before, held = lb.memory(lb.worker_pids()), lb.status()["totals"]["accepted_total"]
        address = ("127.0.0.1", ports[phase.listener])
        for number in range(each):
            place = phase.stops[number * len(phase.stops) // each]
            stack.enter_context(stop_after(address, phase.talk, place))
        wait_for(
            lambda wanted=held + each: at_work(lb, ports, wanted), "all accepted, and their bytes read", 20
        )
        costs[phase.name] = (lb.memory(lb.worker_pids()) - before) // each
    report("stalled clients, bytes each", **costs)
    dear = [phase for phase in PHASES if costs[phase.name] > phase.most]
    assert not dear, f"bytes each: {costs}"
    assert sum(costs[phase.name] * len(phase.stops) for phase in PHASES) <= MOST_BYTES * places, costs
    return dict(ends)


def warm_up(ports: dict[str, int], stack: ExitStack) -> int:
    """Clients that are not measured stall too: no phase pays for what its first one needs, and none gets the memory that
    the boot has left free. Return how many there are."""
    stalled = [
        (phase, stop) for phase in PHASES if phase.end == "cR" for stop in (phase.stops[0], phase.stops[-1])
    ]
    stalled += [(phase, phase.stops[0]) for phase in PHASES if phase.most == ANSWERED] * LEAST
    for phase, stop in stalled:
        stack.enter_context(stop_after(("127.0.0.1", ports[phase.listener]), phase.talk, stop))
    return len(stalled)


def at_work(lb: FileBalancer, ports: dict[str, int], accepted: int) -> bool:
    """Whether so many are accepted, and every byte that clients have sent is read."""
    return lb.status()["totals"]["accepted_total"] >= accepted and all_read(*ports.values())


def ends_so_far(lb: FileBalancer) -> dict[str, int]:
    return {end: count for end, count in lb.status()["totals"]["ends"].items() if count}


def test_clients_that_stop_at_any_byte_are_cheap_and_closed_in_time(tmp_path: Path) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        text = listeners("6s", tmp_path / "a.pem") + ini_section(
            "pool a", upstream=text_of(backend.address), check="none"
        )
        lb = stack.enter_context(FileBalancer(text))
        clients = stack.enter_context(ExitStack())
        ends = stall(lb, clients, 800)
        wait_for(lambda: ends_so_far(lb) == ends, f"each closed with its end: {ends}", 20)
        assert backend.ever == ends["cD"], "no other was worth a dial"
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
        left, total = [], Counter[str]()
        for _ in range(2):
            with ExitStack() as clients:
                total.update(stall(lb, clients, count))
                wait_for(lambda total=total: ends_so_far(lb) == total, "each closed", 100)
            left.append(lb.memory(lb.worker_pids()))
        assert left[1] - left[0] < 500 * count, f"bytes after each turn: {left}"
        lb.check_at_rest()
