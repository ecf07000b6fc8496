"""The resizer under more than it can do: refusals are quick, the rate stays, memory comes back."""

import selectors
import socket
import time
from collections import Counter
from typing import Any

import pytest

from scripts.lab.waiting import wait_for
from tests.system.harness import Resizer
from tests.system.resizer_peer import Peer, framed, picture
from workers.wire.frames import FrameReader
from workers.wire.messages import Response, decode_response

Heard = list[tuple[float, Response]]


def arriving(address: tuple[str, int], frames: list[bytes]) -> selectors.BaseSelector:
    """A connection for each frame, which is about to be written."""
    selector = selectors.DefaultSelector()
    for request in frames:
        sock = socket.create_connection(address, 10)
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_WRITE, [request, FrameReader(), 0.0])
    return selector


def write_on(selector: selectors.BaseSelector, sock: socket.socket, state: list[Any]) -> None:
    """More of a client's request; `state` is what is left of it, its reader, and when its last byte went."""
    state[0] = state[0][sock.send(state[0]) :]
    if not state[0]:
        state[2] = time.monotonic()
        selector.modify(sock, selectors.EVENT_READ, state)


def all_at_once(address: tuple[str, int], frames: list[bytes], seconds: float = 60.0) -> Heard:
    """One connection for each frame, all written as fast as they go; (seconds since its last byte, reply) of each."""
    selector = arriving(address, frames)
    heard: Heard = []
    deadline = time.monotonic() + seconds
    while len(heard) < len(frames):
        assert time.monotonic() < deadline, f"{len(heard)} of {len(frames)} answered after {seconds:g} s"
        for key, mask in selector.select(1.0):
            sock, state = key.fileobj, key.data
            assert isinstance(sock, socket.socket)
            if mask & selectors.EVENT_WRITE:
                write_on(selector, sock, state)
                continue
            data = sock.recv(1 << 18)
            assert data, "a connection ended instead of a reply"
            replies = state[1].feed(data)
            if replies:
                heard.append((time.monotonic() - state[2], decode_response(replies[0])))
                selector.unregister(sock)
                sock.close()
    return heard


@pytest.mark.parametrize(("size", "width"), [((640, 480), 400), ((2400, 1800), 1000)])
def test_five_hundred_at_once_are_all_answered_and_refusals_do_not_wait(
    size: tuple[int, int], width: int
) -> None:
    """With room for what else the machine does; a refusal does not wait for the answers, however long they take."""
    burst(size, width, 1.0, 0.3)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("size", "width", "refused_in", "goodput"),
    [((640, 480), 400, 0.05, 0.6), ((2400, 1800), 1000, 0.1, 0.85)],
)
def test_five_hundred_at_once_on_a_quiet_machine(
    size: tuple[int, int], width: int, refused_in: float, goodput: float
) -> None:
    burst(size, width, refused_in, goodput)


def burst(size: tuple[int, int], width: int, refused_in: float, goodput: float) -> None:
    """A wait begins with the last byte that a client has written.

    All requests come from one client on the same two cores as the processes that serve them: 430 refusals take as long as
    30 pictures of 0.3 MP (67 KB), and 188 MB through the kernel as 7 of 4 MP (438 KB). So the rate within the burst
    depends on the work of a picture. The best of five rounds counts, as the machine may be busy with something else.
    Alone: 99 of 100 refusals within 15 to 45 ms and 20 to 60, 0.6 to 0.7 and 0.87 to 0.99 of the calm rate.
    """
    data = picture(*size)
    crowd = [framed(id=number, data=data, target_width=width) for number in range(1, 501)]
    shares, waits = [], []
    with Resizer(cpus=2) as resizer:
        for _ in range(5):
            began = time.monotonic()
            all_at_once(resizer.address, crowd[:60])
            calm = 60 / (time.monotonic() - began)
            before, began = resizer.memory(), time.monotonic()
            heard = all_at_once(resizer.address, crowd)
            took = time.monotonic() - began
            assert sorted(reply.id for _, reply in heard) == list(range(1, 501))
            statuses = Counter(reply.status for _, reply in heard)
            assert set(statuses) == {200, 429}, statuses
            assert statuses[200] >= 66, "a queue of 64 and two at work"
            refused = sorted(wait for wait, reply in heard if reply.status == 429)
            waits.append(refused[len(refused) * 99 // 100])
            served = max(wait for wait, reply in heard if reply.status == 200)
            assert refused[len(refused) // 2] < served / 2, "a refusal does not wait for the answers"
            shares.append(statuses[200] / took / calm)
            assert resizer.memory() - before < 64 << 20, "bounded by the slots"
            if min(waits) < refused_in and max(shares) >= goodput:
                break
        assert max(waits) < 10 * refused_in, waits
        assert min(waits) < refused_in, waits
        assert max(shares) >= goodput, f"{shares} of the calm rate"
        with Peer(resizer.address) as peer:
            assert peer.ask(id=1, data=data, target_width=9).status == 200


@pytest.mark.parametrize(
    ("refused_in", "goodput"), [(1.0, 0.3), pytest.param(0.05, 0.9, marks=pytest.mark.soak)]
)
def test_five_hundred_that_retry_do_not_lower_the_rate(refused_in: float, goodput: float) -> None:
    """Capacity is the rate of six clients. The first pair of bounds is for a machine that does something else too."""
    request = framed(id=1, data=picture(640, 480), target_width=400)
    shares, waits = [], []
    with Resizer(cpus=2) as resizer:
        for _ in range(5):
            calm = send_again(resizer.address, request, 6, 2.0)[0]
            rate, refused = send_again(resizer.address, request, 500, 4.0)
            shares.append(rate / calm)
            waits.append(refused[len(refused) * 99 // 100])
            if max(shares) >= goodput and min(waits) < refused_in:
                break
        assert max(shares) >= goodput, shares
        assert min(waits) < refused_in, waits


def send_again(
    address: tuple[str, int], request: bytes, clients: int, seconds: float
) -> tuple[float, list[float]]:
    """Clients that send again at once after an answer and after a second after a refusal. Returns pictures a second, and
    the waits from last byte to refusal, shortest first."""
    selector = arriving(address, [request] * clients)
    again: list[tuple[float, selectors.SelectorKey]] = []
    served, refused = 0, []
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        while again and again[0][0] <= now:
            key = again.pop(0)[1]
            selector.register(key.fileobj, selectors.EVENT_WRITE, [request, FrameReader(), 0.0])
        for key, mask in selector.select(0.01):
            sock, state = key.fileobj, key.data
            assert isinstance(sock, socket.socket)
            if mask & selectors.EVENT_WRITE:
                write_on(selector, sock, state)
                continue
            data = sock.recv(1 << 18)
            assert data, "a connection ended instead of a reply"
            for reply in map(decode_response, state[1].feed(data)):
                state[0] = request
                if reply.status == 200:
                    served += 1
                    selector.modify(sock, selectors.EVENT_WRITE, state)
                else:
                    assert reply.status == 429, reply
                    refused.append(time.monotonic() - state[2])
                    selector.unregister(sock)
                    again.append((time.monotonic() + 1, key))
    for key in [*selector.get_map().values(), *(key for _, key in again)]:
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()
    return served / seconds, sorted(refused)


def test_original_peers_are_not_refused_however_many() -> None:
    data = picture(400, 300)
    with Resizer(cpus=2, queue=8) as resizer:
        frames = [framed(original_name=f"{number}", data=data, target_width=30) for number in range(200)]
        heard = all_at_once(resizer.address, frames)
        assert {reply.original_name for _, reply in heard} == {f"{number}" for number in range(200)}
        assert all(len(reply.data) for _, reply in heard)


def test_memory_of_big_requests_comes_back() -> None:
    size, count = 8 << 20, 12
    request = framed(id=1, data=bytes(size), target_width=9)
    with Resizer(cpus=1) as resizer:
        before = resizer.memory()
        peers = [Peer(resizer.address) for _ in range(count)]
        for peer in peers:
            peer.sock.sendall(request[:-5])
        wait_for(lambda: resizer.memory() - before > size * count * 0.9, "every payload is there", 20, 0.1)
        for peer in peers:
            peer.sock.sendall(request[-5:])
            reply = peer.hear()
            assert reply is not None and reply.status == 415
            peer.sock.close()
        wait_for(lambda: resizer.memory() - before < size * 4, "the pages to go back", 12, 0.2)


def test_clients_that_announce_much_and_send_nothing_do_not_block_others_for_long() -> None:
    head = framed(id=1, data=bytes(1 << 20), target_width=9)[:5000]
    with Resizer(cpus=1, frame_timeout="1s") as resizer:
        crowd = [Peer(resizer.address) for _ in range(150)]
        for peer in crowd:
            peer.sock.sendall(head)
        with Peer(resizer.address) as peer:
            assert peer.ask(id=1, dry_run=True).status == 200
            began = time.monotonic()
            assert peer.ask(id=2, data=picture(400, 300), target_width=9).status == 200
            assert time.monotonic() - began < 20
        for peer in crowd:
            peer.sock.close()
