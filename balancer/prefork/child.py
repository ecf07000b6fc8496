"""A forked process from the inside: what it is given, its heartbeat, its signals, its drain.

RULES: runs in the child only, `send_sockets` excepted. The heartbeat is written by the work loop itself (one from a
helper thread would go on while the loop hangs), so a role that blocks its loop counts as hung. What other processes may
know is written to the own row.

    TERM  drain: stop taking work, finish what there is, at most `drain_timeout` or as long as the master has said on the
          control socket, which may be for ever; it may change its word later        QUIT  finish at once
    URG   wake: look at the board now (harmless when it reaches a wrong pid)          USR1  reopen the log
    ABRT  stack dump and death: what the master sends when the heartbeat stands still
"""

import contextlib
import json
import os
import signal
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from balancer.config.units import Address, parse_address
from balancer.eventloop.log import Log
from balancer.eventloop.loop import READ, Loop
from balancer.eventloop.signals import Signals, send
from balancer.eventloop.timers import Timer
from balancer.prefork.heap import settle_heap
from balancer.prefork.slots import TICK
from balancer.prefork.sockets import BySlot, ListeningSocket
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
)  # the pid that is ready; far below PIPE_BUF, so words of two children do not mix
EXIT_CUT = 5
KERNEL_MOST_FDS = 253  # SCM_RIGHTS takes so many in one packet
MOST_FDS = 200  # that we put in one


@dataclass(frozen=True)
class ChildSpec:
    """Which process to make: its place in the plan, the row it leases, its limits.

    `addresses`: what its plan listens on, by the names of the binds, in their order; with the ports the kernel chose."""

    role: str
    slot: int
    generation: int
    row: int
    master_pid: int
    drain_timeout: float
    addresses: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ChildPipes:
    """The ways from a child to its master. `control` brings sockets, how long a drain may take, and EOF when the master
    is gone; READY_WORD goes into `ready_fd`."""

    control: socket.socket
    ready_fd: int


class Child:
    """One forked process: its identity, its sockets, its loop, and the calls that the machine makes into the role.

    `listening`: this role's listening sockets, by slot, of all slots; shared ones under slot 0. Those of slots made later
    appear in it. A process accepts from its own slot and from those that `adopted()` names.
    `channels`: role -> one socket per slot, for the roles that use channels; `channel`: the end of this very slot.
    """

    def __init__(
        self,
        spec: ChildSpec,
        pipes: ChildPipes,
        shared: Shared,
        log: Log,
        title: Title,
        listening: BySlot,
        channels: Mapping[str, tuple[socket.socket, ...]],
        channel: socket.socket | None,
    ) -> None:
        self.role, self.slot, self.generation, self.row = spec.role, spec.slot, spec.generation, spec.row
        self.master_pid, self.addresses = spec.master_pid, spec.addresses
        self.shared = shared
        self.cells = shared.rows.row(spec.row)
        self.log = log
        self.title = title
        self._listening = dict(listening)
        self.listening: BySlot = self._listening
        self.channels = channels
        self.channel = channel
        self.draining = False
        self.loop = Loop()
        self.on_drain: Callable[[float], None] = lambda _deadline: self.loop.stop()
        self.on_deadline: Callable[[float], None] = lambda _deadline: None  # the drain ends at another time
        self.on_cut: Callable[[], None] = self.loop.stop
        self.on_tick: Callable[[float], None] = lambda _now: None
        self.on_wake: Callable[[], None] = lambda: None
        self.on_new_sockets: Callable[[], None] = lambda: None
        self.on_reopen: Callable[[], None] = log.reopen
        self._drain_within = spec.drain_timeout
        self._cut_timer: Timer | None = None
        self._pipes = pipes
        self._adopted: list[int] = []
        self._cut_load = 0
        self._signals = Signals(CHILD_SIGNALS, IGNORED_BY_CHILD)
        self.loop.watch_level(self._signals.fileno(), self._obey, READ)
        self.loop.watch_level(pipes.control.fileno(), self._hear_master, READ)
        self.loop.every(TICK, self._beat)
        self.loop.at_turn_end(log.flush)

    # -- what a role calls --

    def ready(self) -> None:
        """Tell the master that this process serves. The garbage collector ignores from now on what exists already."""
        settle_heap()
        self.cells[BEAT_MS] = int(self.loop.now * 1000)
        if self.cells[STATE] != DRAINING:
            self.cells[STATE] = READY
        try:
            os.write(self._pipes.ready_fd, READY_WORD.pack(os.getpid()))
        except OSError:
            pass  # no master: the first turn reads EOF from the control socket

    def wake(self, row: int) -> None:
        """Wake the process of a row; nothing happens when there is none."""
        send(int(self.shared.rows.cells[row * self.shared.rows.columns + PID]), signal.SIGURG)

    def keep_own_row(self) -> None:
        """Give up all shared memory but the own row; the rest reads as zeros from now on. Raises OSError."""
        self.shared.keep_row(self.row)

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
                    self.on_reopen()
                case signal.SIGURG:
                    self._on_wake_signal()

    def _drain(self) -> None:
        while self._hear_one():
            pass  # how long it may take was sent before the signal
        if self.draining:
            return
        self.draining = True
        self.on_drain(self._set_deadline())
        self.cells[STATE] = DRAINING  # last: it tells the master that nothing is accepted any more

    def _drain_for(self, seconds: float | None) -> None:
        """The master's word on a drain, before or after its begin; None is for ever."""
        self._drain_within = inf if seconds is None else seconds
        if self.draining:
            self.on_deadline(self._set_deadline())

    def _set_deadline(self) -> float:
        """When the drain ends from now on."""
        if self._cut_timer is not None:
            self._cut_timer.cancel()
            self._cut_timer = None
        deadline = self.loop.now + self._drain_within
        self.cells[DEADLINE_MS] = 0 if deadline == inf else int(deadline * 1000)
        if deadline != inf:
            self._cut_timer = self.loop.call_at(deadline, self._cut)
        return deadline

    def _cut(self) -> None:
        self._cut_load += self.cells[LOAD]
        self.on_cut()

    def _on_wake_signal(self) -> None:
        """SIGURG. The master sends it to an adopter that it has named: the tick then comes early."""
        adopted = self.adopted()
        if adopted != self._adopted:
            self._adopted = adopted
            self.on_tick(self.loop.now)
        self.on_wake()

    def _hear_master(self, _mask: int) -> None:
        self._hear_one()

    def _hear_one(self) -> bool:
        """Listening sockets made after this process, or how long a drain may take; or EOF, the master's end
        (SIGKILL by PR_SET_PDEATHSIG usually comes first). False when there is nothing."""
        try:
            words, fds, _flags, _address = socket.recv_fds(self._pipes.control, 65536, KERNEL_MOST_FDS)
        except BlockingIOError:
            return False
        except OSError:
            words, fds = b"", []
        if not words:
            os._exit(1)
        announced = json.loads(words)
        if isinstance(announced, dict):
            self._drain_for(announced["drain"])
            return True
        if len(fds) < len(announced):  # out of descriptors: another process adopts the missing ones
            self.log.warning(
                "extend", sockets=f"{len(fds)}/{len(announced)}", then="go on without the others"
            )
        for (slot, address, name), fd in zip(announced, fds, strict=False):
            self._add_socket(
                ListeningSocket(parse_address(address), slot, fd, socket.socket(fileno=fd), name)
            )
        return True

    def _add_socket(self, new: ListeningSocket) -> None:
        before = self._listening.get(new.slot, ())
        self._listening[new.slot], outdated = with_socket(before, new)
        if any(one.address == new.address for one in before):
            self.on_new_sockets()
        for one in outdated:
            self.loop.retire(one.sock.close)


def with_socket(
    before: Sequence[ListeningSocket], new: ListeningSocket
) -> tuple[tuple[ListeningSocket, ...], list[ListeningSocket]]:
    """The sockets of a slot with a new one, and those to close. It may replace one whose file was removed; that one is
    kept until the next time, since clients may still wait in its queue."""
    outdated = [one for one in before if one.address == new.address][:-1]
    return (*(one for one in before if one not in outdated), new), outdated


def send_sockets(control: socket.socket, listening: Sequence[ListeningSocket], given: int) -> int:
    """Master: send a child the sockets from the `given`-th on, as many as one packet holds; how many it has then.

    What is left, or what the child cannot take now (stopped, or dying), is for the next tick.
    """
    chosen = listening[given : given + MOST_FDS]
    if not chosen:
        return given
    words = json.dumps([(one.slot, str(one.address), one.name) for one in chosen]).encode()
    try:
        socket.send_fds(control, [words], [one.fd for one in chosen])
    except OSError:
        return given
    return given + len(chosen)


def send_drain(control: socket.socket, within: float) -> None:
    """Master: say how many seconds a drain may take. A child that takes no message keeps to what it knows."""
    word = json.dumps({"drain": None if within == inf else max(0.0, within)}).encode()
    with contextlib.suppress(OSError):
        control.send(word)
