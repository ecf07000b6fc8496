"""From a plan to a process that may fork: lock, bind, raise limits, drop privileges.

RULES: the only part of the master that may wait (a moment, for a previous instance that is just dying). Order matters:
what needs rights comes before they are dropped, and nothing is forked before that.
"""

import ctypes
import errno
import grp
import os
import pwd
import resource
import time
from collections.abc import Callable

from balancer.config.option import ConfigError
from balancer.eventloop.log import Log
from balancer.prefork.fork import PR_SET_NO_NEW_PRIVS
from balancer.prefork.pidfile import PidFile
from balancer.prefork.plan import Plan
from balancer.prefork.sockets import CannotBind, SocketGroup, Sockets
from balancer.prefork.upgrade import InheritedFds, adopt_sockets

LOCK_TRIES = 30  # of 50 ms each


def listening_count(plan: Plan) -> int:
    """Processes wanted of the listening role."""
    return plan.roles[plan.role_index(plan.listening())].count


def identity(plan: Plan) -> tuple[int, int] | None:
    """(uid, gid) to become; None when the plan names nobody. Raises ConfigError for unknown names."""
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


def open_sockets(plan: Plan, owner: tuple[int, int] | None, left: InheritedFds, log: Log) -> Sockets:
    """Everything the plan binds, listening. Raises CannotBind."""
    sockets = Sockets()
    sockets.owner = owner
    sockets.inherited = adopt_sockets(left.listeners)
    slots = listening_count(plan)
    groups = retry_bind(lambda: sockets.open(plan.binds, slots), time.sleep)
    for group in groups:
        log.info(
            "bind",
            address=group.address,
            slots=len(group.sockets),
            role=group.bind.role,
            backlog=group.bind.backlog,
        )
    for _, sock in sockets.inherited:
        log.warning("bind", address=sock.getsockname(), then="closed: inherited, but not configured")
        sock.close()
    sockets.inherited = []
    return sockets


def retry_bind(
    act: Callable[[], list[SocketGroup]], sleep: Callable[[float], object], tries: int = LOCK_TRIES
) -> list[SocketGroup]:
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


def raise_file_limit() -> int:
    """Descriptors this process may have, the soft limit raised to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return soft
    return hard


def drop_privileges(who: tuple[int, int] | None) -> None:
    """Become the user for good: groups, gid, uid, no new privileges. Raises OSError."""
    if who is None:
        return
    uid, gid = who
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
