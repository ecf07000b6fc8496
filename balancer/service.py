"""What the balancer asks of the prefork machine: three roles, its addresses, its columns.

RULES: glue only. Reads the options, gives every backend its block on the board, and closes the roles' `run` over what
they need, which the fork then copies. Lives in the master; a plan that is refused leaves everything as it was.
"""

from collections.abc import Callable, Mapping, Sequence

from balancer import prober, worker
from balancer.config.loader import ConfigError
from balancer.config.units import parse_address
from balancer.console import console
from balancer.options import Options, parse
from balancer.pool.backend import Backend, with_indexes
from balancer.pool.blocks import Blocks
from balancer.pool.board import Board, capacity_for, columns_for, totals_for
from balancer.pool.handover_state import export_state, restore_state
from balancer.prefork.bind import Bind
from balancer.prefork.child import Child
from balancer.prefork.plan import Plan, Role
from balancer.prefork.upgrade import HANDOVER_STATE
from balancer.relay.sockets import listener_options
from balancer.shm.layout import MASTER_ROW, MASTER_UPCOMING, Shared


class BalancerService:
    """Made once by the entry point; `plan` is called at boot and at every reload."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.argv = list(argv)
        self.environ = dict(environ)
        self.options: Options | None = None
        self.blocks: Blocks | None = None
        self.board: Board | None = None

    def plan(self, shared: Shared | None) -> Plan:
        """Raises ConfigError with one sentence naming the culprit."""
        options = parse(self.argv, self.environ)
        if self.blocks is None:
            self.blocks = Blocks(capacity_for(len(options.upstream)))
        backends = options.upstream
        if shared is not None:
            is_first = self.board is None
            self.board = self.board or Board(shared, self.blocks.capacity)
            backends = self.place(options.upstream, shared)
            if is_first:
                restore_state(self.board, backends, self.environ.get(HANDOVER_STATE, ""))
        self.options = options
        return self.compose(options, backends)

    def place(self, upstream: Sequence[Backend], shared: Shared) -> tuple[Backend, ...]:
        """The backends with their blocks for the generation about to be forked."""
        assert self.blocks is not None and self.board is not None
        upcoming = shared.rows.cells[MASTER_ROW * shared.rows.columns + MASTER_UPCOMING]
        try:
            blocks, reused = self.blocks.assign(upcoming, [backend.name for backend in upstream])
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for index in reused:
            self.board.wipe(index)
        return with_indexes(upstream, blocks)

    def compose(self, options: Options, backends: tuple[Backend, ...]) -> Plan:
        assert self.blocks is not None
        listen = listener_options(options.keepalive, options.user_timeout)
        binds = [
            Bind("worker", address, options.backlog, options=() if address.family == "unix" else listen)
            for address in options.bind
        ]
        binds.append(Bind("console", parse_address(f"unix:{options.admin}"), backlog=16, per_slot=False))
        if options.metrics is not None:
            binds.append(Bind("console", options.metrics, backlog=64, per_slot=False, mode=0o660))
        return Plan(
            title="balancer",
            roles=self.roles(options, backends),
            binds=tuple(binds),
            columns=columns_for(self.blocks.capacity),
            totals=totals_for(self.blocks.capacity),
            drain_timeout=options.drain_timeout,
            log_path=options.log,
            loglevel=options.loglevel,
            pidfile=options.pidfile,
            user=options.user,
            group=options.group,
            debug_dir=options.debug_dir if options.debug else None,
            steering=options.steering,
            summary=summary_of(options, backends),
            notes=options.notes,
            handover_state=self.bequest(backends),
        )

    def bequest(self, backends: tuple[Backend, ...]) -> Callable[[], str]:
        board = self.board
        return str if board is None else lambda: export_state(board, backends)

    def roles(self, options: Options, backends: tuple[Backend, ...]) -> tuple[Role, ...]:
        """Worker first: readers of the board know the roles by their place."""
        board = self.board
        if board is None:
            return (
                Role("worker", options.workers, unborn),
                Role("prober", 1, unborn),
                Role("console", 1, unborn),
            )
        return (
            Role("worker", options.workers, lambda child: worker.run(child, options, board, backends)),
            Role("prober", 1, lambda child: prober.run(child, options, board, backends)),
            Role("console", 1, lambda child: console.run(child, options, board, backends)),
        )

    def retired(self, generation: int) -> None:
        if self.blocks is not None:
            self.blocks.retire(generation)


def unborn(child: Child) -> int:
    """What stands in a plan that was only checked: there is no board yet, and nothing is forked from it."""
    raise AssertionError(f"role {child.role} was forked from a plan without a board")


def summary_of(options: Options, backends: Sequence[Backend]) -> tuple[tuple[str, str], ...]:
    """What a reload compares and reports, by name."""
    summary = [
        (
            f"backend {b.name}",
            f"{b.address} weight={b.weight} maxconn={b.maxconn}{' backup' if b.backup else ''}",
        )
        for b in backends
    ]
    plain = (
        "balance",
        "maxconns",
        "overflow",
        "retries",
        "check",
        "check_interval",
        "check_rise",
        "check_fall",
        "workers",
    )
    times = ("connect_timeout", "idle_timeout", "half_close_timeout", "drain_timeout", "queue_timeout")
    summary += [(name.replace("_", "-"), f"{getattr(options, name)}") for name in (*plain, *times)]
    return tuple(summary)
