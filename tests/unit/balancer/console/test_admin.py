"""The admin socket: one line, one answer, and what a client may not do."""

import json
import os
import shlex
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.console.admin import (
    CLIENT_LIMIT,
    LINE_DEADLINE,
    LINE_LIMIT,
    SEND_DEADLINE,
    AdminConnection,
    AdminServer,
)
from balancer.console.peer import AdminPeer
from balancer.eventloop.acceptor import REST_SECONDS
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from tests.unit.balancer.eventloop.sockets import received


class Fixture:
    """A server whose `later` command waits for `answer`, and clients."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop(clock=lambda: self.now)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind("")
        self.socket.listen(64)
        self.commands: list[list[str]] = []
        self.waiting: list[AdminConnection] = []
        self.clients: list[socket.socket] = []
        self.server = AdminServer(self.loop, lambda: [self.socket], self.handle, Log("console", os.devnull))

    def handle(self, words: list[str], admin: AdminConnection) -> None:
        self.commands.append(words)
        if words == ["later"]:
            self.waiting.append(admin)
        else:
            admin.send({"heard": " ".join(words)})

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.socket.getsockname())
        client.setblocking(False)
        self.clients.append(client)
        self.turn()
        return client

    def turn(self, turns: int = 6) -> None:
        for _ in range(turns):
            self.loop.run_once(0)

    def say(self, *data: bytes) -> socket.socket:
        client = self.connect()
        for each in data:
            client.send(each)
            self.turn()
        return client

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.turn()

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.turn()
        self.pass_time(60.0)
        assert self.server.is_empty()
        self.socket.close()
        self.loop.close()


@pytest.fixture
def admin() -> Iterator[Fixture]:
    fixture = Fixture()
    yield fixture
    fixture.close()


def answer(client: socket.socket) -> Any:
    """The one JSON object that has come, and the end behind it."""
    data, _, state = received(client).rpartition(b"|")
    assert state == b"end"
    return json.loads(data)


@pytest.mark.parametrize(
    "pieces", [(b"drain a\n",), (b"dr", b"ain", b" a", b"\nmore"), (b"drain a\nready a\n",)]
)
def test_one_line_is_one_command(admin: Fixture, pieces: tuple[bytes, ...]) -> None:
    assert answer(admin.say(*pieces)) == {"heard": "drain a"}
    assert admin.commands == [["drain", "a"]]


def test_a_line_without_its_newline_is_taken_at_the_end(admin: Fixture) -> None:
    client = admin.say(b"status")
    assert received(client) == b"|open"
    client.shutdown(socket.SHUT_WR)
    admin.turn()
    assert answer(client) == {"heard": "status"}
    nothing = admin.say()
    nothing.shutdown(socket.SHUT_WR)
    admin.turn()
    assert received(nothing) == b"|end" and admin.commands == [["status"]]


def test_a_command_counts_although_its_sender_has_closed(admin: Fixture) -> None:
    client = admin.connect()
    client.send(b"drain a\n")
    client.close()
    admin.turn()
    assert admin.commands == [["drain", "a"]] and admin.server.is_empty()


@pytest.mark.parametrize(("size", "sentence"), [(LINE_LIMIT, "heard"), (LINE_LIMIT + 1, "error")])
def test_a_line_has_a_limit(admin: Fixture, size: int, sentence: str) -> None:
    assert list(answer(admin.say(b"x" * size + b"\n"))) == [sentence]


def test_an_empty_command_is_told_so(admin: Fixture) -> None:
    assert answer(admin.say(b"  \n")) == {"error": "an empty command; try `status`"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            b"drain 'unix:/my app' --reason \"disk  full\"\n",
            ["drain", "unix:/my app", "--reason", "disk  full"],
        ),
        (b"drain a\\ b\n", ["drain", "a b"]),
        (b"drain ''\n", ["drain", ""]),
        (b"drain \xff\n", ["drain", "\udcff"]),
        (b"drain \xc3\xa4#b\n", ["drain", "\u00e4#b"]),
    ],
)
def test_words_are_split_as_a_shell_does(admin: Fixture, line: bytes, words: list[str]) -> None:
    admin.say(line)
    assert admin.commands == [words]


@given(st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8")), min_size=1, max_size=4))
def test_what_balancerctl_quotes_comes_through(words: list[str]) -> None:
    admin = Fixture()
    admin.say(shlex.join(words).encode() + b"\n")
    assert admin.commands == [words]
    admin.close()


def test_quotes_that_do_not_match_are_a_sentence(admin: Fixture) -> None:
    assert "quotes" in answer(admin.say(b"drain o'neil\n"))["error"]
    assert admin.commands == []


def test_the_kernel_says_who_asks(admin: Fixture) -> None:
    admin.say(b"later\n")
    [connection] = admin.waiting
    connection.send({})
    assert connection.peer == AdminPeer(os.geteuid(), os.getpid())
    with open("/proc/self/comm") as file:
        assert connection.peer.program() == file.read().strip() != ""
    assert AdminPeer(0, 0).program() == ""


def test_an_answer_may_come_later_and_comes_once(admin: Fixture) -> None:
    client = admin.say(b"later\n")
    admin.pass_time(50.0)
    assert received(client) == b"|open"
    for _ in range(2):
        admin.waiting[0].send({"done": 1})
    assert answer(client) == {"done": 1}


def test_a_slow_line_and_an_answer_not_taken_are_cut(admin: Fixture) -> None:
    slow, deaf = admin.say(b"sta"), admin.say(b"later\n")
    admin.waiting[0].send({"much": "x" * (4 << 20)})
    admin.turn()
    admin.pass_time(LINE_DEADLINE - 0.1)
    assert received(slow) == b"|open"
    admin.pass_time(0.2)
    assert received(slow) == b"|end"
    admin.pass_time(SEND_DEADLINE)
    assert admin.server.is_empty()
    assert received(deaf).endswith(b"x|end")


@pytest.mark.parametrize("said", [b"", b"sta"])
def test_a_command_is_answered_whatever_silent_clients_do(admin: Fixture, said: bytes) -> None:
    others = [admin.say(said) for _ in range(2 * CLIENT_LIMIT)]
    assert answer(admin.say(b"status\n")) == {"heard": "status"}
    assert [received(client) for client in others].count(b"|end") == CLIENT_LIMIT + 1


def test_those_that_wait_for_an_answer_are_bounded_too(admin: Fixture) -> None:
    waiting = [admin.say(b"later\n") for _ in range(CLIENT_LIMIT)]
    late = admin.say(b"status\n")
    assert received(late) == b"|open"
    admin.waiting[0].send({"done": 1})
    assert answer(waiting[0]) == {"done": 1}
    admin.pass_time(REST_SECONDS)
    assert answer(late) == {"heard": "status"}
    for admin_client in admin.waiting:
        admin_client.send({"done": 1})


def test_stopped_it_answers_what_is_under_way(admin: Fixture) -> None:
    client = admin.say(b"later\n")
    admin.server.stop()
    late = admin.connect()
    assert not admin.server.is_empty() and received(late) == b"|open"
    admin.waiting[0].send({"done": 1})
    assert answer(client) == {"done": 1}
