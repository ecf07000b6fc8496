"""Whatever leaves a pool without a backend is a line of the log within moments, and so is the end of it."""

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Echo
from scripts.lab.network import free_port
from tests.system.harness import Balancer, FileBalancer, ini_section

Act = Callable[[Balancer], object]


def command(*words: str) -> Act:
    return lambda lb: lb.ctl(*words)


@pytest.mark.parametrize(
    ("out", "back", "reason"),
    [
        (command("drain", "one"), command("ready", "one"), '"every backend is drained by an operator"'),
        (
            command("maint", "one"),
            command("ready", "one"),
            '"every backend is in maintenance by an operator"',
        ),
        (command("weight", "one", "0"), command("weight", "one", "1"), '"every backend has weight 0"'),
    ],
)
def test_an_operator_can_leave_a_pool_without_a_backend_and_the_log_says_so(
    out: Act, back: Act, reason: str
) -> None:
    with Echo() as one, Balancer(upstreams=[f"{one.name} name=one"]) as lb:
        lb.expect("all-down")
        out(lb)
        lb.wait_line(rf"error prober pid=\d+ all-down up=0/1 reason={reason} then=clients are closed", 2.0)
        back(lb)
        lb.wait_line(r"info prober pid=\d+ some-up up=1/1 after=\d", 2.0)


def test_several_causes_are_named_together() -> None:
    dead = f"127.0.0.1:{free_port()}"
    with Echo() as one, Echo() as two, ExitStack() as stack:
        upstreams = [f"{one.name} name=one", f"{two.name} name=two", f"{dead} name=three"]
        lb = stack.enter_context(Balancer(upstreams=upstreams, check_interval="100ms"))
        lb.expect("all-down")
        lb.wait_backend("three", "down")
        lb.ctl("drain", "one")
        lb.ctl("weight", "two", "0")
        lb.wait_line(r'all-down up=0/3 reason="1 down, 1 with weight 0, 1 drained"', 2.0)


def test_a_name_that_nobody_knows_leaves_a_pool_without_a_backend() -> None:
    lb = Balancer(upstreams=["nobody.invalid:80"], check="none")
    lb.expect("all-down")
    with lb:
        lb.wait_line(r'all-down up=0/1 reason="names not resolved yet"', 8.0)


def test_a_reload_can_leave_a_pool_without_a_backend_and_bring_one() -> None:
    dead = f"127.0.0.1:{free_port()}"
    with Echo() as one:

        def text(*upstreams: str) -> str:
            return ini_section("balancer", port=0, upstream=upstreams, check_interval="100ms")

        with FileBalancer(text(one.name, dead)) as lb:
            lb.expect("all-down")
            lb.wait_backend(dead, "down")
            lb.write(text(dead))
            lb.reload(2)
            lb.wait_line(r'all-down up=0/1 reason="every backend is down"', 2.0)
            lb.write(text(dead, one.name))
            lb.reload(3)
            lb.wait_line(r"some-up up=1/2 after=\d", 2.0)
