"""The prober dies, hangs or resolves a name: sessions go on with its last verdicts."""

import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path

from scripts.lab.backends import Digest
from scripts.lab.load import run_load
from scripts.lab.network import free_port
from scripts.lab.waiting import wait_for
from tests.system.harness import Balancer


def prober_pid(lb: Balancer) -> int | None:
    return next((pid for pid, title in lb.titles().items() if title.startswith("balancer: prober [")), None)


def test_a_killed_prober_leaves_its_verdicts_and_its_successor_continues_with_them() -> None:
    dead = f"127.0.0.1:{free_port()}"
    with ExitStack() as stack:
        alive = stack.enter_context(Digest(0))
        lb = stack.enter_context(Balancer(upstreams=[dead, alive.address], check_interval="0.5s"))
        lb.wait_backend(dead, "down")
        for _ in range(3):
            old = wait_for(lambda: prober_pid(lb), "a prober")
            os.kill(old, signal.SIGKILL)
            assert lb.backend(dead)["state"] == "down"
            failures = lb.backend(dead)["connect_failures_total"]
            run_load(lb.address, requests=100, clients=5).check_nothing_lost(100)
            assert lb.backend(dead)["connect_failures_total"] == failures  # it was not dialled once
            wait_for(lambda old=old: prober_pid(lb) not in (None, old), "its successor")
        assert len(re.findall(r"prober pid=\d+ down ", lb.log())) == 1
        lb.check_at_rest()


def test_a_stopped_prober_delays_no_session_and_is_replaced() -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(2)]
        lb = stack.enter_context(
            Balancer(upstreams=[backend.address for backend in backends], check_interval="0.5s")
        )
        old = wait_for(lambda: prober_pid(lb), "a prober")
        lb.expect(r"hang role=\"prober 0\"")
        os.kill(old, signal.SIGSTOP)
        backends[0].kill()
        run_load(lb.address, requests=200, clients=5).check_nothing_lost(200)
        wait_for(lambda: prober_pid(lb) not in (None, old), "its successor", 8.0)
        lb.wait_backend(backends[0].name, "down", 5.0)


def test_a_name_is_resolved_and_served() -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Digest(0))
        lb = stack.enter_context(Balancer(upstreams=[f"localhost:{backend.address[1]}"]))
        lb.wait_line(r"prober pid=\d+ resolve backend=localhost:\d+ old=- address=(127\.0\.0\.1|::1)")
        run_load(lb.address, requests=50, clients=2).check_nothing_lost(50)


def test_each_pool_is_checked_with_its_own_options(tmp_path: Path) -> None:
    dead = free_port()
    path = tmp_path / "balancer.ini"
    with Digest(0) as alive:
        path.write_text(f"""
[listener web]
port = 0
route =
    from 10.0.0.0/8 -> api
    -> main
[pool main]
upstream = {alive.address[0]}:{alive.address[1]} name=a
[pool api]
upstream = 127.0.0.1:{dead} name=a
check-interval = 100ms
check-fall = 2
""")
        with Balancer(f"--config={path}", port=None) as lb:
            lb.expect(r"all-down pool=api up=0/1")
            lb.wait_line(
                r"down pool=api backend=a address=\S+ check=refused failures=2/2 up=0/1 then=next try in 100ms"
            )
            lb.wait_line(r"error prober pid=\d+ all-down pool=api up=0/1")
            wait_for(lambda: "balancer: prober [1/2 up]" in lb.titles().values(), "the title")
            assert [backend["state"] for backend in lb.status()["backends"]] == ["up", "down"]
