"""While a successor starts: a stop ends it too, and nothing makes a socket that it does not know."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from scripts.lab.waiting import wait_for
from tests.system.toy import Toy, make_toy, talk
from tests.system.upgradable import subreaper

__all__ = ["make_toy"]  # a fixture
DELAYS = (0.0, 0.0005, 0.001, 0.002, 0.003, 0.02, 0.1, 0.3)  # the successor's exec comes after about 1 ms


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_at_any_moment_of_an_upgrade_leaves_no_process(
    make_toy: Callable[..., Toy], number: signal.Signals
) -> None:
    """Fails where the signal lands between fork and exec in a handler of the old master: a whole toy goes on."""
    with subreaper():
        for delay in DELAYS:
            toy = make_toy(workers=1).boot()
            toy.configure(ready_after=5.0)  # the successor does not serve before the stop
            toy.signal(signal.SIGUSR2)
            time.sleep(delay)  # the fault's own schedule
            toy.signal(number)
            assert toy.wait_exit(8) == 0
            wait_for(lambda t=toy: not t.session(), f"everything gone, {delay * 1000:g} ms", 8)


@pytest.mark.parametrize("how", ["growth", "reload"])
def test_what_makes_sockets_waits_for_the_successor_and_is_handed_on(
    make_toy: Callable[..., Toy], how: str
) -> None:
    """Fails where the old master makes a slot of its own meanwhile: a third of the clients hangs in its queue."""
    with subreaper(), ExitStack() as stack:
        toy = make_toy(ready_after=0.7, drain=20).boot()
        held = stack.enter_context(toy.connect())
        talk(held, "x")
        toy.signal(signal.SIGUSR2)
        toy.wait_lines(r" upgrade successor=\d+ sockets=2 ")
        if how == "growth":
            toy.signal(signal.SIGTTIN)
        else:
            wait_for(
                lambda: toy.log().count(" bind address") == 2, "the successor has read its configuration"
            )
            toy.configure(workers=3)
            toy.signal(signal.SIGHUP)
        toy.wait_lines(" upgrade .*it serves; we drain")
        with (
            ExitStack() as crowd
        ):  # some of them may be in a queue of the old master: it drains, so they have to end
            clients = [crowd.enter_context(toy.connect()) for _ in range(40)]
            assert [talk(client, "hello") for client in clients] == ["hello"] * 40
        successor = int(toy.wait_line(r"successor=(\d+)")[1])
        wait_for(lambda: toy.ask_board()["master"][15] == 3, "three slots of the successor", 10)
        held.close()
        assert toy.wait_exit(10) == 0
        assert "does not know" not in toy.log()
        os.kill(successor, signal.SIGQUIT)
        wait_for(lambda: not toy.session(), "everything gone", 5)


def test_a_stop_of_a_superseded_master_cuts_no_session_at_once(make_toy: Callable[..., Toy]) -> None:
    """It drains already. Fails where the first TERM counts as the second: a stop of the whole process group, which has
    both masters, would cut the sessions of the old one."""
    with subreaper(), ExitStack() as stack:
        toy = make_toy(drain=20).boot()
        held = stack.enter_context(toy.connect())
        talk(held, "x")
        toy.signal(signal.SIGUSR2)
        toy.wait_lines(" upgrade .*it serves; we drain")
        new = stack.enter_context(toy.connect())
        talk(new, "x")
        os.killpg(toy.session_id, signal.SIGTERM)
        toy.wait_lines(" stop within=20s")
        assert talk(held, "still here") == "still here" and talk(new, "here too") == "here too"
        held.close()
        new.close()
        assert toy.wait_exit(5) == 0
        wait_for(lambda: not toy.session(), "everything gone", 5)
