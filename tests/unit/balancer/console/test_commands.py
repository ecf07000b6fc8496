"""Command lines as transcripts: what was typed, what is answered, which cell has changed."""

import json
import os
import signal
from typing import Any

import pytest

from balancer.config.units import parse_address
from balancer.console.answers import Answers
from balancer.console.commands import Commands, outcome_of
from balancer.eventloop.loop import Loop
from balancer.options import Pool
from balancer.pool import board as b
from balancer.pool.backend import Backend
from balancer.shm import layout as c


class Replies(list[dict[str, Any]]):
    def send(self, answer: dict[str, Any]) -> None:
        self.append(answer)

    def send_bytes(self, answer: bytes | memoryview) -> None:
        self.append(json.loads(bytes(answer)))


@pytest.fixture
def board() -> b.Board:
    return b.Board(c.make_shared(b.columns_for(4), rows=8), 4)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def commands(board: b.Board, loop: Loop) -> Commands:
    main = Pool(
        "main",
        backends=(
            Backend("one", parse_address("127.0.0.1:1"), index=0),
            Backend("two", parse_address("127.0.0.1:2"), index=1),
            Backend("both", parse_address("127.0.0.1:3"), index=2),
        ),
    )
    api = Pool("api", backends=(Backend("both", parse_address("127.0.0.1:3"), index=3, pool="api"),))
    return Commands(board, (main, api), loop, os.getpid(), Answers(loop, lambda: {"workers": []}))


def say(commands: Commands, line: str) -> dict[str, Any]:
    replies = Replies()
    commands.handle(line.split(), replies)
    for _ in range(4):
        commands.loop.run_once(0)
    assert len(replies) == 1
    return replies[0]


def test_status_is_passed_on(commands: Commands) -> None:
    assert say(commands, "status") == {"workers": []}


@pytest.mark.parametrize(
    ("state", "cell"), [("drain", b.ADMIN_DRAIN), ("maint", b.ADMIN_MAINT), ("ready", b.ADMIN_READY)]
)
def test_admin_states_reach_the_board_and_the_workers_notice(
    commands: Commands, board: b.Board, state: str, cell: int
) -> None:
    before = board.versions(0)
    assert say(commands, f"{state} two")["admin_state"] == state
    assert board.word(1, b.W_ADMIN_STATE) == cell
    assert board.word(0, b.W_ADMIN_STATE) == b.ADMIN_READY
    assert board.versions(0) != before


@pytest.mark.parametrize(("name", "index"), [("api/both", 3), ("main/both", 2), ("main/one", 0), ("one", 0)])
def test_a_name_is_the_backends_own_or_that_with_its_pool(
    commands: Commands, board: b.Board, name: str, index: int
) -> None:
    say(commands, f"drain {name}")
    assert [board.word(each, b.W_ADMIN_STATE) for each in range(4)] == [
        b.ADMIN_DRAIN if each == index else b.ADMIN_READY for each in range(4)
    ]


def test_weight_zero_is_a_weight_and_ready_takes_it_back(commands: Commands, board: b.Board) -> None:
    say(commands, "weight one 0")
    assert board.weight_of(0, 7) == 0
    say(commands, "ready one")
    assert board.weight_of(0, 7) == 7


def test_workers_is_left_for_the_master(commands: Commands, board: b.Board) -> None:
    say(commands, "workers 3")
    say(commands, "workers 3")
    admin = board.shared.rows.row(c.ADMIN_ROW)
    assert admin[c.WANTED_WORKERS] == 3
    assert admin[c.WORKERS_REQUESTS] == 2  # the number in force may have become another in between


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("drain three", "'three'; there are: api/both, both, one, two"),
        ("drain tow", "did you mean two?"),
        ("drain both", "name one of main/both, api/both"),
        ("drain api/one", "'api/one'"),
        ("weight one 257", "0 to 256"),
        ("weight one -1", "'-1'"),
        ("workers 0", "from 1"),
        ("workers ²", "'²'"),
        ("dance", "unknown command 'dance'"),
        ("drain", "unknown command"),
    ],
)
def test_refusals_name_the_culprit(commands: Commands, line: str, culprit: str) -> None:
    assert culprit in say(commands, line)["error"]


def test_reload_answers_when_the_master_has_told_the_outcome(board: b.Board, loop: Loop) -> None:
    sent: list[tuple[int, int]] = []
    commands = Commands(
        board, (), loop, os.getpid(), Answers(loop, dict), lambda pid, number: sent.append((pid, number))
    )
    replies = Replies()
    commands.handle(["reload"], replies)
    assert sent == [(os.getpid(), signal.SIGHUP)] and not replies
    board.shared.notice.write(json.dumps({"ok": True, "text": "generation 2", "added": ["backend c"]}))
    for _ in range(20):
        loop.run_once(0.1)
        if replies:
            break
    assert replies[0]["text"] == "generation 2\nadded: backend c"


def test_a_failed_reload_is_an_error_with_its_reason() -> None:
    assert (
        outcome_of('{"ok": false, "text": "x.ini:3: no such key"}')["error"]
        == "the old configuration stays: x.ini:3: no such key"
    )
    assert "not readable" in outcome_of("{")["error"]
