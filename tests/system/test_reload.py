"""Reloads: nobody is lost by a good one, nobody notices a bad one, and the last configuration is the one in force."""

import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.system.backends import Digest, Echo
from tests.system.campaign import Sampler, report
from tests.system.harness import Address, Balancer, free_port, held, text_of, wait_for
from tests.system.load import Load, receive

GENERATIONS = 3  # alive at once, at most


class House:
    """A balancer with a file; `write` changes the file, `reload` makes it hold."""

    def __init__(self, directory: Path, stack: ExitStack, *backends: Address, **options: object) -> None:
        self.path = directory / "balancer.ini"
        self.binds = ["127.0.0.1"]
        self.upstreams = [f"{text_of(address)} name=b{index}" for index, address in enumerate(backends)]
        self.write()
        self.lb = Balancer("-c", str(self.path), **options)
        self.lb.expect(r"master pid=\d+ reload error=")
        stack.enter_context(self.lb)

    def text(self, *lines: str) -> str:
        binds = ["bind =", *(f"    {one}" for one in self.binds)]
        upstreams = ["upstream =", *(f"    {one}" for one in self.upstreams)]
        return "\n".join(["[balancer]", *lines, *binds, *upstreams, ""])

    def write(self, *lines: str) -> None:
        """Replace the file, so that no reader sees half of it."""
        beside = self.path.with_suffix(".new")
        beside.write_text(self.text(*lines))
        beside.rename(self.path)

    @property
    def generation(self) -> int:
        return int(self.lb.status()["generation"])

    def hup(self, wanted: int, seconds: float = 15.0) -> None:
        """HUP, and wait for the generation it brings."""
        self.lb.signal(signal.SIGHUP)
        wait_for(lambda: self.generation >= wanted, f"generation {wanted}", seconds, every=0.02)

    def wait_one_generation(self, seconds: float = 8.0) -> None:
        def alone() -> bool:
            return len({worker["generation"] for worker in self.lb.status()["workers"]}) == 1

        wait_for(alone, "the old generation gone", seconds, every=0.02)


def reload_under_load(directory: Path, reloads: int, requests: int) -> None:
    with ExitStack() as stack:
        backends = [stack.enter_context(Digest(index)) for index in range(2)]
        house = House(directory, stack, *(backend.address for backend in backends))
        sampler = stack.enter_context(Sampler(house.lb))
        load = stack.enter_context(Load(house.lb.address, clients=32, requests=requests))
        before = {worker["pid"] for worker in house.lb.status()["workers"]}
        for turn in range(reloads):
            due = requests * (turn + 1) // (reloads + 2)
            wait_for(lambda d=due: house.lb.status()["totals"]["accepted_total"] >= d, f"{due} requests", 120)
            house.write(f"retries = {turn % 7}")
            house.hup(turn + 2)
            house.wait_one_generation()
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
        status = house.lb.check_at_rest()
        assert before.isdisjoint(worker["pid"] for worker in status["workers"])
        assert status["totals"]["accepted_total"] == requests
        house.lb.stop()


def test_reloads_under_load_fail_nobody(tmp_path: Path) -> None:
    """Fails where the old workers are ended instead of drained."""
    reload_under_load(tmp_path, 5, 10_000)


@pytest.mark.soak
def test_twenty_reloads_over_a_hundred_thousand_requests(tmp_path: Path) -> None:
    reload_under_load(tmp_path, 20, 100_000)


class Generations:
    """How many generations lived at once, as the kernel and the status have it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.most = 0

    def look(self) -> None:
        living = {worker["generation"] for worker in self.house.lb.status()["workers"]}
        self.most = max(self.most, len(living))


def reload_in_a_flood(directory: Path, reloads: int, every: float) -> None:
    with ExitStack() as stack:
        digest, echo = stack.enter_context(Digest()), stack.enter_context(Echo())
        house = House(directory, stack, digest.address)
        master = house.lb.processes()[0]
        load = stack.enter_context(Load(house.lb.address, clients=16, pause=0.005))
        generations = Generations(house)
        due = time.monotonic()
        for turn in range(reloads):
            house.upstreams = [f"{text_of(digest.address)} name=turn{turn}"]
            house.write(f"retries = {turn % 9}")
            house.lb.signal(signal.SIGHUP)
            due += every
            while time.monotonic() < due:  # the fault's own schedule
                generations.look()
        last = f"turn{reloads - 1}"

        def settled() -> bool:
            generations.look()
            status = house.lb.status()
            names = [backend["name"] for backend in status["backends"]]
            return names == [last] and len({worker["generation"] for worker in status["workers"]}) == 1

        wait_for(settled, "the last configuration alone", 15)
        outcome = load.finish()
        report(
            "14",
            hups=reloads,
            requests=outcome.attempts,
            failed=outcome.failed,
            reloads=house.generation - 1,
            generations=generations.most,
        )
        outcome.check_nothing_lost(100)
        assert 2 <= generations.most <= GENERATIONS, generations.most
        assert house.generation > 5, "hardly any of them was obeyed"
        assert master.num_threads() == 1
        assert not echo.ever
        house.lb.check_at_rest()


def test_a_flood_of_reloads_the_last_configuration_wins(tmp_path: Path) -> None:
    """Fails where a HUP that arrives during a reload is forgotten: then an earlier configuration stays."""
    reload_in_a_flood(tmp_path, 20, 0.1)


@pytest.mark.soak
def test_fifty_reloads_in_five_seconds(tmp_path: Path) -> None:
    reload_in_a_flood(tmp_path, 50, 0.1)


def test_never_more_than_three_generations_whoever_stays(tmp_path: Path) -> None:
    """A client of each generation that never leaves: the oldest is cut before a fourth begins. Fails without the limit:
    each reload then leaves a generation behind for the whole drain timeout."""
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        house = House(tmp_path, stack, echo.address, drain_timeout="60s")
        house.lb.expected_exit = 5
        generations = Generations(house)
        clients: list[socket.socket] = []
        for turn in range(6):
            clients += stack.enter_context(held(house.lb.address, 4))
            for client in clients[-4:]:
                client.sendall(b"x")
                assert receive(client, 1) == b"x"
            house.hup(turn + 2)
            generations.look()
        assert generations.most == GENERATIONS
        for client in clients[-8:]:  # the two generations before this one go on
            client.sendall(b"y")
            assert receive(client, 1) == b"y"
        assert house.lb.status()["totals"]["cut_total"] == len(clients) - 8
        house.lb.stop(signal.SIGQUIT)


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


def spoil_with_directory(house: House) -> None:
    house.path.unlink()
    house.path.mkdir()


def bind_to(house: House, *addresses: str) -> None:
    house.binds = list(addresses)
    house.write()


def spoil_with(data: bytes | None) -> Callable[[House], None]:
    def spoil(house: House) -> None:
        house.path.unlink()
        if data is not None:
            house.path.write_bytes(data)

    return spoil


def test_a_bad_configuration_of_any_kind_changes_nothing(tmp_path: Path) -> None:
    """Fails where the old generation is told to go before the new configuration has been read."""
    with ExitStack() as stack:
        backend = stack.enter_context(Digest())
        house = House(tmp_path, stack, backend.address)
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = taken.getsockname()[1]
        kinds = {kind: spoil_with(data) for kind, data in BROKEN.items()}
        kinds["a directory"] = spoil_with_directory
        kinds["a port that is taken"] = lambda house: bind_to(house, "127.0.0.1", f"127.0.0.1:{port}")
        load = stack.enter_context(Load(house.lb.address, clients=8, pause=0.005))
        pids = house.lb.worker_pids()
        reasons = {}
        for kind, spoil in kinds.items():
            spoil(house)
            answer = house.lb.ctl("reload")
            assert answer.returncode == 1, f"{kind}: {answer}"
            outcome = house.lb.status()["reload"]
            assert not outcome["ok"] and outcome["text"], f"{kind}: {outcome}"
            reasons[kind] = outcome["text"]
            assert house.lb.worker_pids() == pids, kind
            if house.path.is_dir():
                house.path.rmdir()
            else:
                house.path.unlink(missing_ok=True)
            bind_to(house, "127.0.0.1")
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
        assert house.lb.ctl("reload").returncode == 0, "a good one goes through afterwards"
        house.wait_one_generation()
        house.lb.check_at_rest()


def swarm_talks(clients: list[socket.socket], rng: random.Random) -> None:
    """Each sends something of its own, then each must get exactly that back."""
    sent = []
    for client in clients:
        sent.append(rng.randbytes(rng.randint(1, 16_000)))
        client.sendall(sent[-1])
    for client, data in zip(clients, sent, strict=True):
        assert receive(client, len(data)) == data


def test_ports_come_and_go(tmp_path: Path) -> None:
    """A removed port refuses within 200 ms and its sessions finish; the others notice nothing. Fails where workers
    keep the socket that was shut down: it wakes them for ever."""
    with ExitStack() as stack:
        digest, port = stack.enter_context(Digest()), free_port()
        house = House(tmp_path, stack, digest.address)
        load = stack.enter_context(Load(house.lb.address, clients=8, pause=0.005))
        wait_for(lambda: house.lb.status()["totals"]["accepted_total"] > 100, "load")
        bind_to(house, "127.0.0.1", f"127.0.0.1:{port}")
        answer = house.lb.ctl("reload")
        assert answer.returncode == 0 and f"added: bind 127.0.0.1:{port}" in answer.stdout, answer
        other = ("127.0.0.1", port)
        on_other = stack.enter_context(Load(other, clients=4, per_connection=1_000_000, pause=0.005))
        before = house.lb.status()["totals"]["bytes_in_total"]
        wait_for(
            lambda: house.lb.status()["totals"]["bytes_in_total"] > before + 2_000_000, "load on both", 20
        )
        with socket.create_connection(other, 1):
            pass
        bind_to(house, "127.0.0.1")
        answer = house.lb.ctl("reload")
        assert answer.returncode == 0 and f"removed: bind 127.0.0.1:{port}" in answer.stdout, answer
        told = time.monotonic()

        def refused() -> bool:
            try:
                socket.create_connection(other, 1).close()
            except ConnectionError:  # reset: a handshake that was under way when the port was shut
                return True
            return False

        wait_for(refused, "the removed port refuses", 1.0, every=0.001)
        took = time.monotonic() - told
        established = on_other.finish()
        outcome = load.finish()
        report(
            "ports come and go",
            refused_after_ms=round(took * 1000),
            failed=outcome.failed + established.failed,
        )
        assert took <= 0.3, f"refused {took:.3f} s after the answer"
        outcome.check_nothing_lost(100)
        established.check_nothing_lost(4)
        house.wait_one_generation()
        house.lb.check_at_rest()
        share = house.lb.cpu_share(0.5)
        assert share < 0.08, f"{share:.0%} of a core at rest: somebody watches the socket of the removed port"


def transfers_across_a_reload(directory: Path, clients: int, seconds: float) -> None:
    with ExitStack() as stack:
        echo = stack.enter_context(Echo())
        house = House(directory, stack, echo.address, drain_timeout="120s")
        rng = random.Random(20)
        swarm = [stack.enter_context(socket.create_connection(house.lb.address, 10)) for _ in range(clients)]
        swarm_talks(swarm, rng)
        old = house.lb.worker_pids()
        house.hup(2)
        began = time.monotonic()
        rounds = 0
        while time.monotonic() - began < seconds:
            swarm_talks(swarm, rng)
            rounds += 1
        status = house.lb.status()
        assert {worker["pid"] for worker in status["workers"] if worker["sessions"]} <= set(old)
        for client in swarm:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            client.close()
        ended = time.monotonic()
        house.wait_one_generation()
        report(
            "20",
            transfers=clients,
            seconds=round(ended - began, 1),
            rounds=rounds,
            gone_after_ms=round((time.monotonic() - ended) * 1000),
        )
        assert time.monotonic() - ended <= 1.0
        assert not house.lb.status()["totals"]["cut_total"]
        house.lb.check_at_rest()


def test_transfers_under_way_survive_a_reload(tmp_path: Path) -> None:
    """Fails where the old generation's drain takes a session whose client is thinking for an idle one at once."""
    transfers_across_a_reload(tmp_path, 50, 1.5)


@pytest.mark.soak
def test_two_hundred_transfers_of_thirty_seconds_survive_a_reload(tmp_path: Path) -> None:
    transfers_across_a_reload(tmp_path, 200, 30.0)
