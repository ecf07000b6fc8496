"""One half over socket pairs: source -> flow -> sink, nothing else running."""

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from balancer.relay.flow import ANNOUNCED, BULK, CHANGED, FIN_BEHIND, MORE, QUIET, SPLICE_SHARE, Flow
from balancer.relay.half import BROKEN, ENDED, GONE, LIMIT
from balancer.relay.pipes import Pipes
from balancer.relay.stream import RawStream
from scripts.lab.waiting import is_readable


@dataclass
class Bench:
    """`writer` feeds the flow's source, `reader` reads its sink."""

    writer: socket.socket
    reader: socket.socket
    ends: tuple[socket.socket, socket.socket]
    flow: Flow
    pipes: Pipes

    def feed(self, amount: int) -> bytes:
        data = os.urandom(amount)
        assert self.writer.send(data) == amount
        return data

    def drain(self) -> bytes:
        parts = []
        try:
            while data := self.reader.recv(1 << 20):
                parts.append(data)
        except BlockingIOError:
            pass
        return b"".join(parts)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    for sock in (a, b):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return a, b


@pytest.fixture(params=["splice", "copy"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    writer, source = tcp_pair()
    sink, reader = tcp_pair()
    pipes = Pipes(most=4)
    streams = RawStream(source.fileno()), RawStream(sink.fileno())
    flow = Flow(*streams, pipes if request.param == "splice" else None)
    bench = Bench(writer, reader, (source, sink), flow, pipes)
    yield bench
    flow.discharge()
    pipes.close()
    assert (pipes.made, pipes.held) == (0, 0)
    for sock in (writer, reader, source, sink):
        sock.close()


def test_a_message_goes_through_at_once(bench: Bench) -> None:
    data = bench.feed(1000)
    assert bench.flow.pump() == QUIET
    assert bench.drain() == data
    assert (bench.flow.taken, bench.flow.given) == (1000, 1000)


def test_an_end_is_seen_after_the_bytes_before_it(bench: Bench) -> None:
    data = bench.feed(1000)
    bench.writer.shutdown(socket.SHUT_WR)
    bench.flow.final = ANNOUNCED
    assert bench.flow.pump() == CHANGED
    assert bench.flow.source == ENDED
    assert bench.drain() == data


def test_a_fin_behind_the_bytes_needs_no_second_read(bench: Bench) -> None:
    data = bench.feed(1000)
    bench.writer.shutdown(socket.SHUT_WR)
    bench.flow.final = FIN_BEHIND
    assert bench.flow.pump() == CHANGED
    assert bench.flow.source == ENDED
    assert bench.drain() == data


def test_a_bulk_flow_arrives_whole_through_any_backpressure(bench: Bench) -> None:
    total = 8 << 20
    data = os.urandom(total)
    sent, got = 0, bytearray()
    for _ in range(20_000):
        before = sent, bench.flow.taken, bench.flow.given
        if sent < total:
            try:
                sent += bench.writer.send(data[sent : sent + 300_000])
            except BlockingIOError:
                pass
        bench.flow.pump()
        if bench.flow.pending:
            got += bench.drain()
            bench.flow.flush()
        assert bench.flow.is_sound()
        if bench.flow.given == total:
            break
        if before == (sent, bench.flow.taken, bench.flow.given):  # a busy kernel delivers a little later
            is_readable(bench.ends[0], bench.reader, within=0.05)
    while len(got) < total and is_readable(bench.reader, within=5):
        got += bench.drain()
    assert bytes(got) == data
    assert bench.flow.pauses > 0


def test_a_slow_sink_pauses_within_the_limit(bench: Bench) -> None:
    flow = bench.flow
    for _ in range(400):
        try:
            bench.writer.send(bytes(100_000))
        except BlockingIOError:
            pass
        flow.pump()
    assert flow.paused
    assert flow.pauses >= 1
    assert 0 < flow.pending <= (LIMIT if flow.pipes is None else SPLICE_SHARE)
    assert bench.pipes.held == (0 if flow.pipes is None else flow.pending)


def test_a_turn_has_its_share(bench: Bench) -> None:
    """An endless source does not hold the turn for ever."""
    bench.ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    bench.reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    outcomes = set()
    for _ in range(300):  # until the kernel has delivered more than a share at once
        try:
            bench.writer.send(bytes(4 << 20))
        except BlockingIOError:
            is_readable(bench.ends[0], within=0.05)
        before = bench.flow.taken
        outcomes.add(bench.flow.pump())
        assert bench.flow.taken - before <= 3 * SPLICE_SHARE
        if MORE in outcomes:
            return
        bench.drain()
        bench.flow.flush()
    raise AssertionError(f"a share was never used up: {outcomes}")


def test_bytes_for_a_sink_that_is_gone_are_dropped(bench: Bench) -> None:
    bench.flow.lose_sink()
    bench.feed(50_000)
    while bench.flow.pump() == MORE:
        pass
    assert bench.flow.sink == GONE
    assert bench.flow.taken == bench.flow.lost == 50_000


def test_a_sink_that_refuses_is_gone(bench: Bench) -> None:
    bench.reader.close()
    bench.feed(10)
    bench.flow.pump()
    bench.feed(10)
    assert bench.flow.pump() == CHANGED
    assert bench.flow.sink == GONE
    assert bench.flow.error


def test_a_reset_source_is_broken_not_ended(bench: Bench) -> None:
    bench.feed(100)
    bench.writer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    bench.writer.close()
    bench.flow.final = ANNOUNCED
    assert bench.flow.pump() == CHANGED
    assert bench.flow.source == BROKEN
    assert len(bench.drain()) == 100


def test_small_bursts_end_splicing(bench: Bench) -> None:
    bench.feed(BULK + 1000)
    bench.flow.pump()
    bench.feed(100)
    bench.flow.pump()
    assert not bench.flow.bulk
    assert bench.flow.pipe is None
    assert len(bench.drain()) == BULK + 1100


def test_a_pipe_with_bytes_in_it_is_never_lent_again() -> None:
    pipes = Pipes(most=2)
    dirty = pipes.take()
    assert dirty is not None
    os.write(dirty[1], b"another session")
    pipes.give_back(dirty, 15)
    assert pipes.made == 0
    clean = pipes.take()
    assert clean is not None
    with pytest.raises(BlockingIOError):
        os.read(clean[0], 1)
    pipes.give_back(clean, 0)
    pipes.close()


def test_pipes_are_capped() -> None:
    pipes = Pipes(most=1)
    first = pipes.take()
    assert first is not None
    assert pipes.take() is None
    pipes.give_back(first, 0)
    assert pipes.take() == first
    pipes.give_back(first, 0)
    pipes.close()


class RecordStream:
    """A stream of records, as TLS is: one read returns one of them, however much else has arrived."""

    fd = None

    def __init__(self, *records: bytes) -> None:
        self.records = list(records)
        self.written: list[bytes] = []

    def read(self, size: int) -> tuple[bytes, bool]:
        if not self.records:
            raise BlockingIOError(errno.EAGAIN, "dry")
        return self.records.pop(0), not self.records

    def write(self, data: bytes) -> int:
        self.written.append(data)
        return len(data)

    def shut(self) -> None: ...
    def reset(self) -> None: ...

    def unacknowledged(self) -> int:
        return 0


def test_a_short_read_of_a_stream_is_not_its_last() -> None:
    """Only the stream knows whether it is dry: a short read of a descriptor says so, one record of three does not."""
    source, sink = RecordStream(b"one", b"two", b"three"), RecordStream()
    flow = Flow(source, sink, None)
    assert flow.pump() == QUIET
    assert sink.written == [b"one", b"two", b"three"]


@pytest.mark.parametrize("final", [FIN_BEHIND, ANNOUNCED])
def test_an_end_lies_behind_the_last_record(final: int) -> None:
    source, sink = RecordStream(b"one", b"two", b""), RecordStream()
    flow = Flow(source, sink, None)
    flow.final = final
    assert flow.pump() == CHANGED
    assert sink.written == [b"one", b"two"]
    assert flow.source == ENDED


def test_a_stream_without_descriptor_is_copied_however_large() -> None:
    pipes = Pipes(most=4)
    source, sink = RecordStream(bytes(BULK), bytes(BULK)), RecordStream()
    flow = Flow(source, sink, pipes)
    assert flow.pump() == QUIET
    assert flow.given == 2 * BULK
    assert pipes.made == 0
