"""The plan of the resizer for the prefork machine: fronts, CPU processes and their channels.

RULES: glue only, in the master. It maps no memory for pictures: what it had, every process would inherit.
"""

import functools
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace

from balancer import __version__
from balancer.config.option import ConfigError
from balancer.config.usage import summary
from balancer.eventloop.log_format import LogSettings
from balancer.prefork.bind import Bind
from balancer.prefork.plan import Plan, Role
from balancer.shm.layout import Shared
from workers.resizer import counters, cpu, front
from workers.resizer.arena import Arena
from workers.resizer.options import ResizerOptions, parse_resizer


class ResizerService:
    """The service that run_master runs; `plan` is called at boot and at every reload."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.argv = list(argv)
        self.environ = dict(environ)

    def plan(self, shared: Shared | None) -> Plan:
        """Read the configuration and return the plan. Raises ConfigError with one sentence that names the option."""
        options = parse_resizer(self.argv, self.environ)
        try:
            Arena(options.slots, options.slot_bytes)  # as each front will; unmapped again at once
        except OSError as error:
            gigabytes = options.slots * options.slot_bytes / (1 << 30)
            wanted = f"{options.slots} requests of max-frame ({gigabytes:.1f} GiB)"
            sentence = f"no address space for {wanted}: {error.strerror}; lower max-frame or queue"
            raise ConfigError(sentence) from None
        return make_plan(options, shared)

    def retired(self, generation: int) -> None:
        """Nothing to do."""


def make_plan(options: ResizerOptions, shared: Shared | None) -> Plan:
    """The plan of one generation."""
    work = functools.partial(cpu.run, options=options)
    describe = functools.partial(read_status, shared, options.name)
    serve = functools.partial(front.run, options=options, describe=describe)
    listen = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
    return Plan(
        title=f"resizer {options.name}",
        roles=(
            Role("front", options.fronts, serve),
            # A CPU process has no heartbeat inside a decoder: its front kills it at the picture's deadline instead.
            Role("cpu", options.cpus, work, hang_after=0, channel=True),
            Role("express", options.fronts, work, hang_after=0, channel=True),
        ),
        binds=tuple(
            Bind(
                "front", address, backlog=options.backlog, options=listen if address.family != "unix" else ()
            )
            for address in options.addresses
        ),
        columns=counters.COLUMNS,
        totals=counters.TOTALS,
        drain_timeout=options.drain_timeout,
        config_path=os.path.abspath(options.config) if options.config else "",
        log_path=options.log,
        log=LogSettings(options.loglevel, options.log_format, options.log_sessions),
        pidfile=options.pidfile,
        user=options.user,
        group=options.group,
        debug_dir=options.debug_dir if options.debug else None,
        # A further front would own no CPU process.
        most=options.fronts,
        summary=tuple(summary(options)),
        notes=options.notes,
        made_from=replace(options, notes=()),
    )


def read_status(shared: Shared | None, name: str) -> dict[str, object]:
    """The document of GET /status, read from the shared table."""
    if shared is None:
        return {}
    return shared.rows.consistent_read(lambda: counters.status_document(shared, name, __version__))
