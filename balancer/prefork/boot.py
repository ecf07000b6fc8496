"""From a plan to a process that may fork: lock, bind, raise limits, drop privileges.

RULES: the only part of the master that may wait (a moment, for a previous instance that is just dying). Order matters:
what needs rights comes before they are dropped, and nothing is forked before that.
"""

import ctypes
import errno
import grp
import os
import pwd
import time
from collections.abc import Callable

from balancer.config.option import ConfigError
from balancer.eventloop.log import Log
from balancer.prefork.bind import CannotBind
from balancer.prefork.fork import PR_SET_NO_NEW_PRIVS
from balancer.prefork.inherited import adopt_sockets
from balancer.prefork.pidfile import PidFile
from balancer.prefork.plan import Plan
from balancer.prefork.sockets import PlanSockets, Sockets
from balancer.prefork.upgrade import InheritedFds

LOCK_TRIES = 30  # of 50 ms each


def identity(plan: Plan) -> tuple[int, int] | None:
    """(uid, gid) to become; None when the plan names neither. Raises ConfigError for unknown names."""
    if not plan.user and not plan.group:
        return None
    try:
        entry = pwd.getpwuid(int(plan.user)) if plan.user.isdigit() else pwd.getpwnam(plan.user or "root")
        uid = entry.pw_uid if plan.user else os.getuid()
        gid = entry.pw_gid if plan.user else os.getgid()
    except KeyError:
        if not plan.user.isdigit():
            raise ConfigError(f"there is no user {plan.user}") from None
        uid = gid = int(plan.user)  # a container's user may exist as a number only
    if plan.group:
        try:
            gid = int(plan.group) if plan.group.isdigit() else grp.getgrnam(plan.group).gr_gid
        except KeyError:
            raise ConfigError(f"there is no group {plan.group}") from None
    if os.getuid() != 0 and (uid, gid) != (os.getuid(), os.getgid()):
        raise ConfigError(f"only root may become user {plan.user or uid} and group {plan.group or gid}")
    return uid, gid


def lock(plan: Plan, inherited: int) -> PidFile | None:
    """The pid file, locked; waits up to 1.5 s for a dying holder. Raises CannotBind."""
    if not plan.pidfile:
        return None
    for left in range(LOCK_TRIES - 1, -1, -1):
        try:
            return PidFile.acquire(plan.pidfile, inherited)
        except CannotBind as error:
            if not left or not isinstance(error.__cause__, BlockingIOError):
                raise
        time.sleep(0.05)
    return None


def open_sockets(
    plan: Plan, owner: tuple[int, int] | None, inherited: InheritedFds, log: Log
) -> tuple[Sockets, PlanSockets]:
    """Everything the plan binds, listening. Raises CannotBind."""
    sockets = Sockets()
    sockets.owner = owner
    sockets.inherited = adopt_sockets(inherited.sockets)
    slots = plan.role(plan.listening()).count
    listening = retry_bind(lambda: sockets.open(plan.binds, slots), time.sleep)
    for bind, group in listening.pairs:
        name = {"listener": bind.name} if bind.name else {}
        log.info(
            "bind",
            address=group.address,
            slots=len(group.sockets),
            role=bind.role,
            **name,
            backlog=bind.backlog,
        )
    for _, sock in sockets.sort_out():
        log.warning("bind", address=sock.getsockname(), then="closed: inherited, but not configured")
        sock.close()
    return sockets, listening


def retry_bind(
    act: Callable[[], PlanSockets], sleep: Callable[[float], object], tries: int = LOCK_TRIES
) -> PlanSockets:
    """At boot: a previous instance that is just dying gives its port back within moments, a live one does not."""
    for left in range(tries - 1, -1, -1):
        try:
            return act()
        except CannotBind as error:
            in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if not left or not in_use:
                raise
        sleep(0.05)
    raise AssertionError("unreachable")


def drop_privileges(owner: tuple[int, int] | None) -> None:
    """Become the user for good: groups, gid, uid, no new privileges. Raises OSError."""
    if owner is None:
        return
    uid, gid = owner
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
