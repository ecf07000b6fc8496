"""What only TLS adds to framed mode: handshakes of kept connections, ends that say close_notify, records."""

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest

from balancer.edge.certificates import read_certificate
from balancer.pool.board import B_BYTES_IN, L_TLS_TRUNCATED
from balancer.relay.tls.session import TlsSession
from balancer.relay.tls.stream import TlsStream
from tests.authority import Authority
from tests.unit.balancer.relay.framed.framed_simulation import (
    MOST,
    Start,
    exchange,
    frame,
    simulations,
    tls_contexts,
)

BOTH = "clients and backends"


@pytest.fixture
def start() -> Iterator[Start]:
    with simulations(BOTH) as begin:
        yield begin


def test_each_connection_shakes_hands_once_and_the_next_one_resumes(start: Start) -> None:
    worker = start()
    client = worker.client()
    for text in "abc":
        exchange(client, worker.backend, text)
    [kept] = worker.dialled()
    assert not kept.sock.tls.session_reused
    first, second = worker.client(), worker.client()
    first.ask("d")
    second.ask("e")
    _, resumed = worker.dialled()
    assert resumed.sock.tls.session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_records_in_any_pieces(start: Start, version: ssl.TLSVersion) -> None:
    """A frame in many records, and a record that arrives byte by byte."""
    worker = start()
    worker.client_context.maximum_version = worker.backend_context.maximum_version = version
    client = worker.client()
    for text in ("in many records", "x" * 20_000):
        whole, backend = frame(text), None
        for part in (whole[:1], *(whole[at : at + 7] for at in range(1, 50, 7)), whole[50:]):
            client.sock.tls.write(part)
            raw = client.sock.outgoing.read()
            for at in range(len(raw)) if len(raw) < 100 else [0]:
                client.sock.sock.send(raw[at : at + 1] if len(raw) < 100 else raw)
                worker.turn()
        worker.settle()
        backend = worker.backend()
        assert backend.frames() == [text]
        reply = frame(text[::-1])
        for at in range(0, len(reply), max(1, len(reply) // 40)):
            backend.send(reply[at : at + max(1, len(reply) // 40)])
            worker.turn()
        worker.settle()
        assert client.frames() == [text[::-1]]
    assert len(worker.dialled()) == 1


def test_a_certificate_that_does_not_hold_is_a_failed_dial(start: Start) -> None:
    worker = start(2, frame_retries=0)
    own = tls_contexts()[2]
    wrong = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(wrong, Authority("Another"), "127.0.0.1")
    worker.contexts_of = {0: wrong, 1: own}
    client = worker.client()
    exchange(client, lambda: worker.backend(1), "a")
    assert (worker.failures(0), worker.failures(1)) == (1, 0)
    assert worker.dialled(0) == []
    [line] = [line for line in worker.lines.others if "then=another backend" in line]
    assert "certificate" in line, line
    client.close()
    assert " retries=1+" in worker.request_lines[0]


def test_why_no_backend_could_be_reached_is_in_the_log(start: Start) -> None:
    worker = start(1, retries=0)
    wrong = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load(wrong, Authority("Another"), "127.0.0.1")
    worker.contexts_of = {0: wrong}
    worker.client().ask("a")
    [end] = worker.ends
    assert end.startswith("SC certificate: "), end


def test_a_backend_that_asks_for_a_certificate_behind_the_handshake(start: Start) -> None:
    """TLS 1.3: the client's handshake is over before the server refuses its certificate, or its lack."""
    worker = start(2, frame_retries=0)
    strict = tls_contexts()[2]
    strict.verify_mode = ssl.CERT_REQUIRED
    strict.load_verify_locations(cadata=Authority("Of clients").pem.decode())
    worker.contexts_of = {0: strict, 1: tls_contexts()[2]}
    client = worker.client()
    exchange(client, lambda: worker.backend(1), "a" * 30_000)
    assert worker.failures(0) == 1
    assert worker.failures(1) == 0


def test_a_handshake_that_stands_still_is_cut_at_connect_timeout(start: Start) -> None:
    worker = start(2, retries=1)
    worker.contexts_of = {0: None, 1: tls_contexts()[2]}
    client = worker.client()
    client.ask("a")
    worker.pass_time(0.75)
    assert worker.under_way(0) == 1
    worker.pass_time(0.75)
    assert (worker.under_way(0), worker.failures(0)) == (0, 1)
    assert worker.backend(1).frames() == ["a"]


def test_a_client_that_leaves_during_the_handshake_of_its_backend(start: Start) -> None:
    worker = start(1)
    worker.contexts_of = {0: None}
    client = worker.client()
    client.ask("a")
    assert worker.under_way() == 1
    client.reset()
    assert worker.under_way() == 0
    assert worker.failures() == 0
    assert worker.backend_cell(B_BYTES_IN) == 0


@pytest.mark.parametrize("asked", [False, True])
def test_a_fin_without_close_notify_is_an_end_and_counted(start: Start, asked: bool) -> None:
    worker = start()
    client = worker.client()
    if asked:
        client.ask("a")
    client.sock.sock.shutdown(socket.SHUT_WR)
    worker.settle()
    if asked:
        worker.backend().answer("A")
        assert client.frames() == ["A"]
    client.heard()
    assert (client.state, client.sock.is_truncated) == ("end", False)
    assert worker.ends == ["--"]
    assert worker.cell(L_TLS_TRUNCATED) == 1


def test_close_notify_says_whether_the_end_was_one(start: Start) -> None:
    """The client of a request that broke can tell from the bytes alone; so can that of an idle connection."""
    worker = start(frame_retries=0)
    broken, idle = worker.client(), worker.client()
    broken.ask("a")
    worker.backend().send(frame("A" * 50)[:20])
    worker.settle()
    worker.backend().close()
    assert broken.heard() == frame("A" * 50)[:20]
    assert broken.sock.is_truncated
    worker.pass_time(200.0, step=5.0)
    idle.heard()
    assert (idle.state, idle.sock.is_truncated) == ("end", False)


def test_close_notify_waits_for_a_client_that_reads_late(start: Start) -> None:
    """Its last reply fills the buffers: the close waits for the bytes behind it."""
    worker = start()
    client = worker.client()
    client.ask("a")
    client.end()
    backend = worker.backend()
    assert backend.frames() == ["a"]
    whole = data = frame(b"x" * MOST)
    got = b""
    while data:
        with contextlib.suppress(BlockingIOError):
            data = data[backend.sock.send(data) :]
            worker.turn()
            continue
        got = client.heard()
        worker.settle(3)
    for _ in range(200):
        got = client.heard()
        worker.turn()
    assert got == whole
    assert (client.state, client.sock.is_truncated) == ("end", False)
    assert worker.ends == ["--"]


def test_idle_connections_are_closed_with_close_notify_and_given_up_ones_without(start: Start) -> None:
    worker = start(2, idle_backend_timeout=3.0)
    client = worker.client()
    exchange(client, lambda: worker.backend(0), "a")
    client.ask("b")
    client.reset()
    worker.pass_time(5.0)
    ends = []
    for server in (0, 1):
        peer = worker.backend(server)
        peer.heard()
        ends.append((peer.state, peer.sock.is_truncated))
    assert ends == [("end", False), ("end", True)]


@pytest.mark.parametrize("order", ["strict", "any"])
def test_a_backend_that_says_close_notify_with_its_reply_is_not_used_again(start: Start, order: str) -> None:
    worker = start(2, order=order)
    client = worker.client()
    client.ask("a", "b")
    last = worker.backend(1)
    assert last.frames() == ["b"]
    last.sock.tls.write(frame("B"))
    with contextlib.suppress(ssl.SSLError):
        last.sock.tls.unwrap()
    last.sock.flush()  # both in one segment, and no FIN
    worker.settle()
    worker.backend(0).answer("A")
    assert sorted(client.frames()) == ["A", "B"]
    assert worker.connections.idle() == 1
    assert not worker.ends


def test_a_close_notify_in_place_of_a_reply_whose_turn_it_is_not_is_seen_at_once(start: Start) -> None:
    worker = start(3)
    client = worker.client()
    client.ask("a", "b")
    worker.backend(1).end()
    assert worker.backend(2).frames() == ["b"]
    worker.backend(2).answer("B")
    worker.backend(0).answer("A")
    assert client.frames() == ["A", "B"]


def test_tickets_are_no_bytes_of_a_reply(start: Start) -> None:
    """They come on a connection whose reply has not its turn, and on one that is idle."""
    worker = start(2)
    client = worker.client()
    client.ask("a", "b")
    late = worker.backend(1)
    assert late.frames() == ["b"]
    worker.backend(0).answer("A")
    late.answer("B")
    assert client.frames() == ["A", "B"]
    assert not [line for line in worker.lines.others if line.startswith("backend ")]


def test_a_broken_record_of_a_client_ends_it(start: Start) -> None:
    worker = start()
    client = worker.client()
    client.ask("a")
    client.sock.sock.send(b"\x17\x03\x03\x00\x20" + b"?" * 32)
    worker.settle()
    [end] = worker.ends
    assert end.startswith("CD TLS: "), end
    assert worker.failures() == 0


def test_a_broken_record_of_a_backend_costs_its_connection(start: Start) -> None:
    worker = start(2)
    client = worker.client()
    client.ask("a")
    worker.backend(0).sock.sock.send(b"\x17\x03\x03\x00\x20" + b"?" * 32)
    worker.settle()
    exchange_on = worker.backend(1)
    assert exchange_on.frames() == ["a"]
    exchange_on.answer("A")
    assert client.frames() == ["A"]


def test_a_slow_reader_holds_no_more_than_the_buffers_of_a_stream(start: Start) -> None:
    worker = start(max_frame=1 << 26)
    client = worker.client()
    client.ask("a")
    backend = worker.backend()
    assert backend.frames() == ["a"]
    data, still = frame(bytes(1 << 25)), 0
    while data and still < 20:
        try:
            data = data[backend.sock.send(data[:16_384]) :]
        except BlockingIOError:
            still += 1
        worker.turn()
    assert data, "the client reads nothing"
    [session] = worker.sessions
    assert isinstance(session, TlsSession) and isinstance(session.client_stream, TlsStream)
    assert len(session.client_stream.unsent) < 100_000


def load(context: ssl.SSLContext, authority: Authority, name: str) -> None:
    read_certificate("other.pem", authority.issue(name), 0.0).load_into(context)
