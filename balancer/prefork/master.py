"""The master: binds, forks, reaps, folds rows, steers, obeys signals. It serves nobody and touches no traffic.

RULES: single-threaded for ever, never blocks after boot. Handlers only note a signal and wake the sleeper; one signal is
taken a turn, in a flat match. What a turn does is decided here; how, in the modules around it.

    turn:  sleep until a signal, a child's word or the next tick
           -> one signal -> reap -> hear who is ready -> retirements, reload, upgrade a step further
           -> fork who is due -> (tick) heartbeats, slots table, steering, wishes of the console

    BOOT --all ready--> SERVING --TERM, INT--> STOPPING --no child left--> exit 0 (5 when sessions were cut)
                          |  ^         second one, QUIT: cut now
                          +--+ HUP: reload, USR2: upgrade; superseded: as STOPPING, but the sockets live on
"""

import gc
import os
import signal
import sys
import time

from balancer.config.option import ConfigError
from balancer.eventloop.log import Log
from balancer.eventloop.signals import IGNORED_BY_MASTER, MASTER_SIGNALS, Signals, wait_readable
from balancer.prefork.boot import (
    drop_privileges,
    identity,
    listening_count,
    lock,
    open_sockets,
    raise_file_limit,
)
from balancer.prefork.fork import profiled
from balancer.prefork.lifecycle import Lifecycle
from balancer.prefork.notify import Notifier
from balancer.prefork.plan import Plan, Role, Service
from balancer.prefork.processes import ProcessManager
from balancer.prefork.reload import warn_of
from balancer.prefork.slot_table import SlotTable
from balancer.prefork.slots import TICK
from balancer.prefork.sockets import Bind, CannotBind
from balancer.prefork.titles import Title
from balancer.prefork.upgrade import InheritedFds, forget_inheritance, read_inheritance, say_ready
from balancer.shm.layout import (
    ADMIN_ROW,
    BEAT_MS,
    MASTER_SLOTS,
    MASTER_UPCOMING,
    PID,
    READY,
    STARTED_MS,
    STATE,
    WANTED_WORKERS,
    WORKERS_REQUESTS,
    make_shared,
)

__all__ = ["Bind", "Plan", "Role", "Service", "run_master"]

EXIT_USAGE, EXIT_CANNOT_BIND, EXIT_NEVER_READY = 2, 3, 4
GIVE_UP_DEATHS = 4  # of one process before ready: at 0, 1, 3 and 7 s
GIVE_UP_AFTER = 14.0  # seconds without one ready process


def run_master(service: Service) -> int:
    """Run a service until it is told to stop; the exit code.

    0 done, 1 runtime, 2 configuration, 3 cannot bind, 4 no process ever gets ready, 5 stopped with sessions left.
    """
    try:
        plan = service.plan(None)
        who = identity(plan)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    log = Log("master", plan.log_path, plan.loglevel)
    if log.problem:
        print(log.problem, file=sys.stderr)
        return EXIT_USAGE
    return profiled(plan.debug_dir, "master", lambda: _boot_and_serve(service, plan, who, log))


def _boot_and_serve(service: Service, plan: Plan, who: tuple[int, int] | None, log: Log) -> int:
    left = read_inheritance(os.environ, os.getpid())
    forget_inheritance()
    signals = Signals(MASTER_SIGNALS, IGNORED_BY_MASTER)
    pidfile = None
    try:
        pidfile = lock(plan, left.pidfile_fd)
        sockets = open_sockets(plan, who, left, log)
    except CannotBind as error:
        log.error("bind", error=error, then=f"exit {EXIT_CANNOT_BIND}")
        if pidfile is not None:
            pidfile.release(keep=left.pidfile_fd >= 0)
        return EXIT_CANNOT_BIND
    if who is not None:
        log.chown(*who)
        if pidfile is not None:
            pidfile.give_to(*who)
    if pidfile is not None and left.ready_fd < 0:
        pidfile.write(os.getpid())
    processes = ProcessManager(make_shared(plan.columns), sockets, log, time.monotonic())
    life = Lifecycle(processes, service, pidfile, Notifier(os.environ), is_heir=left.ready_fd >= 0)
    try:
        processes.row[MASTER_UPCOMING] = 1
        plan = service.plan(processes.shared)  # while we may still read what only root may
        drop_privileges(who)
        return Master(plan, processes, signals, life, left).serve()
    except ConfigError as error:
        log.error("config", error=error, then=f"exit {EXIT_USAGE}")
        return EXIT_USAGE
    finally:
        life.leave()


class Master:
    """One turn after another."""

    def __init__(
        self, plan: Plan, processes: ProcessManager, signals: Signals, life: Lifecycle, left: InheritedFds
    ) -> None:
        self._first_plan = plan
        self.processes = processes
        self.life = life
        self.log = processes.log
        self.signals = signals
        self.slot_table = SlotTable(
            processes.shared, processes.children, processes.sockets, processes.watch, processes.log
        )
        self.title = Title(plan.title)
        self._promise_fd = (
            left.ready_fd
        )  # on which our predecessor waits for the word that we serve; -1: none
        self._booted = False
        self._started = time.monotonic()
        self._next_tick = self._started
        self._look_again: float | None = None
        self._requests_seen = 0
        processes.drop = self._drop_in_child

    def serve(self) -> int:
        """Fork generation 1 and turn until the end; the exit code."""
        now = self._started
        plan = self._first_plan
        row = self.processes.row
        row[PID], row[STATE] = os.getpid(), READY
        row[STARTED_MS] = row[BEAT_MS] = int(now * 1000)
        warn_of(plan, self.log)
        self.files = raise_file_limit()
        self.life.begin(plan, listening_count(plan), now)
        gc.disable()  # a few objects a turn, none of them cyclic; the children collect for themselves
        while (code := self.turn()) is None:
            pass
        return code

    def turn(self) -> int | None:
        """One turn; the exit code when it was the last."""
        self._sleep()
        now = time.monotonic()
        number = self.signals.take()
        if number is not None:
            self.obey(number, now)
        for pid, status in self.processes.reap(now):
            self.life.unknown_child_died(pid, status)
        self.processes.hear(now)
        self.life.advance(now)
        if not self._booted and not self.life.is_stopping and (code := self._boot_step(now)) is not None:
            return code
        self.processes.spawn_due(now)
        if now >= self._next_tick:
            self._tick(now)
        self._keep_slots(now)
        self.log.flush()
        return self.life.exit_code()

    def obey(self, number: int, now: float) -> None:
        """One signal, one act."""
        match number:
            case signal.SIGCHLD:
                pass  # the turn reaps anyway
            case signal.SIGTERM | signal.SIGINT:
                self.life.stop(now)
            case signal.SIGQUIT:
                self.life.cut(now)
            case signal.SIGHUP:
                self.life.ask_reload()
            case signal.SIGUSR1:
                self.log.reopen()
                self.processes.tell_all(signal.SIGUSR1)
            case signal.SIGUSR2:
                self.life.upgrade(now)
            case signal.SIGTTIN:
                self.life.scale(self.life.wanted + 1, now)
            case signal.SIGTTOU:
                self.life.scale(self.life.wanted - 1, now)

    def _sleep(self) -> None:
        """Until something can be done. Signals that wait in the queue leave no time to sleep."""
        until = self._next_tick
        for moment in (self._look_again, self.processes.children.next_due(), self.life.next_moment()):
            until = until if moment is None else min(until, moment)
        patience = 0.0 if self.signals.waiting() else until - time.monotonic()
        fds = [self.signals.fileno(), self.processes.nursery.ready_fd, *self.life.fds()]
        if self.signals.fileno() in wait_readable(fds, patience):
            self.signals.clear_wakeup()

    def _boot_step(self, now: float) -> int | None:
        """Until the first generation stands: tell that it does, or that it never will."""
        processes, plan = self.processes, self.life.plan
        if processes.children.is_all_ready(processes.current):
            self._booted = True
            took = f"{now - self._started:.3f}s"
            self.log.info(
                "ready", workers=self.life.wanted, slots=self.life.slots, files=self.files, took=took
            )
            self.life.now_ready(now)
            if self._promise_fd >= 0:
                say_ready(self._promise_fd)
                self._promise_fd = -1  # from now on the number may be anybody's
            return None
        vital = [role.name for role in plan.roles if role.channel or role.name == plan.listening()]
        places = processes.children.of_generation(processes.current)
        for name in vital:
            nobody = not any(place.was_ready for place in places if place.role == name)
            is_late = nobody and now - self._started > GIVE_UP_AFTER
            if is_late or processes.children.never_got_ready(processes.current, name, GIVE_UP_DEATHS):
                deaths = sum(place.unready_deaths for place in places if place.role == name)
                reason = f"no {name} ever became ready: {deaths} died before, see their last words above"
                self.log.error("give-up", error=reason, then=f"exit {EXIT_NEVER_READY}")
                processes.tell_all(signal.SIGKILL)
                return EXIT_NEVER_READY
        return None

    def _tick(self, now: float) -> None:
        """Every 0.25 s: heartbeats, wishes, words to those who watch us."""
        self._next_tick = max(self._next_tick + TICK, now)
        processes, life = self.processes, self.life
        processes.row[BEAT_MS] = int(now * 1000)
        processes.extend_reach()
        if processes.watch.look(now):
            self.log.info("watch", then="our own clock jumped: nobody is judged this round")
        admin = processes.shared.rows.row(ADMIN_ROW)
        if admin[WORKERS_REQUESTS] != self._requests_seen:
            self._requests_seen = admin[WORKERS_REQUESTS]
            life.scale(admin[WANTED_WORKERS], now)
        self.title.set(life.title(), now)
        life.tick(now)

    def _keep_slots(self, now: float) -> None:
        """Every turn: a death or a birth changes who may be steered to, and waiting for the tick would cost clients."""
        self._look_again = self.processes.end_the_hung(now)
        life = self.life
        self.processes.row[MASTER_SLOTS] = life.slots
        if not life.is_stopping:
            plan = life.plan
            self.slot_table.refresh(
                now, self.processes.current, plan.listening(), life.wanted, life.slots, plan.steering
            )

    def _drop_in_child(self) -> None:
        """In a forked child: close what only a master may hold."""
        self.signals.close()
        self.life.drop_in_child()
        if self._promise_fd >= 0:
            os.close(self._promise_fd)
