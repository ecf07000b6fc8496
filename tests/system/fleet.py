"""Machines of a test's own: network namespaces on one bridge, in a namespace of this process, so that nothing of them is
left when it ends.

    unshare --net python -m tests.system.fleet      three balancers, resizers that come and go, clients; prints figures

RULES: the process is in a network namespace of its own already. A machine is a namespace that a sleeping process holds; a
program starts on it with its `wrapper`. Where the kernel or the rights do not suffice, the exit code is CANNOT.
"""

import contextlib
import faulthandler
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL, SIGTERM

from scripts.lab.process import die_with_parent
from scripts.lab.waiting import wait_for
from tests.system.client_fixture import ClientFixture
from tests.system.harness import Balancer, Daemon
from tests.system.name_server import NameServer

CANNOT = 77
NETWORK = "10.77.0."
HERE = f"{NETWORK}1"
PATIENCE = 20.0  # seconds; a passing run does not wait for them
LONGEST = 200.0  # seconds; a run takes 15
PICTURES, TIMES = 40, 10  # of one run of a client


class CannotBuild(Exception):
    """There are no namespaces to be had here, or no bridge."""


def run(command: str) -> None:
    """Raises CannotBuild."""
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise CannotBuild(f"{command}: {done.stderr.strip()}")


def build_bridge() -> None:
    """Raises CannotBuild."""
    run(f"ip link set lo up; ip link add br0 type bridge; ip addr add {HERE}/24 dev br0; ip link set br0 up")


class Machine:
    """One with an address on the bridge. `leave` takes it off the network, as the end of a container does."""

    def __init__(self, number: int) -> None:
        self.address = f"{NETWORK}{number}"
        self._link = f"v{number}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"], start_new_session=True, preexec_fn=die_with_parent
        )
        pid, own = self._holder.pid, Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(f"/proc/{pid}/ns/net").readlink() != own, "a namespace", PATIENCE)
        self.wrapper = ["nsenter", f"--net=/proc/{pid}/ns/net"]
        # Docker's rule: one address has one MAC. With another, a container that comes back would wait for the neighbours'
        # caches to forget the old one (38 s).
        mac = f"02:42:0a:4d:00:{number:02x}"
        inside = (
            f"ip link set eth0 address {mac} up; ip addr add {self.address}/24 dev eth0; ip link set lo up"
        )
        run(
            f"ip link add {self._link} type veth peer name eth0 netns {pid}; ip link set {self._link} master br0 up;"
            f"{' '.join(self.wrapper)} sh -ec '{inside}'"
        )

    def is_connected(self, address: str) -> bool:
        """Whether a connection from here to that address is established."""
        wanted = f"{int.from_bytes(socket.inet_aton(address), sys.byteorder):08X}:"
        lines = Path(f"/proc/{self._holder.pid}/net/tcp").read_text().splitlines()[1:]
        return any(words[2].startswith(wanted) and words[3] == "01" for words in map(str.split, lines))

    def leave(self) -> None:
        with contextlib.suppress(CannotBuild):  # has left already
            run(f"ip link del {self._link}")
        self._holder.kill()
        self._holder.wait()


class Container:
    """A resizer on a machine of its own."""

    def __init__(self, number: int) -> None:
        self.machine = Machine(number)
        self.address = self.machine.address
        words = ("--port=9000", f"--bind={self.address}", f"--name={self.address}", "--cpus=1")
        self.daemon = Daemon("workers.resizer", *words, "--drain-timeout=5s")
        self.daemon.wrapper = self.machine.wrapper
        self.daemon.start()

    def __enter__(self) -> "Container":
        self.daemon.wait_ready()
        return self

    def stop(self) -> None:
        """As `docker stop`: SIGTERM; its address goes when its last process has ended."""
        if not self.daemon.has_ended:
            self.daemon.signal(SIGTERM)
        assert self.daemon.wait_exit() == 0, self.daemon.log()

    def kill(self) -> None:
        """Every process of it at once."""
        for pid in self.daemon.session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        self.daemon.wait_exit()
        wait_for(lambda: not self.daemon.session(), "all of it gone", PATIENCE)

    def __exit__(self, *_: object) -> None:
        self.daemon.kill_everything()
        shutil.rmtree(self.daemon.directory, ignore_errors=True)
        self.machine.leave()


class Clients:
    """resize-client against one balancer, one run behind the other until the end of the block."""

    def __init__(self, directory: Path, address: str) -> None:
        directory.mkdir()
        self._files, self._address = ClientFixture(directory), address
        self._files.fill(PICTURES)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.pictures = self.retries = 0
        self.complaints: list[str] = []

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                ended = self._files.run(self._address, f"--times={TIMES}", "--minconns=2", timeout=100)
            except subprocess.TimeoutExpired as error:
                self.complaints.append(f"{error}\n{(error.stderr or b'')[-3000:]!r}")
                return
            said = re.search(r"(\d+) answered, (\d+) saved, 0 skipped, 0 failed, (\d+) retries", ended.out)
            if ended.code or said is None or len(self._files.saved()) != PICTURES:
                self.complaints.append(f"{ended.code}\n{ended.out}\n{ended.err[-3000:]}")
                return
            self.pictures += int(said[1])
            self.retries += int(said[3])
            shutil.rmtree(self._files.results)

    def __enter__(self) -> "Clients":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def end(self) -> None:
        """Raises AssertionError where a run does not end."""
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), f"a client of {self._address} hangs"


class Fleet:
    """Three balancers, the name server that they ask, and resizers: `known` are those that have the name."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._dns = NameServer()
        self._dns.address = (HERE, 53)
        stack.enter_context(self._dns)
        self.resizers: dict[str, Container] = {}
        self.known: list[str] = []
        self.balancers: list[Balancer] = []
        self._balancing: list[Machine] = []

    def end(self, address: str, how: Callable[[Container], None]) -> None:
        """A container ends, its machine leaves, and its name is forgotten. The ends of its connections arrive before: a
        link that goes at once may lose them, and a balancer would wait for replies from nowhere."""
        how(self.resizers[address])
        wait_for(
            lambda: not any(each.is_connected(address) for each in self._balancing),
            f"the connections to {address} ended",
            PATIENCE,
        )
        self.resizers[address].machine.leave()
        self.tell(*(each for each in self.known if each != address))

    def start_resizers(self, *numbers: int) -> list[str]:
        """Containers that no name server knows."""
        made = [Container(number) for number in numbers]
        for each in made:
            self.resizers[each.address] = self._stack.enter_context(each)
        return [each.address for each in made]

    def tell(self, *addresses: str) -> None:
        """Docker's server says a TTL of 600 s."""
        self.known = list(addresses)
        self._dns.know("resizer", *self.known, ttl=600)

    def start_balancers(self, *numbers: int) -> None:
        words = [
            "--upstream=dns:resizer:9000 slots=24 name=resizer",
            f"--resolver={HERE}",
            "--resolver-refresh=1s",
        ]
        words += ["--mode=framed", "--frame=gowork", "--order=any", "--check=frame", "--agent-path=/agent"]
        words += ["--connect-timeout=1s"]  # a container that has gone refuses nothing: its address is silent
        for number in numbers:
            machine = Machine(number)
            self._balancing.append(machine)
            self._stack.callback(machine.leave)
            balancer = Balancer(f"--bind={machine.address}", *words, workers=1, port=9090)
            balancer.wrapper = machine.wrapper
            self.balancers.append(balancer.start())
            self._stack.push(balancer)
        for balancer in self.balancers:
            balancer.wait_ready()

    def served(self, balancer: Balancer) -> dict[str, int]:
        """Requests that each resizer has been given by it."""
        rows = balancer.status()["backends"]
        return {(each["address_in_use"] or "").rpartition(":")[0]: each["sessions_total"] for each in rows}

    def wait_used(self, *addresses: str) -> float:
        """Seconds until every balancer has given a picture to each of them, one more than when it first had the address:
        a slot has had other tenants."""
        began, first = time.monotonic(), [dict[str, int]() for _ in self.balancers]

        def are_used() -> bool:
            counts = [self.served(each) for each in self.balancers]
            for count, before in zip(counts, first, strict=True):
                for address in count.keys() & set(addresses):
                    before.setdefault(address, count[address])
            return all(
                count.get(address, 0) > before.get(address, 0)
                for count, before in zip(counts, first, strict=True)
                for address in addresses
            )

        wait_for(are_used, f"{addresses} to be used", PATIENCE, every=0.02)
        return time.monotonic() - began

    def stop_resizers(self) -> None:
        """All at once, when no client is left."""
        for each in self.known:
            self.resizers[each].daemon.signal(SIGTERM)
        for each in list(self.known):
            self.end(each, Container.stop)


def scale(directory: Path) -> dict[str, object]:
    """`docker compose up --scale resizer=N` with N from 4 to 10, to 6, and to 8, while three clients send pictures."""
    with ExitStack() as stack:
        fleet = Fleet(stack)
        first, more = fleet.start_resizers(*range(101, 105)), fleet.start_resizers(*range(105, 111))
        fleet.tell(*first)
        fleet.start_balancers(11, 12, 13)
        clients = [
            stack.enter_context(Clients(directory / str(number), f"{NETWORK}{number}:9090"))
            for number in (11, 12, 13)
        ]
        fleet.wait_used(*first)
        fleet.tell(*first, *more)
        used_after = fleet.wait_used(*more)
        for address in first[:3]:
            fleet.end(address, Container.stop)
        fleet.end(first[3], Container.kill)
        again = fleet.start_resizers(101, 102)
        fleet.tell(*fleet.known, *again)
        used_again_after = fleet.wait_used(*again)
        for each in clients:
            each.end()
        complaints = [words for each in clients for words in each.complaints]
        assert not complaints, "\n".join(complaints)
        fleet.stop_resizers()
        pictures, retries = sum(each.pictures for each in clients), sum(each.retries for each in clients)
        return {
            "pictures": pictures,
            "retries": retries,
            "used after": used_after,
            "used again after": used_again_after,
        }


def main() -> int:
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    with tempfile.TemporaryDirectory(prefix="pb-fleet-") as directory:
        try:
            build_bridge()
            figures = scale(Path(directory))
        except CannotBuild as error:
            print(error, file=sys.stderr)
            return CANNOT
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
