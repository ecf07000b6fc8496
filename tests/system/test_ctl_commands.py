"""Every command of balancerctl against running daemons, as text and as JSON.

TRIALS has an entry for each: a command without one fails `test_every_command_is_tried`.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from balancer.ctl_options import COMMANDS
from scripts.lab.backends import Echo
from scripts.lab.network import free_port, text_of
from scripts.lab.process import ROOT, clean_environment
from scripts.lab.waiting import wait_for
from tests.system.certificates import make_certificate
from tests.system.harness import FileBalancer, ini_section

SOURCE_LIMIT = 40


class Ctl:
    """Runs balancerctl, and knows in which forms it has been asked."""

    def __init__(self, lb: FileBalancer) -> None:
        self.lb = lb
        self.asked: set[tuple[str, str]] = set()  # command, form

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.lb.ctl(*words)

    def text(self, *words: str) -> str:
        self.asked.add((words[0], "text"))
        done = self.run(*words)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def json(self, *words: str) -> Any:
        """The answer; of `events`, the lines as a list. Each object says its schema."""
        self.asked.add((words[0], "json"))
        done = self.run(*words, "--json")
        assert (done.returncode, done.stderr) == (0, ""), done
        if words[0] == "events":
            lines = [json.loads(line) for line in done.stdout.splitlines()]
            assert all(line["schema"] >= 1 for line in lines)
            return lines
        found = json.loads(done.stdout)
        assert found["schema"] >= 1
        return found

    def change_file(self) -> None:
        """Have the next reload find something that it changes."""
        beginning = f"[balancer]\nidle-timeout = {600 + self.lb.generation}s\n"
        self.lb.write(beginning + self.lb.path.read_text().partition("[balancer]\n")[2].partition("s\n")[2])

    def refusal(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 1 and done.stdout == "", done
        return done.stderr

    def backend(self, name: str) -> dict[str, Any]:
        return self.lb.backend(name)

    def session(self, stack: ExitStack) -> socket.socket:
        """A client whose session relays."""
        client = stack.enter_context(socket.create_connection(self.lb.address, 15))
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        return client


@pytest.fixture(scope="module")
def ctl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ctl]:
    """A balancer with two backends that answer and one that does not, source limits, and a listener with TLS."""
    directory = tmp_path_factory.mktemp("ctl")
    certificate = make_certificate(directory, "a.example.com", "b.example.com")
    with Echo() as one, Echo() as two:
        text = (
            "[balancer]\nidle-timeout = 600s\nworkers = 2\n"
            + ini_section("listener main", bind="127.0.0.1:0", route="-> web", source_maxconn=SOURCE_LIMIT)
            + ini_section("listener secure", bind="127.0.0.1:0", route="-> web", tls_cert=str(certificate))
            + ini_section(
                "pool web",
                upstream=[f"{text_of(one.address)} name=web-1", f"{text_of(two.address)} name=web-2"],
            )
            + ini_section("pool dead", upstream=f"127.0.0.1:{free_port()} name=gone", retries=0)
            + ini_section("listener dead", bind="127.0.0.1:0", route="-> dead")
        )
        with FileBalancer(text, check_interval="100ms") as lb:
            lb.expect("all-down")
            for name in ("web-1", "web-2"):
                wait_for(lambda name=name: lb.backend(name)["check"] == "ok", f"{name} checked", 10)  # type: ignore[misc]
            lb.wait_backend("gone", "down")
            yield Ctl(lb)


def part(ctl: Ctl, name: str) -> None:
    """A part of the status: as many rows as there."""
    found, text = ctl.json(name)[name], ctl.text(name)
    assert len(found) == len(ctl.lb.status()[name])
    assert all(str(one.get("name", one.get("pid"))) in text for one in found)


def try_status(ctl: Ctl) -> None:
    found, text = ctl.json("status"), ctl.text("status")
    assert {one["name"] for one in found["listeners"]} == {"main", "secure", "dead"}
    assert all(name in text for name in ("web-1", "web-2", "gone", "secure"))


def try_top(ctl: Ctl) -> None:
    """Without a terminal; with one: tests/system/test_top.py."""
    assert {one["name"] for one in ctl.json("top")["backends"]} == {"web-1", "web-2", "gone"}
    text = ctl.text("top")
    assert all(word in text for word in ("web-1", "secure", "generation", "TREND", "EVENT"))


def try_events(ctl: Ctl) -> None:
    ctl.text("drain", "web-1", "--reason", "seen")
    ctl.text("ready", "web-1")
    assert "reason=seen" in ctl.text("events")
    assert any(one["verb"] == "operator" and "reason=seen" in one["text"] for one in ctl.json("events"))


def try_sources(ctl: Ctl) -> None:
    with ExitStack() as stack:
        ctl.session(stack)
        [listener] = ctl.json("sources")["listeners"]
        [found] = listener["sources"]
        assert (found["source"], listener["name"], found["sessions"]) == ("127.0.0.1", "main", 1)
        assert f"1/{SOURCE_LIMIT}" in ctl.text("sources")


def try_sessions(ctl: Ctl) -> None:
    """Each filter with and without a match; those of draining workers in `test_sessions_of_draining_workers`."""
    with ExitStack() as stack:
        client = text_of(ctl.session(stack).getsockname())
        [one] = ctl.json("sessions")["sessions"]
        assert (one["client"], one["listener"], one["pool"]) == (client, "main", "web")
        filters = {
            "pool": ("web", "dead"),
            "backend": (one["backend"], "web-2" if one["backend"] == "web-1" else "web-1"),
            "client": ("127.0.0.0/8", "10.0.0.1"),
            "older": ("0s", "1h"),
        }
        for name, (matching, other) in filters.items():
            assert [each["id"] for each in ctl.json("sessions", f"--{name}", matching)["sessions"]] == [
                one["id"]
            ]
            assert ctl.json("sessions", f"--{name}", other)["sessions"] == []
        assert ctl.json("sessions", "--draining")["sessions"] == []
        assert one["id"] in ctl.text(
            "sessions", "--pool", "web", "--backend", one["backend"], "--older", "0s"
        )
    ctl.lb.wait_idle(10)


def try_explain(ctl: Ctl) -> None:
    found = ctl.json("explain", "--listener", "main", "--source", "10.0.0.9")
    assert (found["pool"], set(found["elected"])) == ("web", {"web-1", "web-2"})
    assert "down" in ctl.text("explain", "--listener", "dead")
    [value] = ctl.json("explain", "--option", "workers")["values"]
    line = ctl.lb.path.read_text().splitlines().index("workers = 2") + 1
    assert (value["section"], value["source"]) == ("balancer", "command line") and value["value"] == "2"
    assert value["replaced"][0] == {"value": "2", "source": f"{ctl.lb.path}:{line}"}
    assert "[pool dead]" in ctl.text("explain", "--option", "retries")
    assert "did you mean retries?" in ctl.refusal("explain", "--option", "retrys")


def try_info(ctl: Ctl) -> None:
    found = ctl.json("info")
    assert found["config"] == str(ctl.lb.path) and found["version"] in ctl.text("info")


def try_dns(ctl: Ctl) -> None:
    """With sets: tests/system/test_discovery.py."""
    assert ctl.json("dns")["dns"] == [] and "no pool has a set" in ctl.text("dns")


def try_errors(ctl: Ctl) -> None:
    with socket.create_connection(address_of(ctl, "dead"), 15) as client:
        assert client.recv(1) == b""
    wait_for(lambda: "no backend could be reached" in ctl.text("errors"), "the failed session", 10)
    found = {one["name"]: one["ends"] for one in ctl.json("errors")["listeners"]}
    assert found["dead"]["SC"] >= 1 and found["main"].get("SC", 0) == 0
    last = ctl.json("errors")["last"][-1]
    assert (last["kind"], last["end"], last["listener"], last["pool"]) == ("session", "SC", "dead", "dead")
    assert (
        last["client"].startswith("127.0.0.1:")
        and last["what"] == "no backend could be reached"
        and last["at"] > "2026"
    )
    assert last["client"] in ctl.text("errors")


def try_certificates(ctl: Ctl) -> None:
    [found] = ctl.json("certificates")["certificates"]
    assert (found["subject"], found["issuer"], found["listeners"]) == (
        "CN=a.example.com",
        "CN=a.example.com",
        ["secure"],
    )
    assert found["names"] == ["a.example.com", "b.example.com"] and found["expires_in_days"] in (28, 29)
    text = ctl.text("certificates")
    assert found["path"] in text and "secure" in text and found["loaded_at"][:10] in text


def try_wait(ctl: Ctl) -> None:
    """Met at once, met later, given up, and never met."""
    assert ctl.text("wait", "ready") == ctl.text("wait", "web-*", "up") == "ok\n"
    assert ctl.json("wait", "gone", "down")["text"] == "ok"
    with ExitStack() as stack:
        client = ctl.session(stack)
        ctl.run("drain", "web-*")
        for words in (["idle"], ["web-1", "web-2", "drained"]):
            assert "1 session" in ctl.refusal("wait", *words, "--timeout", "0")
        command = [
            sys.executable,
            "-m",
            "balancer.ctl",
            "--admin",
            str(ctl.lb.admin),
            "wait",
            "web-*",
            "drained",
        ]
        waiting = subprocess.Popen(command, cwd=ROOT, env=clean_environment(), stdout=subprocess.DEVNULL)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(1)
            client.close()
            assert waiting.wait(60) == 0
        finally:
            waiting.kill()
            waiting.wait()
    assert "no backend is called 'nothing'" in ctl.refusal("wait", "nothing", "up")


def try_kill(ctl: Ctl) -> None:
    with ExitStack() as stack:
        first, second = ctl.session(stack), ctl.session(stack)
        by_client = {one["client"]: one["id"] for one in ctl.json("sessions")["sessions"]}
        assert ctl.json("kill", by_client[text_of(first.getsockname())])["closed"] == 1
        assert "1 session closed" in ctl.text("kill", "--client", text_of(second.getsockname()).split(":")[0])
    assert "no session has the ID" in ctl.refusal("kill", "1-2-3")
    ctl.lb.wait_idle(10)


def try_drain(ctl: Ctl) -> None:
    assert "takes no new sessions (drain)" in ctl.text("drain", "web-1")
    assert ctl.json("drain", "web-1", "--wait")["state"] == ctl.backend("web-1")["state"] == "drain"


def try_ready(ctl: Ctl) -> None:
    ctl.run("weight", "web-1", "0")
    assert "takes sessions again" in ctl.text("ready", "web-*", "--wait")
    assert len(ctl.json("ready", "web-*")["backends"]) == 2 and ctl.backend("web-1")["weight"] == 1


def try_maint(ctl: Ctl) -> None:
    assert "is not checked (maint)" in ctl.text("maint", "web-1")
    assert ctl.json("maint", "web-1")["state"] == ctl.backend("web-1")["state"] == "maint"


def try_weight(ctl: Ctl) -> None:
    assert "has weight 7" in ctl.text("weight", "web-1", "7")
    assert ctl.json("weight", "web-1", "5")["weight"] == ctl.backend("web-1")["weight"] == 5


def try_maxconn(ctl: Ctl) -> None:
    """Of two backends with one place each, a third session waits, and goes on once there is room."""
    assert "has maxconn 1 until" in ctl.text("maxconn", "web-1", "1")
    assert ctl.json("maxconn", "web-2", "1")["maxconn"] == ctl.backend("web-2")["maxconn"] == 1
    with ExitStack() as stack:
        held = [ctl.session(stack), ctl.session(stack)]
        third = stack.enter_context(socket.create_connection(ctl.lb.address, 15))
        third.sendall(b"third")
        wait_for(lambda: ctl.lb.status()["totals"]["queued"] == 1, "the third waits", 10)
        held.pop().close()
        assert third.recv(100) == b"third", "the place of the one that has left"
        fourth = stack.enter_context(socket.create_connection(ctl.lb.address, 15))
        fourth.sendall(b"fourth")
        wait_for(lambda: ctl.lb.status()["totals"]["queued"] == 1, "the fourth waits", 10)
        ctl.text("maxconn", "web-1", "0")
        assert fourth.recv(100) == b"fourth", "no limit any more"
    ctl.lb.wait_idle(10)
    ctl.change_file()
    ctl.text("reload")
    wait_for(lambda: ctl.backend("web-2")["maxconn"] == 0, "as configured", 10)


def try_add(ctl: Ctl) -> None:
    """And what is added takes part; in tests/system/test_added_backends.py, over reloads."""
    with Echo() as third, Echo() as fourth:
        try:
            assert f"is {text_of(third.address)} with weight 3" in ctl.text(
                "add", "web", text_of(third.address), "weight=3"
            )
            found = ctl.json("add", "web", text_of(fourth.address))
            assert found["state"] == "up" and found["address"] == text_of(fourth.address)
        finally:
            ctl.run("remove", "web", text_of(third.address))
            ctl.run("remove", "web", text_of(fourth.address))


def try_remove(ctl: Ctl) -> None:
    with Echo() as third, Echo() as fourth:
        for one in (third, fourth):
            assert ctl.run("add", "web", text_of(one.address)).returncode == 0
        assert "takes no new sessions (removed from pool web)" in ctl.text(
            "remove", "web", text_of(third.address)
        )
        assert ctl.json("remove", "web", text_of(fourth.address))["address"] is None


def try_workers(ctl: Ctl) -> None:
    assert len(ctl.json("workers")["workers"]) == 2 and "ready" in ctl.text("workers")
    assert ctl.json("workers", "3")["workers"] == 3
    wait_for(lambda: len(ctl.lb.status()["workers"]) == 3, "a third worker", 15)
    ctl.text("workers", "2")
    wait_for(lambda: len(ctl.lb.status()["workers"]) == 2, "two again", 20)


def try_record(ctl: Ctl) -> None:
    """The election of a session that came meanwhile, and none of one before."""
    with ExitStack() as stack:
        before = ctl.session(stack)
        assert "recorded for 60 s" in ctl.text("record", "1m")
        assert ctl.json("record", "2m")["text"].startswith("elections are recorded for 120 s")
        ctl.run("drain", "web-2")

        def recorded() -> dict[str, Any] | None:
            """Of a new session; workers begin within a quarter of a second."""
            name = text_of(ctl.session(stack).getsockname())
            [new] = [one["id"] for one in ctl.json("sessions")["sessions"] if one["client"] == name]
            done = ctl.run("explain", "--session", new, "--json")
            return dict(json.loads(done.stdout)) if done.returncode == 0 else None

        [election] = wait_for(recorded, "a recorded session", 15)["elections"]
        verdicts = {one["name"]: one["verdict"] for one in election["backends"]}
        assert (election["elected"], election["pool"]) == ("web-1", "web")
        assert verdicts == {"web-1": "elected", "web-2": "drain"}
        name = text_of(before.getsockname())
        [old] = [one["id"] for one in ctl.json("sessions")["sessions"] if one["client"] == name]
        assert "no election of session" in ctl.refusal("explain", "--session", old)
    ctl.text("record", "0")
    ctl.lb.wait_idle(10)


def try_reload(ctl: Ctl) -> None:
    assert "nothing changed" in ctl.text("reload")
    assert ctl.json("reload", "certificates")["ok"] is True


TRIALS: dict[str, Callable[[Ctl], None]] = {
    "status": try_status,
    "top": try_top,
    "events": try_events,
    "sources": try_sources,
    "sessions": try_sessions,
    "explain": try_explain,
    "info": try_info,
    "listeners": lambda ctl: part(ctl, "listeners"),
    "pools": lambda ctl: part(ctl, "pools"),
    "backends": lambda ctl: part(ctl, "backends"),
    "dns": try_dns,
    "errors": try_errors,
    "certificates": try_certificates,
    "wait": try_wait,
    "kill": try_kill,
    "drain": try_drain,
    "ready": try_ready,
    "maint": try_maint,
    "weight": try_weight,
    "maxconn": try_maxconn,
    "add": try_add,
    "remove": try_remove,
    "workers": try_workers,
    "record": try_record,
    "reload": try_reload,
}


def address_of(ctl: Ctl, listener: str) -> tuple[str, int]:
    """Where a listener listens: the status has the port that is configured, which is 0."""
    line = ctl.lb.wait_line(rf"\bbind address=([\d.]+):(\d+).* listener={listener}\b")
    return line[1], int(line[2])


def test_every_command_is_tried() -> None:
    assert set(TRIALS) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_what_it_says_as_text_and_as_json(ctl: Ctl, command: str) -> None:
    try:
        TRIALS[command](ctl)
        assert {(command, "text"), (command, "json")} <= ctl.asked
    finally:
        ctl.run("ready", "web-*", "--wait", "--timeout", "30s")


def test_sessions_of_draining_workers(ctl: Ctl) -> None:
    with ExitStack() as stack:
        old = text_of(ctl.session(stack).getsockname())
        ctl.change_file()
        ctl.text("reload")
        new = text_of(ctl.session(stack).getsockname())
        wait_for(lambda: ctl.json("sessions", "--draining")["sessions"], "the old worker drains", 10)
        assert [one["client"] for one in ctl.json("sessions", "--draining")["sessions"]] == [old]
        assert {one["client"] for one in ctl.json("sessions")["sessions"]} == {old, new}
        assert ctl.json("kill", "--draining")["closed"] == 1
        assert [one["client"] for one in ctl.json("sessions")["sessions"]] == [new]
    ctl.lb.wait_idle(10)
