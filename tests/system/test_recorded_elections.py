"""One session in N has its election recorded by configuration, and what it saw keeps its name over changes of the
backends, a killed worker and an upgrade."""

import json
import os
import signal
import socket
from contextlib import ExitStack
from typing import Any

from scripts.lab.backends import Echo
from scripts.lab.network import text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import FileBalancer


def file_of(*backends: str, which: str = "1/1") -> str:
    upstreams = [f"    {one}" for one in backends]
    lines = [
        "[balancer]",
        "port = 0",
        "bind = 127.0.0.1",
        "workers = 1",
        f"record-elections = {which}",
        "upstream =",
    ]
    return "\n".join([*lines, *upstreams, ""])


def serving_of(lb: FileBalancer) -> list[int]:
    """The pids of the workers of the last generation that accept."""
    workers = lb.status()["workers"]
    last = max(one["generation"] for one in workers)
    return [one["pid"] for one in workers if one["generation"] == last and one["state"] == "ready"]


class Sessions:
    """Opens sessions, and asks what their elections saw."""

    def __init__(self, lb: FileBalancer, stack: ExitStack) -> None:
        self.lb, self.stack = lb, stack

    def open(self) -> str:
        """The ID of a new session that has its backend."""
        client = self.stack.enter_context(socket.create_connection(self.lb.address, 15))
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        name = text_of(client.getsockname())

        def found() -> str | None:
            listed = json.loads(self.lb.ctl("sessions", "--json").stdout)["sessions"]
            return next((str(one["id"]) for one in listed if one["client"] == name), None)

        return str(wait_for(found, "the session", 15))

    def election_of(self, session: str) -> dict[str, Any]:
        done = self.lb.ctl("explain", "--session", session, "--json")
        assert done.returncode == 0, done
        [election] = json.loads(done.stdout)["elections"]
        return dict(election)


def test_a_record_keeps_its_backends_names_when_others_get_their_places() -> None:
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(Echo()) for _ in range(3))
        names = [f"{one.name} name={name}" for one, name in zip((first, second, third), "abc", strict=True)]
        lb = stack.enter_context(FileBalancer(file_of(names[0]), workers=1))
        sessions = Sessions(lb, stack)
        old = sessions.open()
        assert sessions.election_of(old)["elected"] == "a"
        assert "no election is recorded" not in lb.ctl("record", "0").stdout
        lb.write(file_of(names[1], names[2]))
        lb.reload(2)
        gone = sessions.election_of(old)
        assert gone["elected"] == "removed since" and {one["name"] for one in gone["backends"]} == {
            "removed since"
        }
        new = sessions.open()
        assert sessions.election_of(new)["elected"] in ("b", "c")

        lb.expect("reap|death")
        [victim] = serving_of(lb)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: serving_of(lb) not in ([], [victim]), "another worker", 15)
        assert sessions.election_of(new)["elected"] in ("b", "c"), "the record outlives its writer"

        lb.write(file_of(names[1], which="off"))
        lb.reload(3)
        refused = lb.ctl("explain", "--session", sessions.open())
        assert refused.returncode == 1 and "record-elections those of one session in N" in refused.stderr
        assert "no election is recorded" in lb.ctl("record", "0").stdout
