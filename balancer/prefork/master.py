"""The master: binds, forks, reaps, folds rows, steers, obeys signals. It serves no client and touches no traffic.

RULES: single-threaded for ever, never blocks after boot. A handler only notes its signal and wakes the poll; one signal
is taken a turn, in a flat match. What a turn does is decided here; how, in the modules around it.

    turn:  poll until a signal, a child's word or the next tick
           -> one signal -> reap -> hear which children are ready -> upgrade, retirements, reload a step further
           -> fork what is due -> (tick) heartbeats, requests of the console -> slots table, steering

    BOOT --all ready--> SERVING --TERM, INT--> STOPPING --no child left--> exit 0 (5 when sessions were cut)
                          |  ^         second one, QUIT: cut now
                          +--+ HUP: reload, USR2: upgrade; superseded: as STOPPING, but the sockets live on
"""

import gc
import os
import signal
import socket
import time

from balancer import __version__
from balancer.config.option import ConfigError
from balancer.config.streams import complain
from balancer.config.units import counted
from balancer.eventloop.log import Log
from balancer.eventloop.signals import IGNORED_BY_MASTER, MASTER_SIGNALS, Signals, wait_readable
from balancer.prefork.bind import CannotBind
from balancer.prefork.boot import drop_privileges, identity, lock, open_sockets
from balancer.prefork.child import EXIT_CUT
from balancer.prefork.fork import profiled
from balancer.prefork.generations import Generations, log_notes
from balancer.prefork.limits import raise_file_limit
from balancer.prefork.notify import Notifier
from balancer.prefork.pidfile import PidFile
from balancer.prefork.plan import Plan, Service
from balancer.prefork.processes import ProcessManager
from balancer.prefork.slot_table import SlotTable
from balancer.prefork.slots import TICK
from balancer.prefork.socket_files import SocketFiles
from balancer.prefork.sockets import PlanSockets
from balancer.prefork.titles import Title
from balancer.prefork.upgrade import InheritedFds, Upgrade, forget_inheritance, read_inheritance, say_ready
from balancer.shm.events import tell
from balancer.shm.layout import (
    ADMIN_ROW,
    BEAT_MS,
    MASTER_FORMER,
    MASTER_SLOTS,
    MASTER_UPCOMING,
    PID,
    READY,
    REFRESH_REQUESTS,
    STARTED_MS,
    STATE,
    WANTED_WORKERS,
    WORKERS_REQUESTS,
    make_shared,
)

EXIT_USAGE, EXIT_CANNOT_BIND, EXIT_NEVER_READY = 2, 3, 4
GIVE_UP_DEATHS = 4  # of one process before ready: at 0, 1, 3 and 7 s
SAME_STOP = 1.0  # seconds from the first TERM or INT within which another one is the same
SUCCESSOR_GRACE = 3.0  # seconds after its drain that a successor has which was called off
GIVE_UP_AFTER = 14.0  # seconds without one ready process


def run_master(service: Service) -> int:
    """Run a service until it is told to stop; the exit code. Raises ConfigError when the first plan is refused.

    0 done, 1 runtime, 2 configuration, 3 cannot bind, 4 no process ever gets ready, 5 stopped with sessions left.
    """
    plan = service.plan(None)
    owner = identity(plan)
    log = Log("master", plan.log_path, program=plan.title.split()[0])
    log.apply(plan.log)
    if log.problem:
        raise ConfigError(f"--log: {log.problem}")
    return profiled(plan.debug_dir, "master", lambda: _boot_and_serve(service, plan, owner, log))


def _boot_and_serve(service: Service, plan: Plan, owner: tuple[int, int] | None, log: Log) -> int:
    inherited = read_inheritance(os.environ, os.getpid())
    forget_inheritance()
    signals = Signals(MASTER_SIGNALS, IGNORED_BY_MASTER)
    config = plan.config_path or "none"
    log.info("boot", program=f"{plan.title} {__version__}", host=socket.gethostname(), config=config)
    pidfile = None
    try:
        pidfile = lock(plan, inherited.pidfile_fd)
        sockets, listening = open_sockets(plan, owner, inherited, log)
    except CannotBind as error:
        log.error("bind", error=error, then=f"exit {EXIT_CANNOT_BIND}")
        if plan.log_path:  # a start by hand shows it too
            complain(plan.title, str(error))
        if pidfile is not None:
            pidfile.release(keep=inherited.pidfile_fd >= 0)
        return EXIT_CANNOT_BIND
    if owner is not None:
        log.chown(*owner)
    if pidfile is not None and inherited.ready_fd < 0:
        pidfile.write(os.getpid())
    processes = ProcessManager(make_shared(plan.columns), sockets, log, time.monotonic())
    master = Master(processes, service, signals, pidfile, inherited, Title(plan.title))
    try:
        processes.row[MASTER_UPCOMING] = 1
        plan = service.plan(processes.shared)  # while files that only root may read can be read
        drop_privileges(owner)
        return master.serve(plan, listening)
    except ConfigError as error:
        log.error("config", error=error, then=f"exit {EXIT_USAGE}")
        return EXIT_USAGE
    finally:
        master.leave()


class Master:
    """One turn after another."""

    def __init__(
        self,
        processes: ProcessManager,
        service: Service,
        signals: Signals,
        pidfile: PidFile | None,
        inherited: InheritedFds,
        title: Title,
    ) -> None:
        self.processes = processes
        self.log = processes.log
        self.signals = signals
        self.notifier = Notifier(os.environ)
        self.generations = Generations(processes, service, self.notifier)
        self.slot_table = SlotTable(processes)
        self.upgrade = Upgrade(self.log, processes.sockets, processes.events)
        self._socket_files = SocketFiles(processes.sockets, self.log)
        self._title = title
        self._pidfile = pidfile
        self._ready_fd = inherited.ready_fd  # on which a former master waits for our word; -1: none
        self._is_successor = inherited.ready_fd >= 0  # the former master goes on if we fail
        self._is_ready = False
        self._is_superseded = False
        self._wants_upgrade = False  # once no reload is under way
        self._stop_at: float | None = None  # of the first TERM or INT
        self._owed: list[
            signal.Signals
        ] = []  # signals for the successor, one a tick: the kernel merges equal ones
        self._files = 0
        self._started = time.monotonic()
        self._next_tick = self._started
        self._look_again: float | None = None
        self._requests_seen = self._refreshes_seen = 0
        processes.close_masters = self._close_in_child

    def serve(self, plan: Plan, listening: PlanSockets) -> int:
        """Fork generation 1 and turn until the end; the exit code."""
        now = self._started
        row = self.processes.row
        row[PID], row[STATE] = os.getpid(), READY
        row[STARTED_MS] = row[BEAT_MS] = int(now * 1000)
        log_notes(plan, self.log)
        self._files = raise_file_limit()
        self.generations.begin(plan, listening, now)
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
            self.upgrade.unknown_child_died(pid, os.waitstatus_to_exitcode(status))
        self.processes.hear(now)
        if self.upgrade.hear(now):
            self._hand_over(now)
        is_upgrading = self._wants_upgrade or self.upgrade.is_under_way
        self.generations.advance(now, may_bind=not is_upgrading, may_reload=self._is_ready)
        if self._wants_upgrade and not self.generations.is_changing:
            self._start_upgrade(now)
        is_booting = not self._is_ready and not self.generations.is_stopping
        if is_booting and (code := self._boot_step(now)) is not None:
            return code
        self.processes.fork_due(now)
        if now >= self._next_tick:
            self._tick(now)
        self._update_slots(now)
        self.log.flush()
        return self._exit_code()

    def obey(self, number: int, now: float) -> None:
        """One signal, one act."""
        match number:
            case signal.SIGCHLD:
                pass  # the turn reaps anyway
            case signal.SIGTERM | signal.SIGINT:
                self.stop(now)
            case signal.SIGQUIT:
                self.cut(now)
            case signal.SIGHUP:
                self.generations.ask_reload()
            case signal.SIGUSR1:
                self.log.reopen()
                self.processes.tell_all(signal.SIGUSR1)
            case signal.SIGUSR2:
                self._wants_upgrade = True
            case signal.SIGTTIN:
                self.generations.scale(self.generations.wanted_at_last + 1, now)
            case signal.SIGTTOU:
                self.generations.scale(self.generations.wanted_at_last - 1, now)

    # -- parts of a turn --

    def _sleep(self) -> None:
        """Until something can be done, or at once while signals wait in the queue."""
        until = self._next_tick
        moments = (self._look_again, self.processes.children.next_due(), self.generations.next_moment())
        for moment in moments:
            until = until if moment is None else min(until, moment)
        timeout = 0.0 if self.signals.waiting() else until - time.monotonic()
        fds = [self.signals.fileno(), self.processes.ready_fd, *self.upgrade.fds()]
        if self.signals.fileno() in wait_readable(fds, timeout):
            self.signals.clear_wakeup()

    def _boot_step(self, now: float) -> int | None:
        """Until the first generation is ready; the exit code when it never will be."""
        children, plan = self.processes.children, self.processes.plan
        if children.is_all_ready(self.processes.current):
            self._now_ready(now)
            return None
        vital = [role.name for role in plan.roles if role.channel or role.name == plan.listening()]
        places = children.of_generation(self.processes.current)
        for name in vital:
            none_ready = not any(place.was_ready for place in places if place.role == name)
            is_late = none_ready and now - self._started > GIVE_UP_AFTER
            if is_late or children.never_got_ready(self.processes.current, name, GIVE_UP_DEATHS):
                deaths = sum(place.unready_deaths for place in places if place.role == name)
                reason = f"no {name} ever became ready: {deaths} died before, see the lines above"
                self.log.error("give-up", error=reason, then=f"exit {EXIT_NEVER_READY}")
                self.processes.tell_all(signal.SIGKILL)
                return EXIT_NEVER_READY
        return None

    def _now_ready(self, now: float) -> None:
        """Every process of the first generation serves: say so to the log, the pid file, the service manager, and to
        a former master, which drains from then on."""
        self._is_ready = True
        wanted, slots = self.generations.wanted, self.generations.slots
        took = f"{now - self._started:.3f}s"
        self.log.info("ready", workers=wanted, slots=slots, files=self._files, took=took)
        if self._pidfile is not None:
            self._pidfile.write(os.getpid())
        self.notifier.ready(self.generations.status())
        if self._ready_fd >= 0:
            former = self.processes.row[MASTER_FORMER] = os.getppid()
            if not say_ready(self._ready_fd):  # it was killed, and the parent is another one
                former = self.processes.row[MASTER_FORMER] = 0
            events, then = self.processes.events, "this one serves"
            tell(self.log, events, "info", "upgrade", former=former or "gone", then=then)
            self._ready_fd = -1  # closed: the number may be another descriptor's from now on
        self.generations.close_leftover(now)

    def _tick(self, now: float) -> None:
        """Every 0.25 s: heartbeats, requests of the console, status for the service manager."""
        self._next_tick = max(self._next_tick + TICK, now)
        processes, generations = self.processes, self.generations
        processes.row[BEAT_MS] = int(now * 1000)
        if self._owed:
            self.upgrade.hand_on(self._owed.pop(0))
        processes.extend_reach()
        if processes.watch.look(now):
            self.log.info("watch", then="the master's clock jumped: ages of heartbeats count from now")
        admin = processes.shared.rows.row(ADMIN_ROW)
        if admin[WORKERS_REQUESTS] != self._requests_seen:
            self._requests_seen = admin[WORKERS_REQUESTS]
            generations.scale(admin[WANTED_WORKERS], now)
        if admin[REFRESH_REQUESTS] != self._refreshes_seen:
            self._refreshes_seen = admin[REFRESH_REQUESTS]
            generations.refresh(now)
        self._title.set(self.title(), now)
        if self._is_ready:
            self.notifier.beat(now)
            if not generations.is_stopping:
                self.notifier.status(generations.status())
                if not self.upgrade.pid:  # what is bound now, a successor would not know
                    processes.send_again(self._socket_files.look(now))

    def _update_slots(self, now: float) -> None:
        """Every turn: a death or a fork changes what may be steered to, and waiting for the tick would cost clients."""
        self._look_again = self.processes.end_the_hung(now)
        generations = self.generations
        self.processes.row[MASTER_SLOTS] = generations.slots
        if not generations.is_stopping:
            self.slot_table.refresh(now, generations.wanted, generations.slots)

    # -- stop and upgrade --

    def stop(self, now: float) -> None:
        """TERM and INT: drain everything, within the drain timeout; a second one cuts. One that comes within SAME_STOP is
        the same one: `timeout` and shells signal a process and its group. Of a superseded master, which drains already,
        the first one changes nothing."""
        first, self._stop_at = self._stop_at, now if self._stop_at is None else self._stop_at
        if first is not None and now - first >= SAME_STOP:
            self.cut(now)
        if self.generations.is_stopping:
            return
        plan = self.processes.plans[max(self.processes.plans)]
        self.upgrade.call_off(signal.SIGTERM, now + plan.drain_timeout + SUCCESSOR_GRACE)
        self.generations.retire_all(now, is_final=True)
        self.notifier.stopping()
        self._tell_stop(within=f"{plan.drain_timeout:g}s", then="workers finish their sessions")
        self.generations.close_all(now)

    def cut(self, now: float) -> None:
        """All sessions end at once."""
        self.upgrade.call_off(signal.SIGQUIT, now + SUCCESSOR_GRACE)
        if not self.generations.is_stopping:
            self.generations.retire_all(now, is_final=True)
            self.notifier.stopping()
        self._tell_stop(within="0s", then="sessions are cut")
        self.generations.cut_all(now)

    def _start_upgrade(self, now: float) -> None:
        """USR2: start this program anew with our sockets; we serve until it says that it does."""
        self._wants_upgrade = False
        if self.generations.is_stopping or not self._is_ready:
            self.log.warning("upgrade", then="refused: not now")
            return
        self.upgrade.start(now, self._pidfile, self.processes.plan.handover_state())

    def _hand_over(self, now: float) -> None:
        """The successor serves: everything drains, the sockets stay open for it."""
        self._is_superseded = True
        self._owed = self.generations.owed_signals()
        self.generations.retire_all(now, is_final=False)
        self.notifier.superseded(self.upgrade.pid)  # last: a reload given up just now has named our own pid

    def _exit_code(self) -> int | None:
        """None while there is something left to do."""
        if not self.generations.is_stopping or not self.generations.is_gone:
            return None
        if self.upgrade.is_under_way or self._owed:
            return None
        if self._is_superseded and (lost := self.upgrade.not_handed_over()):
            self.log.error("upgrade", error=f"the successor does not know every socket of {', '.join(lost)}")
        code = EXIT_CUT if self.processes.was_cut else 0
        self._tell_stop(exit=code, superseded="yes" if self._is_superseded else "no")
        return code

    def _tell_stop(self, **fields: object) -> None:
        tell(self.log, self.processes.events, "info", "stop", **fields)

    def title(self) -> str:
        """What `ps` shows after the program's name."""
        if self._is_superseded:
            return "master [draining, another one serves]"
        if self.generations.is_stopping:
            left = len(self.processes.children.processes)
            return f"master [stopping, {counted(left, 'process', 'processes')} left]"
        return f"master [{counted(self.generations.wanted, self.processes.plan.listening())}]"

    def _close_in_child(self) -> None:
        """In a forked child: close what only a master may hold."""
        self.signals.close()
        self.notifier.close()
        if self._pidfile is not None:
            os.close(self._pidfile.fd)
        self.upgrade.close_in_child()
        if self._ready_fd >= 0:
            os.close(self._ready_fd)

    def leave(self) -> None:
        """The master's last act: remove socket files and pid file, unless another master uses them."""
        others_hold_it = self._is_superseded or (self._is_successor and not self._is_ready)
        if not others_hold_it:
            self.processes.sockets.unlink()
        if self._pidfile is not None:
            self._pidfile.release(keep=others_hold_it)
        self.log.flush()
