"""Random histories of clients and backends: whatever happens, a client gets its own replies, and nothing is left behind.

A request is `client.number`, its reply `reclient.number`. Backends answer, answer in parts, break before, within and
behind a reply, and speak unasked; clients pipeline, stop within a frame, end and reset.
"""

import random

import pytest

from tests.unit.balancer.relay.framed.framed_simulation import FramedSimulation, FramePeer, frame

SEEDS = range(40)
TLS_SEEDS = range(8)  # and as many for each side that speaks TLS


class History:
    """One run. `clients` are those that live, with the replies that each may still get, in order."""

    def __init__(self, seed: int, tls: str) -> None:
        self.rng = random.Random(seed)
        self.order = self.rng.choice(["strict", "any"])
        self.worker = FramedSimulation(
            3,
            tls,
            order=self.order,
            balance=self.rng.choice(["leastconn", "roundrobin", "p2c"]),
            upstream=self.rng.choice(["", "maxconn=2"]),
            pipeline=self.rng.choice([1, 3, 32]),
            max_queue=64,
            frame_timeout=2.0,
            frame_retries=self.rng.choice([0, 1, 3]),
            splice=self.rng.random() < 0.5,
        )
        self.worker.connections.rest = 0.1
        self.clients: list[tuple[FramePeer, str]] = []
        self.expected: dict[str, list[str]] = {}
        self.got: dict[str, list[str]] = {}

    def step(self) -> None:
        acts = [self.arrive, self.ask, self.ask, self.serve, self.serve, self.serve, self.leave, self.wait]
        self.rng.choice(acts)()
        for client, name in self.clients:
            self.hear(client, name)

    def arrive(self) -> None:
        name = f"c{len(self.expected)}"
        self.clients.append((self.worker.client(), name))
        self.expected[name], self.got[name] = [], []

    def ask(self) -> None:
        if not self.clients:
            return
        client, name = self.rng.choice(self.clients)
        data = b""
        for _ in range(self.rng.randint(1, 3)):
            text = f"{name}.{len(self.expected[name])}."
            self.expected[name].append(text)
            data += frame(text + "x" * self.rng.choice([0, 10, 20_000, 90_000]))
        cut = self.rng.randint(0, len(data)) if self.rng.random() < 0.3 else len(data)
        for part in (data[:cut], data[cut:]):
            try:
                client.send(part)
            except (OSError, AssertionError):  # it is closed, or its replies are not served
                return
            self.worker.settle(2)

    def serve(self) -> None:
        peers = [peer for server in range(3) for peer in self.worker.dialled(server) if peer.state == "open"]
        for peer in peers:
            for text in peer.frames():
                reply = frame("re" + ".".join(text.split(".")[:2]) + "." + "y" * self.rng.choice([0, 50_000]))
                try:
                    self.misserve(peer, reply)
                except (OSError, AssertionError):
                    pass
        self.worker.settle(4)

    def misserve(self, peer: FramePeer, reply: bytes) -> None:
        kind = self.rng.choice(
            ["", "", "", "", "parts", "double", "twice", "cut", "break", "close", "reset", "wrong"]
        )
        if kind == "parts":
            cut = self.rng.randint(1, len(reply) - 1)
            peer.send(reply[:cut])
            self.worker.settle(2)
            peer.send(reply[cut:])
        elif kind == "double":
            peer.send(reply + reply[: self.rng.randint(1, len(reply))])
        elif kind == "twice":
            peer.send(reply)
            self.worker.settle(2)
            peer.send(reply)
        elif kind == "cut":
            peer.send(reply[:-1])
            peer.close()
        elif kind == "break":
            peer.close()
        elif kind == "close":
            peer.send(reply)
            peer.close()
        elif kind == "reset":
            peer.reset()
        elif kind == "wrong":
            peer.send(b"wrong")
        else:
            peer.send(reply)

    def leave(self) -> None:
        if self.clients:
            client, _ = self.clients.pop(self.rng.randrange(len(self.clients)))
            try:
                self.rng.choice([client.close, client.reset, client.end])()
            except OSError:  # it is closed already
                pass

    def wait(self) -> None:
        self.worker.pass_time(self.rng.choice([0.2, 1.2, 3.0]))

    def hear(self, client: FramePeer, name: str) -> None:
        for reply in client.frames():
            self.got[name].append(reply.split("y")[0].removeprefix("re"))
        got, expected = self.got[name], self.expected[name]
        if self.order == "strict":
            assert got == expected[: len(got)]
        else:
            assert set(got) <= set(expected)
            assert len(set(got)) == len(got)


@pytest.mark.parametrize(
    ("seed", "tls"),
    [(seed, "") for seed in SEEDS]
    + [(seed, tls) for seed in TLS_SEEDS for tls in ("clients", "backends", "clients and backends")],
)
def test_a_random_history(seed: int, tls: str) -> None:
    history = History(seed, tls)
    worker = history.worker
    for _ in range(60):
        history.step()
    for client, _ in history.clients:
        client.close()
    worker.pass_time(
        200.0, step=2.0
    )  # idle-timeout, of one after the other: some ask backends that never answer
    worker.settle()
    assert [worker.under_way(server) for server in range(3)] == [0, 0, 0]
    assert not worker.connections.queue.since
    assert worker.context.pipes.held == 0
    worker.close()
