"""Command lines as transcripts: what was typed and answered, which cell has changed, what log and events say."""

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from balancer.config.units import parse_address
from balancer.console.answers import MAKERS, STATUS_JSON, Answers, json_answer
from balancer.console.commands import ACTS, LONGEST_REASON, Commands, outcome_of
from balancer.console.peer import AdminPeer
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.options import Options, Pool, ProcessOptions
from balancer.pool import board as b
from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.spares import Added, with_spares, write_added
from balancer.shm import layout as c

ROW = 4  # the console's
SPARES = {"spare-1": 5, "spare-2": 6}


class Replies(list[dict[str, Any]]):
    """The answers to one client, who is this test."""

    peer = AdminPeer(os.geteuid(), os.getpid())

    def send(self, answer: dict[str, Any]) -> None:
        self.append(answer)

    def send_bytes(self, answer: bytes | memoryview) -> None:
        self.append(json.loads(bytes(answer)))


class Fixture:
    """Commands on a board of four backends in two pools, and one with blanks in its name; signals are not sent."""

    def __init__(self, directory: Path) -> None:
        self.log_file = directory / "log"
        self.board = b.Board(c.make_shared(b.columns_for(8), rows=8), 8)
        self.former: int | None = None
        self.loop = Loop(clock=lambda: 100.0)
        self.signals: list[tuple[int, int]] = []
        names = [("one", 0), ("two", 1), ("both", 2)]
        main = Pool(
            "main",
            tuple(
                Backend(name, parse_address(f"127.0.0.1:{9000 + index}"), index=index)
                for name, index in names
            ),
            index=0,
        )
        api = Pool("api", (Backend("both", parse_address("127.0.0.1:3"), index=3, pool="api"),), index=1)
        path = parse_upstream(f'unix:"{directory}/my app.sock"')
        apps = Pool("apps", (Backend(path.name, path.address, index=4, pool="apps"),), index=2)
        main = replace(main, spare_slots=2)
        main = replace(main, backends=(*main.backends, *with_indexes(with_spares(main).backends[3:], SPARES)))
        self.board.give_out(b.POOLS, range(3), ())
        self.board.give_out(b.BACKENDS, range(7), ())
        for pool in (main, api, apps):
            self.board.assign_pool(pool.index, [backend.index for backend in pool.backends])
        write_added(self.board, SPARES["spare-1"], Added("10.0.0.8", 80, 2))
        master = self.board.shared.rows.row(c.MASTER_ROW)
        master[c.MASTER_LIVE_ROWS], master[c.MASTER_GENERATION] = 5, 3
        for row in (c.FIRST_LEASE,):
            cells = self.board.shared.rows.row(row)
            cells[c.PID], cells[c.STATE], cells[c.GENERATION] = 71, c.READY, 3
        makers = {**MAKERS, STATUS_JSON: json_answer}
        answers = Answers(self.loop, lambda: {"workers": []}, makers)
        log = Log("console", str(self.log_file))
        self.commands = Commands(
            self.board,
            Options(ProcessOptions(), (), (main, api, apps)),
            self.loop,
            4711,
            answers,
            log,
            ROW,
            lambda pid, number: self.signals.append((pid, number)),
            lambda: self.former,
        )

    def ask(self, line: str) -> Replies:
        replies = Replies()
        self.commands.handle(shlex.split(line), replies)
        for _ in range(4):
            self.loop.run_once(0)
        return replies

    def say(self, line: str) -> dict[str, Any]:
        [reply] = self.ask(line)
        return reply

    def states(self) -> list[int]:
        return [self.board.word(index, b.W_ADMIN_STATE) for index in range(5)]

    def lines(self) -> list[str]:
        """What the log says, from the verb on."""
        lines = self.log_file.read_text().splitlines()
        return [plain(line.split(f" pid={os.getpid()} ", 1)[1]) for line in lines]

    def events(self) -> list[str]:
        return [plain(f"{event.verb} {event.text}") for event in self.board.shared.events.read()]


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Fixture]:
    fixture = Fixture(tmp_path)
    yield fixture
    fixture.loop.close()


WHO = f"operator uid={os.geteuid()} peer_pid={os.getpid()} program=P"


def plain(line: str) -> str:
    """A line in which the test's program is called P: it changes its name while it runs."""
    return re.sub(r' program=("[^"]+"|[^" ]+)', " program=P", line)


def test_status_is_passed_on(console: Fixture) -> None:
    assert console.say("status") == {"workers": []}
    assert console.lines() == [] and console.events() == [], "a question is no act"


@pytest.mark.parametrize(
    ("state", "cell"), [("drain", b.ADMIN_DRAIN), ("maint", b.ADMIN_MAINT), ("ready", b.ADMIN_READY)]
)
def test_admin_states_reach_the_board_and_the_workers_notice(console: Fixture, state: str, cell: int) -> None:
    before = console.board.versions(0)
    assert console.say(f"{state} two")["admin_state"] == state
    assert console.states() == [0, cell, 0, 0, 0]
    assert console.board.versions(0) != before


@pytest.mark.parametrize(("name", "index"), [("api/both", 3), ("main/both", 2), ("main/one", 0), ("one", 0)])
def test_a_name_is_the_backends_own_or_that_with_its_pool(console: Fixture, name: str, index: int) -> None:
    console.say(f"drain {name}")
    assert console.states() == [b.ADMIN_DRAIN if each == index else b.ADMIN_READY for each in range(5)]


@pytest.mark.parametrize("form", ['unix:"{}"', "unix:{}", 'apps/unix:"{}"', "apps/unix:{}"])
def test_a_name_with_blanks_is_one_word(console: Fixture, tmp_path: Path, form: str) -> None:
    """As the status shows it, and as a shell leaves it."""
    name = form.format(f"{tmp_path}/my app.sock")
    assert "error" not in console.say(f"drain {shlex.quote(name)}")
    assert console.states() == [0, 0, 0, 0, b.ADMIN_DRAIN]


def test_weight_zero_is_a_weight_and_ready_takes_it_back(console: Fixture) -> None:
    console.say("weight one 0")
    assert console.board.weight_of(0, 7) == 0
    console.say("ready one")
    assert console.board.weight_of(0, 7) == 7


def test_a_maxconn_holds_until_ready_or_another_configuration(console: Fixture) -> None:
    console.say("maxconn one 2")
    assert console.board.maxconn_of(0, 7) == 2
    console.say("maxconn one 0")
    assert console.board.maxconn_of(0, 7) == 0, "no limit"
    console.say("ready one")
    assert console.board.maxconn_of(0, 7) == 7
    console.say("maxconn one 2")
    console.board.write_verdict(0, [(b.W_LIMITS_OF, 4)])
    assert console.board.maxconn_of(0, 7) == 7


def test_workers_is_left_for_the_master(console: Fixture) -> None:
    assert console.say("workers 3")["text"] == "3 workers wanted"
    assert console.say("workers 1")["text"] == "1 worker wanted"
    admin = console.board.shared.rows.row(c.ADMIN_ROW)
    assert admin[c.WANTED_WORKERS] == 1
    assert admin[c.WORKERS_REQUESTS] == 2  # the number in force may have become another in between


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("drain two", "two takes no new sessions (drain); 0 sessions left there"),
        ("drain api/both",
         "api/both takes no new sessions (drain); 0 sessions left there; no backend of pool api serves now: every "
         "backend is drained by an operator"),
        ("maint api/both",
         "api/both takes no new sessions and is not checked (maint); 0 sessions left there; no backend of pool api "
         "serves now: every backend is in maintenance by an operator"),
        ("weight api/both 0",
         "api/both has weight 0 (configured: 1); 0 sessions left there; no backend of pool api serves now: every backend "
         "has weight 0"),
        ("weight two 4", "two has weight 4 (configured: 1)"),
        ("maxconn two 4",
         "two has maxconn 4 until `ready` or a reload that changes something (configured: no limit)"),
        ("maxconn api/both 0",
         "api/both has maxconn no limit until `ready` or a reload that changes something (configured: no limit)"),
        ("ready two", "two takes sessions again (ready)"),
        ("ready one", "one takes sessions again (ready); it is down (refused)"),
    ],
)  # fmt: skip
def test_an_answer_says_whether_the_pool_still_serves(console: Fixture, line: str, text: str) -> None:
    console.board.write_verdict(0, [(b.W_VERDICT, b.DOWN), (b.W_CHECK, 2)])
    reply = console.say(line)
    assert reply["text"] == text
    assert reply["pool"]["serving"] == ("serves now" not in text)


ACTS_DONE = [
    ("drain two", 'act=drain backend=two before="ready weight 1" after="drain weight 1"'),
    ("maint api/both", 'act=maint backend=api/both before="ready weight 1" after="maint weight 1"'),
    ("ready one", 'act=ready backend=one before="ready weight 1" after="ready weight 1"'),
    ("weight one 0", 'act=weight backend=one before="ready weight 1" after="ready weight 0"'),
    ("maxconn one 6", 'act=maxconn backend=one before="ready weight 1" after="ready weight 1 maxconn 6"'),
    ("add main 10.0.0.9:80", 'act=add backend=spare-2 before=empty after="10.0.0.9:80 weight 1"'),
    ("remove main 10.0.0.8:80", 'act=remove backend=spare-1 before="10.0.0.8:80 weight 2" after=empty'),
    ("workers 5", "act=workers before=1 after=5"),
    ("record 60", "act=record before=0s after=60s"),
    ("reload", 'act=reload before="generation 3" then=the line of the reload says the outcome'),
]


@pytest.mark.parametrize(("line", "fields"), ACTS_DONE)
def test_every_act_is_a_line_and_an_event(console: Fixture, line: str, fields: str) -> None:
    console.ask(line)
    assert console.lines() == console.events() == [f"{WHO} {fields}"]
    assert " info console " in console.log_file.read_text()


def test_every_act_is_among_them() -> None:
    assert {line.split()[0] for line, _ in ACTS_DONE} == set(ACTS) - {"kill"}  # it is answered by workers


@pytest.mark.parametrize(("line", "fields"), ACTS_DONE)
def test_every_act_takes_a_reason(console: Fixture, line: str, fields: str) -> None:
    console.ask(f"{line} --reason 'disk\tfull,  again\x1b[31m'")
    [event] = console.events()
    assert 'reason="disk full, again\\x1b[31m"' in event
    assert console.lines() == [event]


def test_before_and_after_follow_one_another(console: Fixture) -> None:
    for line in ("drain one", "weight one 3", "maxconn one 5", "maint one", "ready one"):
        console.say(line)
    chain = [line.split("before=")[1] for line in console.lines()]
    assert chain == [
        '"ready weight 1" after="drain weight 1"',
        '"drain weight 1" after="drain weight 3"',
        '"drain weight 3" after="drain weight 3 maxconn 5"',
        '"drain weight 3 maxconn 5" after="maint weight 3 maxconn 5"',
        '"maint weight 3 maxconn 5" after="ready weight 1"',
    ]


def test_an_act_that_is_refused_leaves_a_line_and_no_event(console: Fixture) -> None:
    console.say("drain nobody")
    [line] = console.lines()
    assert line.startswith(f'{WHO} act="drain nobody" refused="no backend is called')
    assert console.events() == []


@pytest.mark.parametrize("line", ["xyz 1", "stauts", "events much", "status --reason a"])
def test_a_question_that_is_wrong_leaves_no_line(console: Fixture, line: str) -> None:
    console.say(line)
    assert console.lines() == [] and console.events() == []


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("drain three", "'three'; there are: api/both, apps/unix:"),
        ("drain tow", "did you mean two?"),
        ("drain both", "name one of main/both, api/both"),
        ("drain api/one", "'api/one'"),
        ("weight one 257", "0 to 256"),
        ("weight one -1", "'-1'"),
        ("workers 0", "from 1"),
        ("workers ²", "'²'"),
        (
            "xyz 1",
            "unknown command 'xyz 1'; there are: status, events [SINCE], sources, certificates, errors, sessions [pool",
        ),
        ("stauts", "did you mean status?"),
        ("drain", "usage: drain NAME..."),
        ("drain one tow", "did you mean two?"),
        ("drain o*e nothing-*", "no backend's name matches 'nothing-*'"),
        ("explain", "the listener has to be named"),
        ("sessions older", "'older' is no condition for sessions"),
        ("sessions client=x", "'x' does not appear to be an IPv4 or IPv6 network"),
        ("explain listener=nothing", "no listener is called 'nothing'"),
        ("kill", "usage: kill id=ID"),
        ("weight one", "usage: weight NAME N"),
        ("maxconn one", "usage: maxconn NAME N"),
        ("maxconn one -1", "a maxconn is a whole number from 0 to 1000000, not '-1'"),
        ("add mian 10.0.0.9:80", "no pool is called 'mian'; did you mean main?"),
        ("add main", "usage: add POOL ADDRESS [weight=N]"),
        ("add main 10.0.0.9:80 maxconn=1", "usage: add POOL ADDRESS [weight=N]"),
        ("add main 10.0.0.9:80 weight=0", "a weight is a whole number from 1 to 256, not '0'"),
        ("add main 127.0.0.1:9001", "127.0.0.1:9001 is in pool main already, as two"),
        ("add api 10.0.0.9:80", "pool api has no spare slots"),
        (
            "remove main two",
            "two is from the configuration, and cannot be removed by hand: use drain or maint",
        ),
        ("remove mian two", "no pool is called 'mian'"),
        ("drain spare-*", "no backend's name matches 'spare-*'"),
        ("drain one --reason", "--reason takes one text, in quotes, and is the last"),
        ("drain one --reason a b", "--reason takes one text, in quotes, and is the last"),
        (
            "status --reason a",
            "--reason goes with kill, drain, ready, maint, weight, maxconn, add, remove, workers, record, reload",
        ),
        (f"drain one --reason {'x' * (LONGEST_REASON + 1)}", "at most 500 characters"),
        ("events much", "SINCE is a whole number"),
        ("events 1 2", "usage: events [SINCE]"),
        ("--reason a", "--reason goes with"),
    ],
)
def test_refusals_name_the_culprit(console: Fixture, line: str, culprit: str) -> None:
    assert culprit in console.say(line)["error"]
    assert console.states() == [0] * 5


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        ("sessions pool=mian", "no pool is called 'mian'; did you mean main?"),
        ("sessions backend=tow", "no backend is called 'tow'; did you mean two?"),
        ("kill backend=main/none", "no backend is called 'main/none'"),
        ("kill id=1-2-3", "no session has the ID '1-2-3'"),
    ],
)
def test_a_name_that_nothing_has_is_told_from_one_without_sessions(
    console: Fixture, line: str, culprit: str
) -> None:
    console.board.shared.rows.row(c.FIRST_LEASE)[c.STATE] = 0  # no worker has a session
    assert culprit in console.say(line)["error"]
    assert console.say("sessions backend=main/both pool=main")["sessions"] == []
    assert console.say("kill client=10.0.0.9 backend=two")["closed"] == 0


def test_the_answer_about_several_backends_says_what_is_true_when_all_are_done(console: Fixture) -> None:
    for index in range(3):
        console.board.write_verdict(index, [(b.W_VERDICT, b.UP)])
    out = console.say("drain main/*")["backends"]
    assert [one["pool"]["serving"] for one in out] == [False] * 3 and all(
        "serves now" in one["text"] for one in out
    )
    back = console.say("ready main/*")
    assert [one["pool"]["serving"] for one in back["backends"]] == [True] * 3
    assert "serves now" not in back["text"]


def test_names_with_brackets_are_names_and_parts_of_patterns(tmp_path: Path) -> None:
    console = Fixture(tmp_path)
    six = [parse_upstream(text) for text in ("[::1]:9001", "[::1]:9002", "[2001:db8::1]:9001")]
    console.commands.backends = [Backend(one.name, one.address, index=at) for at, one in enumerate(six)]
    for pattern, names in {
        "[::1]:9001": ["[::1]:9001"],
        "main/[::1]:9001": ["[::1]:9001"],
        "[::1]:*": ["[::1]:9001", "[::1]:9002"],
        "*:900[2-9]": ["[::1]:9002"],
        "[2001:db8::*": ["[2001:db8::1]:9001"],
    }.items():
        assert [one.name for one in console.commands.find_all([pattern])] == names, pattern
    console.loop.close()


def test_an_empty_slot_of_another_pool_makes_no_name_ambiguous(console: Fixture) -> None:
    first = next(one for one in console.commands.backends if one.name == "spare-1")
    second = replace(first, pool="api", index=SPARES["spare-2"])
    console.commands.backends = [first, second]
    assert "several backends are called" in console.say("drain spare-1")["error"], "both are empty"
    sessions = console.board.shared.rows.row(c.FIRST_LEASE)
    for one in (first, second):
        sessions[console.board.backend_at(one.index) + b.B_SESSIONS] = 1
        assert console.say("drain spare-1")["name"] == one.identity
        sessions[console.board.backend_at(one.index) + b.B_SESSIONS] = 0
    for one in (first, second):
        sessions[console.board.backend_at(one.index) + b.B_SESSIONS] = 1
    assert "main/spare-1, api/spare-1" in console.say("drain spare-1")["error"]


def test_events_are_read_and_followed(console: Fixture) -> None:
    assert console.say("events")["events"] == []
    console.say("drain one")
    first = console.say("events")
    assert [event["verb"] for event in first["events"]] == ["operator"]
    console.say("ready one")
    then = console.say(f"events {first['last']}")
    assert ["act=ready" in event["text"] for event in then["events"]] == [True]
    assert then["boot"] == first["boot"]
    last = console.say(f"events {then['last']}")
    assert (last["events"], last["last"]) == ([], then["last"])
    console.board.shared.rows.row(c.MASTER_ROW)[c.PID] = 4712
    assert console.say("events")["boot"] != first["boot"]


def test_reload_answers_when_the_master_has_told_the_outcome(tmp_path: Path) -> None:
    console = Fixture(tmp_path)
    console.loop = console.commands.loop = Loop()
    replies = Replies()
    console.commands.handle(["reload"], replies)
    assert console.signals == [(4711, signal.SIGHUP)] and not replies
    outcome = {"ok": True, "text": "generation 2", "added": ["backend c"]}
    console.board.shared.notice.write(json.dumps(outcome))
    for _ in range(20):
        console.loop.run_once(0.1)
        if replies:
            break
    assert replies[0]["text"] == "generation 2\nadded: backend c"
    console.loop.close()


def test_a_failed_reload_is_an_error_with_its_reason() -> None:
    assert (
        outcome_of('{"ok": false, "text": "x.ini:3: no such key"}')["error"]
        == "the old configuration stays: x.ini:3: no such key"
    )
    assert "not readable" in outcome_of("{")["error"]


def test_sources_are_answered_also_where_there_are_none(console: Fixture) -> None:
    assert console.say("sources") == {"listeners": []}
    assert console.say("sources web")["error"] == "usage: sources"


def test_certificates_are_renewed_by_the_master_without_a_signal(tmp_path: Path) -> None:
    console = Fixture(tmp_path)
    console.loop = console.commands.loop = Loop()
    replies = Replies()
    admin = console.board.shared.rows.row(c.ADMIN_ROW)
    console.commands.handle(["reload", "certificates"], replies)
    assert (admin[c.REFRESH_REQUESTS], console.signals, len(replies)) == (1, [], 0)
    console.board.shared.notice.write(json.dumps({"ok": True, "text": "2 certificates renewed"}))
    for _ in range(20):
        console.loop.run_once(0.1)
        if replies:
            break
    assert replies[0]["text"] == "2 certificates renewed"
    console.loop.close()


@pytest.mark.parametrize("line", ["drain one", "maint one", "weight one 0"])
def test_the_sessions_of_a_former_master_are_not_passed_over(console: Fixture, line: str) -> None:
    assert "upgrade" not in console.say(line)["text"] and console.say(line)["former_master"] is None
    console.former = 4242
    answer = console.say(line)
    said = "; the master before the upgrade (pid 4242) still has its sessions, which are not counted here"
    assert said in answer["text"] and answer["former_master"] == 4242
