"""`ps` shows every process under its name, with counts that are right within a second."""

import re
import signal
import socket

from scripts.lab.backends import Echo
from scripts.lab.network import held
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer


def titles(lb: Balancer) -> list[str]:
    return sorted(lb.titles().values())


def sessions_shown(lb: Balancer) -> int:
    found = (re.search(r"balancer: worker \d+ \[(\d+) sessions?\]", title) for title in titles(lb))
    return sum(int(match[1]) for match in found if match)


def test_every_process_has_its_title_and_the_counts_follow() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address]) as lb:
        forms = (
            r"balancer: master \[2 workers\]",
            r"balancer: worker 0 \[0 sessions\]",
            r"balancer: worker 1 \[0 sessions\]",
            r"balancer: prober \[1/1 up\]",
            r"balancer: console \[\S+\]",
        )

        def right() -> bool:
            shown = titles(lb)
            return len(shown) == 5 and all(
                any(re.fullmatch(form, title) for title in shown) for form in forms
            )

        wait_for(right, "the five titles", 4)
        with held(lb.address, 17):
            wait_for(lambda: backend.now == 17, "17 sessions")
            wait_for(lambda: sessions_shown(lb) == 17, "17 sessions in ps", 1.6)
        wait_for(lambda: sessions_shown(lb) == 0, "0 sessions in ps", 1.6)


def test_the_prober_counts_the_backends_that_are_up() -> None:
    with (
        Echo() as one,
        Echo() as two,
        Balancer(upstreams=[one.address, two.address], check_interval="100ms") as lb,
    ):
        lb.expect(r"\bdown\b")
        wait_for(lambda: "balancer: prober [2/2 up]" in titles(lb), "2/2 up", 4)
        two.close()
        wait_for(lambda: "balancer: prober [1/2 up]" in titles(lb), "1/2 up", 4)


def test_a_draining_worker_says_how_long() -> None:
    with Echo() as backend, Balancer(upstreams=[backend.address], drain_timeout="20s") as lb:
        client = socket.create_connection(lb.address, 5)
        wait_for(lambda: backend.now == 1, "a session")
        lb.signal(signal.SIGTERM)

        def draining() -> bool:
            pattern = r"balancer: worker \d draining \[1 session, \d+ s left\]"
            return any(re.fullmatch(pattern, title) for title in titles(lb))

        wait_for(draining, "a draining title", 3)
        client.close()
        assert lb.wait_exit() == 0
