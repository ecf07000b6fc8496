"""The fast path, the splicing relay and a session that begins with data are the same to both peers: random lives, each
lived once in each way."""

import errno
import socket
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.pool.board import L_BYTES_IN, L_BYTES_OUT
from tests.unit.balancer.relay.simulation import WorkerSimulation, reset

SIZES = (1, 100, 20_000, 40_000)
ACTS = ("ends", "closes", "resets", "reads", *SIZES)
step = st.lists(
    st.tuples(st.sampled_from(["client", "backend"]), st.sampled_from(ACTS)), min_size=1, max_size=4
)


@dataclass
class RandomPeer:
    """One peer, and what it has read: how many bytes, and whether a reset ended them. At which call it learns of a
    reset depends on when the kernel acknowledges, so that is not held against anybody."""

    sock: socket.socket
    is_open: bool = True
    may_send: bool = True
    heard: int = 0
    was_reset: bool = False

    def act(self, what: str | int) -> None:
        if not self.is_open:
            return
        try:
            if isinstance(what, int):
                if self.may_send:
                    self.sock.send(bytes(what))
            elif what == "reads":
                while data := self.sock.recv(1 << 20):
                    self.heard += len(data)
            elif what == "ends":
                self.may_send = False
                self.sock.shutdown(socket.SHUT_WR)
            else:
                self.is_open = False
                if what == "resets":
                    self.heard = (
                        -1
                    )  # what it had not read yet is its own loss, and how much that was the kernel's affair
                    reset(self.sock)
                self.sock.close()
        except BlockingIOError:
            pass
        except OSError as error:
            self.was_reset = self.was_reset or error.errno in (errno.ECONNRESET, errno.EPIPE)


def live(
    steps: list[list[tuple[str, str | int]]], splicing: bool = False, first: int = 0
) -> tuple[object, ...]:
    """One session, lived to its end: what both peers learnt, what the log says, what was counted. With `first`, the
    client has sent so many bytes before it is accepted."""
    worker = WorkerSimulation()
    sock = worker.connect()
    if first:
        sock.send(bytes(first))
    worker.settle()
    client, backend = RandomPeer(sock), RandomPeer(worker.accept())
    if splicing:
        [session] = worker.sessions
        session.take_over()
    end: list[list[tuple[str, str | int]]] = [[("client", "reads"), ("backend", "reads")]]
    end += [[("client", "closes")], [("backend", "reads"), ("backend", "closes")]]
    for acts in (*steps, *end):
        for side, what in acts:
            (client if side == "client" else backend).act(what)
        worker.settle()
        worker.pass_time(0.03, 0.01)
    worker.pass_time(70.0, 1.0)
    assert not worker.sessions
    counted = worker.cell(L_BYTES_IN), worker.cell(L_BYTES_OUT)
    worker.close()
    return client.heard, client.was_reset, backend.heard, backend.was_reset, worker.ends, counted


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(step, max_size=7))
def test_both_relays_behave_the_same(steps: list[list[tuple[str, str | int]]]) -> None:
    """What differs once may be the kernel's doing (when it acknowledges, how much it queues); what differs every time is
    ours."""
    assert any(live(steps) == live(steps, splicing=True) for _ in range(5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(SIZES), st.lists(step, max_size=7))
def test_a_request_sent_before_the_accept_makes_no_difference(
    size: int, steps: list[list[tuple[str, str | int]]]
) -> None:
    assert any(live([[("client", size)], *steps]) == live(steps, first=size) for _ in range(5))
