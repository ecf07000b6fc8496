"""Which backend gets the next session, and how many may be open: exact shares, global counts, hard limits.

Where a backend counts its own connections the probes are off: a probe is a connection too."""

import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Echo
from scripts.lab.load import receive
from scripts.lab.network import held, text_of
from scripts.lab.waiting import best_of, wait_for
from tests.system.harness import Balancer

WORKERS = 4
WEIGHTS = (1, 1, 2)
SESSIONS = 1000


def greeting(sock: socket.socket) -> str:
    """The name that a greeting Echo sends first."""
    name = b""
    while not name.endswith(b"\n"):
        name += receive(sock, 1)
    return name.decode().strip()


def pool(stack: ExitStack, weights: Sequence[int]) -> tuple[list[Echo], list[str]]:
    echoes = [stack.enter_context(Echo(greeting=True)) for _ in weights]
    words = [f"{text_of(echo.address)} weight={w}" for echo, w in zip(echoes, weights, strict=True)]
    return echoes, words


def short_sessions(lb: Balancer, count: int) -> Counter[str]:
    """One after the other: connect, read the name, close."""
    heard: Counter[str] = Counter()
    for _ in range(count):
        with socket.create_connection(lb.address, 5) as client:
            heard[greeting(client)] += 1
    return heard


def shares(heard: Counter[str], echoes: Sequence[Echo]) -> list[int]:
    return [heard[echo.name] for echo in echoes]


def test_roundrobin_is_exact_to_one_per_worker() -> None:
    with ExitStack() as stack:
        echoes, words = pool(stack, WEIGHTS)
        lb = stack.enter_context(Balancer(upstreams=words, workers=WORKERS, balance="roundrobin"))
        got = shares(short_sessions(lb, SESSIONS), echoes)
        fair = [SESSIONS * weight / sum(WEIGHTS) for weight in WEIGHTS]
        assert all(abs(a - b) <= WORKERS for a, b in zip(got, fair, strict=True)), (got, fair)
        lb.check_at_rest()


def test_leastconn_holds_the_weights_within_five_percent() -> None:
    """1,000 sessions, 200 open at any time: the counts are of all workers together, or this cannot hold."""
    with ExitStack() as stack:
        echoes, words = pool(stack, WEIGHTS)
        lb = stack.enter_context(Balancer(upstreams=words, workers=WORKERS))
        heard: Counter[str] = Counter()
        clients: list[socket.socket] = []
        for _ in range(SESSIONS):
            if len(clients) == 200:
                clients.pop(0).close()
            clients.append(socket.create_connection(lb.address, 5))
            heard[greeting(clients[-1])] += 1
        got = shares(heard, echoes)
        for client in clients:
            client.close()
        fair = [SESSIONS * weight / sum(WEIGHTS) for weight in WEIGHTS]
        assert all(abs(a - b) <= 0.05 * SESSIONS for a, b in zip(got, fair, strict=True)), (got, fair)
        lb.check_at_rest()


def test_leastconn_leaves_a_loaded_backend_alone_until_the_others_have_caught_up() -> None:
    with ExitStack() as stack:
        echoes, words = pool(stack, (1, 1, 1))
        names = [f"{word} name=b{n}" for n, word in enumerate(words)]
        lb = stack.enter_context(Balancer(upstreams=names, workers=WORKERS))
        for name in ("b1", "b2"):
            assert lb.ctl("drain", name).returncode == 0
        wait_for(
            lambda: lb.backend("b1")["state"] == lb.backend("b2")["state"] == "drain", "two drained backends"
        )
        long = stack.enter_context(held(lb.address, 50))
        assert {greeting(sock) for sock in long} == {echoes[0].name}
        for name in ("b1", "b2"):
            assert lb.ctl("ready", name).returncode == 0
        wait_for(lambda: lb.backend("b2")["state"] == "up", "all backends ready again")
        others = stack.enter_context(held(lb.address, 98))
        heard = Counter(greeting(sock) for sock in others)
        assert shares(heard, echoes) == [0, 49, 49]
        more = stack.enter_context(held(lb.address, 30))
        heard = Counter(greeting(sock) for sock in more)
        assert min(shares(heard, echoes)) >= 8, heard


def test_source_sends_an_address_always_to_the_same_backend() -> None:
    with ExitStack() as stack:
        echoes, words = pool(stack, (1, 1, 1))
        lb = stack.enter_context(Balancer(upstreams=words, workers=WORKERS, balance="source"))
        homes: dict[str, set[str]] = {}
        for _ in range(5):
            for last in range(2, 42):
                source = f"127.0.0.{last}"
                with socket.create_connection(lb.address, 5, source_address=(source, 0)) as client:
                    homes.setdefault(source, set()).add(greeting(client))
        assert all(len(names) == 1 for names in homes.values()), homes
        assert len(set.union(*homes.values())) == len(echoes)


@pytest.mark.parametrize("balance", ["random", "p2c"])
def test_random_policies_reach_every_backend(balance: str) -> None:
    with ExitStack() as stack:
        echoes, words = pool(stack, (1, 1, 1))
        lb = stack.enter_context(Balancer(upstreams=words, balance=balance))
        got = shares(short_sessions(lb, 300), echoes)
        assert min(got) > 50, got
        lb.check_at_rest()


def works(sock: socket.socket) -> bool:
    try:
        sock.sendall(b"x")
        return receive(sock, 1) == b"x"
    except Exception:
        return False


def test_maxconns_over_all_workers_drops_the_rest_at_once_and_lets_the_next_in() -> None:
    with (
        Echo() as backend,
        Balancer(upstreams=[backend.address], maxconns=10, check="none") as lb,
        ExitStack() as stack,
    ):
        alive = [sock for sock in stack.enter_context(held(lb.address, 30, timeout=30)) if works(sock)]
        assert len(alive) == 10
        wait_for(lambda: lb.status()["totals"]["refused_total"] == 20, "20 refusals counted")

        def twenty_refusals() -> float:
            began = time.monotonic()
            with held(lb.address, 20, timeout=30) as more:
                assert not any(map(works, more))
            return time.monotonic() - began

        best_of(twenty_refusals, 0.1 + 20 * 0.02, "20 refusals")
        assert lb.wait_line(r"worker \d pid=\d+ refuse client=\S+ .*sessions=10/10")
        alive[0].close()
        wait_for(lambda: lb.status()["totals"]["sessions"] == 9, "a place")
        with socket.create_connection(lb.address, 30) as late:
            assert works(late)
        assert backend.most == 10


def test_overflow_queue_leaves_clients_in_the_backlog_until_there_is_room() -> None:
    with Echo() as backend, ExitStack() as stack:
        lb = stack.enter_context(
            Balancer(upstreams=[backend.address], maxconns=5, overflow="queue", check="none")
        )
        first = stack.enter_context(held(lb.address, 5))
        assert all(works(sock) for sock in first)
        waiting = stack.enter_context(held(lb.address, 1))[0]
        waiting.sendall(b"y")
        waiting.settimeout(0.3)
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        first[0].close()
        waiting.settimeout(5)
        assert receive(waiting, 1) == b"y"
        assert backend.most == 5
        assert lb.status()["totals"]["refused_total"] == 0


def test_a_full_backend_is_passed_over_and_a_queued_session_gets_the_freed_place() -> None:
    with ExitStack() as stack:
        echoes = [stack.enter_context(Echo(greeting=True)) for _ in range(2)]
        words = [f"{text_of(echo.address)} maxconn=3" for echo in echoes]
        lb = stack.enter_context(Balancer(upstreams=words, workers=WORKERS, check="none"))
        six = stack.enter_context(held(lb.address, 6))
        assert Counter(greeting(sock) for sock in six) == {echo.name: 3 for echo in echoes}
        seventh = stack.enter_context(held(lb.address, 1))[0]
        seventh.settimeout(0.3)
        with pytest.raises(TimeoutError):
            seventh.recv(1)
        seventh.settimeout(5)
        six[0].close()
        assert greeting(seventh) in {echo.name for echo in echoes}
        assert [echo.most for echo in echoes] == [3, 3]


def test_a_backup_serves_only_when_no_other_can() -> None:
    with Echo(greeting=True) as main, Echo(greeting=True) as spare:
        upstreams = [text_of(main.address), f"{text_of(spare.address)} backup"]
        with Balancer(upstreams=upstreams, check_interval="60s") as lb:
            assert set(short_sessions(lb, 20)) == {main.name}
            main.close()  # and no probe has noticed yet
            assert set(short_sessions(lb, 20)) == {spare.name}
            lb.check_at_rest()
