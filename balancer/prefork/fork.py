"""The fork: what a child must close, what it must set up, and the order of both.

RULES
- The master is single-threaded and holds no epoll, so a fork copies nothing that could act twice. Signals are blocked
  around it; Child sets its own dispositions and unblocks them.
- The child asks for the parent-death signal after any setuid (a change of credentials clears it), then compares its
  parent: the master may have died before. EOF on the control socket is the second way to learn of the master's end.
- A child closes the master's pipes and sockets, the sockets of other roles and other plans, the far ends of channels. It
  keeps the sockets of its role's other slots: adoption needs them.
"""

import cProfile
import ctypes
import faulthandler
import gc
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from balancer.eventloop.log import Log
from balancer.eventloop.signals import signals_blocked
from balancer.prefork.channels import Channels
from balancer.prefork.child import Child, ChildPipes, ChildSpec
from balancer.prefork.heap import settle_heap
from balancer.prefork.limits import limit_child
from balancer.prefork.plan import Plan, Role
from balancer.prefork.sockets import BySlot
from balancer.prefork.titles import Title
from balancer.shm.layout import BEAT_MS, GENERATION, PID, ROLE, SLOT, STARTED_MS, STARTING, STATE, Shared

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
EXIT_CRASH = 1


@dataclass(frozen=True)
class ChildParts:
    """What the master has ready for a new child: memory, log, channels, its listening sockets by slot, and where it says
    that it is ready."""

    shared: Shared
    log: Log
    channels: Channels
    listening: BySlot
    ready_fd: int


def seed_row(shared: Shared, plan: Plan, spec: ChildSpec, now: float) -> None:
    """Master, before the fork: give the row its identity. The first heartbeat is the time of the fork."""
    cells = shared.rows.row(spec.row)
    cells[ROLE], cells[SLOT] = plan.role_index(spec.role), spec.slot
    cells[GENERATION] = spec.generation
    cells[BEAT_MS] = cells[STARTED_MS] = int(now * 1000)
    cells[STATE] = STARTING


def fork_child(
    plan: Plan, spec: ChildSpec, parts: ChildParts, close_masters: Callable[[], None]
) -> tuple[int, socket.socket]:
    """A new child's pid and the master's end of its control socket; in the child it never returns.

    `close_masters` is called in the child and closes what only the master may hold. Raises OSError when the kernel has no
    process to give.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    settle_heap()
    with signals_blocked():
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid:
            theirs.close()
            parts.shared.rows.row(spec.row)[PID] = pid
            return pid, ours
        code = EXIT_CRASH
        try:
            ours.close()
            close_masters()
            code = run_child(plan, spec, parts, theirs)
        except BaseException:
            log_traceback(parts.log)
        finally:
            os._exit(code)


# -- from here on in the child --


def run_child(plan: Plan, spec: ChildSpec, parts: ChildParts, control: socket.socket) -> int:
    """Set up the process and run its role; the exit code."""
    bind_to_parent(spec.master_pid)
    role = plan.role(spec.role)
    channels, own = parts.channels.take(spec, role.channel)
    parts.shared.rows.row(spec.row)[PID] = os.getpid()
    name = f"{role.name} {spec.slot}" if is_numbered(plan, role) else role.name
    log = parts.log.child(name, plan.log)
    faulthandler.enable(_dump_file(plan.log_path), all_threads=True)
    limit_child()
    title = Title(plan.title)
    title.fresh(name, time.monotonic())
    pipes = ChildPipes(control, parts.ready_fd)
    child = Child(spec, pipes, parts.shared, log, title, parts.listening, channels, own)
    gc.enable()
    try:
        return profiled(plan.debug_dir, role.name, lambda: role.run(child))
    except Exception as error:
        log.error("crash", error=f"{type(error).__name__}: {error}", then="replaced by the master")
        log_traceback(log)
        return EXIT_CRASH


def is_numbered(plan: Plan, role: Role) -> bool:
    """Whether logs and titles tell processes of the role apart by their slot."""
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
    """Where a stack dump goes: the log file, or stderr when there is none or it cannot be opened any more."""
    if log_path:
        try:
            return os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            pass
    return 2


def log_traceback(log: Log) -> None:
    """The traceback of a bug, a line of log for each of its lines."""
    for line in traceback.format_exc().rstrip().splitlines():
        log.error("traceback", line=line)
