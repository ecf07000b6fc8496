"""Framed mode: each request to a backend of its own, and its reply to its client, whatever the peers do."""

import contextlib
import random
import socket
from collections import Counter

import pytest

from balancer.pool.board import (
    ADMIN_DRAIN,
    ADMIN_MAINT,
    B_BYTES_IN,
    B_BYTES_OUT,
    B_SESSIONS_TOTAL,
    L_BYTES_IN,
    L_BYTES_OUT,
    P_CONNECTIONS_IDLE,
    P_CONNECTIONS_IN_USE,
    P_REPLY_TIMES,
    P_REQUESTS_PER_S,
    P_WAIT_TIMES,
)
from balancer.relay.framed.client import PAUSE
from balancer.relay.framed.connection import RESTING
from balancer.relay.framed.connection_pool import REST, SUSPICION
from balancer.shm.histogram import CELLS, distribution
from balancer.worker import end_session
from tests.unit.balancer.relay.framed.framed_simulation import (
    HEADER,
    MOST,
    FramePeer,
    Start,
    exchange,
    frame,
    misbehaved,
)
from tests.unit.balancer.relay.simulation import reset

LONG = 24 << 20  # bytes: more than the buffers of two connections take


# -- choice and kept connections


def test_one_client_uses_every_backend(start: Start) -> None:
    worker = start(3)
    client = worker.client()
    for turn in range(9):
        exchange(client, lambda turn=turn: worker.backend(turn % 3), f"n{turn}")
    assert [len(worker.dialled(server)) for server in range(3)] == [1, 1, 1]
    assert [worker.backend_cell(B_SESSIONS_TOTAL, server) for server in range(3)] == [3, 3, 3]
    assert not worker.ends


def test_clients_share_the_connections_and_a_request_is_counted_while_it_is_under_way(start: Start) -> None:
    worker = start()
    for name in "abc":
        client = worker.client()
        client.ask(name)
        assert worker.under_way() == 1
        worker.backend().answer(name.upper())
        assert worker.under_way() == 0
        assert client.frames() == [name.upper()]
        client.close()
    assert len(worker.dialled()) == 1
    assert worker.ends == ["--"] * 3
    assert worker.request_ends == ["--"] * 3


def test_requests_at_once_have_connections_of_their_own(start: Start) -> None:
    worker = start()
    clients = [worker.client() for _ in range(4)]
    for number, client in enumerate(clients):
        client.ask(f"q{number}")
    assert worker.under_way() == len(worker.dialled()) == 4
    for number in (2, 0, 3, 1):
        [asked] = worker.backend(0, number).frames()
        worker.backend(0, number).answer(asked.upper())
    assert [client.frames() for client in clients] == [[f"Q{number}"] for number in range(4)]
    assert worker.connections.idle() == 4


def test_the_bytes_of_requests_and_replies_are_counted(start: Start) -> None:
    worker = start()
    client = worker.client()
    exchange(client, worker.backend, "four")
    client.close()
    assert (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)) == (HEADER + 4, HEADER + 4)
    [line] = worker.request_lines
    assert f" in={HEADER + 4} out={HEADER + 4} retries=0" in line
    assert " wait=0.0ms connect=0.0ms reply=0.0ms " in line


def test_idle_connections_are_closed_in_their_time(start: Start) -> None:
    worker = start(idle_backend_timeout=3.0)
    client = worker.client()
    exchange(client, worker.backend, "a")
    worker.pass_time(2.5)
    exchange(client, worker.backend, "b")
    assert worker.connections.idle() == 1
    worker.pass_time(4.5)
    assert worker.connections.idle() == 0
    assert worker.backend().heard() == b""
    assert worker.backend().state == "end"
    exchange(client, worker.backend, "c")
    assert len(worker.dialled()) == 2


def test_no_more_connections_are_kept_than_backend_conns(start: Start) -> None:
    worker = start(backend_conns=2)
    clients = [worker.client() for _ in range(4)]
    for client in clients:
        client.ask("q")
    for number in range(4):
        worker.backend(0, number).answer("r")
    assert [client.frames() for client in clients] == [["r"]] * 4
    assert worker.connections.idle() == 2


@pytest.mark.parametrize("state", [ADMIN_DRAIN, ADMIN_MAINT])
def test_a_backend_that_an_operator_takes_out_gets_no_new_request_and_its_idle_connections_are_closed(
    start: Start, state: int
) -> None:
    worker = start(2)
    client = worker.client()
    exchange(client, lambda: worker.backend(0), "a")
    exchange(client, lambda: worker.backend(1), "b")
    client.ask("under way")
    worker.board.set_admin_state(worker.backends[worker.place(0)].index, state, 1)
    worker.pass_time(1.5)
    worker.backend(0).answer("done")
    assert client.frames() == ["done"]
    worker.pass_time(1.5)
    assert worker.backend(0).frames() == ["under way"]
    assert worker.backend(0).state == "end"
    for _ in range(3):
        exchange(client, lambda: worker.backend(1), "c")


def test_what_is_kept_and_begun_is_on_the_board(start: Start) -> None:
    worker = start()
    worker.connections.rest = REST
    first, second = worker.client(), worker.client()
    exchange(first, worker.backend, "a")
    worker.pass_time(0.5)
    first.ask("b")
    second.ask("c")
    worker.pass_time(0.75)
    assert worker.pool_cell(P_CONNECTIONS_IN_USE) == 2
    assert worker.pool_cell(P_REQUESTS_PER_S) == 3
    for peer in worker.dialled():
        peer.answer("r")
    worker.pass_time(1.0)
    assert worker.pool_cell(P_CONNECTIONS_IDLE) == 2
    assert worker.pool_cell(P_CONNECTIONS_IN_USE) == worker.pool_cell(P_REQUESTS_PER_S) == 0


# -- order


def test_strict_replies_leave_in_the_order_of_the_requests(start: Start) -> None:
    worker = start(3, order="strict")
    client = worker.client()
    client.ask("a", "b", "c")
    worker.backend(2).answer("C")
    worker.backend(1).answer("B")
    assert client.frames() == []
    worker.backend(0).answer("A")
    assert client.frames() == ["A", "B", "C"]


def test_any_replies_leave_as_they_come(start: Start) -> None:
    worker = start(3, order="any")
    client = worker.client()
    client.ask("a", "b", "c")
    worker.backend(2).answer("C")
    assert client.frames() == ["C"]
    worker.backend(0).answer("A")
    worker.backend(1).answer("B")
    assert client.frames() == ["A", "B"]


@pytest.mark.parametrize("order", ["strict", "any"])
def test_a_reply_is_never_within_another(start: Start, order: str) -> None:
    worker = start(2, order=order)
    client = worker.client()
    client.ask("a", "b")
    reply = frame("A" * 100)
    worker.backend(0).send(reply[:50])
    worker.settle()
    worker.backend(1).answer("B")
    worker.backend(0).send(reply[50:])
    worker.settle()
    assert client.frames() == ["A" * 100, "B"]


def test_any_replies_that_have_waited_do_not_wait_for_a_part_of_another(start: Start) -> None:
    worker = start(3, order="any")
    client = worker.client()
    client.ask("a", "b", "c")
    worker.backend(0).send(frame("A" * 100)[:50])
    worker.settle()
    worker.backend(1).send(frame("B")[:3])
    worker.settle()
    worker.backend(2).answer("C")
    worker.backend(0).send(frame("A" * 100)[50:])
    worker.settle()
    assert client.frames() == ["A" * 100, "C"]
    worker.backend(1).send(frame("B")[3:])
    worker.settle()
    assert client.frames() == ["B"]


def test_a_reply_that_waits_for_its_turn_and_breaks_is_asked_for_again(start: Start) -> None:
    worker = start(3)
    client = worker.client()
    client.ask("a", "b")
    worker.backend(1).reset()
    assert worker.backend(2).frames() == ["b"]
    worker.backend(2).answer("B")
    worker.backend(0).answer("A")
    assert client.frames() == ["A", "B"]


def test_no_more_requests_are_under_way_than_the_pipeline_holds(start: Start) -> None:
    worker = start(pipeline=2)
    client = worker.client()
    client.ask(*"abcde")
    assert worker.under_way() == 2
    got = []
    for _ in range(5):
        asked = next((peer, text) for peer in worker.dialled() for text in peer.frames())
        asked[0].answer(asked[1].upper())
        assert worker.under_way() <= 2
        got += client.frames()
    assert got == list("ABCDE")


# -- frames


@pytest.mark.parametrize("cut", [*range(HEADER + 3), 40_000, 99_999])
def test_replies_behind_a_long_one(start: Start, cut: int) -> None:
    """Of the next reply only the header is looked at first: it may be short, it may come in parts."""
    worker = start()
    client = worker.client()
    for size in (100_000, 20, 100_000, 100_000, 1, 20):
        client.ask("q")
        reply = frame("r" * size)
        worker.backend().send(reply[: min(cut, len(reply))])
        worker.settle(4)
        worker.backend().send(reply[cut:])
        worker.settle()
        assert client.frames() == ["r" * size]
    assert len(worker.dialled()) == 1
    assert not worker.ends


def test_the_bytes_of_each_backend_are_on_the_board_within_a_second(start: Start) -> None:
    worker = start()
    client = worker.client()

    def counted() -> tuple[int, int]:
        return worker.backend_cell(B_BYTES_IN, 0), worker.backend_cell(B_BYTES_OUT, 0)

    exchange(client, worker.backend, "four")
    worker.pass_time(1.1)
    assert counted() == (HEADER + 4, HEADER + 4)
    exchange(client, worker.backend, "eleven char")
    worker.backend().close()
    assert counted() == (2 * HEADER + 15, 2 * HEADER + 15)
    client.ask("seven c")
    worker.backend().send(frame("unfinished")[:9])
    worker.settle()
    client.close()
    assert counted() == (3 * HEADER + 22, 2 * HEADER + 15 + 9)
    assert counted() == (worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT))


def test_the_times_of_waits_and_replies_are_counted(start: Start) -> None:
    worker = start(upstream="maxconn=1")
    first, second = worker.client(), worker.client()
    first.ask("a")
    worker.pass_time(0.3)
    second.ask("b")
    worker.pass_time(0.4)
    worker.backend().answer("A")  # 0.7 s
    assert first.frames() == ["A"]
    worker.pass_time(2.0)
    worker.backend().answer("B" * 100_000)
    worker.settle()
    worker.pass_time(1.1)

    def times(column: int) -> tuple[int, float]:
        at = worker.board.pool_at(0) + column
        found = distribution(worker.context.cells[at : at + CELLS].tolist())
        return found.count, found.seconds

    assert times(P_REPLY_TIMES) == (2, pytest.approx(2.7, abs=0.05))
    assert times(P_WAIT_TIMES) == (1, pytest.approx(0.4, abs=0.05))


@pytest.mark.parametrize("size", [10, 100, 20_000])
def test_a_request_above_retry_buffer_is_sent_once(start: Start, size: int) -> None:
    """Whether or not frames of its size have come before, and whether or not it is read whole."""
    worker = start(2, retry_buffer=50 + HEADER, frame_retries=3)
    client = worker.client()
    for turn in range(2):
        exchange(client, lambda turn=turn: worker.backend(turn), "x" * size)
    client.ask("y" * size)
    assert worker.backend(0).frames() == ["y" * size]
    worker.backend(0).close()
    assert [end[:2] for end in worker.ends] == ([] if size < 50 else ["SD"])


def test_every_split_of_a_request_and_of_its_reply(start: Start) -> None:
    worker = start()
    client = worker.client()
    whole = frame("request") + frame("r2")
    for cut in range(len(whole) + 1):
        for part in (whole[:cut], whole[cut:]):
            client.send(part)
            worker.settle(4)
        asked = [(peer, text) for peer in worker.dialled() for text in peer.frames()]
        assert sorted(text for _, text in asked) == ["r2", "request"]
        replies = {"request": frame("the reply"), "r2": frame("x")}
        for peer, text in asked:
            peer.send(replies[text][: max(1, cut - 3)])
            worker.settle(4)
            if rest := replies[text][max(1, cut - 3) :]:
                peer.send(rest)
                worker.settle(4)
        worker.settle()
        assert client.frames() == ["the reply", "x"]
    assert not worker.ends


@pytest.mark.parametrize("size", [1, 16_384 - HEADER, 16_384, 65_536 - HEADER, 65_536, 100_000, MOST])
@pytest.mark.parametrize("splice", [True, False])
def test_payloads_of_any_size(start: Start, size: int, splice: bool) -> None:
    worker = start(2, splice=splice)
    client = worker.client()
    for seed in range(4):
        text = random.Random(seed).randbytes(1000).hex() * (size // 2000 + 1)
        client.send(frame(text[:size]))
        worker.settle()
        got: list[str] = []
        for _ in range(2000):
            got = worker.backend(seed % 2).frames()
            if got:
                break
            worker.turn()
        assert got == [text[:size]]
        backend = worker.backend(seed % 2)
        backend.send(frame(text[:size][::-1]))
        replies: list[str] = []
        for _ in range(2000):
            replies += client.frames()
            if replies:
                break
            worker.turn()
        assert replies == [text[:size][::-1]]
    assert not worker.ends
    assert [len(worker.dialled(server)) for server in (0, 1)] == [1, 1]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no frame: begins with 47 45"),
        (b"~x", "no frame: begins with 7e 78"),
        (b"~~" + (MOST + 1).to_bytes(4, "big"), f"frame of {MOST + 1} bytes is over max-frame {MOST}"),
        (b"~~\xff\xff\xff\xff", "over max-frame"),
    ],
)
def test_what_is_no_frame_ends_the_client_with_one_line(start: Start, data: bytes, reason: str) -> None:
    worker = start()
    client = worker.client()
    client.send(data)
    worker.settle()
    [line] = [line for line in worker.lines.others if line.startswith("refuse ")]
    assert reason in line
    assert client.heard() == b""
    assert client.state in ("end", "reset")
    [end] = worker.ends
    assert end.startswith("PR ")


def test_requests_before_what_is_no_frame_are_answered(start: Start) -> None:
    worker = start()
    client = worker.client()
    client.send(frame("good") + b"bad")
    worker.settle()
    client.send(b"and more of it")
    worker.backend().answer("GOOD")
    assert client.frames() == ["GOOD"]
    assert client.state == "end"
    [end] = worker.ends
    assert end.startswith("PR no frame")


@pytest.mark.parametrize("size", [1000, 100_000])
@pytest.mark.parametrize("sent", [1, 5, HEADER, HEADER + 10, 20_000])
def test_a_frame_that_stops_is_cut_at_its_time_and_holds_no_place_before_it_has_begun(
    start: Start, sent: int, size: int
) -> None:
    worker = start(frame_timeout=5.0)
    client = worker.client()
    client.send(frame("x" * size)[: min(sent, size)])
    worker.settle()
    assert worker.under_way() == (sent == 20_000 and size == 100_000)
    worker.pass_time(4.5)
    assert not worker.ends
    worker.pass_time(3.5)
    assert worker.ends == ["cD frame-timeout"]
    [line] = [line for line in worker.lines.others if line.startswith("refuse ")]
    assert "reason=frame-timeout" in line


def test_a_slow_frame_that_goes_on_is_not_cut(start: Start) -> None:
    worker = start(frame_timeout=2.0)
    client = worker.client()
    for byte in frame("slowly"):
        client.send(bytes([byte]))
        worker.pass_time(1.5)
    assert worker.backend().frames() == ["slowly"]
    worker.pass_time(10.0)  # the backend may think as long as it likes
    worker.backend().answer("ok")
    assert client.frames() == ["ok"]


def test_a_frame_that_its_client_ends_within_is_refused(start: Start) -> None:
    worker = start()
    client = worker.client()
    client.send(frame("whole")[:-1])
    client.end()
    assert worker.ends == ["PR ended within a frame"]


# -- clients that end


def test_a_client_that_has_ended_its_sending_gets_all_its_replies(start: Start) -> None:
    worker = start(2)
    client = worker.client()
    client.ask("a", "b")
    client.end()
    worker.backend(1).answer("B")
    worker.backend(0).answer("A")
    assert client.frames() == ["A", "B"]
    assert client.state == "end"
    assert worker.ends == ["--"]


def test_a_client_that_asks_and_ends_in_one_segment(start: Start) -> None:
    worker = start()
    client = worker.client()
    client.send(frame("a"))
    client.end()
    worker.backend().answer("A")
    assert client.frames() == ["A"]
    assert worker.ends == ["--"]


@pytest.mark.parametrize("order", ["strict", "any"])
def test_a_client_that_a_drain_ends_gets_the_replies_that_are_under_way(start: Start, order: str) -> None:
    worker = start(2, order=order)
    client = worker.client()
    client.ask("a", "b")
    [session] = worker.sessions
    end_session(session, "drain")
    client.ask("c")
    worker.backend(1).answer("B")
    worker.backend(0).answer("A")
    assert sorted(client.frames()) == ["A", "B"]
    assert client.state == "end"
    assert worker.ends == ["KD drain"]
    assert worker.backend(0).frames() + worker.backend(1).frames() == ["a", "b"]


def test_a_frame_that_has_begun_is_under_way_in_a_drain(start: Start) -> None:
    worker = start()
    client = worker.client()
    whole = frame("a" * 200_000)
    client.send(whole[:100_000])
    worker.settle()
    [session] = worker.sessions
    end_session(session, "drain")
    client.send(whole[100_000:] + frame("b"))
    worker.settle()
    assert worker.backend().frames() == ["a" * 200_000]
    worker.backend().answer("A")
    assert client.frames() == ["A"]
    assert client.state == "end"
    assert worker.ends == ["KD drain"]


@pytest.mark.parametrize("sent", [b"", frame("a")[:5]])
def test_a_client_without_a_request_is_ended_by_a_drain_at_once(start: Start, sent: bytes) -> None:
    worker = start()
    client = worker.client()
    client.send(sent)
    worker.settle()
    [session] = worker.sessions
    end_session(session, "drain")
    worker.settle()
    assert client.heard() == b""
    assert client.state == "end"
    assert worker.ends == ["KD drain"]


@pytest.mark.parametrize("size", [10, 200_000])
def test_a_client_that_resets_costs_its_connections_and_no_health(start: Start, size: int) -> None:
    worker = start(2)
    client = worker.client()
    client.ask("a")
    client.send(frame("x" * size)[:100_000])
    worker.settle()
    assert worker.under_way(0) == worker.under_way(1) == 1
    client.reset()
    assert worker.under_way(0) == worker.under_way(1) == 0
    assert worker.failures(0) == worker.failures(1) == 0
    for server in (0, 1):
        worker.backend(server).heard()
        assert worker.backend(server).state in ("end", "reset")
    assert worker.connections.idle() == 0
    assert worker.request_ends == ["CD", "CD"]


def fill(backend: FramePeer, data: bytes) -> bytes:
    """Send as much as the buffers take; return the rest."""
    while data:
        try:
            data = data[backend.sock.send(data) :]
        except BlockingIOError:
            backend.worker.settle(3)
            try:
                data = data[backend.sock.send(data) :]
            except BlockingIOError:
                break
    return data


def test_a_client_that_does_not_read_stops_its_own_requests_only(start: Start) -> None:
    worker = start(pipeline=2)
    slow, quick = worker.client(), worker.client()
    slow.ask("big")
    backend = worker.backend()
    data = fill(backend, frame(b"x" * MOST))
    for _ in range(3):
        exchange(quick, worker.backend, "q")
    assert worker.under_way() == 1
    replies: list[str] = []
    for _ in range(5000):
        if data:
            try:
                data = data[backend.sock.send(data) :]
            except BlockingIOError:
                pass
        replies += slow.frames()
        if replies:
            break
        worker.turn()
    assert [len(reply) for reply in replies] == [MOST]


@pytest.mark.parametrize("then", ["waits", "ends its sending", "sends on"])
@pytest.mark.parametrize("order", ["strict", "any"])
def test_a_client_that_does_not_read_is_cut_without_any_idle_timeout(
    start: Start, order: str, then: str
) -> None:
    """Its reply holds a place at the backend. What the client sends meanwhile is no progress of it."""
    worker = start(idle_timeout=0.0, frame_timeout=5.0, order=order, max_frame=LONG)
    client = worker.client()
    client.ask("big")
    assert fill(worker.backend(), frame(b"x" * LONG))
    if then == "ends its sending":
        client.end()
    unsent = frame("slowly")
    worker.pass_time(1.0)
    for _ in range(3):
        assert worker.under_way() == 1 and not worker.ends
        if then == "sends on":
            client.send(unsent[:1])
            unsent = unsent[1:]
        worker.pass_time(1.0)
    worker.pass_time(PAUSE - 7.0, step=1.0)
    assert worker.under_way() == 1 and not worker.ends
    for _ in range(40):  # the kernel may acknowledge a little late, while the clock here runs fast
        if not worker.ends:
            worker.pass_time(9.0, step=1.0)
    assert worker.ends == ["cD frame-timeout"]
    assert worker.under_way() == 0
    assert not [
        line for line in worker.lines.others if line.startswith("refuse ")
    ]  # it has sent no bad frame


def test_a_client_that_reads_slowly_is_not_cut(start: Start) -> None:
    """Its socket takes nothing new for longer than a pause may be: what its kernel acknowledges is progress. When the
    kernel lets the next write through is its own business, so that some clients are tried."""
    assert any(steps_without_a_write(start) > 2 for _ in range(20))


def steps_without_a_write(start: Start) -> int:
    """The steps of most of a pause for which a client read and was given nothing; it is not cut."""
    worker = start(idle_timeout=0.0, frame_timeout=PAUSE, max_frame=LONG)
    client = worker.client()
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)  # a window that opens in small steps
    client.ask("big")
    rest, heard = fill(worker.backend(), frame(b"x" * LONG)), 0
    [session] = worker.context.sessions
    given, passed = session.given(), 0
    while session.given() == given and not worker.ends and passed < 40:
        with contextlib.suppress(BlockingIOError):
            for _ in range(18):  # the kernel opens the window by some 200 KB at once
                heard += len(client.sock.recv(16_384))
        worker.pass_time(0.75 * PAUSE, step=5.0)
        passed += 1
    assert rest and heard and not worker.ends
    return passed


def test_a_client_that_has_taken_its_reply_may_stay_for_ever_without_idle_timeout(start: Start) -> None:
    worker = start(idle_timeout=0.0, frame_timeout=2.0)
    client = worker.client()
    exchange(client, worker.backend, "a")
    worker.pass_time(30.0)
    exchange(client, worker.backend, "b")


# -- backends that break


def test_a_request_whose_backend_breaks_goes_to_another(start: Start) -> None:
    worker = start(2)
    client = worker.client()
    client.ask("a")
    worker.backend(0).reset()
    assert worker.backend(1).frames() == ["a"]
    worker.backend(1).answer("A")
    assert client.frames() == ["A"]
    assert worker.failures(0) == 0
    assert " retries=1+" in worker.request_lines[0]


@pytest.mark.parametrize("size", [40_000, 900_000])
def test_a_big_request_is_sent_again_from_its_beginning(start: Start, size: int) -> None:
    worker = start(2)
    client = worker.client()
    whole = frame("ab" * (size // 2))
    client.send(whole[: size // 2])
    worker.settle()
    worker.backend(0).reset()
    client.send(whole[size // 2 :])
    for _ in range(500):
        if got := worker.backend(1).frames():
            break
        worker.turn()
    assert got == ["ab" * (size // 2)]


@pytest.mark.parametrize("size", [20_000, 100_000, 400_000])
@pytest.mark.parametrize("taken", ["all", "a part"])
def test_a_client_goes_on_behind_a_big_request_that_was_sent_again(
    start: Start, size: int, taken: str
) -> None:
    worker = start(2, order="any")
    if taken == "a part":
        worker.servers[worker.place(0)].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client = worker.client()
    whole = frame("x" * size)
    client.send(whole[:17_000])
    worker.settle()
    if taken == "a part":
        (session,) = worker.context.sessions
        (request,) = session.splicing.requests
        request.carrier.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
    client.send(whole[17_000:] + frame("next"))
    worker.settle(10)
    worker.backend(0).reset()
    served = []
    for _ in range(500):
        for peer in worker.dialled(0) + worker.dialled(1):
            for text in peer.frames():
                served.append(text)
                peer.answer(str(len(text)))
        if len(served) == 2:
            break
        worker.turn()
    assert sorted(served) == ["next", "x" * size]
    assert sorted(client.frames()) == sorted([str(size), "4"])


def test_a_request_above_the_retry_buffer_is_not_sent_again(start: Start) -> None:
    worker = start(2, retry_buffer=50_000)
    client = worker.client()
    client.send(frame("x" * 60_000))
    worker.settle()
    worker.backend(0).reset()
    assert worker.ends == ["SD ECONNRESET"]
    assert worker.dialled(1) == []


@pytest.mark.parametrize(("retries", "broken"), [(0, 1), (1, 2), (2, 3)])
def test_a_request_that_breaks_its_backends_is_given_up(start: Start, retries: int, broken: int) -> None:
    worker = start(4, frame_retries=retries)
    for server in range(
        4
    ):  # kept connections: what breaks one that has read the request is no stale connection
        exchange(worker.client(), lambda server=server: worker.backend(server), "warm")
    client = worker.client()
    client.ask("poison")
    for _ in range(4):
        for server in range(4):
            if worker.backend(server).frames():
                worker.backend(server).close()
    assert worker.ends == ["SD ended before its reply was whole"]
    assert worker.connections.idle() == 4 - broken
    assert sum(worker.failures(server) for server in range(4)) == 0


def test_a_reply_that_has_begun_is_not_asked_for_again(start: Start) -> None:
    worker = start(2)
    client = worker.client()
    client.ask("a")
    assert worker.backend(0).frames() == ["a"]
    worker.backend(0).send(frame("A" * 10)[:-3])
    worker.settle()
    worker.backend(0).close()
    assert worker.ends == ["SD ended before its reply was whole"]
    assert worker.dialled(1) == []


@pytest.mark.parametrize("backends", [1, 3])
@pytest.mark.parametrize("with_reset", [False, True])
def test_a_kept_connection_that_the_backend_has_closed_is_no_try(
    start: Start, backends: int, with_reset: bool
) -> None:
    """They all close in the same batch in which the request comes: it is on its way before an end is seen."""
    worker = start(backends, frame_retries=0)
    client = worker.client()
    for server in range(backends):
        exchange(client, lambda server=server: worker.backend(server), "a")
    kept = [worker.backend(server) for server in range(backends)]
    client.send(frame("b"))
    for peer in kept:
        if with_reset:
            reset(getattr(peer.sock, "sock", peer.sock))
        else:
            peer.sock.close()
    worker.settle()
    assert not worker.ends
    server = next(server for server in range(backends) if len(worker.dialled(server)) == 2)
    assert worker.backend(server).frames() == ["b"]
    worker.backend(server).answer("B")
    assert client.frames() == ["B"]
    assert not any(worker.failures(server) for server in range(backends))
    assert " retries=0" in worker.request_lines[-1]
    assert not worker.ends


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("backends", [1, 2, 4])
@pytest.mark.parametrize("with_read", [False, True], ids=["unread", "read"])
def test_no_kept_connection_excuses_a_request_whose_backend_resets(
    start: Start, retries: int, backends: int, with_read: bool
) -> None:
    """The kernel of a backend that has read the request may not have acknowledged it yet."""
    worker = start(backends, frame_retries=retries)
    client = worker.client()
    for turn in range(3 * backends):
        exchange(client, lambda turn=turn: worker.backend(turn % backends), "warm")
    client.ask("poison")
    tries, place = 0, 0
    while place < backends and not worker.ends:
        if peer := next((each for each in worker.dialled(place) if each.heard()), None):
            tries += 1
            if with_read:
                assert peer.frames() == ["poison"]
            peer.reset()
            place = 0
        else:
            place += 1
    assert 1 <= tries <= retries + 1
    assert worker.ends[0].startswith("SD ")
    assert not any(worker.failures(server) for server in range(backends))


@pytest.mark.parametrize("backends", [1, 2, 3])
def test_a_request_that_has_broken_all_there_are_ends_as_one_that_is_given_up(
    start: Start, backends: int
) -> None:
    worker = start(backends, frame_retries=backends)
    client = worker.client()
    client.ask("a")
    for server in range(backends):
        assert worker.backend(server).frames() == ["a"]
        worker.backend(server).close()
    assert worker.ends == ["SD all backends tried"]
    last = worker.backends[worker.place(backends - 1)].name
    assert f" backend={last} end=SD " in worker.request_lines[0]
    assert " connect=-1" not in worker.request_lines[0]


@pytest.mark.parametrize("sent", [1, HEADER - 1, HEADER, HEADER + 69])
@pytest.mark.parametrize("ended_by", ["backend", "client", "time"])
def test_the_line_of_a_request_whose_reply_is_cut(start: Start, sent: int, ended_by: str) -> None:
    worker = start(order="any", frame_timeout=5.0, frame_retries=0)
    client = worker.client()
    client.ask("a")
    worker.pass_time(1.0)
    worker.backend().send(frame("A" * 100)[:sent])
    worker.settle()
    worker.pass_time(1.0)
    given = sent if sent >= HEADER else 0
    assert len(client.heard()) == given
    if ended_by == "backend":
        worker.backend().close()
    elif ended_by == "client":
        client.reset()
    else:
        worker.pass_time(4.5)
        worker.pass_time(2.5)
    line = worker.request_lines[0]
    assert f" end={ {'backend': 'SD', 'client': 'CD', 'time': 'sD'}[ended_by] } " in line
    assert f" out={given} " in line
    assert " wait=0.0ms connect=0.0ms reply=" in line
    assert worker.backend_cell(B_BYTES_OUT, 0) == worker.cell(L_BYTES_OUT) == given


def test_the_times_of_a_request_that_is_tried_again_are_those_of_its_last_try(start: Start) -> None:
    worker = start(2)
    client = worker.client()
    for server in range(2):
        exchange(client, lambda server=server: worker.backend(server), "warm")
    client.ask("a")
    worker.pass_time(3.0)
    assert worker.backend(0).frames() == ["a"]
    worker.backend(0).close()
    worker.pass_time(1.0)
    assert worker.backend(1).frames() == ["a"]
    worker.backend(1).answer("A")
    assert " wait=3000.0ms connect=0.0ms reply=1000.0ms " in worker.request_lines[-1]


def test_a_kept_connection_that_the_backend_closes_is_forgotten(start: Start) -> None:
    worker = start()
    client = worker.client()
    exchange(client, worker.backend, "a")
    worker.backend().close()
    assert worker.connections.idle() == 0
    assert not worker.lines.others
    exchange(client, worker.backend, "b")


def test_a_backend_that_ends_with_its_reply_is_dialled_again(start: Start) -> None:
    worker = start()
    client = worker.client()
    for text in "abc":
        client.ask(text)
        worker.backend().send(frame(text.upper()))
        worker.backend().close()
        assert client.frames() == [text.upper()]
    assert len(worker.dialled()) == 3
    assert " retries=0" in worker.request_lines[-1]


def test_a_reply_that_stops_ends_the_client_at_its_time(start: Start) -> None:
    worker = start(frame_timeout=5.0)
    client = worker.client()
    client.ask("a")
    worker.backend().send(frame("A" * 10)[:-3])
    worker.settle()
    worker.pass_time(4.0)
    assert not worker.ends
    worker.pass_time(3.0)
    assert worker.ends == ["sD frame-timeout"]
    assert worker.connections.idle() == 0


def test_a_refused_dial_is_a_failure_of_the_backend(start: Start) -> None:
    worker = start(2)
    worker.servers[worker.place(0)].close()
    client = worker.client()
    exchange(client, lambda: worker.backend(1), "a")
    assert worker.failures(0) == 1
    assert worker.under_way(0) == 0


def test_no_backend_is_left(start: Start) -> None:
    worker = start(2)
    for server in worker.servers:
        server.close()
    client = worker.client()
    client.ask("a")
    assert worker.ends == ["SC all backends tried"]
    assert " backend=<NOSRV> end=SC " in worker.request_lines[0]


# -- backends that misbehave


@pytest.mark.parametrize(
    "extra", [b"x", frame("A"), frame("A")[:3]], ids=["a byte", "a second reply", "a header's part"]
)
def test_bytes_beyond_a_reply_reach_nobody(start: Start, extra: bytes) -> None:
    worker = start()
    first, second = worker.client(), worker.client()
    first.ask("a")
    worker.backend().send(frame("A") + extra)
    worker.settle()
    assert first.frames() == ["A"]
    assert len(misbehaved(worker)) == 1
    exchange(second, worker.backend, "b")
    assert len(worker.dialled()) == 2


def test_bytes_that_nobody_has_asked_for_reach_nobody(start: Start) -> None:
    worker = start()
    first, second = worker.client(), worker.client()
    exchange(first, worker.backend, "a")
    worker.backend().answer("unasked")
    exchange(second, worker.backend, "b")
    assert len(worker.dialled()) == 2
    assert first.frames() == []
    assert len(misbehaved(worker)) == 1


@pytest.mark.parametrize("late", [0.0, REST - 0.01])
def test_a_second_reply_within_the_rest_of_its_connection_reaches_nobody(start: Start, late: float) -> None:
    """Although other requests come before it: they get another connection."""
    worker = start()
    worker.connections.rest = REST
    first, second = worker.client(), worker.client()
    exchange(first, worker.backend, "a")
    worker.pass_time(late, step=0.02)
    second.ask("b")
    worker.backend(0, 0).answer("A")
    assert (first.frames(), second.frames()) == ([], [])
    assert len(misbehaved(worker)) == 1
    assert worker.backend(0, 1).frames() == ["b"]
    worker.backend(0, 1).answer("B")
    assert second.frames() == ["B"]


def test_a_connection_that_has_rested_is_used_again_the_one_that_has_rested_longest_first(
    start: Start,
) -> None:
    worker = start()
    worker.connections.rest = REST
    client = worker.client()
    exchange(client, worker.backend, "a")
    exchange(client, worker.backend, "b")
    worker.pass_time(REST, step=0.02)
    exchange(client, lambda: worker.backend(0, 0), "c")
    exchange(client, lambda: worker.backend(0, 1), "d")
    assert len(worker.dialled()) == 2


def test_where_many_connections_rest_a_shorter_rest_will_do(start: Start) -> None:
    worker = start()
    worker.connections.rest = REST
    client = worker.client()
    for number in range(3 * RESTING):
        exchange(client, lambda number=number: worker.backend(0, number % RESTING), f"n{number}")
    assert len(worker.dialled()) == RESTING


def test_a_backend_under_suspicion_gets_a_connection_for_each_request_for_a_while(start: Start) -> None:
    """A second reply that comes late cannot be told from the reply to the next request on the same connection."""
    worker = start(idle_timeout=0.0)
    client = worker.client()
    exchange(client, worker.backend, "a")
    worker.backend().answer("unasked")
    for text in "bcd":
        exchange(client, worker.backend, text)
        assert worker.connections.idle() == 0
    assert len(worker.dialled()) == 4
    worker.pass_time(SUSPICION + 1, step=2.0)
    exchange(client, worker.backend, "e")
    assert worker.connections.idle() == 1


@pytest.mark.parametrize("reply", [b"nonsense", b"~~\xff\xff\xff\xff"], ids=["wrong magic", "wrong length"])
def test_what_is_no_reply_is_not_passed_on(start: Start, reply: bytes) -> None:
    worker = start(2)
    client = worker.client()
    client.ask("a")
    worker.backend(0).send(reply)
    worker.settle()
    assert worker.backend(0).heard() == frame("a")
    assert len(misbehaved(worker)) == 1
    worker.backend(1).answer("A")
    assert client.frames() == ["A"]


def test_a_late_reply_of_a_client_that_is_gone_reaches_nobody(start: Start) -> None:
    worker = start()
    first, second = worker.client(), worker.client()
    first.ask("a")
    first.reset()
    second.ask("b")
    try:
        worker.dialled()[0].answer("A")
    except OSError:
        pass
    worker.backend().answer("B")
    assert second.frames() == ["B"]


@pytest.mark.parametrize("size", [300_000, 3_000_000])
def test_a_reply_before_the_end_of_the_request(start: Start, size: int) -> None:
    """The client gets it, the rest of the request reaches nobody, and the next request is one."""
    worker = start(2)
    client = worker.client()
    whole = frame("x" * size)
    client.send(whole[:100_000])
    worker.settle()
    worker.backend(0).answer("too big")
    assert client.frames() == ["too big"]
    assert sum(worker.backend_cell(B_BYTES_IN, server) for server in range(2)) == 100_000
    client.send(whole[100_000:])
    exchange(client, lambda: worker.backend(1), "next")
    worker.backend(0).heard()
    assert worker.backend(0).state in ("end", "reset")


# -- limits


@pytest.mark.parametrize("by_operator", [False, True])
def test_a_limit_counts_requests_and_the_others_wait_in_their_order(start: Start, by_operator: bool) -> None:
    worker = start(upstream="" if by_operator else "maxconn=1")
    if by_operator:
        worker.board.set_maxconn(worker.backends[0].index, 1)
    clients = [worker.client() for _ in range(4)]
    for number, client in enumerate(clients):
        client.ask(f"q{number}")
    for number in range(4):
        assert worker.under_way() == 1
        assert worker.backend().frames() == [f"q{number}"]
        worker.backend().answer(f"r{number}")
    assert [client.frames() for client in clients] == [["r0"], ["r1"], ["r2"], ["r3"]]
    assert len(worker.dialled()) == 1


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize("is_answered", [False, True], ids=["under way", "answered"])
def test_a_request_that_is_tried_again_does_not_wait_for_the_places_of_those_behind_it(
    start: Start, broken: int, is_answered: bool
) -> None:
    """Their replies wait for the reply to that one: each would wait for the other."""
    worker = start(3, upstream="maxconn=1", queue_timeout=60.0)
    client, other = worker.client(), worker.client()
    client.ask(*"abcd")
    other.ask("other")

    def asked() -> dict[str, FramePeer]:
        peers = [peer for server in range(3) for peer in worker.dialled(server)]
        return {text: peer for peer in peers if peer.state == "open" for text in peer.frames()}

    owed = asked()
    assert sorted(owed) == ["a", "b", "c"]
    if is_answered:
        for text in "abc"[broken + 1 :]:
            owed.pop(text).answer(text.upper())
    owed.pop("abc"[broken]).close()
    for _ in range(50):
        worker.settle()
        for text, peer in owed.items():
            if peer.heard() == b"" and peer.state == "open":
                peer.answer(text.upper())
        owed = asked()
    assert client.frames() == list("ABCD")
    assert other.frames() == ["OTHER"]
    assert not any(worker.under_way(server) for server in range(3))


@pytest.mark.parametrize("retries", [0, 1, 2, 3])
@pytest.mark.parametrize("pipeline", [3, 6])
@pytest.mark.parametrize("servers", [3, 5])
def test_a_request_whose_place_others_take_is_sent_no_oftener_than_frame_retries_allows(
    start: Start, retries: int, pipeline: int, servers: int
) -> None:
    worker = start(servers, upstream="maxconn=1", queue_timeout=5.0, frame_retries=retries)
    client = worker.client()
    texts = [f"q{number}" for number in range(pipeline)]
    client.ask(*texts)
    heard: Counter[str] = Counter()
    for _ in range(100):
        worker.settle()
        peers = [peer for server in range(servers) for peer in worker.dialled(server)]
        owed = [(text, peer) for peer in peers for text in peer.frames()]
        heard.update(text for text, _ in owed)
        for text, peer in owed:
            if text != texts[-1] and heard[text] <= retries and peer.state == "open":
                peer.close()  # each but the last one breaks its backends as often as it may
        if worker.ends:
            break
        for text, peer in owed:
            if peer.state == "open" and peer.sock.fileno() >= 0:
                with contextlib.suppress(OSError):  # its place may have been taken meanwhile
                    peer.answer(text.upper())
    assert heard, "nothing was sent"
    assert max(heard.values()) <= 1 + retries, heard
    worker.pass_time(6.0)  # one whose place is held by another that has had its tries waits for queue-timeout
    given = sum(worker.backend_cell(B_BYTES_IN, server) for server in range(servers))
    assert given == sum(heard[text] * (HEADER + len(text)) for text in heard)
    assert not any(worker.under_way(server) for server in range(servers))


@pytest.mark.parametrize("state", [ADMIN_DRAIN, ADMIN_MAINT])
@pytest.mark.parametrize("out", [1, 2])
def test_no_request_takes_a_place_at_a_backend_that_an_operator_has_taken_out(
    start: Start, state: int, out: int
) -> None:
    worker = start(3, upstream="maxconn=1", queue_timeout=5.0)
    client = worker.client()
    client.ask(*"abc")
    assert [worker.backend(server).frames() for server in range(3)] == [["a"], ["b"], ["c"]]
    worker.board.set_admin_state(worker.backends[worker.place(out)].index, state, 0)
    worker.backend(0).close()
    worker.settle()
    assert len(worker.dialled(out)) == 1
    assert worker.backend(3 - out).frames() == ["a"]


def test_a_request_that_waits_too_long_ends_its_client(start: Start) -> None:
    worker = start(upstream="maxconn=1", queue_timeout=2.0)
    first, second = worker.client(), worker.client()
    first.ask("a")
    second.ask("b")
    worker.pass_time(3.0)
    assert worker.ends == ["sQ queue-timeout"]
    worker.backend().answer("A")
    assert first.frames() == ["A"]


def test_a_client_that_leaves_the_queue(start: Start) -> None:
    worker = start(upstream="maxconn=1")
    first, second, third = (worker.client() for _ in range(3))
    for client, text in zip((first, second, third), "abc", strict=True):
        client.ask(text)
    second.reset()
    worker.backend().answer("A")
    assert worker.backend().frames() == ["a", "c"]


@pytest.mark.parametrize("order", ["strict", "any"])
def test_a_client_that_has_closed_loses_its_queued_requests_with_its_first_reply(
    start: Start, order: str
) -> None:
    """Until then it cannot be told from one that has ended its sending and waits for its replies."""
    worker = start(upstream="maxconn=1", order=order)
    client, other = worker.client(), worker.client()
    client.ask(*"abcd")
    assert worker.backend().frames() == ["a"]
    assert client.heard() == b""  # with tickets unread its close would be a reset
    client.close()
    other.ask("other")
    assert not worker.ends
    worker.backend().answer("A")
    assert worker.ends[0].startswith("CD ")
    heard = [text for peer in worker.dialled() for text in peer.frames()]
    assert heard[-1] == "other"
    assert set(heard) <= {"b", "other"}  # at most the one that was sent before the reset arrived
    worker.backend().answer("OTHER")
    assert other.frames() == ["OTHER"]
    assert worker.failures() == 0


def test_a_place_is_free_after_its_connection_is_closed(start: Start) -> None:
    worker = start(upstream="maxconn=1")
    first, second = worker.client(), worker.client()
    first.ask("a")
    second.ask("b")
    first.reset()
    assert worker.under_way() == 1
    assert worker.backend(0, 0).frames() == ["a"]
    assert worker.backend(0, 0).state in ("end", "reset")
    assert worker.backend(0, 1).frames() == ["b"]


@pytest.mark.parametrize("extra", [b"", b"x", frame("A")], ids=["nothing", "a byte", "a second reply"])
def test_long_replies_that_their_client_reads_late(start: Start, extra: bytes) -> None:
    """Each is whole in the kernel when it is passed on; the client takes the first ones whole, and of one a part. Bytes
    behind them reach nobody, and none is left in a pipe."""
    worker = start()
    client = worker.client()
    exchange(client, worker.backend, "x" * 70_000)  # long ones are expected from now on
    replies = [chr(ord("A") + number % 26) * 60_000 for number in range(80)]
    for number, reply in enumerate(replies, 1):
        client.ask("q")
        [peer] = [one for one in worker.dialled() if one.frames()]
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        peer.send(frame(reply) + extra)
        worker.settle()
        if number < 4:
            assert len(misbehaved(worker)) == (number if extra else 0)
    assert client.frames() == replies
    client.close()
    assert worker.cell(L_BYTES_OUT) == HEADER + 70_000 + len(replies) * (HEADER + 60_000)
