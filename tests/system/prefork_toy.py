"""A toy service on the prefork machine: workers that echo lines and know a few words. Run as a program:

    python -m tests.system.prefork_toy CONFIG      CONFIG is a JSON file, read again at every reload

Keys: port and more (ports of the listener "main"), listeners (name -> addresses, besides), workers, drain, reload,
pidfile, admin (unix path), fail ("" | "config" | "boot"), ready_after (seconds), steering, loglevel, user, debug_dir.
"""

import json
import os
import socket
import sys
import time
from math import inf

from balancer.config.loader import ask
from balancer.config.option import ConfigError
from balancer.config.units import parse_address
from balancer.eventloop.log_format import LogSettings
from balancer.eventloop.loop import READ
from balancer.prefork.bind import Bind
from balancer.prefork.child import Child
from balancer.prefork.master import run_master
from balancer.prefork.plan import Plan, Role
from balancer.prefork.sockets import ListeningSocket
from balancer.shm.layout import ACCEPTING, LOAD, PREFORK_COLUMNS, Shared

SERVED = PREFORK_COLUMNS  # a total


class Echo:
    """One worker. Words: pid, gen, name (the listener's), board, events, spin (hangs its loop); else an echo."""

    def __init__(self, child: Child, names: frozenset[str], fail: str) -> None:
        if fail == "boot":
            raise RuntimeError("told to fail at boot")
        unknown = {one.name for many in child.listening.values() for one in many} - names
        if unknown:
            raise RuntimeError(f"sockets of listeners that are not configured: {unknown}")
        self.child = child
        self.conns: dict[int, socket.socket] = {}
        self.watched: dict[int, list[ListeningSocket]] = {}
        child.on_drain = self.drain
        child.on_cut = self.cut
        child.on_tick = self.tick

    def run(self, ready_after: float) -> int:
        self.tick(0.0)
        self.child.cells[ACCEPTING] = 1
        self.child.loop.call_later(ready_after, self.child.ready)
        return self.child.run()

    def tick(self, _now: float) -> None:
        own = set() if self.child.draining else {self.child.slot, *self.child.adopted()}
        for slot in self.watched.keys() - own:
            for listening in self.watched.pop(slot):
                self.accept_all(listening)
                self.child.loop.forget(listening.fd)
        for slot in own - self.watched.keys():
            self.watched[slot] = [one for one in self.child.listening.get(slot, ()) if one.sock.fileno() >= 0]
            for one in self.watched[slot]:
                self.child.loop.watch_level(one.fd, lambda _mask, one=one: self.accept_all(one))
        self.child.title.set(f"worker {self.child.slot} [{len(self.conns)} sessions]", self.child.loop.now)

    def accept_all(self, listening: ListeningSocket) -> None:
        while True:
            try:
                conn, _ = listening.sock.accept()
            except OSError:
                break
            conn.setblocking(False)
            self.conns[conn.fileno()] = conn
            self.child.cells[LOAD] += 1
            self.child.loop.watch_level(
                conn.fileno(), lambda _mask, conn=conn: self.talk(conn, listening.name), READ
            )

    def talk(self, conn: socket.socket, name: str) -> None:
        try:
            data = conn.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(conn)
            return
        self.child.cells[SERVED] += 1
        self.child.log.debug("talk", words=data.strip())
        match data.strip():
            case b"pid":
                data = b"%d\n" % os.getpid()
            case b"gen":
                data = b"%d\n" % self.child.generation
            case b"name":
                data = name.encode() + b"\n"
            case b"board":
                data = json.dumps(board(self.child.shared)).encode() + b"\n"
            case b"events":
                events = [(one.verb, one.text) for one in self.child.shared.events.read()]
                data = json.dumps(events).encode() + b"\n"
            case b"spin":
                time.sleep(60)
        conn.send(data)

    def close(self, conn: socket.socket) -> None:
        self.child.loop.forget(conn.fileno())
        del self.conns[conn.fileno()]
        conn.close()
        self.child.cells[LOAD] -= 1
        if self.child.draining and not self.conns:
            self.child.loop.stop()

    def drain(self, _deadline: float) -> None:
        self.tick(0.0)
        self.child.cells[ACCEPTING] = 0
        if not self.conns:
            self.child.loop.stop()

    def cut(self) -> None:
        self.child.loop.stop()


def board(shared: Shared) -> dict[str, object]:
    rows, slots = shared.rows, shared.slots
    return {
        "master": list(rows.row(0)[:24]),
        "served": rows.total(SERVED, 0, rows.rows),
        "load": rows.total(LOAD, 3, rows.rows),
        "slots": [list(slots.row(slot)[:5]) for slot in range(int(rows.row(0)[15]))],
        "notice": shared.notice.read()[1],
    }


def idle(child: Child) -> int:
    child.ready()
    return child.run()


class ToyService:
    def __init__(self, path: str) -> None:
        self.path = path

    def plan(self, shared: Shared | None) -> Plan:
        with open(self.path) as file:
            config = json.load(file)
        if config.get("fail") == "config":
            raise ConfigError(f"{self.path}: told to fail")
        ports = [config.get("port", 0), *config.get("more", [])]
        listeners = {"main": [f"127.0.0.1:{port}" for port in ports], **config.get("listeners", {})}
        binds = [
            Bind("worker", parse_address(text), name=name)
            for name, texts in listeners.items()
            for text in texts
        ]
        if config.get("admin"):
            binds.append(Bind("prober", parse_address(f"unix:{config['admin']}"), per_slot=False))
        names, fail, ready_after = (
            frozenset(listeners),
            config.get("fail", ""),
            config.get("ready_after", 0.0),
        )
        return Plan(
            title="toy",
            roles=(
                Role(
                    "worker",
                    config.get("workers", 2),
                    lambda child: Echo(child, names, fail).run(ready_after),
                ),
                Role("prober", 1, idle),
            ),
            binds=tuple(binds),
            columns=32,
            totals=(range(SERVED, SERVED + 1),),
            drain_timeout=config.get("drain", 5.0),
            reload_timeout=inf if config.get("reload") == 0 else config.get("reload"),
            made_from=config,
            log=LogSettings(config.get("loglevel", 0)),
            pidfile=config.get("pidfile", ""),
            user=config.get("user", ""),
            debug_dir=config.get("debug_dir"),
            steering=config.get("steering", True),
        )

    def retired(self, generation: int) -> None:
        pass


if __name__ == "__main__":
    sys.exit(ask("toy", lambda: run_master(ToyService(sys.argv[1]))))
