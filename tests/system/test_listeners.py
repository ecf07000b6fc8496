"""Several listeners on one machine: every worker knows which socket is whose, over reloads, upgrades and later slots."""

import os
import random
import re
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection
from types import TracebackType

import pytest

from scripts.lab.network import free_port
from scripts.lab.process import children_of, is_running
from scripts.lab.waiting import wait_for
from tests.system.toy import Toy, make_toy, talk

__all__ = ["make_toy"]  # a fixture


class Asking:
    """Clients in threads, each asking at every port in turn whose it is. `names` are the answers that are right now."""

    def __init__(self, names: dict[int, Collection[str]], clients: int = 4) -> None:
        self.names = dict(names)
        self.asked = 0
        self.wrong: Counter[str] = Counter()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        while not self._stop.is_set():
            for port in list(self.names):
                try:
                    with socket.create_connection(("127.0.0.1", port), 5) as sock:
                        name = talk(sock, "name")
                except OSError as error:
                    name = repr(error)
                allowed = self.names.get(port)  # None: removed since
                if allowed is not None and name not in allowed:
                    self.wrong[name] += 1
                self.asked += 1

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert kind is not None or not self.wrong, self.wrong

    def go_on(self, count: int = 100) -> None:
        """Until so many more questions were answered."""
        wanted = self.asked + count
        wait_for(lambda: self.asked >= wanted, f"{wanted} answers", 20)


def descriptors_of_a_worker(toy: Toy) -> int:
    return len(os.listdir(f"/proc/{toy.children('worker')[0]}/fd"))


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except ConnectionError:
        return True
    return False


def test_every_socket_has_the_name_of_its_listener(make_toy: Callable[..., Toy]) -> None:
    """Also those of slots that were made after the worker was forked. Fails where the control message has no name."""
    addresses = ["127.0.0.1:0", "127.0.0.1:0"]
    toy = make_toy(listeners={"web": addresses, "mail": addresses}, steering=False).boot()
    names = {port: [name] for name in ("main", "web", "mail") for port in toy.ports(name)}
    assert len(names) == 5
    with Asking(names) as asking:
        asking.go_on()
        for count, number in enumerate([signal.SIGTTIN] * 2 + [signal.SIGTTOU] * 3, start=1):
            toy.signal(number)
            toy.wait_lines(" scale workers=", count)  # the kernel merges equal pending signals
            asking.go_on()
        wait_for(lambda: len(toy.children("worker")) == 1, "one worker")
        asking.go_on(500)  # worker 0 adopts slots 1 to 3
    assert {slot[0] for slot in toy.ask_board()["slots"][1:]} != {0}


def test_listeners_come_and_go_and_change_their_names_under_load(make_toy: Callable[..., Toy]) -> None:
    """Fails where the name is part of a socket's identity (a rename binds the address anew and resets its queue), and
    where the master hands a generation the sockets of listeners that its configuration does not have."""
    dice = random.Random(6)
    mail = free_port()
    listeners = {"web": ["127.0.0.1:0"], "mail": [f"127.0.0.1:{mail}"]}
    toy = make_toy(listeners=listeners, drain=10).boot()
    descriptors = descriptors_of_a_worker(toy)
    with Asking({toy.port: ["main"], mail: ["mail"]}) as asking:
        for turn in range(20):
            names = dice.sample(["web", "www", "shop", "api"], dice.randint(0, 3))
            renamed = f"mail{turn}"
            asking.names[mail] = (*asking.names[mail], renamed)
            outcome = toy.reload(
                listeners={name: ["127.0.0.1:0"] for name in names} | {renamed: [f"127.0.0.1:{mail}"]},
                workers=dice.randint(1, 3),
            )
            assert outcome["ok"], outcome
            asking.go_on(20)
            wait_for(lambda name=renamed: toy.ask("name", mail) == name, "the new name")
        toy.reload(listeners=listeners, workers=2)
        asking.go_on()
        asking.names[mail] = ["mail"]
        asking.go_on()
    wait_for(lambda: len({toy.ask("gen") for _ in range(10)}) == 1, "one generation")
    wait_for(lambda: toy.ask_board()["load"] == 1, "no other session")
    asked = toy.ask_board()
    assert asked["served"] >= asking.asked
    expected = descriptors + 3 * (
        len(asked["slots"]) - 2
    )  # a socket of each listener for each slot made since
    wait_for(lambda: descriptors_of_a_worker(toy) == expected, f"a worker with {expected} descriptors")


def test_a_worker_replaced_during_a_reload_serves_what_its_generation_serves(
    make_toy: Callable[..., Toy],
) -> None:
    """Fails where it is given the address that the reload has just added: the toy refuses to serve for a listener that it
    does not know."""
    toy = make_toy(listeners={"web": ["127.0.0.1:0"]}).boot()
    (web,) = toy.ports("web")
    old = toy.children("worker")
    toy.configure(listeners={"www": ["127.0.0.1:0"], "new": ["127.0.0.2:0"]}, ready_after=1.0)
    toy.signal(signal.SIGHUP)
    wait_for(lambda: len(toy.children("worker")) == 4, "the new generation")
    os.kill(old[0], signal.SIGKILL)
    toy.wait_lines(r"spawn role=.*generation=1", 4)  # two workers, the prober, the replacement
    toy.wait_lines(r" reload generation=2")
    assert " crash " not in toy.log()
    wait_for(lambda: {toy.ask("name", web) for _ in range(10)} == {"www"}, "the new name alone")


def test_an_address_goes_to_another_listener(make_toy: Callable[..., Toy]) -> None:
    port = free_port()
    toy = make_toy(listeners={"web": [f"127.0.0.1:{port}"], "mail": []}).boot()
    with Asking({port: ["web", "mail"]}) as asking:
        asking.go_on(50)
        assert toy.reload(listeners={"mail": [f"127.0.0.1:{port}"]})["ok"]
        wait_for(lambda: all(toy.ask("name", port) == "mail" for _ in range(20)), "the new name")
        asking.names[port] = ["mail"]
        asking.go_on(50)
    assert " unbind " not in toy.log()


def test_an_address_is_narrowed_and_widened_under_load(make_toy: Callable[..., Toy]) -> None:
    """Fails where the new one is bound as if the port were another program's: the reload is refused."""
    port = free_port()
    toy = make_toy(listeners={"web": [f"0.0.0.0:{port}"]}).boot()
    with Asking({port: ["web"]}) as asking:
        for host in ("127.0.0.1", "0.0.0.0"):
            outcome = toy.reload(listeners={"web": [f"{host}:{port}"]})
            assert outcome["ok"], outcome
            asking.go_on(50)
            wait_for(lambda: {toy.ask("gen", port) for _ in range(10)} == {toy.ask("gen")}, "one generation")


def test_a_removed_address_serves_what_it_has_queued_and_then_refuses(make_toy: Callable[..., Toy]) -> None:
    """Clients wait in the queues of stopped workers. Fails where the address is closed when the reload begins."""
    toy = make_toy(listeners={"web": ["127.0.0.1:0"]}).boot()
    web = toy.ports("web")[0]
    held = toy.connect(web)
    assert talk(held, "name") == "web"
    workers = toy.children("worker")
    toy.configure(listeners={})
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    queued = [toy.connect(web) for _ in range(20)]
    toy.signal(signal.SIGHUP)
    wait_for(lambda: len(toy.children("worker")) == 4, "the new generation")
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    for sock in queued:
        assert talk(sock, "name") == "web"
        sock.close()
    toy.wait_lines(r" reload generation=2")
    wait_for(lambda: refuses(web), "the removed port refuses", 1)
    assert talk(held, "still here") == "still here"
    held.close()
    assert toy.ask("gen") == "2"


def test_an_upgrade_adds_removes_and_renames_listeners(make_toy: Callable[..., Toy]) -> None:
    """Fails where the new version forgets the sockets that it does not configure: the old one holds them open, no process
    accepts from them, and clients wait there for the whole drain."""
    mail = free_port()
    toy = make_toy(listeners={"web": ["127.0.0.1:0"], "mail": [f"127.0.0.1:{mail}"]}, drain=10).boot()
    (web,) = toy.ports("web")
    held = toy.connect(web)
    assert talk(held, "name") == "web"
    with Asking({toy.port: ["main"], mail: ["mail", "post"]}) as asking:
        asking.go_on(50)
        toy.configure(listeners={"post": [f"127.0.0.1:{mail}"], "new": ["127.0.0.2:0"]})
        toy.signal(signal.SIGUSR2)
        toy.wait_lines(" upgrade .*it serves; we drain")
        wait_for(lambda: refuses(web), "the removed port refuses", 1)
        assert talk(held, "still here") == "still here"
        wait_for(lambda: all(toy.ask("name", mail) == "post" for _ in range(20)), "the new name")
        asking.names[mail] = ["post"]
        asking.go_on(50)
    successor = int(re.findall(r"successor=(\d+)", toy.log())[0])
    (new,) = set(toy.ports("new"))
    with socket.create_connection(("127.0.0.2", new), 3) as sock:
        assert talk(sock, "name") == "new"
    held.close()
    assert toy.wait_exit(4) == 0
    assert is_running(successor) and children_of(successor)


def test_a_service_manager_names_its_sockets(make_toy: Callable[..., Toy]) -> None:
    """LISTEN_FDNAMES decides, whatever address the configuration has. Fails where addresses alone are compared."""
    with socket.socket() as web, socket.socket() as mail:
        for sock in (web, mail):
            sock.bind(("127.0.0.1", 0))
            sock.listen()
        ports = [sock.getsockname()[1] for sock in (web, mail)]
        toy = make_toy(listeners={"mail": ["127.0.0.1:1"], "web": ["127.0.0.1:2"]})
        launch = (
            f"import os, sys; fds = [os.dup(fd) for fd in ({web.fileno()}, {mail.fileno()})];"
            "[os.dup2(fd, 3 + n) for n, fd in enumerate([os.dup(fd) for fd in fds])];"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2', LISTEN_FDNAMES='web:mail');"
            "os.execv(sys.argv[1], sys.argv[1:])"
        )
        toy.command = [sys.executable, "-c", launch, *toy.command]
        toy.pass_fds = (web.fileno(), mail.fileno())
        toy.boot()
        assert [toy.ask("name", port) for port in ports] == ["web", "mail"]
        toy.signal(signal.SIGTERM)
        assert toy.wait_exit() == 0
        for sock in (web, mail):  # the manager's sockets still listen: it can start the service again
            with socket.create_connection(sock.getsockname(), 1):
                pass


@pytest.mark.soak
def test_listeners_come_and_go_for_long(make_toy: Callable[..., Toy]) -> None:
    for _ in range(5):
        test_listeners_come_and_go_and_change_their_names_under_load(make_toy)
