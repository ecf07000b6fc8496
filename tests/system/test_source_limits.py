"""What one source may have, over all workers and generations, through kills and reloads."""

import json
import os
import re
import signal
import socket
from contextlib import ExitStack, suppress

from scripts.lab.backends import Echo
from scripts.lab.network import text_of
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer, FileBalancer, ini_section

WORKERS = 3
LIMIT = 10


class Crowd:
    """Clients of one source that stay."""

    def __init__(self, lb: Balancer, stack: ExitStack, source: str) -> None:
        self.lb, self.stack, self.source = lb, stack, source
        self.served: list[socket.socket] = []

    def knock(self, tries: int) -> int:
        """So many come at once; how many of them are served."""
        clients = []
        for _ in range(tries):
            client = self.stack.enter_context(socket.socket())
            client.settimeout(15)
            client.bind((self.source, 0))
            with suppress(ConnectionResetError):  # turned away before connect(2) has returned
                client.connect(self.lb.address)
            clients.append(client)
        before = len(self.served)
        for client in clients:
            try:
                client.sendall(b"?")
                if client.recv(1) == b"?":
                    self.served.append(client)
                    continue
            except OSError:
                pass
            client.close()
        return len(self.served) - before

    def leave(self, count: int) -> None:
        for client in self.served[:count]:
            client.close()
        del self.served[:count]


def sessions(lb: Balancer) -> int:
    return int(lb.status()["totals"]["sessions"])


def test_a_limit_over_all_workers_through_kills_and_ends() -> None:
    """So many workers may each admit one too many in the same instant, but for one."""
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        keys = {"source_maxconn": LIMIT, "workers": WORKERS}
        lb = stack.enter_context(Balancer(upstreams=[backend.address], **keys))
        lb.expect(r"\breap\b|signal")
        crowd, other = (Crowd(lb, stack, source) for source in ("127.0.0.5", "127.0.0.6"))
        assert LIMIT <= crowd.knock(60) <= LIMIT + WORKERS - 1
        assert crowd.knock(10) == 0
        assert LIMIT <= other.knock(20) <= LIMIT + WORKERS - 1, "another source has its own"
        [listener] = json.loads(lb.ctl("sources", "--json").stdout)["listeners"]
        seen = {one["source"]: (one["sessions"], one["refused"], one["limit"]) for one in listener["sources"]}
        limited = {"127.0.0.5": (crowd, 70), "127.0.0.6": (other, 20)}
        assert seen == {
            name: (len(one.served), tries - len(one.served), "source-maxconn")
            for name, (one, tries) in limited.items()
        }
        other.leave(99)
        crowd.leave(4)
        wait_for(lambda: sessions(lb) == len(crowd.served), "the gone counted out")
        room = LIMIT - len(crowd.served)
        assert room <= crowd.knock(20) <= room + WORKERS - 1
        victim = max(lb.status()["workers"], key=lambda worker: worker["sessions"])
        os.kill(victim["pid"], signal.SIGKILL)
        wait_for(
            lambda: victim["pid"] not in lb.worker_pids() and len(lb.worker_pids()) == WORKERS,
            "another worker",
        )
        crowd.served = [client for client in crowd.served if is_open(client)]
        room = LIMIT - len(crowd.served)
        assert room > 0
        wait_for(lambda: crowd.knock(1), "room for what the killed one held")
        assert LIMIT <= len(crowd.served) + crowd.knock(20) <= LIMIT + WORKERS
        assert re.search(r" refuse client=127\.0\.0\.5:\d+ reason=source-maxconn=1\d/10 then=reset", lb.log())
        stack.pop_all().close()


def is_open(client: socket.socket) -> bool:
    try:
        client.sendall(b"!")
        return client.recv(1) == b"!"
    except OSError:
        return False


def test_sessions_of_the_configuration_before_count() -> None:
    """Else a source gets its limit anew with each reload."""
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())

        def text(idle: str) -> str:
            listener = ini_section(
                "listener web", bind="127.0.0.1:0", pool="web", idle_timeout=idle, source_maxconn=LIMIT
            )
            return listener + ini_section("pool web", upstream=text_of(backend.address))

        lb = stack.enter_context(FileBalancer(text("10m"), workers=1))
        crowd = Crowd(lb, stack, "127.0.0.5")
        assert crowd.knock(20) == LIMIT
        lb.write(text("11m"))
        lb.reload(2)
        assert crowd.knock(5) == 0
        crowd.leave(3)
        wait_for(lambda: sessions(lb) == LIMIT - 3, "three ended in the old generation")
        assert crowd.knock(5) == 3
        crowd.leave(99)
        wait_for(lambda: sessions(lb) == 0, "nobody left")
        assert crowd.knock(20) == LIMIT


def test_a_rate_and_a_dry_run() -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Echo())
        keys = {"source_rate": "5/1h", "workers": 2}
        lb = stack.enter_context(Balancer(upstreams=[backend.address], **keys))
        assert 5 <= Crowd(lb, stack, "127.0.0.5").knock(12) <= 6
        assert Crowd(lb, stack, "127.0.0.6").knock(1) == 1
        dry = stack.enter_context(Balancer(upstreams=[backend.address], dry_run="yes", **keys))
        assert Crowd(dry, stack, "127.0.0.5").knock(12) == 12
        assert " then=nothing: dry-run" in dry.log()
