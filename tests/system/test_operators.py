"""What operators do and what they are told: one truth behind log, events, page, /ready, metrics, status and answers."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import free_port, text_of
from scripts.lab.process import ROOT, clean_environment
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer
from tests.system.test_console_web import WithMetrics, ask

REASON = "disk is full"


@pytest.fixture
def lb() -> Iterator[WithMetrics]:
    with Echo() as one, Echo() as two:
        upstreams = [f"{text_of(one.address)} name=one", f"{text_of(two.address)} name=two"]
        with WithMetrics(upstreams=upstreams, metrics="127.0.0.1:0") as balancer:
            wait_for(lambda: balancer.status()["serving"], "clients are served")
            balancer.wait_backend("one", "up")
            yield balancer


def sample(text: str, name: str) -> str:
    """The value of one line of the metrics."""
    return next(line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(name))


def is_told(lb: WithMetrics, serves: bool, reason: str = "") -> bool:
    """Whether every window says the same."""
    status = json.loads(ask(lb.http, "/status.json")[2])
    health, _, sentence = ask(lb.http, "/health")
    metrics, page = ask(lb.http, "/metrics")[2], ask(lb.http, "/")[2]
    said = {
        status["serving"],
        status["pools"][0]["serving"],
        health == 200,
        ask(lb.http, "/ready")[0] == 200,
        ask(lb.http, "/ready/main")[0] == 200,
        sample(metrics, "balancer_serving ") == "1",
        sample(metrics, "balancer_pool_serving{") == "1",
        "No client can be served" not in page,
        "NO CLIENT CAN BE SERVED" not in lb.ctl("status").stdout,
    }
    assert ask(lb.http, "/live")[::2] == (200, "ok\n")
    return (
        said == {serves} and re.search(reason, status["reason"]) is not None and status["reason"] in sentence
    )


def drain(lb: WithMetrics) -> None:
    for name in ("one", "two"):
        lb.ctl("drain", name)


def maintain(lb: WithMetrics) -> None:
    for name in ("one", "two"):
        lb.ctl("maint", name)


def weigh_nothing(lb: WithMetrics) -> None:
    for name in ("one", "two"):
        lb.ctl("weight", name, "0")


def mix(lb: WithMetrics) -> None:
    lb.ctl("drain", "one")
    lb.ctl("weight", "two", "0")


CAUSES: dict[str, tuple[Callable[[WithMetrics], None], str]] = {
    "drain": (drain, "every backend is drained by an operator"),
    "maint": (maintain, "every backend is in maintenance by an operator"),
    "weight 0": (weigh_nothing, "every backend has weight 0"),
    "a mixture": (mix, "1 with weight 0, 1 drained"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_every_window_says_that_no_client_is_served_and_why(lb: WithMetrics, cause: str) -> None:
    lb.expect("all-down")
    act, reason = CAUSES[cause]
    wait_for(lambda: is_told(lb, True), "served")
    act(lb)
    wait_for(lambda: is_told(lb, False, reason), reason)
    with socket.create_connection(lb.address, 5) as client:
        assert client.recv(1) == b""
    assert lb.backend("one")["state"] != "up"
    for name in ("one", "two"):
        lb.ctl("ready", name)
    wait_for(lambda: is_told(lb, True), "served again")


@pytest.mark.parametrize(
    ("upstream", "reason"),
    [
        ("127.0.0.1:{port}", "every backend is down"),
        ("no-such-host.invalid:{port}", "names not resolved yet"),
    ],
)
def test_and_so_where_no_operator_was_the_cause(upstream: str, reason: str) -> None:
    words = [f"--upstream={upstream.format(port=free_port())}", "--connect-timeout=1s"]
    with WithMetrics(*words, metrics="127.0.0.1:0", check_interval="100ms") as lb:
        lb.expect("all-down")
        wait_for(lambda: is_told(lb, False, reason), reason, 15)


def test_no_worker_is_no_service(lb: WithMetrics) -> None:
    for pid in lb.worker_pids():
        os.kill(pid, signal.SIGSTOP)
    lb.expect(" hang ")
    wait_for(lambda: ask(lb.http, "/ready")[::2] == (503, "no worker is ready\n"), "503", 5)
    assert ask(lb.http, "/live")[0] == 200
    wait_for(lambda: ask(lb.http, "/ready")[0] == 200, "replaced", 10)


ACTS = {
    "drain one": ("act=drain backend=one", '"ready weight 1"', '"drain weight 1"'),
    "maint one": ("act=maint backend=one", '"ready weight 1"', '"maint weight 1"'),
    "ready one": ("act=ready backend=one", '"ready weight 1"', '"ready weight 1"'),
    "weight one 7": ("act=weight backend=one", '"ready weight 1"', '"ready weight 7"'),
    "workers 3": ("act=workers", "2", "3"),
    "reload": ("act=reload", '"generation 1"', None),
}


@pytest.mark.parametrize("command", ACTS)
def test_every_act_leaves_a_line_and_an_event(lb: WithMetrics, command: str) -> None:
    done = lb.ctl(*command.split(), "--reason", REASON)
    assert done.returncode == 0, done.stderr
    what, before, after = ACTS[command]
    line = lb.wait_line(r"info console pid=\d+ (operator .*)")[1]
    assert re.search(rf"operator uid={os.geteuid()} peer_pid=\d+ program=\S+ {re.escape(what)} ", line)
    assert f"before={before}" in line and (after is None or f"after={after}" in line)
    assert f' reason="{REASON}"' in line
    event = line.partition(" ")[2]
    assert any(event in shown for shown in lb.ctl("events").stdout.splitlines())
    found = json.loads(ask(lb.http, "/events.json")[2])["events"]
    assert [each["text"] for each in found if each["verb"] == "operator"] == [event]
    wait_for(lambda: REASON in ask(lb.http, "/")[2], "on the page")


def test_a_question_is_no_act(lb: WithMetrics) -> None:
    for words in (["status"], ["events"], ["status", "--json"]):
        assert lb.ctl(*words).returncode == 0
    refused = lb.ctl("drain", "tow")
    assert refused.returncode == 1 and "did you mean two?" in refused.stderr
    assert [line for line in lb.log().splitlines() if " operator " in line and "refused=" not in line] == []
    assert not [each for each in json.loads(lb.ctl("events", "--json").stdout or "{}") if each == "operator"]


def test_the_answer_says_when_nothing_serves_any_more(lb: WithMetrics) -> None:
    lb.expect("all-down")
    assert "serves" not in lb.ctl("drain", "one").stdout
    for words in (("drain", "two"), ("maint", "two"), ("weight", "two", "0")):
        assert "no backend of pool main serves now: " in lb.ctl(*words).stdout
    assert "serves" not in lb.ctl("ready", "two").stdout


def test_the_age_of_a_drain_is_the_drains_over_a_reload_and_an_upgrade(lb: WithMetrics) -> None:
    wait_for(lambda: (lb.backend("one")["since_s"] or 0) > 4.0, "an older verdict", 10)
    lb.ctl("drain", "one")
    assert lb.backend("one")["since_s"] < 3.9
    began = lb.backend("one")["since_s"]
    assert lb.ctl("reload").returncode == 0
    assert began <= lb.backend("one")["since_s"] < 10


def test_names_with_blanks_and_reasons_come_through(tmp_path: Path) -> None:
    path = tmp_path / "my app's.sock"
    with socket.socket(socket.AF_UNIX) as backend:
        backend.bind(str(path))
        backend.listen()
        text = f'[balancer]\nupstream = unix:"{path}"\n   127.0.0.1:{free_port()} name=other\n'
        with FileBalancer(text, check="none") as lb:
            name = lb.status()["backends"][0]["name"]
            for spelling, words in (
                (name, ["drain"]),
                (f"unix:{path}", ["ready"]),
                (f"main/unix:{path}", ["maint"]),
            ):
                done = lb.ctl(*words, spelling, "--reason", 'it\'s "odd" \x1b[31m')
                assert done.returncode == 0, done.stderr
            assert lb.status()["backends"][0]["state"] == "maint"
            lines = [line for line in lb.log().splitlines() if " operator " in line]
            assert len(lines) == 3 and all(r"it's \"odd\" \x1b[31m" in line for line in lines)
            assert "\x1b" not in lb.ctl("events").stdout


def test_events_are_followed_until_the_reader_goes(lb: WithMetrics) -> None:
    command = [sys.executable, "-m", "balancer.ctl", "--admin", str(lb.admin), "events", "--follow"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment()
    ) as follower:
        assert follower.stdout is not None and follower.stderr is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(iter(follower.stdout.readline, "")))  # type: ignore[union-attr]
        reader.start()
        lb.ctl("drain", "one", "--reason", "first")
        wait_for(lambda: any("reason=first" in line for line in lines), "the first event")
        lb.ctl("reload")  # another console
        lb.ctl("ready", "one", "--reason", "second")
        wait_for(lambda: any("reason=second" in line for line in lines), "the second event")
        assert len(lines) == len(set(lines))
        follower.send_signal(signal.SIGINT)
        reader.join()
        assert follower.wait(5) == 130 and follower.stderr.read() == ""
    shell = f"{shlex.join(command)} | head -1"
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        shell, shell=True, cwd=ROOT, capture_output=True, timeout=10, env=clean_environment()
    )
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout.count(b"\n") == 1
