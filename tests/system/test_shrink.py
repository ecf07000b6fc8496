"""Fewer workers and more again: by signal, by command and by reload, and no client in a queue is lost."""

import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import Load, receive
from scripts.lab.network import held
from scripts.lab.process import freeze
from scripts.lab.waiting import wait_for
from tests.system.faults import REAPED, ready_pids, report
from tests.system.harness import Balancer

MOST = 4
Scale = Callable[[Balancer, int], None]


def by_signals(lb: Balancer, count: int) -> None:
    """One at a time: the kernel merges two equal signals that are pending."""
    now = len(ready_pids(lb))
    step = 1 if count > now else -1
    for wanted in range(now + step, count + step, step):
        at = len(lb.log())
        lb.signal(signal.SIGTTIN if step > 0 else signal.SIGTTOU)
        lb.wait_line(rf"scale workers=\d+->{wanted}\b", after=at)


def by_command(lb: Balancer, count: int) -> None:
    answer = lb.ctl("workers", str(count))
    assert answer.returncode == 0, answer


def by_reload(lb: Balancer, count: int) -> None:
    path = Path(lb.arguments[lb.arguments.index("-c") + 1])
    path.write_text(re.sub(r"(?m)^workers = \d+$", f"workers = {count}", path.read_text()))
    answer = lb.ctl("reload")
    assert answer.returncode == 0 and f"-> {count}" in answer.stdout, answer


WAYS: dict[str, Scale] = {"signals": by_signals, "command": by_command, "reload": by_reload}


def started(stack: ExitStack, directory: Path, *upstreams: tuple[str, int]) -> Balancer:
    path = directory / "b.ini"
    path.write_text(f"[balancer]\nbind = 127.0.0.1\nworkers = {MOST}\n")
    lb = Balancer("-c", str(path), upstreams=upstreams)
    lb.arguments = [word for word in lb.arguments if not word.startswith("--workers")]
    return stack.enter_context(lb)


def shrink_and_grow(directory: Path, way: str, counts: Sequence[int], clients: int, steady: int) -> None:
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        lb = started(stack, directory, backend.address)
        load = stack.enter_context(Load(lb.address, clients=clients, pause=0.002))
        for count in counts:
            WAYS[way](lb, count)

            def settled(count: int = count) -> bool:
                workers = lb.status()["workers"]
                return len(workers) == count and all(worker["state"] == "ready" for worker in workers)

            wait_for(settled, f"{count} workers and no other", 8, every=0.02)
            before = lb.status()["totals"]["accepted_total"]
            wait_for(lambda b=before: lb.status()["totals"]["accepted_total"] > b + steady, "load on it", 20)
        outcome = load.finish()
        report(
            "fewer and more workers",
            way=way,
            counts=list(counts),
            requests=outcome.attempts,
            failed=outcome.failed,
        )
        outcome.check_nothing_lost(steady * len(counts))
        lb.check_at_rest()


@pytest.mark.parametrize("way", WAYS)
def test_four_workers_one_worker_four_workers(tmp_path: Path, way: str) -> None:
    """Fails where a worker that is not wanted any more takes its listening socket along: its queue is reset."""
    shrink_and_grow(tmp_path, way, (1, 4), 16, 150)


@pytest.mark.soak
@pytest.mark.parametrize("way", WAYS)
def test_many_times_fewer_and_more(tmp_path: Path, way: str) -> None:
    shrink_and_grow(tmp_path, way, (1, 4, 2, 3) * 5 + (4,), 32, 1000)


def test_clients_in_the_queue_of_a_slot_that_goes_are_served(tmp_path: Path) -> None:
    """Three of four workers stand still, so that clients wait in their queues when the slots are given up. Fails where
    the sockets of surplus slots are closed, or where no sibling is named to accept from them."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = started(stack, tmp_path, echo.address)
        lb.expect(REAPED)
        lb.expected_exit = None
        frozen = [pid for slot, pid in ready_pids(lb).items() if slot]
        for pid in frozen:
            freeze(pid)
        clients = stack.enter_context(held(lb.address, 40))
        by_signals(lb, 1)
        for client in clients:
            client.sendall(b"x")
        for client in clients:
            assert receive(client, 1) == b"x"
        for client in clients:
            client.close()
        for pid in frozen:  # they were told to drain, and will never hear it
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(lb.status()["workers"]) == 1, "one worker", 10)
        more = stack.enter_context(held(lb.address, 20))  # nothing is steered to the surplus sockets
        for client in more:
            client.sendall(b"y")
            assert receive(client, 1) == b"y"
            client.close()
        lb.check_at_rest()


def test_sessions_of_a_worker_that_goes_are_finished(tmp_path: Path) -> None:
    """Fails where the drain of a surplus worker is a cut."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = started(stack, tmp_path, echo.address)
        clients = stack.enter_context(held(lb.address, 40))
        for client in clients:
            client.sendall(b"x")
            assert receive(client, 1) == b"x"
        by_signals(lb, 1)
        wait_for(lambda: len(ready_pids(lb)) == 1, "one worker ready")
        for client in clients:
            client.sendall(b"y")
            assert receive(client, 1) == b"y"
            client.close()
        wait_for(lambda: len(lb.status()["workers"]) == 1, "one worker")
        assert not lb.status()["totals"]["cut_total"]
        lb.check_at_rest()


def test_the_same_request_may_be_made_again(tmp_path: Path) -> None:
    """After another request has changed the number. Fails where the master compares the request with the previous one."""
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        lb = started(stack, tmp_path, backend.address)
        by_command(lb, 2)
        lb.wait_line(r"scale workers=4->2")
        lb.signal(signal.SIGTTOU)
        lb.wait_line(r"scale workers=2->1")
        by_command(lb, 2)
        lb.wait_line(r"scale workers=1->2")
