"""Every way to end a direction, of a side with TLS or without it, and what the other side sees: TLS at the client, at the
backend, and at both. An end is an end, a reset is a reset, whatever carries them, and no byte before either is lost."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from scripts.lab.network import close_with_reset, text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer, ini_section
from tests.system.tls_clients import AUTHORITY, Renewable, client_context, receive

AMOUNT = 300_000  # bytes before an end: more than one read, and more than one flow holds
SIDES = ("client", "backend", "both")
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class Peer:
    """One end of a session, in TLS when it has a context."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None, is_server: bool) -> None:
        sock.settimeout(20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if context is not None:
            name = None if is_server else "a.example"
            self.tls = context.wrap_bio(self._incoming, self._outgoing, is_server, name)

    def shake_hands(self) -> None:
        while self.tls is not None:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._incoming.write(self.sock.recv(65536))
            else:
                self._flush()
                return

    def send(self, data: bytes) -> None:
        if self.tls is None:
            self.sock.sendall(data)
        else:
            self.tls.write(data)
            self._flush()

    def encrypt(self, data: bytes, how: str) -> bytes:
        """What `send` and then `how` would send."""
        if self.tls is None:
            return data
        self.tls.write(data)
        if how != "fin":
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()
        return self._outgoing.read()

    def send_raw(self, wire: bytes, how: str) -> None:
        self.sock.sendall(wire)
        if self.tls is None or how != "notify":
            with contextlib.suppress(OSError):  # the session may be over with the close_notify
                self.fin()

    def notify(self) -> None:
        """close_notify, and no FIN behind it; FIN where there is no TLS."""
        if self.tls is None:
            self.fin()
        else:
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()
            self._flush()

    def notify_and_fin(self) -> None:
        self.notify()
        if self.tls is not None:
            with contextlib.suppress(OSError):  # the session may be over with the close_notify
                self.fin()

    def fin(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        close_with_reset(self.sock)

    def read(self, amount: int) -> bytes:
        data = b""
        while len(data) < amount:
            data += (part := self._read_some())
            assert part, f"an end after {len(data)} bytes"
        return data

    def read_end(self) -> tuple[bytes, str]:
        """What comes before the end, and the end: "end" (close_notify where there is TLS), "reset", or "cut": FIN
        without close_notify."""
        data = b""
        try:
            while part := self._read_some():
                data += part
        except EOFError:
            return data, "cut"
        except ConnectionResetError:
            return data, "reset"
        return data, "end"

    def _read_some(self) -> bytes:
        return self.sock.recv(65536) if self.tls is None else receive(self.sock, self.tls, self._incoming)

    def _flush(self) -> None:
        self.sock.sendall(self._outgoing.read())


class Site:
    """A balancer with a listener for each of SIDES, and a backend that the test is itself."""

    def __init__(self, stack: ExitStack, certificate: Renewable) -> None:
        self.server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.server.settimeout(20)
        self.certificate = certificate
        backend = text_of(self.server.getsockname())
        ca = certificate.path.parent / "ca.pem"
        ca.write_bytes(AUTHORITY.pem)
        text = ""
        for side in SIDES:
            keys: dict[str, object] = {} if side == "backend" else {"tls_cert": certificate.path}
            text += ini_section(f"listener {side}", bind="127.0.0.1:0", pool=side, **keys)
            keys = {} if side == "client" else {"tls": "yes", "tls_ca": ca, "tls_sni": "a.example"}
            text += ini_section(f"pool {side}", upstream=backend, check="none", **keys)
        self.lb = stack.enter_context(FileBalancer(text, loglevel=1))
        addresses = {one["name"]: one["addresses"][0] for one in self.lb.status()["listeners"]}
        self.ports = {side: int(addresses[side].rpartition(":")[2]) for side in SIDES}

    @contextmanager
    def session(self, side: str, version: ssl.TLSVersion) -> Iterator[tuple[Peer, Peer]]:
        """A client and its backend, each of which has heard the other."""
        client_tls = server_tls = None
        if side != "backend":
            client_tls = client_context()
            client_tls.maximum_version = version
        if side != "client":
            server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server_tls.load_cert_chain(self.certificate.path)
            server_tls.maximum_version = version
        with socket.create_connection(("127.0.0.1", self.ports[side]), 20) as near:
            client = Peer(near, client_tls, is_server=False)
            client.shake_hands()
            client.send(b"?")
            far, _ = self.server.accept()
            with far:
                backend = Peer(far, server_tls, is_server=True)
                backend.shake_hands()
                assert backend.read(1) == b"?"
                backend.send(b"!")
                assert client.read(1) == b"!"
                yield client, backend


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack, Renewable(tmp_path_factory.mktemp("ends")))


def send_in_thread(peer: Peer, data: bytes) -> threading.Thread:
    thread = threading.Thread(target=peer.send, args=(data,))
    thread.start()
    return thread


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("first", ["client", "backend"])
@pytest.mark.parametrize("how", ["notify", "notify_and_fin", "fin"])
def test_an_end_is_passed_on_and_the_other_direction_goes_on(
    site: Site, how: str, first: str, side: str, version: ssl.TLSVersion
) -> None:
    before = site.lb.wait_idle(10)["totals"]["ends"]
    with site.session(side, version) as (client, backend):
        ending, other = (client, backend) if first == "client" else (backend, client)
        data, answer = bytes(range(250)) * (AMOUNT // 250), b"answer" * (AMOUNT // 6)
        sender = send_in_thread(ending, data)
        got = other.read(AMOUNT)
        sender.join()
        ending.send(b"last")
        getattr(ending, how)()
        got, end = got + (last := other.read_end())[0], last[1]
        assert (got == data + b"last", end) == (True, "end")
        sender = send_in_thread(other, answer)
        got = ending.read(len(answer))
        sender.join()
        other.notify_and_fin()
        assert (got == answer, ending.read_end()) == (True, (b"", "end"))
    after = site.lb.wait_idle(10)["totals"]["ends"]
    assert after["--"] == before["--"] + 1


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("how", ["notify", "notify_and_fin", "fin"])
def test_both_sides_send_a_megabyte_at_once_and_end(
    site: Site, how: str, side: str, version: ssl.TLSVersion
) -> None:
    up, down = bytes(range(256)) * 4096, bytes(reversed(range(256))) * 4096
    before = site.lb.wait_idle(10)["totals"]
    with site.session(side, version) as peers:
        # OpenSSL has one state for reading and writing: each peer reads once everything is encrypted.
        wires = [peer.encrypt(data, how) for peer, data in zip(peers, (up, down), strict=True)]
        senders = [
            threading.Thread(target=peer.send_raw, args=(wire, how))
            for peer, wire in zip(peers, wires, strict=True)
        ]
        for sender in senders:
            sender.start()
        seen: dict[Peer, tuple[bytes, str]] = {}
        readers = [
            threading.Thread(target=lambda peer=peer: seen.update({peer: peer.read_end()})) for peer in peers
        ]
        for reader in readers:
            reader.start()
        for thread in (*senders, *readers):
            thread.join(30)
        client, backend = peers
        assert (seen[backend] == (up, "end"), seen[client] == (down, "end")) == (True, True)
    after = site.lb.wait_idle(10)["totals"]
    assert after["ends"]["--"] == before["ends"]["--"] + 1
    counted = [after[name] - before[name] for name in ("bytes_in_total", "bytes_out_total")]
    assert counted == [len(up) + 1, len(down) + 1]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("first", ["client", "backend"])
@pytest.mark.parametrize("amount", [0, AMOUNT])
@pytest.mark.parametrize("is_half_closed", [False, True])
def test_a_reset_is_passed_on_behind_what_came_before_it(
    site: Site, is_half_closed: bool, amount: int, first: str, side: str, version: ssl.TLSVersion
) -> None:
    """`is_half_closed`: the other side has ended its own direction before."""
    before = site.lb.wait_idle(10)["totals"]["ends"]
    with site.session(side, version) as (client, backend):
        breaking, other = (client, backend) if first == "client" else (backend, client)
        if is_half_closed:
            other.notify()
            assert breaking.read_end() == (b"", "end")
        data = b"x" * amount
        sender = send_in_thread(breaking, data)
        assert other.read(amount) == data
        sender.join()
        breaking.reset()
        assert other.read_end() == (b"", "reset")
    after = site.lb.wait_idle(10)["totals"]["ends"]
    end = "CD" if first == "client" else "SD"
    wait_for(lambda: site.lb.status()["totals"]["ends"][end] == before[end] + 1, f"an end {end}", 10)
    assert sum(after.values()) == sum(before.values()) + 1
