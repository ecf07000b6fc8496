"""The command line of balancerctl, and what it says without an answer."""

import json
import shlex
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from balancer import ctl
from balancer.ctl_options import parse
from tests.unit.balancer.console import sample_status as sample


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["status", "--json"], ["status"]),
        (["drain", "backend-2"], ["drain", "backend-2"]),
        (["-p", "7000", "weight", "a", "0"], ["weight", "a", "0"]),
        (["drain", "a", "--reason", "disk\nfull"], ["drain", "a", "--reason", "disk full"]),
        (["drain", "a", "--reason", " "], ["drain", "a"]),
    ],
)
def test_the_console_is_sent_the_command_and_the_reason(argv: list[str], words: list[str]) -> None:
    assert ctl.words_of(parse(argv)) == words


@pytest.mark.parametrize("argv", [[], ["dance"], ["weight", "a"], ["status", "--colour"]])
def test_misuse_exits_2_and_says_where_help_is(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        ctl.main(argv)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("balancerctl: ") and line.endswith("(see balancerctl --help)")


def test_no_balancer_there_is_one_sentence_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.main(["--admin", str(tmp_path / "none.sock"), "status"]) == 1
    assert capsys.readouterr().err == (
        f"balancerctl: cannot reach a balancer at {tmp_path}/none.sock: No such file or directory; name its socket with "
        "--admin PATH\n"
    )


class Console:
    """Answers one client after another with what it is given, and keeps what it was asked."""

    def __init__(self, path: str, *answers: bytes) -> None:
        self.path = path
        self.asked: list[bytes] = []
        self._answers = answers
        self._listener = socket.socket(socket.AF_UNIX)
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        for answer in self._answers:
            conn, _ = self._listener.accept()
            with conn, conn.makefile("rb") as lines:
                self.asked.append(lines.readline())
                conn.sendall(answer)

    def __enter__(self) -> Self:
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listener.close()


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        (b'{"text": "a is drain"}\n', 0, "a is drain\n"),
        (b'{"text": "generation 2\\nadded: b"}\n', 0, "generation 2\nadded: b\n"),
        (b'{"text": "\\u001b[2Ja\\r\\u202e"}\n', 0, "\\x1b[2Ja\\r\\u202e\n"),
        (b"{}\n", 0, "ok\n"),
        (b'{"text": ["a"]}\n', 0, "['a']\n"),
        (b'{"error": "no backend is called \'a\'"}\n', 1, "balancerctl: no backend is called 'a'\n"),
        (b'{"error": "\\u001b]0;title\\u0007"}\n', 1, "balancerctl: \\x1b]0;title\\x07\n"),
        (b"220 mail ready\n", 1, "is it a balancer's admin socket?"),
        (b"\xff\xfe\n", 1, "is it a balancer's admin socket?"),
        (b"[" * 100_000, 1, "is it a balancer's admin socket?"),
        (b"[]\n", 1, "not a JSON object"),
        (b"", 1, "closed the connection without an answer"),
    ],
)
def test_the_answer_decides_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, code: int, text: str
) -> None:
    path = str(tmp_path / "a.sock")
    with Console(path, answer) as console:
        assert ctl.main(["--admin", path, "drain", "my app", "--reason", "it's old"]) == code
    assert shlex.split(console.asked[0].decode()) == ["drain", "my app", "--reason", "it's old"]
    out = capsys.readouterr()
    assert text in (out.err if code else out.out)
    assert (out.err if code else out.out).count("\n") == text.count("\n") or code


WHOLE = sample.status()


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in WHOLE.items() if name != key}


@pytest.mark.parametrize(
    "reply",
    [
        *(without(key) for key in WHOLE if key not in ("schema", "steering", "events", "reload")),
        WHOLE | {"backends": 5},
        WHOLE | {"backends": [{}]},
        WHOLE | {"workers": {"slot": 1}},
        WHOLE | {"totals": None},
        WHOLE | {"uptime_s": "long"},
        WHOLE | {"uptime_s": 1e999},
        WHOLE | {"pools": [sample.pool("a", []) | {"up": None, "queued": []}]},
        WHOLE | {"reload": "soon"},
        {},
    ],
)
def test_a_status_that_is_not_understood_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: dict[str, Any]
) -> None:
    """Of another version, or not a balancer's: whatever is missing or of another kind."""
    path = str(tmp_path / "a.sock")
    with Console(path, json.dumps(reply).encode() + b"\n"):
        code = ctl.main(["--admin", path, "status"])
    out = capsys.readouterr()
    if code == 0:  # shown as it is
        assert "Traceback" not in out.err and out.out
    else:
        [line] = out.err.splitlines()
        assert line.startswith(f"balancerctl: the answer from {path} is not understood: ")
        assert code == 1 and out.out == ""


def test_a_missing_key_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.sock")
    with Console(path, json.dumps(without("totals")).encode()):
        assert ctl.main(["--admin", path, "status"]) == 1
    assert "it lacks 'totals'" in capsys.readouterr().err


def events(boot: str, last: int, *verbs: str) -> bytes:
    found = [sample.event(verb, serial=last) for verb in verbs]
    return json.dumps({"boot": boot, "last": last, "events": found}).encode() + b"\n"


def test_events_are_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.sock")
    with Console(path, events("1-1", 7, "down", "up")):
        assert ctl.main(["events", "--admin", path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2026-11-27T00:12:01.123Z down backend=a check=refused",
        "2026-11-27T00:12:01.123Z up backend=a check=refused",
    ]
    with Console(path + "2", events("1-1", 7, "down")):
        assert ctl.main(["events", "--admin", path + "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verb"] == "down"


def test_events_steer_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever answers on the socket: the balancer's own have no control characters."""
    path = str(tmp_path / "a.sock")
    found = [sample.event("down", text="a\x1b[2J\r\u202e")]
    with Console(path, json.dumps({"boot": "1-1", "last": 1, "events": found}).encode()):
        assert ctl.main(["events", "--admin", path]) == 0
    assert capsys.readouterr().out.endswith(" down a\\x1b[2J\\r\\u202e\n")


def test_events_are_followed_over_an_upgrade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new master counts its events anew: what it has is shown from the beginning."""
    rounds = iter([True, True, True, True, False])
    path = str(tmp_path / "a.sock")
    answers = [
        events("1-1", 7, "down"),
        events("1-1", 7),
        events("2-9", 1, "upgrade"),
        events("2-9", 2, "upgrade", "up"),
        events("2-9", 2),
    ]
    with Console(path, *answers) as console:
        assert ctl.main(["events", "-f", "--admin", path], wait=lambda seconds: next(rounds)) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["down", "upgrade", "up"]
    assert console.asked == [b"events 0\n", b"events 7\n", b"events 7\n", b"events 0\n", b"events 2\n"]


def test_ctrl_c_is_no_traceback() -> None:
    def interrupted(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    assert ctl.main(["status", "--admin", "x"], interrupted) == 130


@pytest.mark.parametrize(("missing", "code"), [([], 0), ([71], 1)])
def test_what_a_worker_has_not_answered_is_not_done(missing: list[int], code: int) -> None:
    reply = {"text": "1 session closed", "closed": 1, "unanswered": missing}
    assert ctl.main(["kill", "--backend", "a", "--admin", "x"], lambda *_: reply) == code


def waited_for(
    command: str, *words: str, sessions: int = 0, backends: Sequence[str] = ("a",)
) -> tuple[int, int]:
    """The exit code of `drain a --wait` or `ready a --wait`, and how many looks it has taken, four at most."""
    looks = 0

    def exchange(path: str, asked: Sequence[str], seconds: float) -> dict[str, Any]:
        nonlocal looks
        if asked[0] != "status":
            return {"text": "done", "backends": [{"name": "a"}]}
        looks += 1
        one = WHOLE["backends"][0] | {"pool": "main", "state": "drain", "sessions": sessions}
        return WHOLE | {"backends": [one | {"name": name} for name in backends]}

    def pause(seconds: float) -> None:
        if looks == 4:
            raise KeyboardInterrupt

    argv = [command, "a", "--wait", *words, "--admin", "x"]
    return ctl.main(argv, exchange, no_reader, pause), looks


def no_reader(seconds: float) -> bool:
    """Output goes to /dev/null, or its reader has left."""
    return False


def test_a_timeout_of_0_looks_once() -> None:
    assert waited_for("drain", "--timeout", "0", sessions=1) == (1, 1)
    assert waited_for("drain", sessions=1) == (130, 4), "without one it waits, also where nobody reads"


def test_a_backend_that_a_reload_removes_meanwhile_is_not_ready() -> None:
    assert waited_for("ready", backends=["b"]) == (1, 1)
    assert waited_for("drain", backends=["b"]) == (0, 1), "no session is left at it"


@pytest.mark.parametrize(("answer", "looks"), [(0.0, 61), (0.1, 51), (2.0, 13), (5.0, 6), (40.0, 1)])
def test_a_timeout_counts_the_time_of_answers(answer: float, looks: int) -> None:
    now, given = 0.0, []

    def exchange(path: str, asked: Sequence[str], seconds: float) -> dict[str, Any]:
        nonlocal now
        given.append(seconds)
        now += answer
        raise ctl.CannotAsk("a stopped console")

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds

    argv = ["wait", "ready", "--timeout", "30s", "--admin", "x"]
    assert ctl.main(argv, exchange, no_reader, pause, lambda: now) == 1
    assert len(given) == looks and min(given) >= 1 and max(given) == 5 and now - answer <= 30


def test_wait_ready_with_a_timeout_waits_for_the_balancer_itself(capsys: pytest.CaptureFixture[str]) -> None:
    looks: list[str] = []

    def exchange(path: str, asked: Sequence[str], seconds: float) -> dict[str, Any]:
        looks.append(path)
        if len(looks) < 3:
            raise ctl.CannotAsk("nothing there")
        return WHOLE | {"serving": len(looks) > 3, "reason": "every backend is down"}

    argv = ["wait", "ready", "--admin", "x", "--json"]
    assert ctl.main([*argv, "--timeout", "5s"], exchange, no_reader, lambda _: None) == 0
    assert len(looks) == 4 and json.loads(capsys.readouterr().out) == {"schema": 1, "text": "ok"}
    looks.clear()
    assert ctl.main([*argv, "--timeout", "1s"], exchange, no_reader, lambda _: None) == 1
    assert "gave up after --timeout 1s: no client can be served: every" in capsys.readouterr().err
    looks.clear()
    assert ctl.main(argv, exchange, no_reader, lambda _: None) == 1 and len(looks) == 1
    assert "nothing there" in capsys.readouterr().err


def test_a_full_queue_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A connect(2) that does not block fails with EAGAIN as soon as the queue of a unix socket is full."""
    path = str(tmp_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(path)
        listener.listen(0)
        other.connect(path)

        def serve() -> None:
            listener.accept()[0].close()
            conn, _ = listener.accept()
            with conn, conn.makefile("rb") as lines:
                lines.readline()
                conn.send(b'{"text": "done"}\n')

        thread = threading.Timer(0.05, serve)
        thread.start()
        assert ctl.main(["--admin", path, "drain", "a"]) == 0
        thread.join()
    assert capsys.readouterr().out == "done\n"


def test_sources_are_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.sock")
    source = {
        "source": "192.0.2.7",
        "sessions": 3,
        "clients": None,
        "refused": 1,
        "limit": "\x1b[2J",
        "age_s": 2.0,
    }
    listener = {"name": "web", "source_maxconn": 5, "source_rate": None, "sources": [source]}
    body = json.dumps({"listeners": [listener]}).encode()
    with Console(path, body):
        assert ctl.main(["sources", "--admin", path]) == 0
    assert "192.0.2.7  web            3/5        -        1  \\x1b[2J" in capsys.readouterr().out
    with Console(path + "2", body):
        assert ctl.main(["sources", "--json", "--admin", path + "2"]) == 0
    assert json.loads(capsys.readouterr().out)["listeners"][0]["sources"] == [source]
    with Console(path + "3", b'{"listeners": [{}]}'):
        assert ctl.main(["sources", "--admin", path + "3"]) == 1
    assert "is not understood: it lacks 'sources'" in capsys.readouterr().err
