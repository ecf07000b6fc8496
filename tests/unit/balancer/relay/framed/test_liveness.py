"""Random histories with backends that break only before the first byte of a reply: once they break no more, every client
that was not ended has all its replies, and the end that it asked for."""

import random
import socket

import pytest

from tests.unit.balancer.relay.framed.framed_simulation import FramedSimulation, FramePeer, frame

SEEDS = range(60)
TLS_SEEDS = range(4)  # and as many for each side that speaks TLS
FOR_EVER = 1e6  # seconds


class Peer:
    """A client or a backend whose bytes wait here while its socket takes no more."""

    def __init__(self, peer: FramePeer) -> None:
        self.peer = peer
        self.unsent = b""
        self.asked: list[str] = []
        self.got: list[str] = []
        self.ends_behind = False  # what is unsent
        self.has_ended = False

    def push(self, most: int = 1 << 30) -> None:
        try:
            while self.unsent and most > 0:
                sent = self.peer.sock.send(self.unsent[:most])
                self.unsent, most = self.unsent[sent:], most - sent
        except BlockingIOError:
            pass
        except OSError:
            self.unsent = b""
        if not self.unsent and self.ends_behind and not self.has_ended:
            self.has_ended = True
            try:
                self.peer.end()
            except OSError:  # it is closed
                pass


class LivelyHistory:
    def __init__(self, seed: int, tls: str) -> None:
        self.rng = random.Random(seed)
        choose = self.rng.choice
        self.order = choose(["strict", "any"])
        self.worker = FramedSimulation(
            3,
            tls,
            order=self.order,
            balance=choose(["leastconn", "roundrobin", "p2c", "maglev"]),
            upstream=choose(["", "maxconn=1", "maxconn=2"]),
            pipeline=choose([1, 2, 32]),
            max_queue=1000,
            frame_retries=2,
            retry_buffer=choose([0, 30_000, 1 << 20]),
            backend_conns=choose([0, 0, 1]),
            splice=choose([False, True]),
            queue_timeout=FOR_EVER,
            idle_timeout=FOR_EVER,
            frame_timeout=FOR_EVER,
        )
        self.worker.connections.rest = choose([0.0, 0.1])
        if choose([False, True]):
            for server in self.worker.servers:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.clients: list[Peer] = []
        self.backends: dict[FramePeer, Peer] = {}

    def step(self) -> None:
        self.rng.choice([self.arrive, self.ask, self.ask, self.serve, self.serve, self.end, self.wait])()
        for client in self.clients:
            client.push(self.rng.randint(0, 400_000))
            self.worker.settle(1)
        self.hear()

    def arrive(self) -> None:
        if len(self.clients) < 6:
            self.clients.append(Peer(self.worker.client()))

    def ask(self) -> None:
        asking = [client for client in self.clients if not client.ends_behind]
        if asking:
            client = self.rng.choice(asking)
            for _ in range(self.rng.randint(1, 5)):
                client.asked.append(f"{self.clients.index(client)}.{len(client.asked)}")
                size = self.rng.choice([0, 10, 15_000, 20_000, 90_000, 400_000])
                client.unsent += frame(client.asked[-1] + "." + "x" * size)

    def end(self) -> None:
        if self.clients and self.rng.random() < 0.3:
            self.rng.choice(self.clients).ends_behind = True

    def wait(self) -> None:
        self.worker.pass_time(self.rng.choice([0.05, 0.3, 1.2]))

    def serve(self, break_share: float = 0.25) -> None:
        for server in range(3):
            for peer in list(self.worker.dialled(server)):
                if peer.state == "open":
                    self.serve_one(self.backends.setdefault(peer, Peer(peer)), break_share)
        self.worker.settle(3)

    def serve_one(self, backend: Peer, break_share: float) -> None:
        backend.push()
        for text in backend.peer.frames():
            if self.rng.random() < break_share:
                self.rng.choice([backend.peer.close, backend.peer.reset])()
                backend.peer.state = "gone"
                return
            reply = text.rsplit(".", 1)[0] + "." + "y" * self.rng.choice([0, 10, 50_000, 300_000])
            backend.unsent += frame(reply)
            backend.push(self.rng.choice([3, 1000, 1 << 20]))
        self.hear()

    def hear(self) -> None:
        for client in self.clients:
            client.got += [text.rsplit(".", 1)[0] for text in client.peer.frames()]

    def is_over(self) -> bool:
        return all(
            client.peer.state != "open"
            or (not client.ends_behind and not client.unsent and len(client.got) == len(client.asked))
            for client in self.clients
        )


@pytest.mark.parametrize(
    ("seed", "tls"),
    [(seed, "") for seed in SEEDS]
    + [(seed, tls) for seed in TLS_SEEDS for tls in ("clients", "backends", "clients and backends")],
)
def test_every_client_gets_all_its_replies_in_the_end(seed: int, tls: str) -> None:
    history = LivelyHistory(seed, tls)
    worker = history.worker
    for _ in range(40):
        history.step()
    for _ in range(2000):
        for client in history.clients:
            client.push()
        history.serve(break_share=0.0)
        history.hear()
        if history.is_over():
            break
    assert history.is_over()
    ends = worker.ends
    for client in history.clients:
        if client.peer.state == "open" or (client.ends_behind and ends == ["--"] * len(ends)):
            assert (
                client.got == client.asked
                if history.order == "strict"
                else sorted(client.got) == sorted(client.asked)
            )
        client.peer.close()
    worker.settle()
    assert not any(worker.under_way(server) for server in range(3))
    assert not worker.connections.queue.since
    worker.close()
