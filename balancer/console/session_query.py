"""Asks every worker for something of its sessions, and puts the answers together; runs in the console.

RULES: neither waits nor reads what the workers write; a worker that does not answer within TIMEOUT is named and left out.
"""

import json
import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import Any

from balancer.console.admin import LINE_LIMIT
from balancer.console.peer import peer_of
from balancer.console.session_server import SessionFilter, worker_address
from balancer.eventloop.connection import BufferedConnection, ConnectionLimits, ConnectionProtocol
from balancer.eventloop.loop import Loop

TIMEOUT = 4.0  # seconds, below the timeout of balancerctl
LIMITS = ConnectionLimits(reads_after_reset=True)
Then = Callable[[dict[int, bytes], list[int]], object]  # answers by pid, and the pids without one


class WorkerAnswer(ConnectionProtocol):
    """What one worker says."""

    def __init__(self, pid: int, question: bytes, done: Callable[[bytes | None], object]) -> None:
        self._pid, self._question, self._done = pid, question, done
        self._parts: list[bytes] = []
        self.connection: BufferedConnection

    def opened(self) -> None:
        if peer_of(self.connection.sock).pid != self._pid:  # another program has taken the name
            self.connection.close("not the worker")
            return
        self.connection.write((self._question,))
        self.connection.flush()

    def received(self, data: memoryview) -> None:
        self._parts.append(bytes(data))

    def ended(self) -> None:
        self.connection.close("done")

    def expired(self) -> None:
        self.connection.close("timeout")

    def closed(self, reason: str) -> None:
        answer = b"".join(self._parts)
        self._done(answer if is_whole(answer) else None)


def ask_workers(
    loop: Loop, master_pid: int, pids: Iterable[int], verb: str, meant: SessionFilter, then: Then
) -> None:
    """Call `then` when each worker has answered, or had its time."""
    question = question_of(verb, meant)
    answers: dict[int, bytes] = {}
    missing: list[int] = []
    left = set(pids)

    def done(pid: int, answer: bytes | None) -> None:
        left.discard(pid)
        if answer is None:
            missing.append(pid)
        else:
            answers[pid] = answer
        if not left:
            then(answers, sorted(missing))

    def begin(pid: int) -> None:
        protocol = WorkerAnswer(pid, question, lambda answer: done(pid, answer))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        protocol.connection = BufferedConnection(loop, sock, limits=LIMITS)
        protocol.connection.set_deadline(TIMEOUT)
        protocol.connection.connect(worker_address(master_pid, pid), protocol)

    if not left:
        then({}, [])
    for pid in list(left):
        begin(pid)


def is_whole(answer: bytes) -> bool:
    """Whether it is all that a worker had to say: one that ends or fails meanwhile leaves the line without its end."""
    return answer.endswith(b"\n") and not answer.startswith(b'{"error"')


def question_of(verb: str, meant: SessionFilter) -> bytes:
    """The line for a worker. No name in it can end the quotes around the filter."""
    text = meant.text().replace("'", "\\u0027")
    return f"{verb} '{text}'\n".encode()


def sessions_answer(answers: dict[int, bytes], missing: list[int], former: int | None = None) -> bytes:
    """The workers' lists as one JSON document: {"schema": 1, "unanswered": [pid, ...], "former_master": pid or null,
    "sessions": [...]}. The sessions of a former master are not listed."""
    rows = b",".join(answer.rstrip(b",\n") for answer in answers.values() if answer.strip())
    head = json.dumps({"schema": 1, "unanswered": missing, "former_master": former}, separators=(",", ":"))
    return b'%b,"sessions":[%b]}\n' % (head.removesuffix("}").encode(), rows)


def filter_of(words: Iterable[str], refuse: Callable[[str], Exception]) -> tuple[SessionFilter, bool]:
    """The sessions that key=value words mean, and whether only those of draining workers. Raises what `refuse` makes."""
    found: dict[str, Any] = {}
    is_draining = False
    for word in words:
        key, equals, value = word.partition("=")
        if word == "draining":
            is_draining = True
        elif not equals or key not in ("id", "pool", "backend", "client", "older") or not value:
            raise refuse(f"{word!r} is no condition for sessions")
        else:
            found[key] = value
    try:
        ip_network(found.get("client", "0.0.0.0"), strict=False)
        meant = SessionFilter(**found | {"older": float(found.get("older", 0))})
    except ValueError as error:
        raise refuse(str(error)) from None
    if len(question_of("sessions", meant)) > LINE_LIMIT:
        raise refuse("the conditions are too long")
    return meant, is_draining
