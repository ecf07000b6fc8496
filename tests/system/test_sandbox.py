"""Hostile code inside a CPU process (hostile_resizer.py): what it cannot do, and which layer of the sandbox it is that
forbids it. Every attack is carried out without a sandbox too, where it has to succeed, or it would prove nothing.
"""

import hashlib
import http.client
import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from scripts.lab.waiting import wait_for
from tests.system.harness import Resizer, clean_environment
from tests.system.hostile_resizer import GARBAGE, LOG_BYTES
from tests.system.resizer_peer import picture
from workers.resizer.counters import LAYERS

IS_ROOT = os.geteuid() == 0
# An attack and the words it needs, see `HostileResizer.attack`; {front} is a pid.
DENIED = (
    "open",
    "create {directory}/new",
    "list",
    "connect {address}",
    "unix",
    "listen",
    "fork",
    "thread",
    "execve",
    "signal {front}",
    "pidfd {front}",
    "ptrace {front}",
    "mem {front}",
    "vm {front}",
    "exec_memory",
    "memfd",
    "dumpable",
    "privileges",
    *(["become"] if IS_ROOT else []),
)
# One layer by itself, and what it forbids.
ALONE = (
    ("landlock", "open"),
    ("landlock", "create {directory}/new"),
    ("landlock", "list"),
    ("landlock", "connect {address}"),
    ("landlock", "signal {front}"),
    ("net_namespace", "connect {address}"),
    ("not_dumpable", "dumpable"),
    ("no_new_privs", "privileges"),
    *([("capabilities", "become")] if IS_ROOT else [("rlimits", "fork")]),
    *(("seccomp", attack) for attack in DENIED if attack not in ("dumpable", "privileges")),
)


class HostileResizer(Resizer):
    """A resizer whose pictures may be attacks. `layers`: of the sandbox, all that the machine has by default."""

    def __init__(self, layers: str | None = None, **options: object) -> None:
        super().__init__(cpus=1, **options)
        self.module = "tests.system.hostile_resizer"
        self.expect("reap|death|receive|kill")
        if layers is not None:
            self.environment = clean_environment({"HOSTILE_LAYERS": layers})

    def ask(self, data: bytes) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request("POST", "/resize?w=30", data)
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, "" if answer.status == 200 else json.loads(body)["error"]
        finally:
            connection.close()

    def attack(self, words: str) -> str:
        """What came of an attack: "denied: ...", "done: ...", or "died" where the process did not come back."""
        host, port = self.address
        words = words.format(front=self.pids("front")[0], address=f"{host} {port}", directory=self.directory)
        status, sentence = self.ask(f"ATTACK {words}".encode())
        return sentence if status == 422 else "died"


@pytest.fixture(scope="module")
def locked_in() -> Iterator[HostileResizer]:
    with HostileResizer() as resizer:
        yield resizer


@pytest.fixture(scope="module")
def at_large() -> Iterator[HostileResizer]:
    with HostileResizer(sandbox="off") as resizer:
        yield resizer


@pytest.mark.parametrize("attack", DENIED)
def test_an_attack_is_denied_and_would_succeed_without_a_sandbox(
    attack: str, locked_in: HostileResizer, at_large: HostileResizer
) -> None:
    if "seccomp" not in locked_in.status()["sandbox"]:
        pytest.skip("this machine has no seccomp, or no libseccomp")
    assert locked_in.attack(attack).startswith("denied: ")
    assert not at_large.attack(attack).startswith("denied: ")
    assert locked_in.ask(picture(300, 200))[0] == 200


@pytest.mark.parametrize("layer", sorted({layer for layer, _ in ALONE}))
def test_what_a_layer_forbids_by_itself(layer: str) -> None:
    with HostileResizer(layers=layer) as resizer:
        if layer not in resizer.status()["sandbox"]:
            pytest.skip(f"this machine has no {layer}: {resizer.log()[-600:]}")
        for attack in [attack for one, attack in ALONE if one == layer]:
            assert resizer.attack(attack).startswith("denied: "), attack


@pytest.mark.parametrize("layers", ["own_row", ""])
def test_the_shared_table_is_out_of_reach_but_for_the_own_row(layers: str) -> None:
    with HostileResizer(layers=layers) as resizer:
        before = {(one["role"], one["pid"]) for one in resizer.status()["processes"]}
        pids = resizer.pids("")
        if layers:
            assert resizer.attack("table").startswith("done: ")
            after = {(one["role"], one["pid"]) for one in resizer.status()["processes"]}
            assert after == before and resizer.pids("") == pids
            assert resizer.ask(picture(300, 200))[0] == 200
        else:
            resizer.expected_exit = None
            resizer.expect("")
            assert resizer.attack("table")
            for pid in pids:  # nothing that the others do with such a table is of interest
                os.kill(pid, signal.SIGKILL)
            return
        assert str(GARBAGE) not in json.dumps(resizer.status())


def find(text: bytes) -> str:
    """The attack that looks for a text in all that a process has."""
    return f"find {text[:12].hex()} {hashlib.sha256(text).hexdigest()}"


def test_no_picture_of_another_client_is_in_reach() -> None:
    """Without the layers that forbid to look: what is not in the process cannot be looked at."""
    others, own = os.urandom(24), os.urandom(24)
    with HostileResizer(layers="own_row") as resizer:
        victim = http.client.HTTPConnection(*resizer.address, timeout=60)
        data = picture(300, 200) + others
        victim.putrequest("POST", "/resize?w=30")
        victim.putheader("Content-Length", str(len(data) + 1))
        victim.endheaders()
        victim.send(data)  # all but its last byte: the picture stays with the front
        wait_for(lambda: resizer.status()["totals"]["bytes_in_total"] >= len(data), "the picture", 20)
        assert resizer.attack(find(others)) == "done: 0"
        found = resizer.ask(f"ATTACK {find(own)}".encode() + b"\0" + own)
        assert found[1].startswith("done: ") and found[1] != "done: 0", "it looks at what it has"
        victim.send(b".")
        answer = victim.getresponse()
        assert answer.status == 200
        victim.close()


def test_a_process_that_names_another_one_gets_nobody_killed(locked_in: HostileResizer) -> None:
    front = locked_in.pids("front")
    assert locked_in.attack(f"name {front[0]}").startswith("done: ")
    wait_for(lambda: f"it names pid {front[0]}" in locked_in.log(), "the line", 20)
    assert locked_in.ask(picture(300, 200))[0] == 200 and locked_in.pids("front") == front


def test_a_process_that_names_its_master_in_its_row_has_nobody_killed_by_a_new_front() -> None:
    with HostileResizer(sandbox="off") as resizer:
        resizer.expected_exit = None  # a process that hangs is cut
        busy = http.client.HTTPConnection(*resizer.address, timeout=60)
        busy.request("POST", "/resize?w=30", f"ATTACK row {resizer.pid}".encode())
        wait_for(
            lambda: any(one["pid"] == resizer.pid for one in resizer.status()["processes"]), "the lie", 20
        )
        front = resizer.pids("front")
        os.kill(front[0], signal.SIGKILL)
        busy.close()
        wait_for(lambda: resizer.pids("front") not in ([], front), "a new front", 20)

        def serves() -> bool:
            try:
                return resizer.ask(picture(300, 200))[0] == 200
            except OSError:
                return False

        wait_for(serves, "pictures", 30)
        time.sleep(1.5)  # after a second the silent ones are killed
        assert resizer.pids("master") == [resizer.pid] and resizer.ask(picture(300, 200))[0] == 200


def test_a_log_file_cannot_be_filled() -> None:
    with HostileResizer() as resizer:
        before = len(resizer.log())
        assert resizer.attack("log").startswith("denied: ")
        assert len(resizer.log()) - before < 1.5 * LOG_BYTES


def test_a_crash_leaves_its_stack_and_the_process_is_replaced(locked_in: HostileResizer) -> None:
    crashed = locked_in.log().count("Fatal Python error")
    assert locked_in.attack("abort") == "died"
    wait_for(lambda: locked_in.log().count("Fatal Python error") > crashed, "the stack dump", 20)
    assert "hostile_resizer.py" in locked_in.log()
    wait_for(lambda: locked_in.status()["workers"] == 1, "the successor", 20)
    assert locked_in.ask(picture(300, 200))[0] == 200


def test_a_picture_over_its_time_is_ended() -> None:
    with HostileResizer(job_timeout="1s") as resizer:
        began = time.monotonic()
        assert resizer.ask(b"ATTACK hang")[0] == 504
        assert time.monotonic() - began < 30
        wait_for(lambda: resizer.ask(picture(300, 200))[0] == 200, "the successor", 20)


def test_log_and_status_name_the_layers() -> None:
    with Resizer(cpus=1) as resizer:
        ready = resizer.wait_line(r"express .*\bready\b.*")[0]
        status = resizer.status()
        assert status["sandbox"]
        for layer in LAYERS:
            assert layer in ready.partition("sandbox=")[2]
            assert (layer in status["sandbox"]) != (f"{layer}: " in ready), (
                "it is entered, or a reason is given"
            )
        assert all(one["sandbox"] for one in status["processes"] if one["role"] != "front")
    with Resizer(cpus=1, sandbox="off") as resizer:
        assert resizer.status()["sandbox"] == []
        resizer.wait_line(r"sandbox=off")
        assert " sandbox missing=" not in resizer.log()


def test_a_layer_that_the_machine_lacks_is_said_once_or_ends_the_start() -> None:
    few = "own_row,no_new_privs"
    with HostileResizer(layers=few) as resizer:
        resizer.wait_line(r"warning front .*sandbox missing=\S*seccomp")
        resizer.attack("abort")
        wait_for(lambda: resizer.status()["workers"] == 1, "the successor", 20)
        time.sleep(1.5)
        assert resizer.log().count(" sandbox missing=") == 1


def test_after_a_rotation_the_lines_of_cpu_processes_are_in_the_new_file() -> None:
    """They can open no file: successors take their place."""
    resizer = Resizer(cpus=1)
    log = resizer.directory / "log"
    resizer.arguments.append(f"--log={log}")
    with resizer:
        before = {*resizer.pids("cpu"), *resizer.pids("express")}
        log.rename(resizer.directory / "log.1")
        resizer.signal(signal.SIGUSR1)
        wait_for(lambda: log.exists() and log.read_text().count(" ready cpu=") == 2, "two successors", 60)
        assert not before & {*resizer.pids("cpu"), *resizer.pids("express")}
