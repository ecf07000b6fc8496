"""The close state machine as transcripts: what both peers do, what each of them then sees, and what the log says.

A line is a peer and what it does: `client sends x`, `backend ends` (shuts its writing side), `client resets`, `backend
closes`, `client reads x|open` (all that has come, and whether the stream is open, at its end, or reset), `log SD
ECONNRESET`, `5 s pass`. The loop turns between two lines, never inside `both`: `both client ends, backend ends` is one
batch.
"""

import gc
import os
import random
import socket
import struct

import pytest

from balancer.eventloop.loop import READ, READ_HANGUP, WRITE
from balancer.pool.board import (
    B_SESSIONS,
    L_BYTES_IN,
    L_BYTES_OUT,
    L_PAUSES,
    L_RESUMES,
    L_SESSIONS,
)
from balancer.relay.flow import BULK
from tests.unit.balancer.relay.simulation import (
    PairedSocket,
    WorkerSimulation,
    fill,
    heard,
    listening_unix,
    read_all,
    reset,
)

TRANSCRIPTS = {
    "a request and its answer": [
        "client sends ask", "backend reads ask|open", "backend sends answer", "client reads answer|open",
        "client closes", "backend reads |end", "backend closes", "log --",
    ],
    "the client shuts first and still reads the answer": [
        "client sends ask", "client ends", "backend reads ask|end", "backend sends late", "client reads late|open",
        "backend closes", "client reads |end", "log --",
    ],
    "the backend shuts first and still reads the rest": [
        "backend sends hi", "backend ends", "client reads hi|end", "client sends more", "backend reads more|open",
        "client ends", "backend reads |end", "log --",
    ],
    "both end in one batch": [
        "both client ends, backend ends", "client reads |end", "backend reads |end", "log --",
    ],
    "both close in one batch": [
        "both client closes, backend closes", "log --",
    ],
    "bytes and ends in one batch": [
        "both client sends a, client ends, backend sends b, backend ends",
        "client reads b|end", "backend reads a|end", "log --",
    ],
    "one ends, the other resets, in one batch": [
        "both backend sends x, client ends, backend resets", "client reads x|reset", "log SD",
    ],
    "both reset in one batch": [
        "both client resets, backend resets", "log CD|SD",
    ],
    "a reset of the backend after its bytes": [
        "client sends ask", "backend reads ask|open", "both backend sends half, backend resets",
        "client reads half|reset", "log SD ECONNRESET",
    ],
    "a reset of the backend after its bytes, when the client has ended": [
        "client sends ask", "client ends", "backend reads ask|end", "both backend sends half, backend resets",
        "client reads half|reset", "log SD",
    ],
    "a reset of the client": [
        "client sends ask", "backend reads ask|open", "client resets", "backend reads |reset", "log CD ECONNRESET",
    ],
    "a reset of the client after its bytes": [
        "both client sends ask, client resets", "backend reads ask|reset", "log CD",
    ],
    "a reset of the client after its end": [
        "client sends ask", "client ends", "backend reads ask|end", "client resets", "backend reads |end", "log C",
    ],
    "a backend that closes with input unread resets; its answer comes first": [
        "client sends ask", "backend sends answer", "backend closes", "client reads answer|reset", "log SD",
    ],
    "a backend that ended and refuses the upload: the client may go on sending": [
        "backend sends no", "backend ends", "client reads no|end", "client sends a", "backend closes",
        "client sends b", "client sends c", "client reads |end", "client closes", "log SD",
    ],
    "a refused upload that never ends is given up": [
        "backend ends", "client reads |end", "client sends a", "backend closes", "client sends b", "29 s pass",
        "client sends c", "5 s pass", "log SD half-close-timeout",
    ],
    "half closed and silent": [
        "client ends", "backend reads |end", "29 s pass", "backend sends x", "client reads x|open", "29 s pass",
        "client reads |open", "3 s pass", "log sD half-close-timeout",
    ],
    "silent from the start": [
        "59 s pass", "client reads |open", "3 s pass", "log cD idle-timeout",
    ],
    "silent after the client's last bytes": [
        "client sends ask", "59 s pass", "client reads |open", "4 s pass", "log cD idle-timeout",
    ],
    "never silent long enough": [
        "40 s pass", "client sends a", "backend reads a|open", "40 s pass", "backend sends b", "40 s pass",
        "client reads b|open", "client closes", "backend closes", "log --",
    ],
    "the client leaves before a byte": [
        "client closes", "backend reads |end", "backend closes", "log --",
    ],
}  # fmt: skip


class Transcript:
    """Performs its lines."""

    def __init__(self, worker: WorkerSimulation, splicing: bool) -> None:
        self.worker = worker
        client, backend = worker.pair()
        if splicing:
            [session] = worker.sessions
            session.take_over()
        self.peers = {"client": client, "backend": backend}

    def perform(self, line: str) -> None:
        match line.split():
            case ["both", *_]:
                for act in line.removeprefix("both ").split(", "):
                    self.act(*act.split())
            case ["log", letters, *reason]:
                [end] = self.worker.ends
                assert any(end.startswith(" ".join([one, *reason])) for one in letters.split("|")), end
            case [seconds, "s", "pass"]:
                self.worker.pass_time(float(seconds))
            case [name, "reads", expected]:
                assert heard(self.peers[name]) == expected, line
            case [name, *act]:
                self.act(name, *act)
        self.worker.settle()
        self.worker.pass_time(0.03, 0.01)  # awaited acknowledgements are looked for every 10 ms

    def act(self, name: str, verb: str, what: str = "") -> None:
        peer = self.peers[name]
        match verb:
            case "sends":
                assert peer.send(what.encode()) == len(what)
            case "ends":
                peer.shutdown(1)
            case "closes":
                peer.close()
            case "resets":
                reset(peer)


@pytest.mark.parametrize("splicing", [False, True], ids=["fast", "splicing"])
@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript(worker: WorkerSimulation, name: str, splicing: bool) -> None:
    """Whether the splicing relay has the session from the start or takes it over on the way."""
    transcript = Transcript(worker, splicing)
    for line in TRANSCRIPTS[name]:
        transcript.perform(line)
    assert not worker.sessions
    assert worker.cell(L_SESSIONS) == worker.backend_cell(B_SESSIONS) == 0
    assert len(worker.ends) == 1
    assert worker.cell(L_PAUSES) == worker.cell(L_RESUMES)
    assert worker.context.pipes.held == 0


@pytest.mark.parametrize("splicing", [False, True], ids=["fast", "splicing"])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("gone", ["client", "backend"])
def test_bytes_under_way_to_a_peer_that_was_reset_are_not_waited_for(
    worker: WorkerSimulation, gone: str, turns: int, splicing: bool
) -> None:
    """One side is gone for good when it is sent something: its kernel resets the connection. The other side resets
    before, with or after that event. A TLS client and its server take leave of each other like this."""
    client, backend = worker.pair()
    if splicing:
        worker.sessions[0].take_over()
    first, second = (client, backend) if gone == "client" else (backend, client)
    first.close()
    worker.settle()
    second.send(b"close_notify")
    for _ in range(turns):
        worker.turn()
    reset(second)
    worker.settle()
    worker.pass_time(0.1, 0.01)
    assert len(worker.ends) == 1 and not worker.sessions
    assert worker.cell(L_SESSIONS) == worker.backend_cell(B_SESSIONS) == 0


def test_the_bytes_of_a_session_are_counted_while_it_lives(worker: WorkerSimulation) -> None:
    client, backend = worker.pair()
    client.send(b"12345")
    worker.settle()
    backend.send(b"123")
    worker.settle()
    worker.pass_time(1.5)
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (5, 3)
    client.close()
    backend.close()
    worker.settle()
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (5, 3)


def test_a_number_used_again_in_the_same_batch_is_another_session(worker: WorkerSimulation) -> None:
    """Many close and come at once; no byte reaches another session."""
    for generation in range(5):
        pairs = [worker.pair() for _ in range(20)]
        for number, (client, backend) in enumerate(pairs):
            client.send(f"c{generation}{number}".encode())
            backend.send(f"b{generation}{number}".encode())
        worker.settle()
        for number, (client, backend) in enumerate(pairs):
            assert heard(client) == f"b{generation}{number}|open"
            assert heard(backend) == f"c{generation}{number}|open"
            client.close()
            backend.close()
    worker.settle()
    assert not worker.sessions
    assert worker.ends == ["--"] * 100


def test_a_stale_event_does_not_reach_the_next_owner_of_its_number(worker: WorkerSimulation) -> None:
    """One batch: the old client's reset, a new client, the old backend's close. Were descriptors closed as soon as a
    session ends, the new session would get both numbers, and then the old backend's event."""
    client, backend = worker.pair()
    client.send(b"old")
    worker.settle()
    assert heard(backend) == "old|open"
    reset(client)
    newcomer = worker.connect()
    backend.close()
    worker.settle()
    newcomer.send(b"new")
    partner = worker.accept()
    worker.settle()
    assert heard(partner) == "new|open"
    partner.send(b"answer")
    worker.settle()
    assert heard(newcomer) == "answer|open"
    assert len(worker.ends) == 1


def test_descriptors_stay_open_until_the_end_of_the_batch(worker: WorkerSimulation) -> None:
    client, backend = worker.pair()
    [session] = worker.sessions
    closed = []
    worker.loop.retire(lambda: closed.append(session.closed))
    session.close("KD", "test")
    session.close("SD", "the second reason is not heard")
    assert (worker.cell(L_SESSIONS), worker.backend_cell(B_SESSIONS)) == (1, 1)
    assert heard(client) == "|open"
    worker.turn()
    assert heard(client) == heard(backend) == "|end"
    assert (worker.cell(L_SESSIONS), worker.backend_cell(B_SESSIONS)) == (0, 0)
    assert worker.ends == ["KD test"]


def test_an_ordinary_session_needs_no_splicing_relay(worker: WorkerSimulation) -> None:
    client, backend = worker.pair()
    [session] = worker.sessions
    client.send(b"ask")
    worker.settle()
    backend.send(b"answer")
    backend.shutdown(1)
    worker.settle()
    assert (heard(backend), heard(client)) == ("ask|open", "answer|end")
    assert session.over
    client.close()
    worker.settle()
    assert worker.ends == ["--"]
    assert session.splicing is None


def test_nothing_leads_back_to_a_session_that_is_over(worker: WorkerSimulation) -> None:
    """The garbage collector is off in workers: reference counts must be enough."""
    client, backend = worker.pair()
    [session] = worker.sessions
    splicing = session.take_over()
    client.close()
    backend.close()
    worker.settle()
    assert session.closed
    assert [each for each in gc.get_referrers(session) if each is splicing] == [splicing]
    assert splicing not in gc.get_referents(session)


@pytest.mark.parametrize("mask", [READ | WRITE | READ_HANGUP, READ | READ_HANGUP, WRITE])
def test_an_event_that_repeats_an_end_is_not_the_other_sides(worker: WorkerSimulation, mask: int) -> None:
    """epoll may report a state again; the backend's answer is still to come."""
    client, backend = worker.pair()
    [session] = worker.sessions
    client.shutdown(1)
    worker.settle()
    (session.splicing or session).on_client(mask)
    (session.splicing or session).on_client(mask)
    backend.send(b"answer")
    worker.settle()
    assert heard(client) == "answer|open"
    assert not worker.ends


@pytest.mark.parametrize("is_full", [True, False], ids=["takes nothing", "takes a part"])
@pytest.mark.parametrize("way", ["up", "down"])
def test_what_a_peer_does_not_take_at_once_is_kept_for_it(way: str, is_full: bool) -> None:
    """Its buffer is full, wholly or nearly: no byte is lost, doubled or out of order."""
    backend = PairedSocket.make()
    worker = WorkerSimulation(new_socket=lambda *_: backend, listening_socket=listening_unix())
    client = worker.connect()
    worker.settle()
    [session] = worker.sessions
    with socket.socket(fileno=os.dup(session.client_fd)) as accepted:
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        if is_full:
            fill(backend if way == "up" else accepted)
    sender, reader = (client, backend.other) if way == "up" else (backend.other, client)
    text = random.Random(7).randbytes(BULK - 1)
    assert sender.send(text) == len(text)
    worker.turn()
    assert session.splicing is not None
    assert worker.cell(L_PAUSES) == 0  # not counted yet
    flow = session.splicing.up if way == "up" else session.splicing.down
    assert flow.pending == len(text) if is_full else 0 < flow.pending < len(text)
    sender.send(b"abc")
    sender.shutdown(1)
    got = b""
    for _ in range(40):
        got += read_all(reader)
        worker.settle(3)
    assert got.lstrip(b"?") == text.lstrip(b"?") + b"abc"
    assert heard(reader) == "|end"
    worker.pass_time(2.5)
    assert worker.cell(L_PAUSES) == worker.cell(L_RESUMES) >= 1
    worker.close()


def test_a_failed_write_ends_the_session_after_the_last_answer() -> None:
    """What the backend has sent before it closed still arrives."""
    backend = PairedSocket.make()
    worker = WorkerSimulation(new_socket=lambda *_: backend)
    client = worker.connect()
    worker.settle()
    client.send(b"ask")
    backend.other.send(b"too big")
    backend.other.close()
    worker.settle()
    assert heard(client) == "too big|end"
    client.close()
    worker.settle()
    [end] = worker.ends
    assert end.startswith("SD")
    assert worker.cell(L_BYTES_IN) == 0
    assert worker.cell(L_BYTES_OUT) == 7
    worker.close()


# -- packets


def segments(sock: socket.socket) -> tuple[int, int]:
    """(sent, received) of a TCP connection, tcpi_segs_out and tcpi_segs_in."""
    sent, received = struct.unpack_from("II", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 136)
    return sent, received


def packets_of_an_answer_and_its_end(worker: WorkerSimulation, way: str, has_ended: bool) -> int:
    """How many a peer gets, which has or has not ended before."""
    client, backend = worker.pair()
    session = worker.sessions[-1]
    sender, reader = (client, backend) if way == "up" else (backend, client)
    if has_ended:
        reader.shutdown(1)
        worker.settle()
    before = segments(reader)[1]
    sender.send(b"answer")
    sender.shutdown(1)
    worker.settle()
    count = segments(reader)[1] - before
    assert heard(reader) == "answer|end"
    assert session.splicing is None
    assert session.closed is has_ended
    reader.close()
    worker.settle()
    return count


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_fin_goes_in_the_packet_of_the_bytes_before_it(
    worker: WorkerSimulation, way: str, has_ended: bool
) -> None:
    """epoll reports the second one with EPOLLHUP, which means no more than that both sides have ended. An acknowledgement
    of its own may come between, at a moment that the kernel chooses."""
    assert 1 in [packets_of_an_answer_and_its_end(worker, way, has_ended) for _ in range(5)]
    assert set(worker.ends) == {"--"}


@pytest.mark.parametrize("end", ["resets", "announces much"])
def test_bytes_that_no_fin_follows_at_once_are_not_held_back_for_one(
    worker: WorkerSimulation, end: str
) -> None:
    """The end that is announced behind them is no FIN, or there are more bytes before it."""
    client, backend = worker.pair()
    [session] = worker.sessions
    text = b"x" * (BULK if end == "announces much" else 10)
    backend.send(text)
    if end == "resets":
        reset(backend)
    else:
        backend.shutdown(1)
    sent: list[int] = []
    worker.loop.retire(
        lambda: sent.append(len(read_all(client)) if end != "resets" else len(client.recv(99)))
    )
    worker.turn()
    assert sent == [len(text)]
    worker.settle()
    assert heard(client) == ("|end" if end != "resets" else "|reset")
    assert session.splicing is not None or session.closed
