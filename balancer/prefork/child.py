"""What a forked process is given, and the little that every one of them must do.

RULES: runs in the child only. The heartbeat is written by the work loop itself (a helper thread would prove nothing), so
a role that blocks its loop is a hung role. All that others may know is written to the own row.

    TERM  drain: stop taking work, finish what there is, at most `drain_timeout`      QUIT  finish at once
    URG   the bell: look around (harmless when it hits a wrong pid)                   USR1  reopen the log
    ABRT  stack dump and death: the master's answer to a heartbeat that stands still
"""

import gc
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from balancer.config.units import parse_address
from balancer.eventloop.log import Log
from balancer.eventloop.loop import READ, Loop
from balancer.eventloop.signals import Signals, send
from balancer.prefork.slots import TICK
from balancer.prefork.sockets import ListeningSocket
from balancer.prefork.titles import Title
from balancer.shm.layout import (
    ADOPTER,
    BEAT_MS,
    DEADLINE_MS,
    DRAINING,
    LOAD,
    MASTER_ROW,
    MASTER_SLOTS,
    PID,
    READY,
    STATE,
    Shared,
)

CHILD_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1, signal.SIGURG)
IGNORED_BY_CHILD = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
    signal.SIGPIPE,
    signal.SIGALRM,
)
READY_WORD = struct.Struct(
    "=q"
)  # the pid that is ready; far below PIPE_BUF, so words of several children do not mix
EXIT_CUT = 5
MOST_FDS = 253


@dataclass(frozen=True)
class Birth:
    """What the master knew of this process before it forked it."""

    role: str
    slot: int
    generation: int
    row: int
    master_pid: int
    drain_timeout: float
    control: socket.socket  # new listeners come here, and the end when the master is gone
    ready_fd: int


class Child:
    """One forked process: its identity, its sockets, its loop, and the calls that the machine makes into the role.

    `listening`: this role's, by slot, of all slots; shared ones under slot 0. Slots made later appear in it. The sockets
    of a slot without fit holder are served by whoever finds it in `adopted()`.
    `channels`: role -> one socket per slot, for the roles that own channels; `channel`: the end of this very slot.
    """

    def __init__(
        self,
        birth: Birth,
        shared: Shared,
        log: Log,
        title: Title,
        listeners: Mapping[int, tuple[ListeningSocket, ...]],
        channels: Mapping[str, tuple[socket.socket, ...]],
        channel: socket.socket | None,
    ) -> None:
        self.role, self.slot, self.generation, self.row = birth.role, birth.slot, birth.generation, birth.row
        self.master_pid = birth.master_pid
        self.shared = shared
        self.cells = shared.rows.row(birth.row)
        self.log = log
        self.title = title
        self._listening = dict(listeners)
        self.listening: Mapping[int, tuple[ListeningSocket, ...]] = self._listening
        self.channels = channels
        self.channel = channel
        self.draining = False
        self.loop = Loop()
        self.on_drain: Callable[[float], None] = lambda _deadline: self.loop.stop()
        self.on_cut: Callable[[], None] = self.loop.stop
        self.on_tick: Callable[[float], None] = lambda _now: None
        self.on_wake: Callable[[], None] = lambda: None
        self._birth = birth
        self._adopted: list[int] = []
        self._cut_load = 0
        self._signals = Signals(CHILD_SIGNALS, IGNORED_BY_CHILD)
        self.loop.watch_level(self._signals.fileno(), self._obey, READ)
        self.loop.watch_level(birth.control.fileno(), self._hear_master, READ)
        self.loop.every(TICK, self._beat)
        self.loop.at_turn_end(log.flush)

    # -- what a role calls --

    def ready(self) -> None:
        """Tell the master that this process serves. What exists now is taken out of the collector's sight for good."""
        gc.collect()
        gc.freeze()
        self.cells[BEAT_MS] = int(self.loop.now * 1000)
        if self.cells[STATE] != DRAINING:
            self.cells[STATE] = READY
        try:
            os.write(self._birth.ready_fd, READY_WORD.pack(os.getpid()))
        except OSError:
            pass  # no master: the life-line says so in the first turn

    def wake(self, row: int) -> None:
        """Wake the process of a row; nothing happens when there is none."""
        send(int(self.shared.rows.cells[row * self.shared.rows.columns + PID]), signal.SIGURG)

    def adopted(self) -> list[int]:
        """Slots whose queue the master has named this process to accept from."""
        slots, rows = self.shared.slots, self.shared.rows
        used = rows.cells[MASTER_ROW * rows.columns + MASTER_SLOTS]
        named = slots.cells[ADOPTER : used * slots.columns : slots.columns]
        return [slot for slot, row in enumerate(named) if row == self.row]

    def run(self) -> int:
        """Run the loop until `loop.stop()`; exit code 0, or 5 when it was cut with sessions left."""
        self.loop.run()
        self.log.flush()
        return EXIT_CUT if self._cut_load else 0

    # -- what the machine does --

    def _beat(self) -> None:
        now = self.loop.now
        self.cells[BEAT_MS] = int(now * 1000)
        self.title.settle(now)
        self.on_tick(now)

    def _obey(self, _mask: int) -> None:
        self._signals.clear_wakeup()
        while (number := self._signals.take()) is not None:
            match number:
                case signal.SIGTERM:
                    self._drain()
                case signal.SIGQUIT:
                    self._cut()
                case signal.SIGUSR1:
                    self.log.reopen()
                case signal.SIGURG:
                    self._on_wake_signal()

    def _drain(self) -> None:
        if self.draining:
            return
        self.draining = True
        deadline = self.loop.now + self._birth.drain_timeout
        self.cells[DEADLINE_MS] = int(deadline * 1000)
        self.cells[STATE] = DRAINING
        self.loop.call_at(deadline, self._cut)
        self.on_drain(deadline)

    def _cut(self) -> None:
        self._cut_load += self.cells[LOAD]
        self.on_cut()

    def _on_wake_signal(self) -> None:
        """The master rings when it has named an adopter: then the tick comes early."""
        adopted = self.adopted()
        if adopted != self._adopted:
            self._adopted = adopted
            self.on_tick(self.loop.now)
        self.on_wake()

    def _hear_master(self, _mask: int) -> None:
        """Listeners of slots made after this process; or the master's end (its death signal usually comes first)."""
        try:
            words, fds, _flags, _address = socket.recv_fds(self._birth.control, 65536, MOST_FDS)
        except BlockingIOError:
            return
        except OSError:
            words, fds = b"", []
        if not words:
            os._exit(1)
        promised = json.loads(words)
        if len(fds) < len(promised):  # out of descriptors: what is missing is another's to adopt
            self.log.warning("extend", sockets=f"{len(fds)}/{len(promised)}", then="go on without the others")
        for (slot, address), fd in zip(promised, fds, strict=False):
            listener = ListeningSocket(parse_address(address), slot, fd, socket.socket(fileno=fd))
            self._listening[slot] = (*self._listening.get(slot, ()), listener)
