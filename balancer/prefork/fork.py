"""The fork: what a child must drop, what it must take, and the order of both.

RULES
- The master is single-threaded and holds no epoll, so a fork copies nothing that could act twice. Signals are held back
  around it; the child sets its own dispositions before it lets any through.
- The parent-death signal is asked for in the child after any setuid (credential changes clear it), then the parent is
  compared: it may have died before. The end of the control socket is the second string.
- A child closes what it must not hold: the master's pipes and sockets, the listeners of other roles, the far ends of
  channels. A listener of its own role's other slots it keeps: adoption needs them.
"""

import contextlib
import cProfile
import ctypes
import faulthandler
import gc
import json
import os
import resource
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from balancer.eventloop.log import Log
from balancer.eventloop.signals import signals_blocked
from balancer.prefork.child import READY_WORD, Birth, Child
from balancer.prefork.children import ChildProcess
from balancer.prefork.plan import Plan, Role
from balancer.prefork.sockets import ListeningSocket, Sockets
from balancer.prefork.titles import Title
from balancer.shm.layout import BEAT_MS, GENERATION, PID, ROLE, SLOT, STARTED_MS, STARTING, STATE, Shared

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
EXIT_CRASH = 1
MOST_FDS = 200  # in one packet; the kernel's limit is 253


@dataclass(frozen=True)
class Seat:
    """Which process is to be made: a place of the plan and the row it leases."""

    role: Role
    slot: int
    generation: int
    row: int


class Nursery:
    """The pipes between the master and all its children, and the channels of slots, per generation."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.ready_fd, self._ready_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._channels: dict[tuple[int, str, int], tuple[socket.socket, socket.socket]] = {}

    def open_channels(self, plan: Plan, generation: int) -> None:
        """Pairs for every slot that owns one. Per generation: two fronts must not read one another's answers."""
        for role in plan.roles:
            for slot in range(role.count if role.channel else 0):
                self._channels[generation, role.name, slot] = socket.socketpair(
                    socket.AF_UNIX, socket.SOCK_SEQPACKET
                )

    def close_channels(self, generation: int) -> None:
        """After the generation's last process is gone."""
        for key in [key for key in self._channels if key[0] == generation]:
            for end in self._channels.pop(key):
                end.close()

    def hear(self) -> list[int]:
        """Pids of children that have said that they are ready."""
        try:
            words = os.read(self.ready_fd, 4096)
        except BlockingIOError:
            return []
        return [
            pid for (pid,) in READY_WORD.iter_unpack(words[: len(words) // READY_WORD.size * READY_WORD.size])
        ]

    def seed(self, plan: Plan, seat: Seat, now: float) -> None:
        """Master, before the fork: give the row its identity. Its first heartbeat is that of its birth."""
        cells = self.shared.rows.row(seat.row)
        cells[ROLE], cells[SLOT] = plan.role_index(seat.role.name), seat.slot
        cells[GENERATION] = seat.generation
        cells[BEAT_MS] = cells[STARTED_MS] = int(now * 1000)
        cells[STATE] = STARTING

    @staticmethod
    def extend(process: ChildProcess, listeners: Mapping[int, tuple[ListeningSocket, ...]]) -> None:
        """Hand a living child the listeners of slots made after it, so that it can adopt them: as many slots as a packet
        holds. What is left, or what it cannot take now (stopped, or dying), is tried again at the next tick."""
        chosen: list[ListeningSocket] = []
        reach = process.reach
        while many := listeners.get(reach):
            if len(chosen) + len(many) > MOST_FDS:
                break
            chosen += many
            reach += 1
        if not chosen or process.control is None:
            return
        words = json.dumps([(listener.slot, str(listener.address)) for listener in chosen]).encode()
        with contextlib.suppress(OSError):
            socket.send_fds(process.control, [words], [listener.fd for listener in chosen])
            process.reach = reach

    def fork(
        self, plan: Plan, seat: Seat, sockets: Sockets, log: Log, drop: Callable[[], None]
    ) -> tuple[int, socket.socket]:
        """A new child's pid and our end of its control socket; in the child it never returns.

        `drop` closes what only the master may hold.

        Raises OSError when the kernel has no process to give.
        """
        master_pid = os.getpid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        gc.freeze()  # what the master has now is shared with the child; the collector would copy every page of it
        with signals_blocked():
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                theirs.close()
                raise
            if pid:
                theirs.close()
                self.shared.rows.row(seat.row)[PID] = pid
                return pid, ours
            code = EXIT_CRASH
            try:
                drop()
                ours.close()
                code = self._live(plan, seat, sockets, log, master_pid, theirs)
            except BaseException:
                log_traceback(log)
            finally:
                os._exit(code)

    # -- from here on in the child --

    def _live(
        self, plan: Plan, seat: Seat, sockets: Sockets, log: Log, master_pid: int, control: socket.socket
    ) -> int:
        bind_to_parent(master_pid)
        os.close(self.ready_fd)
        role = seat.role
        for group in sockets.groups.values():
            if group.bind.role != role.name:
                group.close()
        channels, own = self._take_channels(plan, seat)
        self.shared.rows.row(seat.row)[PID] = os.getpid()
        who = f"{role.name} {seat.slot}" if is_numbered(plan, role) else role.name
        child_log = log.child(who, plan.loglevel)
        faulthandler.enable(_dump_file(plan.log_path), all_threads=True)
        limit_child()
        title = Title(plan.title)
        title.fresh(who, time.monotonic())
        birth = Birth(
            role=role.name,
            slot=seat.slot,
            generation=seat.generation,
            row=seat.row,
            master_pid=master_pid,
            drain_timeout=plan.drain_timeout,
            control=control,
            ready_fd=self._ready_writer,
        )
        listeners = sockets.of_role(role.name)
        child = Child(birth, self.shared, child_log, title, listeners, channels, own)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        gc.enable()
        try:
            return profiled(plan.debug_dir, role.name, lambda: role.run(child))
        except Exception as error:
            child_log.error("crash", error=f"{type(error).__name__}: {error}", then="replaced by the master")
            log_traceback(child_log)
            return EXIT_CRASH

    def _take_channels(
        self, plan: Plan, seat: Seat
    ) -> tuple[Mapping[str, tuple[socket.socket, ...]], socket.socket | None]:
        """Near ends for a role that uses channels, the far end of its own slot for one that owns them."""
        near: dict[str, tuple[socket.socket, ...]] = {}
        own: socket.socket | None = None
        for key, (near_end, far_end) in sorted(self._channels.items()):
            generation, name, _ = key
            if generation == seat.generation and not seat.role.channel:
                near[name] = (*near.get(name, ()), near_end)
                far_end.close()
            elif key == (seat.generation, seat.role.name, seat.slot):
                own = far_end
                near[name] = (far_end,)
                near_end.close()
            else:
                near_end.close()
                far_end.close()
        return near, own


def is_numbered(plan: Plan, role: Role) -> bool:
    """Whether processes of the role are told apart by their slot in logs and titles."""
    return role.count > 1 or role.name == plan.listening()


def bind_to_parent(master_pid: int) -> None:
    """Die with the master, even if it died just now."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != master_pid:
        os._exit(EXIT_CRASH)


def profiled(debug_dir: str | None, name: str, act: Callable[[], int]) -> int:
    """Run `act`; with a debug directory under cProfile, leaving `<name>-<pid>.pstats` there."""
    if debug_dir is None:
        return act()
    profile = cProfile.Profile()
    try:
        return profile.runcall(act)
    finally:
        try:
            profile.dump_stats(os.path.join(debug_dir, f"{name}-{os.getpid()}.pstats"))
        except OSError:
            pass  # the directory went away; the exit code matters more


def _dump_file(log_path: str) -> int:
    """Where a stack dump goes: the log file, or stderr when there is none or it may not be opened any more."""
    if log_path:
        try:
            return os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            pass
    return 2


def limit_child() -> None:
    """No core files of other people's traffic, and the kernel rather takes a child than the master."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            score = int(file.read())
            file.write(b"%d" % min(1000, score + 100))
    except (OSError, ValueError):
        pass


def log_traceback(log: Log) -> None:
    """The traceback of a bug, line by line, so that the log keeps its grammar."""
    for line in traceback.format_exc().rstrip().splitlines():
        log.error("traceback", line=line)
