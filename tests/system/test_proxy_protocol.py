"""The PROXY protocol through real daemons: read from trusted peers, written to backends; HAProxy and nginx as peers."""

import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from balancer.edge.proxy_protocol import ProxyClaim, parse, write_v1, write_v2
from scripts.lab.backends import Echo, Scripted
from scripts.lab.load import receive
from scripts.lab.network import Address, free_port, text_of
from scripts.lab.process import LabProcess
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, FileBalancer, ini_section

CLIENT = ("192.0.2.7", 56324)
SERVER = ("198.51.100.9", 443)
HEADERS = {"v1": write_v1(CLIENT, SERVER), "v2": write_v2(CLIENT, SERVER, {}, checksum=True)}


class Headed(Scripted):
    """A backend that reads a PROXY header and echoes what follows. `claims` are those that came, `segments` what the
    first read of each connection gave."""

    def __init__(self) -> None:
        self.claims: list[ProxyClaim] = []
        self.segments: list[bytes] = []
        super().__init__(self._serve)

    def _serve(self, conn: socket.socket) -> None:
        data = b""
        while (claim := parse(data)) is None:
            more = conn.recv(65536)
            if not more:
                return  # a check connects and goes
            if not data:
                self.segments.append(more)
            data += more
        self.claims.append(claim)
        rest = data[claim.size :]
        while rest:
            conn.sendall(rest)
            rest = conn.recv(65536)
        while data := conn.recv(65536):
            conn.sendall(data)


def connect(address: Address) -> socket.socket:
    sock = socket.create_connection(address, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def proxied(**keys: object) -> dict[str, object]:
    return {"proxy_protocol": "yes", "proxy_trusted": "127.0.0.0/8"} | keys


def session_lines(lb: Balancer, count: int = 1) -> list[str]:
    """The lines of ended sessions, once there are `count`."""
    wait_for(lambda: lb.log().count(" session client=") >= count, "the session's line")
    return [line for line in lb.log().splitlines() if " session client=" in line]


# -- read


@pytest.mark.parametrize("cut", [0, 1, 5, 16, 1000])
@pytest.mark.parametrize("version", HEADERS)
def test_a_header_is_taken_off_and_its_address_is_the_clients(version: str, cut: int) -> None:
    """`cut`: the bytes of a segment, 0: header and payload in one. Fails where bytes behind the header are lost, or the
    edge after the last read."""
    with Echo() as backend, Balancer(upstreams=[backend.address], loglevel=1, **proxied()) as lb:
        with connect(lb.address) as client:
            stream = HEADERS[version] + b"first"
            for at in range(0, len(stream), cut or len(stream)):
                client.sendall(stream[at : at + (cut or len(stream))])
                if cut:
                    time.sleep(0.002)  # a segment of its own
            assert receive(client, 5) == b"first"
            client.sendall(b"x" * 200_000)
            assert receive(client, 200_000) == b"x" * 200_000
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            via = text_of(client.getsockname())
        (line,) = session_lines(lb)
        assert f" client=192.0.2.7:56324 via={via} " in line and " end=-- " in line
        assert " in=200005 out=200005 " in line
        lb.check_at_rest()


def test_a_header_an_end_and_a_big_payload_in_one_go() -> None:
    """Everything is in the socket when it is accepted: no further edge comes."""
    payload = os.urandom(60_000)
    with Echo() as backend, Balancer(upstreams=[backend.address], **proxied()) as lb, ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(connect(lb.address))
            client.sendall(HEADERS["v2"] + payload)
            client.shutdown(socket.SHUT_WR)
            assert receive(client, len(payload)) == payload and client.recv(1) == b""
        stack.close()
        lb.check_at_rest()


def test_what_a_header_does_not_vouch_for_keeps_its_own_address() -> None:
    local = write_v2(None, None)
    with Echo() as backend, Balancer(upstreams=[backend.address], loglevel=1, **proxied()) as lb:
        for header in (local, b"PROXY UNKNOWN\r\n"):
            with connect(lb.address) as client:
                client.sendall(header + b"hi")
                assert receive(client, 2) == b"hi"
        for line in session_lines(lb, 2):
            assert " client=127.0.0.1:" in line and " via=" not in line


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no PROXY header"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", "'65536' is no port"),
        (HEADERS["v2"][:-1] + b"?", "the checksum is wrong"),
        (b"", "preread-timeout"),
        (b"PROXY ", "preread-timeout"),
    ],
)
def test_a_client_without_a_right_header_is_reset_and_the_log_says_why(data: bytes, reason: str) -> None:
    keys = proxied(preread_timeout="300ms")
    with Echo() as backend, Balancer(upstreams=[backend.address], loglevel=1, **keys) as lb:
        with connect(lb.address) as client, pytest.raises(ConnectionResetError):
            client.sendall(data)
            client.recv(1)
            raise AssertionError("an end, not a reset")
        end = "cR" if reason == "preread-timeout" else "PR"
        (line,) = session_lines(lb)
        assert f" end={end} " in line and f'reason="{reason}"' in line
        assert re.search(
            rf' refuse client=127\.0\.0\.1:\d+ reason="?{re.escape(reason)}"? then=reset', lb.log()
        )
        assert backend.ever <= 2  # nobody but checks
        lb.check_at_rest()


def test_who_is_not_trusted_may_claim_nothing() -> None:
    keys = {"proxy_protocol": "yes", "proxy_trusted": "10.0.0.0/8", "dry_run": "yes", "deny": "192.0.2.0/24"}
    with Echo() as backend, Balancer(upstreams=[backend.address], loglevel=1, **keys) as lb:
        with pytest.raises(ConnectionResetError), connect(lb.address) as client:
            client.sendall(HEADERS["v1"] + b"hi")
            client.recv(1)
        assert 'reason="proxy-trusted"' in session_lines(lb)[0]


def test_the_claimed_address_decides_about_routes_access_and_elections() -> None:
    with ExitStack() as stack:
        near, far = (stack.enter_context(Echo(greeting=True)) for _ in range(2))
        text = ini_section(
            "listener web",
            bind="127.0.0.1:0",
            route=["from 192.0.2.0/24 -> near", "from 10.0.0.0/8 -> far"],
            deny="192.0.2.66",
            **proxied(),
        )
        text += ini_section("pool near", upstream=text_of(near.address) + " name=near")
        text += ini_section("pool far", upstream=text_of(far.address) + " name=far")
        lb = stack.enter_context(FileBalancer(text, loglevel=1))

        def served_by(address: str) -> bytes:
            with connect(lb.address) as client:
                client.sendall(write_v2((address, 1), SERVER))
                try:
                    return client.recv(100)
                except ConnectionResetError:
                    return b"reset"

        assert served_by("192.0.2.7") == f"{near.name}\n".encode()
        assert served_by("10.1.2.3") == served_by("::ffff:10.1.2.3") == f"{far.name}\n".encode()
        assert served_by("192.0.2.66") == served_by("::ffff:192.0.2.66") == b"reset"  # deny
        assert served_by("2001:db8::1") == b"reset"  # no route
        lines = session_lines(lb, 6)
        assert sum(" end=PR " in line for line in lines) == 3
        assert not any(" pool=" in line for line in lines if " end=PR " in line)
        status = lb.status()["listeners"][0]
        assert status["accepted_total"] == status["closed_total"] == 6


# -- access without a header


def test_allow_and_deny_on_the_peers_own_address(tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    listed.write_text("127.0.0.5  # the cellar\n")
    with (
        Echo() as backend,
        Balancer(upstreams=[backend.address], deny=f"@{listed}", deny_action="close") as lb,
    ):

        def answer(source: str) -> bytes:
            with socket.create_connection(lb.address, 15, source_address=(source, 0)) as client:
                client.sendall(b"hi")
                try:
                    return client.recv(2)
                except ConnectionResetError:  # our bytes met a socket that was closed
                    return b""

        assert (answer("127.0.0.1"), answer("127.0.0.5")) == (b"hi", b"")
        assert re.search(r" refuse client=127\.0\.0\.5:\d+ reason=deny then=close", lb.log())


@pytest.mark.parametrize("action", ["reset", "close", "drop"])
def test_each_action_and_a_list_that_changes(tmp_path: Path, action: str) -> None:
    """A reload reads the file again although its name is the same; one that cannot be read changes nothing."""
    listed = tmp_path / "listed"
    listed.write_text("127.0.0.5\n")
    with Echo() as backend:
        keys = {"deny": f"@{listed}", "deny_action": action}
        text = ini_section("listener web", bind="127.0.0.1:0", pool="web", **keys)
        text += ini_section("pool web", upstream=text_of(backend.address))
        with FileBalancer(text, loglevel=1) as lb:

            def left(source: str) -> str:
                """What a client sees that says nothing, else its echo could meet a closed socket."""
                try:
                    with socket.create_connection(lb.address, 15, source_address=(source, 0)) as client:
                        client.settimeout(0.5)
                        return "open" if client.recv(1) else "close"
                except ConnectionResetError:
                    return "reset"
                except TimeoutError:
                    return "open"

            # A client that was dropped sees nothing, as one that is served; without TCP_REPAIR it is a reset.
            seen = left("127.0.0.5")
            assert seen in {"reset": ("reset",), "close": ("close",), "drop": ("open", "reset")}[action]
            assert left("127.0.0.6") == "open"
            listed.write_text("127.0.0.6\n")
            lb.reload(2)
            assert (left("127.0.0.5"), left("127.0.0.6")) == ("open", seen)
            lb.expect("reload error=")
            listed.write_text("127.0.0.7/8\n")
            lb.signal(signal.SIGHUP)
            lb.wait_line(r" reload error=.*listed:1: .*then=the old configuration stays")
            assert left("127.0.0.6") == seen
            [listener] = lb.status()["listeners"]
            assert {rule: count for rule, count in listener["denials"].items() if count} == {"deny": 3}
            assert sum(" refuse " in line and "reason=deny" in line for line in lb.log().splitlines()) == 3
            lb.check_at_rest()


def test_a_dry_run_serves_and_tells() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], allow="10.0.0.0/8", dry_run="yes") as lb:
        with connect(lb.address) as client:
            client.sendall(b"hi")
            assert receive(client, 2) == b"hi"
        assert re.search(r" refuse client=127\.0\.0\.1:\d+ reason=allow then=nothing: dry-run", lb.log())


# -- written


@pytest.mark.parametrize("send", ["v1", "v2", "v2 crc32c unique-id"])
@pytest.mark.parametrize("speaks", ["first", "late"])
def test_a_backend_is_told_who_the_client_is(send: str, speaks: str) -> None:
    """In one segment with the client's bytes where it has spoken before it is accepted, at once where it has not. No part
    of the payload's count."""
    with (
        Headed() as backend,
        Balancer(upstreams=[backend.address], loglevel=1, send_proxy=send, check="none") as lb,
    ):
        pids = lb.worker_pids() if speaks == "first" else []
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        with connect(lb.address) as client:
            own, there = client.getsockname(), client.getpeername()
            if speaks == "late":
                wait_for(lambda: backend.claims, "a header before a byte of the client")
            client.sendall(b"hello")
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            assert receive(client, 5) == b"hello"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        (claim,) = backend.claims
        assert (claim.source, claim.destination) == (own, there)
        assert backend.segments[0].endswith(b"hello") == (speaks == "first")
        (line,) = session_lines(lb)
        assert " in=5 out=5 " in line
        assert lb.status()["totals"]["bytes_in_total"] == 5
        lb.check_at_rest()


def test_the_header_goes_again_to_the_next_backend() -> None:
    """The first backend resets what it has read the header of."""

    def reset(conn: socket.socket) -> None:
        if conn.recv(1):
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Scripted(reset) as first, Headed() as second:
        upstreams = [text_of(first.address), text_of(second.address) + " backup"]
        with Balancer(
            *[f"--upstream={one}" for one in upstreams], send_proxy="v1", check="none", loglevel=1
        ) as lb:
            with connect(lb.address) as client:
                assert wait_for(lambda: backend_claims(second), "the second backend's header", 10)
                client.sendall(b"hello")
                assert receive(client, 5) == b"hello"
            (line,) = session_lines(lb)
            assert " in=5 out=5 retries=1+" in line


def backend_claims(backend: Headed) -> list[ProxyClaim]:
    return backend.claims


def test_a_chain_of_two_keeps_the_first_clients_address() -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Headed())
        keys = {"send_proxy": "v2 authority", "loglevel": 1}
        inner = stack.enter_context(Balancer(upstreams=[backend.address], **keys, **proxied()))
        outer = stack.enter_context(Balancer(upstreams=[inner.address], send_proxy="v2 crc32c"))
        with connect(outer.address) as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            own = client.getsockname()
        assert backend.claims[-1].source == own
        wait_for(
            lambda: f" client={text_of(own)} via=127.0.0.1:" in inner.log(),
            "the client's own address in the log",
        )


# -- peers


@contextmanager
def peer(command: list[str], port: int, directory: Path) -> Iterator[Address]:
    """A program that serves on a port."""
    with LabProcess(command, directory / "peer.log"):
        address = ("127.0.0.1", port)

        def answers() -> bool:
            try:
                socket.create_connection(address, 1).close()
            except OSError:
                return False
            return True

        wait_for(answers, f"{command[0]} on {port}", 10)
        yield address


def haproxy(directory: Path, port: int, bind: str, server: str) -> list[str]:
    if not shutil.which("haproxy"):
        pytest.skip("haproxy is not installed")
    config = directory / "haproxy.cfg"
    config.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n"
        f"listen it\n bind 127.0.0.1:{port} {bind}\n server one {server}\n"
    )
    return ["haproxy", "-db", "-q", "-f", str(config)]


MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


def nginx(directory: Path, port: int, listen: str, server: str) -> list[str]:
    if not shutil.which("nginx") or not MODULE.exists():
        pytest.skip("nginx with its stream module is not installed")
    config = directory / "nginx.conf"
    config.write_text(
        f"load_module {MODULE};\ndaemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log stderr;\nevents {{}}\n"
        f"stream {{ server {{ listen 127.0.0.1:{port} {listen}; {server} }} }}\n"
    )
    return ["nginx", "-e", "stderr", "-p", str(directory), "-c", str(config)]


@pytest.mark.parametrize("how", ["haproxy v1", "haproxy v2", "haproxy v2 crc32c,unique-id", "nginx v1"])
def test_peers_headers_are_understood(tmp_path: Path, how: str) -> None:
    name, version, *extras = how.split()
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        lb = stack.enter_context(Balancer(upstreams=[backend.address], loglevel=1, **proxied()))
        port, there = free_port(), text_of(lb.address)
        if name == "haproxy":
            words = f"{there} send-proxy" + ("" if version == "v1" else "-v2")
            words += f" proxy-v2-options {extras[0]}" if extras else ""
            command = haproxy(tmp_path, port, "", words)
            if extras:
                text = (tmp_path / "haproxy.cfg").read_text()
                (tmp_path / "haproxy.cfg").write_text(
                    text.replace("\n server", "\n unique-id-format %[uuid()]\n server")
                )
        else:
            command = nginx(tmp_path, port, "", f"proxy_pass {there}; proxy_protocol on;")
        address = stack.enter_context(peer(command, port, tmp_path))
        with connect(address) as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            own = text_of(client.getsockname())
        wait_for(lambda: f" client={own} via=127.0.0.1:" in lb.log(), "the client's own address in the log")


@pytest.mark.parametrize(
    "how", ["haproxy v1", "haproxy v2", "haproxy v2 crc32c unique-id", "nginx v1", "nginx v2"]
)
def test_peers_understand_ours(tmp_path: Path, how: str) -> None:
    """The peer hands on by version 1 what it has understood."""
    name, _, send = how.partition(" ")
    with ExitStack() as stack:
        backend = stack.enter_context(Headed())
        port, there = free_port(), text_of(backend.address)
        if name == "haproxy":
            command = haproxy(tmp_path, port, "accept-proxy", f"{there} send-proxy")
        else:
            server = f"proxy_pass {there}; proxy_protocol on; set_real_ip_from 127.0.0.0/8;"
            command = nginx(tmp_path, port, "proxy_protocol", server)
        address = stack.enter_context(peer(command, port, tmp_path))
        lb = stack.enter_context(Balancer(upstreams=[address], send_proxy=send))
        with connect(lb.address) as client:
            client.sendall(b"hello")
            assert receive(client, 5) == b"hello"
            own = client.getsockname()
        assert backend.claims[-1].source == own


@pytest.mark.parametrize("send", ["v1", "v2"])
@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_a_peer_that_expects_headers_takes_our_checks_and_logs_no_fault(
    tmp_path: Path, name: str, send: str
) -> None:
    """The peer connects to its own backend for those connections only that begin with a header. nginx also complains of
    the others, as it does of our own connect here."""
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        port, there = free_port(), text_of(backend.address)
        if name == "haproxy":
            command = haproxy(tmp_path, port, "accept-proxy", there)
        else:
            command = nginx(tmp_path, port, "proxy_protocol", f"proxy_pass {there};")
        config = Path(command[-1])
        config.write_text(config.read_text().replace("error_log stderr;", "error_log stderr info;"))
        address = stack.enter_context(peer(command, port, tmp_path))
        log = tmp_path / "peer.log"
        if name == "nginx":
            wait_for(lambda: "PROXY protocol" in log.read_text(), "the complaint about our own connect", 10)
        said, ever = log.read_text().count("PROXY protocol"), backend.ever
        lb = stack.enter_context(Balancer(upstreams=[address], send_proxy=send, check_interval="100ms"))
        wait_for(lambda: backend.ever >= ever + 5, "five checks that the peer has understood", 15)
        assert lb.status()["backends"][0]["check"] == "ok"
        assert log.read_text().count("PROXY protocol") == said
