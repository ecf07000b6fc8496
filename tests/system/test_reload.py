"""Reloads: a good one loses no client, a bad one changes nothing, and the last configuration is the one in force."""

import random
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from scripts.lab.backends import Digest, Echo
from scripts.lab.load import Load, receive
from scripts.lab.network import Address, free_port, held, text_of
from scripts.lab.waiting import best_of, wait_for
from tests.system.faults import report
from tests.system.harness import FileBalancer
from tests.system.random_sections import random_sections
from tests.system.sampler import Sampler

GENERATIONS = 16  # alive at once, at most


class FlatFileBalancer(FileBalancer):
    """A balancer whose file has one listener and one pool, of `binds` and `upstreams`."""

    def __init__(self, *backends: Address, **options: object) -> None:
        self.binds = ["127.0.0.1"]
        self.upstreams = [f"{text_of(address)} name=b{index}" for index, address in enumerate(backends)]
        super().__init__(self.text(), **options)
        self.expect(r"master pid=\d+ reload error=")

    def text(self, *lines: str) -> str:
        binds = ["bind =", *(f"    {one}" for one in self.binds)]
        upstreams = ["upstream =", *(f"    {one}" for one in self.upstreams)]
        return "\n".join(["[balancer]", "port = 0", *lines, *binds, *upstreams, ""])

    def rewrite(self, *lines: str) -> None:
        """Replace the file by one of the present `binds` and `upstreams` and these lines."""
        self.write(self.text(*lines))

    def bind_to(self, *addresses: str) -> None:
        self.binds = list(addresses)
        self.rewrite()


def reload_under_load(reloads: int, requests: int) -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(2)]
        lb = stack.enter_context(FlatFileBalancer(*(backend.address for backend in backends)))
        sampler = stack.enter_context(Sampler(lb))
        load = stack.enter_context(Load(lb.address, clients=32, requests=requests))
        before = {worker["pid"] for worker in lb.status()["workers"]}
        for turn in range(reloads):
            due = requests * (turn + 1) // (reloads + 2)
            wait_for(lambda d=due: lb.status()["totals"]["accepted_total"] >= d, f"{due} requests", 120)
            lb.rewrite(f"retries = {turn % 7}")
            lb.reload(turn + 2)
            lb.wait_one_generation()
        assert load.process.poll() is None, "the load was over before the last reload"
        outcome = load.finish(stop=False, seconds=300)
        sampler.check()
        report(
            "13",
            reloads=reloads,
            requests=outcome.attempts,
            failed=outcome.failed,
            rate=round(outcome.attempts / outcome.seconds),
            p99_ms=round(outcome.p99 * 1000, 1),
            longest_ms=round(outcome.longest * 1000),
        )
        outcome.check_nothing_lost(requests)
        status = lb.check_at_rest()
        assert before.isdisjoint(worker["pid"] for worker in status["workers"])
        assert status["totals"]["accepted_total"] == requests
        lb.stop()


def test_reloads_under_load_fail_no_request() -> None:
    """Fails where the old workers are ended instead of drained."""
    reload_under_load(5, 10_000)


@pytest.mark.soak
def test_twenty_reloads_over_a_hundred_thousand_requests() -> None:
    reload_under_load(20, 100_000)


def change_listeners_under_load(seed: int, reloads: int) -> None:
    with ExitStack() as stack:
        dice = random.Random(seed)
        backends = [stack.enter_context(Digest(index)) for index in range(3)]
        ports = free_port(), free_port()
        texts = [text_of(backend.address) for backend in backends]
        lb = stack.enter_context(FileBalancer(random_sections(dice, ports, texts)))
        sampler = stack.enter_context(Sampler(lb))
        loads = [stack.enter_context(Load(("127.0.0.1", port), clients=8, pause=0.002)) for port in ports]
        for turn in range(reloads):
            before = lb.status()["totals"]["accepted_total"]
            wait_for(lambda b=before: lb.status()["totals"]["accepted_total"] > b + 50, "load", 20)
            lb.write(random_sections(dice, ports, texts))
            lb.reload(turn + 2)
        lb.wait_one_generation()
        outcomes = [load.finish() for load in loads]
        sampler.check()
        attempts, failed = (sum(getattr(one, name) for one in outcomes) for name in ("attempts", "failed"))
        report("listeners and pools", seed=seed, reloads=reloads, requests=attempts, failed=failed)
        for outcome in outcomes:
            outcome.check_nothing_lost(reloads * 10)
        lb.check_at_rest(more_descriptors=20)


def test_listeners_and_pools_change_under_load() -> None:
    """They are added, removed, renamed and routed to other pools. Fails where a renamed listener is bound anew."""
    change_listeners_under_load(1, 20)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 8))
def test_listeners_and_pools_change_under_load_for_long(seed: int) -> None:
    change_listeners_under_load(seed, 60)


class Generations:
    """How many generations lived at once, as the kernel and the status have it."""

    def __init__(self, lb: FlatFileBalancer) -> None:
        self.lb = lb
        self.most = 0

    def look(self) -> None:
        living = {worker["generation"] for worker in self.lb.status()["workers"]}
        self.most = max(self.most, len(living))


def reload_in_a_flood(reloads: int, every: float) -> None:
    with ExitStack() as stack:
        digest, echo = stack.enter_context(Digest()), stack.enter_context(Echo())
        lb = stack.enter_context(FlatFileBalancer(digest.address))
        master = lb.processes()[0]
        load = stack.enter_context(Load(lb.address, clients=16, pause=0.005))
        generations = Generations(lb)
        due = time.monotonic()
        for turn in range(reloads):
            lb.upstreams = [f"{text_of(digest.address)} name=turn{turn}"]
            lb.rewrite(f"retries = {turn % 9}")
            lb.signal(signal.SIGHUP)
            due += every
            while time.monotonic() < due:  # the fault's own schedule
                generations.look()
        last = f"turn{reloads - 1}"

        def settled() -> bool:
            generations.look()
            status = lb.status()
            names = [backend["name"] for backend in status["backends"]]
            return names == [last] and len({worker["generation"] for worker in status["workers"]}) == 1

        wait_for(settled, "the last configuration alone", 15)
        outcome = load.finish()
        report(
            "14",
            hups=reloads,
            requests=outcome.attempts,
            failed=outcome.failed,
            reloads=lb.generation - 1,
            generations=generations.most,
        )
        outcome.check_nothing_lost(100)
        assert 2 <= generations.most <= GENERATIONS, generations.most
        assert lb.generation > 5, "hardly any of them was obeyed"
        assert master.num_threads() == 1
        assert not echo.ever
        lb.check_at_rest()


def test_a_flood_of_reloads_the_last_configuration_wins() -> None:
    """Fails where a HUP that arrives during a reload is forgotten: then an earlier configuration stays."""
    reload_in_a_flood(20, 0.1)


@pytest.mark.soak
def test_fifty_reloads_in_five_seconds() -> None:
    reload_in_a_flood(50, 0.1)


def test_sessions_outlive_reloads_and_at_most_sixteen_generations_live() -> None:
    """A client of each generation that never leaves. Fails where the drain timeout holds after a reload too: all but the
    newest are cut; and without the limit: the oldest stays. A stop then ends all generations within the drain timeout."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = stack.enter_context(FlatFileBalancer(echo.address, drain_timeout="1s", workers=1))
        lb.expected_exit = 5
        generations = Generations(lb)
        clients: list[socket.socket] = []
        for turn in range(GENERATIONS + 1):
            clients += stack.enter_context(held(lb.address, 1))
            exchange(clients[-1])
            if turn == GENERATIONS - 1:
                workers = lb.worker_pids()
                assert lb.ctl("reload").stdout.strip() == "nothing changed"
                assert lb.worker_pids() == workers
                for client in clients:
                    exchange(client)
            lb.rewrite(f"retries = {turn % 9}")
            lb.reload(turn + 2)
            wait_for(lambda g=turn + 2: is_alone_in_accepting(lb, g), "the old generation accepts no more")
            generations.look()
        assert generations.most == GENERATIONS
        warnings = [
            line for line in lb.log().splitlines() if " warning master " in line and " drain " in line
        ]
        assert [re.findall(r"generation=\d+", line) for line in warnings[:1]] == [["generation=1"]]
        for client in clients[2:]:
            exchange(client)
        assert lb.status()["totals"]["cut_total"] == 2
        began = time.monotonic()
        assert lb.stop(signal.SIGTERM) == 5
        assert time.monotonic() - began < 20, "the drain timeout, not without an end"


def exchange(client: socket.socket) -> None:
    client.sendall(b"x")
    assert receive(client, 1) == b"x"


def is_alone_in_accepting(lb: FileBalancer, generation: int) -> bool:
    """Until the signal arrives, workers of the old generation accept clients beside those of the new one."""
    return {one["generation"] for one in lb.status()["workers"] if one["accepting"]} == {generation}


BROKEN: dict[str, bytes | None] = {
    "an unknown key": b"[balancer]\nconect-timeout = 5s\nupstream = 127.0.0.1:1\n",
    "a bad value": b"[balancer]\nconnect-timeout = soon\nupstream = 127.0.0.1:1\n",
    "a line that is no setting": b"[balancer]\nwhat is this\n",
    "an unknown section": b"[balncer]\nupstream = 127.0.0.1:1\n",
    "nothing": b"",
    "noise": bytes(random.Random(17).randbytes(4096)),
    "a flood": b"[balancer]\nupstream = 127.0.0.1:1\n" + b"# much ado\n" * (100_000_000 // 11),
    "no file": None,
}


def spoil_with_directory(lb: FlatFileBalancer) -> None:
    lb.path.unlink()
    lb.path.mkdir()


def spoil_with(data: bytes | None) -> Callable[[FlatFileBalancer], None]:
    def spoil(lb: FlatFileBalancer) -> None:
        lb.path.unlink()
        if data is not None:
            lb.path.write_bytes(data)

    return spoil


def test_a_bad_configuration_of_any_kind_changes_nothing() -> None:
    """Fails where the old generation is told to go before the new configuration has been read."""
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        lb = stack.enter_context(FlatFileBalancer(backend.address))
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = taken.getsockname()[1]
        kinds = {kind: spoil_with(data) for kind, data in BROKEN.items()}
        kinds["a directory"] = spoil_with_directory
        kinds["a port that is taken"] = lambda lb: lb.bind_to("127.0.0.1", f"127.0.0.1:{port}")
        load = stack.enter_context(Load(lb.address, clients=8, pause=0.005))
        pids = lb.worker_pids()
        reasons = {}
        for kind, spoil in kinds.items():
            spoil(lb)
            answer = lb.ctl("reload")
            assert answer.returncode == 1, f"{kind}: {answer}"
            outcome = lb.status()["reload"]
            assert not outcome["ok"] and outcome["text"], f"{kind}: {outcome}"
            reasons[kind] = outcome["text"]
            assert lb.worker_pids() == pids, kind
            if lb.path.is_dir():
                lb.path.rmdir()
            else:
                lb.path.unlink(missing_ok=True)
            lb.bind_to("127.0.0.1")
        outcome = load.finish()
        report(
            "bad configurations",
            kinds=len(kinds),
            requests=outcome.attempts,
            failed=outcome.failed,
            reasons=reasons,
        )
        outcome.check_nothing_lost(100)
        for kind, culprit in (("an unknown key", "conect-timeout"), ("a port that is taken", str(port))):
            assert culprit in reasons[kind]
        assert lb.ctl("reload").returncode == 0, "a good one goes through afterwards"
        lb.wait_one_generation()
        lb.check_at_rest()


def swarm_talks(clients: list[socket.socket], rng: random.Random) -> None:
    """Each sends something of its own, then each must get exactly that back."""
    sent = []
    for client in clients:
        sent.append(rng.randbytes(rng.randint(1, 16_000)))
        client.sendall(sent[-1])
    for client, data in zip(clients, sent, strict=True):
        assert receive(client, len(data)) == data


def test_ports_come_and_go() -> None:
    """A removed port refuses within 200 ms and its sessions finish; the others notice nothing. Fails where workers
    keep the socket that was shut down: it wakes them for ever."""
    with ExitStack() as stack:
        digest, port = stack.enter_context(Digest()), free_port()
        lb = stack.enter_context(FlatFileBalancer(digest.address))
        load = stack.enter_context(Load(lb.address, clients=8, pause=0.005))
        wait_for(lambda: lb.status()["totals"]["accepted_total"] > 100, "load")
        lb.bind_to("127.0.0.1", f"127.0.0.1:{port}")
        answer = lb.ctl("reload")
        assert answer.returncode == 0 and f"added: bind 127.0.0.1:{port}" in answer.stdout, answer
        other = ("127.0.0.1", port)
        on_other = stack.enter_context(Load(other, clients=4, per_connection=1_000_000, pause=0.005))
        before = lb.status()["totals"]["bytes_in_total"]
        wait_for(lambda: lb.status()["totals"]["bytes_in_total"] > before + 2_000_000, "load on both", 20)
        with socket.create_connection(other, 1):
            pass
        lb.bind_to("127.0.0.1")
        answer = lb.ctl("reload")
        assert answer.returncode == 0 and f"removed: bind 127.0.0.1:{port}" in answer.stdout, answer

        def refused() -> bool:
            try:
                socket.create_connection(other, 1).close()
            except ConnectionError:  # reset: a handshake that was under way when the port was shut
                return True
            return False

        wait_for(refused, "the removed port refuses", 1.0, every=0.001)
        established = on_other.finish()
        outcome = load.finish()
        report("ports come and go", failed=outcome.failed + established.failed)
        outcome.check_nothing_lost(100)
        established.check_nothing_lost(4)
        lb.wait_one_generation()
        lb.check_at_rest()
        best_of(lambda: lb.cpu_share(0.5), 0.08, "cores at rest: a loop watches the removed port's socket")


def transfers_across_a_reload(clients: int, seconds: float) -> None:
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        lb = stack.enter_context(FlatFileBalancer(echo.address, drain_timeout="120s"))
        rng = random.Random(20)
        swarm = [stack.enter_context(socket.create_connection(lb.address, 10)) for _ in range(clients)]
        swarm_talks(swarm, rng)
        old = lb.worker_pids()
        lb.rewrite("retries = 5")
        lb.reload(2)
        began = time.monotonic()
        rounds = 0
        while time.monotonic() - began < seconds:
            swarm_talks(swarm, rng)
            rounds += 1
        status = lb.status()
        assert {worker["pid"] for worker in status["workers"] if worker["sessions"]} <= set(old)
        for client in swarm:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            client.close()
        ended = time.monotonic()
        lb.wait_one_generation()
        report(
            "20",
            transfers=clients,
            seconds=round(ended - began, 1),
            rounds=rounds,
            gone_after_ms=round((time.monotonic() - ended) * 1000),
        )
        assert time.monotonic() - ended <= 30.0, "with their last session, not at the end of the drain"
        assert not lb.status()["totals"]["cut_total"]
        lb.check_at_rest()


def test_transfers_under_way_survive_a_reload() -> None:
    """Fails where the old generation's drain takes a session whose client is thinking for an idle one at once."""
    transfers_across_a_reload(50, 1.5)


@pytest.mark.soak
def test_two_hundred_transfers_of_thirty_seconds_survive_a_reload() -> None:
    transfers_across_a_reload(200, 30.0)
