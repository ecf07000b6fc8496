"""Framed mode over real processes: whose reply it is, who gets the work, what is left when peers die or misbehave."""

import os
import random
import resource
import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from balancer.relay.framed.connection import RESTING
from balancer.relay.framed.connection_pool import TRUSTED_RESTING
from scripts.lab.kernel import dialled
from scripts.lab.waiting import wait_for
from tests.system.client_fixture import ClientFixture
from tests.system.faults import REAPED, living, wait_whole
from tests.system.framed_peer import FramedBackend, OwningClient, behave_well, reply_to, request, run_together
from tests.system.harness import Balancer, Resizer
from tests.system.resizer_peer import Peer
from workers.wire.frames import frame, header

PICTURES = 300


def framed(*upstreams: str, **options: object) -> Balancer:
    options = {"mode": "framed", "frame": "gowork", "order": "strict"} | options
    return Balancer(upstreams=upstreams, **options)


def address_of(backend: FramedBackend) -> str:
    return f"{backend.address[0]}:{backend.address[1]}"


def requests_by_backend(lb: Balancer) -> list[int]:
    return [backend["sessions_total"] for backend in lb.status()["backends"]]


def allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"{hard} open files are allowed, {count} are needed")
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(count, soft), hard)
    )  # the tests after this one need theirs


def wait_nothing_under_way(lb: Balancer) -> None:
    def rests() -> bool:
        return not any(backend["sessions"] for backend in lb.status()["backends"])

    wait_for(rests, "no request under way", 10)


# -- one connection, all resizers


def test_one_connection_uses_all_resizers(tmp_path: Path) -> None:
    """Our client, whose messages carry an ID, and replies as they come: the results are those of a direct run."""
    client = ClientFixture(tmp_path)
    client.fill(PICTURES)
    with ExitStack() as stack:
        resizers = [stack.enter_context(Resizer(name=f"r{n}", cpus=1)) for n in range(3)]
        addresses = ["{}:{}".format(*resizer.address) for resizer in resizers]
        assert client.run(addresses[0], "--maxconns=1").code == 0
        direct = {path.name: path.read_bytes() for path in client.results.rglob("*.jpg")}
        lb = stack.enter_context(framed(*addresses, order="any"))
        before, shares = [0, 0, 0], []
        for attempt in range(
            1, 4
        ):  # a resizer that gets less of a busy machine gets fewer pictures, as it should
            client.results = tmp_path / f"through-{attempt}"
            result = client.run("{}:{}".format(*lb.address), "--maxconns=1")
            assert result.code == 0, result.err
            assert {path.name: path.read_bytes() for path in client.results.rglob("*.jpg")} == direct
            assert lb.status()["totals"]["accepted_total"] <= 2 * attempt
            now = requests_by_backend(lb)
            shares.append([after - earlier for after, earlier in zip(now, before, strict=True)])
            before = now
            if all(abs(share - PICTURES / 3) <= 0.15 * PICTURES / 3 for share in shares[-1]):
                return
        raise AssertionError(f"requests by resizer: {shares}")


def test_an_original_client_without_ids_gets_its_replies_in_order(tmp_path: Path) -> None:
    """Pictures of the size that the request asks for: no two replies are the same, and each is the direct one."""
    from tests.system.fake_resizer import picture

    sizes = [(20 + n % 40, 20 + n // 40) for n in range(PICTURES)]
    with ExitStack() as stack:
        resizers = [stack.enter_context(Resizer(name=f"r{n}", cpus=1)) for n in range(3)]
        lb = stack.enter_context(framed(*("{}:{}".format(*one.address) for one in resizers)))

        def run(address: tuple[str, int]) -> list[bytes]:
            with Peer(address) as peer:
                asker = threading.Thread(target=ask, args=(peer,), daemon=True)
                asker.start()
                replies = peer.hear_all(PICTURES)
                asker.join(30)
            got = [(reply.resized_width, reply.resized_height) for reply in replies]
            assert got == sizes
            return [bytes(reply.data) for reply in replies]

        def ask(peer: Peer) -> None:
            for width, height in sizes:
                peer.say(data=picture(64, 48), original_name="p", target_width=width, target_height=height)

        assert run(lb.address) == run(resizers[0].address)
        for share in requests_by_backend(lb):
            assert abs(share - PICTURES / 3) <= 0.15 * PICTURES / 3, requests_by_backend(lb)


# -- whose reply


@pytest.mark.parametrize("order", ["strict", "any"])
def test_every_client_gets_its_own_replies(order: str) -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(FramedBackend(n)) for n in range(3)]
        lb = stack.enter_context(framed(*map(address_of, backends), order=order))
        clients = [OwningClient(lb.address, n, order) for n in range(12)]
        run_together(clients[:10], 100)
        run_together(clients[10:], 10, sizes=(100_000, 400_000))
        assert sum(client.lost for client in clients) == 0
        assert sum(backend.requests for backend in backends) == sum(requests_by_backend(lb)) == 1020
        wait_nothing_under_way(lb)


def misbehave(backend: FramedBackend, conn: socket.socket, payload: bytes) -> bool:
    """One reply in three is wrong in some way, the first one so that it shows at once: from then on each connection
    carries one request, and it does not matter how late this process comes to send what follows."""
    whole = reply_to(payload, backend.name_number)
    kind = (
        "double"
        if next(backend.turns) == 0
        else random.choice(
            ("double", "late double", "unasked", "cut", "wrong length", "beyond", *["good"] * 12)
        )
    )
    if kind == "double":
        conn.sendall(whole + whole)
    elif kind == "late double":
        conn.sendall(whole)
        time.sleep(0.002)
        conn.sendall(whole)
    elif kind == "unasked":
        conn.sendall(whole)
        time.sleep(0.002)
        conn.sendall(frame(b"nobody has asked for this"))
    elif kind == "cut":
        conn.sendall(whole[: len(whole) // 2])
        return False
    elif kind == "wrong length":
        conn.sendall(header(1 << 40) + whole)
    elif kind == "beyond":
        conn.sendall(whole + b"more")
    else:
        conn.sendall(whole)
    return True


@pytest.mark.parametrize("order", ["strict", "any"])
def test_no_reply_reaches_another_client_whatever_a_backend_does(order: str) -> None:
    with ExitStack() as stack:
        backends = [
            stack.enter_context(FramedBackend(n, misbehave if n < 2 else behave_well)) for n in range(3)
        ]
        lb = stack.enter_context(framed(*map(address_of, backends), order=order, frame_retries=3, workers=1))
        clients = [OwningClient(lb.address, n, order, at_once=1 if n % 2 else 4) for n in range(10)]
        run_together(clients, 60)
        assert " backend backend=" in lb.log()
        wait_nothing_under_way(lb)


def test_second_replies_after_5000_good_ones_reach_no_other_client() -> None:
    """By then few connections rest: those that do still find them."""

    def double_after_5000(backend: FramedBackend, conn: socket.socket, payload: bytes) -> bool:
        whole = reply_to(payload, backend.name_number)
        conn.sendall(whole if next(backend.turns) < 5000 else whole + whole)
        return True

    with (
        FramedBackend(0, double_after_5000) as backend,
        framed(address_of(backend), workers=1, check="none") as lb,
    ):
        run_together([OwningClient(lb.address, n) for n in range(10)], 500)
        wait_for(lambda: len(dialled(backend.address[1])) == TRUSTED_RESTING, "fewer at rest", 20)
        run_together([OwningClient(lb.address, n) for n in range(10)], 20)
        assert " backend backend=" in lb.log()


# -- peers that die


def test_requests_survive_backends_that_are_killed_drained_and_come_back(tmp_path: Path) -> None:
    """Backends end connections at any moment before a reply: nothing is lost, and their health is not judged by it."""

    def die_now_and_then(backend: FramedBackend, conn: socket.socket, payload: bytes) -> bool:
        if random.random() < 0.1:
            return False
        conn.sendall(reply_to(payload, backend.name_number))
        return random.random() > 0.1

    with ExitStack() as stack:
        backends = [
            stack.enter_context(FramedBackend(n, die_now_and_then if n < 2 else behave_well))
            for n in range(3)
        ]
        lb = stack.enter_context(framed(*map(address_of, backends), frame_retries=5, retries=8))
        clients = [OwningClient(lb.address, n) for n in range(8)]
        run_together(clients, 60)
        assert sum(client.lost for client in clients) == 0
        assert [backend["connect_failures_total"] for backend in lb.status()["backends"]] == [0, 0, 0]
        assert [backend["state"] for backend in lb.status()["backends"]] == ["up"] * 3


def test_counts_stay_true_while_workers_are_killed() -> None:
    """A killed worker costs what it held, and nothing of it stays on the board."""
    rng = random.Random(7)
    with ExitStack() as stack:
        backends = [stack.enter_context(FramedBackend(n, seconds=0.002)) for n in range(3)]
        lb = stack.enter_context(framed(*map(address_of, backends), workers=2))
        lb.expect(REAPED)
        clients = [OwningClient(lb.address, n, at_once=2) for n in range(8)]
        done = threading.Event()

        def load() -> None:
            try:
                run_together(clients, 250)
            finally:
                done.set()

        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        for _ in range(5):
            if done.wait(0.3):
                break
            os.kill(wait_for(lambda: living(lb, rng), "a worker"), signal.SIGKILL)
            wait_whole(lb, 2, set(), 20)
        thread.join(300)
        assert not [one for client in clients for one in client.wrong]
        assert [client.answered for client in clients] == [250] * 8
        wait_nothing_under_way(lb)
        status = lb.status()
        assert status["totals"]["sessions"] == 0
        assert sum(requests_by_backend(lb)) >= 8 * 250


# -- frames that are none


def test_what_is_no_frame_costs_a_line_and_the_connection() -> None:
    with FramedBackend(0) as backend, framed(address_of(backend), max_frame="1000") as lb:
        for data in (
            b"GET / HTTP/1.0\r\n\r\n",
            header(0),
            header(1001),
            header(1 << 63),
            frame(b"ok")[:9] + b"\xff" * 9,
        ):
            with socket.create_connection(lb.address, 15) as sock:
                sock.sendall(data)
                try:
                    assert sock.recv(1000) == b""
                except ConnectionResetError:
                    pass
        assert lb.log().count(" refuse client=") == 5
        assert backend.requests == 0


def test_mutated_streams_leave_nothing_behind() -> None:
    rng = random.Random(5)
    with FramedBackend(0) as backend, framed(address_of(backend), max_frame="10k", frame_timeout="1s") as lb:
        for _ in range(300):
            data = bytearray(b"".join(frame(rng.randbytes(rng.randint(12, 300))) for _ in range(3)))
            for _ in range(rng.randint(0, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            with socket.create_connection(lb.address, 15) as sock:
                sock.sendall(data[: rng.randint(1, len(data))])
        wait_nothing_under_way(lb)
        wait_for(lambda: lb.status()["totals"]["sessions"] == 0, "every client gone", 20)
        with_client = OwningClient(lb.address, 1)
        run_together([with_client], 5)
        assert " error " not in lb.log()


@pytest.mark.parametrize("stopped", [200, pytest.param(5000, marks=pytest.mark.soak)])
def test_clients_that_stop_within_a_frame_are_cut_at_their_time(stopped: int) -> None:
    allow_descriptors(stopped + 200)
    with (
        FramedBackend(0) as backend,
        framed(address_of(backend), frame_timeout=f"{10 + stopped // 200}s", workers=1) as lb,
        ExitStack() as stack,
    ):
        [worker] = lb.worker_pids()
        before = lb.memory([worker])
        whole = frame(bytes(30_000))
        for number in range(stopped):
            sock = stack.enter_context(socket.create_connection(lb.address, 15))
            sock.sendall(whole[: 7 if number % 2 else 9000])
        wait_for(lambda: lb.status()["totals"]["sessions"] == stopped, "every client there", 20)
        assert (lb.memory([worker]) - before) / stopped < 20_000
        wait_for(lambda: lb.status()["totals"]["sessions"] == 0, "every client cut", 40)
        assert lb.status()["totals"]["ends"]["cD"] == stopped
        assert backend.requests == 0


# -- limits and kept connections


@pytest.mark.parametrize("balance", ["leastconn", "p2c", "roundrobin"])
def test_never_more_requests_at_a_backend_than_its_maxconn(balance: str) -> None:
    """Counted by the backend, over all workers; and every request is answered."""
    with ExitStack() as stack:
        backends = [stack.enter_context(FramedBackend(n, seconds=0.003)) for n in range(3)]
        upstreams = [f"{address_of(backend)} maxconn=2" for backend in backends]
        lb = stack.enter_context(framed(*upstreams, balance=balance, queue_timeout="60s", workers=2))
        clients = [OwningClient(lb.address, n, at_once=1) for n in range(50)]
        run_together(clients, 8)
        assert sum(client.lost for client in clients) == 0
        assert [backend.most for backend in backends] == [2, 2, 2]
        wait_nothing_under_way(lb)


def test_connections_are_kept_as_many_as_were_in_use_and_closed_in_their_time() -> None:
    with (
        FramedBackend(0) as backend,
        framed(address_of(backend), idle_backend_timeout="10s", workers=1, check="none") as lb,
    ):
        run_together([OwningClient(lb.address, n, at_once=1) for n in range(6)], 50)
        assert backend.requests == 300
        assert backend.connections <= 6 + RESTING
        assert len(dialled(backend.address[1])) == backend.connections
        wait_for(lambda: not dialled(backend.address[1]), "every kept connection closed", 40)


# -- ends


def test_a_drain_lets_requests_end_and_then_ends_idle_clients() -> None:
    with (
        FramedBackend(0, seconds=1.0) as backend,
        framed(address_of(backend), drain_timeout="10s", workers=1) as lb,
    ):
        lb.expected_exit = None  # the last idle client has until the deadline, and counts as cut
        with ExitStack() as stack:
            busy, *idle = (stack.enter_context(socket.create_connection(lb.address, 40)) for _ in range(4))
            busy.sendall(request(1, 1, 10, 4))
            wait_for(lambda: backend.requests == 1, "the request", 10)
            lb.signal(signal.SIGTERM)
            assert len(busy.recv(1000)) == 16 + 12 + 4
            assert [sock.recv(1) for sock in (busy, *idle)] == [b""] * 4
        lb.wait_exit(40)


def test_a_stop_answers_all_that_it_has_taken_from_busy_clients() -> None:
    """They never pause: each is ended behind a reply, and no backend has worked for nothing."""
    with (
        FramedBackend(0, seconds=0.02) as backend,
        framed(address_of(backend), drain_timeout="10s", workers=1, check="none") as lb,
    ):
        lb.expected_exit = None
        clients = [OwningClient(lb.address, n, at_once=1 + n % 3) for n in range(8)]
        threads = [threading.Thread(target=client.run_until_ended, daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        wait_for(lambda: all(client.answered > 5 for client in clients), "replies for everybody", 20)
        lb.signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert not [one for client in clients for one in client.wrong]
        assert backend.requests == sum(client.answered for client in clients)
        lb.wait_exit(40)


def test_a_reload_costs_no_request() -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(FramedBackend(n)) for n in range(3)]
        lb = framed(*map(address_of, backends)).with_file()
        stack.enter_context(lb)
        clients = [OwningClient(lb.address, n) for n in range(6)]
        thread = threading.Thread(target=run_together, args=(clients, 300), daemon=True)
        thread.start()
        for number in range(2):
            lb.change_file()
            lb.signal(signal.SIGHUP)
            wait_for(lambda number=number: lb.status()["generation"] >= number + 2, "the next generation", 30)
        thread.join(300)
        assert [client.answered for client in clients] == [300] * 6
        assert sum(client.lost for client in clients) == 0
