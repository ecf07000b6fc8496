"""What the balancer asks of the prefork machine: three roles, its addresses, its columns.

RULES: glue only. Reads the options, gives listeners, pools and backends their blocks on the board, and closes the
roles' `run` over what they need, which the fork then copies. Lives in the master; a plan that is refused leaves
everything as it was.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf

from balancer import prober, worker
from balancer.admin_socket import AdminPlace, directories
from balancer.config.option import ConfigError
from balancer.config.units import Address, counted
from balancer.configuration import parse, summary_of
from balancer.console import console
from balancer.console.session_server import SessionServer
from balancer.edge.backend_tls import make_backend_tls
from balancer.edge.tls import ContextTable, ServerContexts, renew
from balancer.eventloop.log_format import LogSettings
from balancer.options import MOST_LISTENERS, MOST_POOLS, Listener, Options
from balancer.pool.backend import Backend, with_indexes
from balancer.pool.blocks import BoardBlocks
from balancer.pool.board import (
    BACKENDS,
    LISTENERS,
    POOLS,
    Board,
    capacity_for,
    columns_for,
)
from balancer.pool.handover_state import export_state, restore_state
from balancer.pool.kept_history import export_history, restore_history
from balancer.pool.spares import with_spares
from balancer.preflight import Preflight
from balancer.prefork.bind import Bind
from balancer.prefork.child import Child
from balancer.prefork.plan import Plan, Role
from balancer.prefork.preflight import Machine
from balancer.prefork.upgrade import inherited_paths, read_handover
from balancer.relay.context import TlsContexts
from balancer.relay.sockets import listener_options
from balancer.shm.layout import MASTER_ROW, MASTER_UPCOMING, Shared
from balancer.shm.source_table import SourceTable


class BalancerService:
    """Made once by the entry point; `plan` is called at boot and at every reload."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.argv = list(argv)
        self.environ = dict(environ)
        uid, pid = os.geteuid(), os.getpid()
        self.admin = AdminPlace(directories(environ, uid), uid, pid, inherited_paths(environ, pid, "console"))
        self.options: Options | None = None
        self.blocks: BoardBlocks | None = None
        self.board: Board | None = None
        self.contexts = ServerContexts()

    def plan(self, shared: Shared | None) -> Plan:
        """Raises ConfigError with one sentence naming the culprit."""
        options = parse(self.argv, self.environ, self.admin.settle, Preflight(Machine.this()))
        options = replace(options, pools=tuple(map(with_spares, options.pools)))
        tls = self.tls_contexts(options, upcoming(shared) if shared is not None else 0)
        if shared is not None:
            self.contexts.retire(0)
        if self.blocks is None:
            self.blocks = BoardBlocks(MOST_LISTENERS, MOST_POOLS, capacity_for(len(backends_of(options))))
        if shared is not None:
            is_first = self.board is None
            self.board = self.board or Board(shared, self.blocks.backends, options.process.workers)
            options = self.place(options, shared)
            if is_first:
                self.restore(options)
        self.options = options
        return self.compose(options, backends_of(options), tls)

    def tls_contexts(self, options: Options, generation: int) -> TlsContexts:
        """What the handshakes of each listener, each pool and its checks begin with; 0 is no generation yet."""
        try:
            listeners = self.contexts.tables(((one.name, one) for one in options.listeners), generation)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        made = {
            one.name: make_backend_tls(one.tls_verify, one.tls_ca, one.tls_cert, one.tls_sni)
            for one in options.pools
            if one.tls or one.check.speaks_tls(one.tls)
        }
        pools = {one.name: made[one.name] for one in options.pools if one.tls}
        checks = {
            one.name: replace(made[one.name], name=one.check.sni or one.tls_sni)
            for one in options.pools
            if one.check.speaks_tls(one.tls)
        }
        return TlsContexts(listeners, pools, checks)

    def renew(self, tables: Iterable[ContextTable]) -> str:
        """Have the workers present the certificates as they are on disk now. Raises ConfigError."""
        try:
            count = renew(tables)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return f"{counted(count, 'certificate')} renewed" if count else "no certificate has changed"

    def place(self, options: Options, shared: Shared) -> Options:
        """The options with a block for each listener, pool and backend, for the generation about to be forked."""
        assert self.blocks is not None and self.board is not None
        names = ([one.name for one in options.listeners], [one.name for one in options.pools])
        try:
            placed = self.blocks.assign(
                upcoming(shared), *names, [one.identity for one in backends_of(options)]
            )
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for kind, assignment in zip((LISTENERS, POOLS, BACKENDS), placed, strict=True):
            self.board.give_out(kind, assignment.blocks.values(), assignment.reused)
        listeners = (replace(one, index=placed[0].blocks[one.name]) for one in options.listeners)
        pools = tuple(
            replace(
                one, index=placed[1].blocks[one.name], backends=with_indexes(one.backends, placed[2].blocks)
            )
            for one in options.pools
        )
        tables = self.board.source_tables
        self.board.source_tables = {
            one.name: tables.get(one.name) or SourceTable()
            for one in options.listeners
            if one.source_maxconn or one.source_rate
        }
        for pool in pools:
            self.board.assign_pool(pool.index, [backend.index for backend in pool.backends])
        return replace(options, listeners=tuple(listeners), pools=pools)

    def compose(self, options: Options, backends: tuple[Backend, ...], tls: TlsContexts) -> Plan:
        assert self.blocks is not None
        process = options.process
        binds = [bind for listener in options.listeners for bind in binds_of(listener)]
        if process.admin_address is not None:
            binds.append(Bind("console", process.admin_address, backlog=64, per_slot=False))
        if process.metrics is not None:
            binds.append(Bind("console", process.metrics, backlog=64, per_slot=False, mode=0o660))
        return Plan(
            title="balancer",
            roles=self.roles(options, backends, tls),
            binds=tuple(binds),
            columns=columns_for(self.blocks.backends),
            totals=self.board.totals() if self.board is not None else (),
            drain_timeout=process.drain_timeout,
            reload_timeout=process.reload_timeout or inf,
            config_path=os.path.abspath(process.config) if process.config else "",
            log_path=process.log,
            log=LogSettings(process.loglevel, process.log_format, process.log_sessions),
            pidfile=process.pidfile,
            user=process.user,
            group=process.group,
            debug_dir=process.debug_dir if process.debug else None,
            steering=process.steering,
            summary=summary_of(options),
            notes=options.notes,
            handover_state=self.handover(options, backends),
            refresh=partial(self.renew, tls.listeners.values()),
            made_from=replace(options, notes=()),
        )

    def handover(self, options: Options, backends: tuple[Backend, ...]) -> Callable[[], str]:
        """Two lines for the successor of an upgrade: what only the board knows of these."""
        board, given = self.board, [one for one in backends if not one.is_spare]  # an upgrade is a reload too
        if board is None:
            return str
        things = options.listeners, options.pools
        return lambda: f"{export_state(board, given)}\n{export_history(board, *things)}"

    def restore(self, options: Options) -> None:
        """Put onto the first board what a former master has left; a version before knew no history."""
        assert self.board is not None
        state, _, history = read_handover(self.environ).partition("\n")
        restore_state(self.board, backends_of(options), state)
        restore_history(self.board, options.listeners, options.pools, history)

    def roles(self, options: Options, backends: tuple[Backend, ...], tls: TlsContexts) -> tuple[Role, ...]:
        """Worker first: readers of the board know the roles by their place."""
        board, process = self.board, options.process
        if board is None:
            return (
                Role("worker", process.workers, unborn),
                Role("prober", 1, unborn),
                Role("console", 1, unborn),
            )
        return (
            Role(
                "worker",
                process.workers,
                lambda child: worker.run(child, options, board, self.kept(tls), SessionServer),
            ),
            Role(
                "prober",
                1,
                lambda child: prober.run(child, options, listening(child), board, self.kept(tls).checks),
            ),
            Role("console", 1, lambda child: run_console(child, options, board, self.kept(tls))),
        )

    def kept(self, tls: TlsContexts) -> TlsContexts:
        """In a forked process: the contexts of its generation, once those of others are closed."""
        self.contexts.keep_only(tls.listeners.values())
        return tls

    def retired(self, generation: int) -> None:
        self.contexts.retire(generation)
        if self.blocks is not None:
            self.blocks.retire(generation)


def upcoming(shared: Shared) -> int:
    """The generation that the master is about to fork."""
    return int(shared.rows.cells[MASTER_ROW * shared.rows.columns + MASTER_UPCOMING])


def run_console(child: Child, options: Options, board: Board, tls: TlsContexts) -> int:
    """The console shows when the certificates of its own generation expire."""
    board.certificates = {name: table.handover for name, table in tls.listeners.items()}
    return console.run(child, options, board)


def backends_of(options: Options) -> tuple[Backend, ...]:
    """Those of all pools."""
    return tuple(backend for pool in options.pools for backend in pool.backends)


def listening(child: Child) -> list[Address]:
    """The addresses of all listeners, with the ports that the kernel has chosen; not those of the console."""
    return [address for name, addresses in child.addresses.items() if name for address in addresses]


def binds_of(listener: Listener) -> list[Bind]:
    """What the master binds for a listener."""
    listen = listener_options(listener.keepalive)
    return [
        Bind(
            "worker",
            address,
            listener.backlog,
            options=() if address.family == "unix" else listen,
            name=listener.name,
        )
        for address in listener.addresses
    ]


def unborn(child: Child) -> int:
    """What stands in a plan that was only checked: there is no board yet, and nothing is forked from it."""
    raise AssertionError(f"role {child.role} was forked from a plan without a board")
