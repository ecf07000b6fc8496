"""The console: the process that shows the state and takes commands. It touches no traffic.

RULES: one status for all workers of all generations; figures of processes are sampled once a second, here, never in the
master.
"""

import os
import resource
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from balancer import __version__
from balancer.config.units import Address
from balancer.console.admin import AdminServer
from balancer.console.answers import Answers, makers_for
from balancer.console.certificates import describe_certificates, warn_of_expiry
from balancer.console.commands import Commands
from balancer.console.events import describe_events
from balancer.console.processes import Processes
from balancer.console.status import Identity, former_master, roles_by_pid, snapshot
from balancer.console.web import WebServer
from balancer.edge.certificates import calendar_time
from balancer.options import Listener, Options
from balancer.pool.board import Board
from balancer.prefork.child import Child
from balancer.prefork.sockets import ListeningSocket
from balancer.web.history import STEP

if TYPE_CHECKING:
    from balancer.console.acts import PageActs
    from balancer.console.history import Sampler
    from balancer.console.pages import Pages

SAMPLE_EVERY = 1.0  # seconds
WARN_EVERY = 86_400.0


def as_bound(listener: Listener, child: Child) -> Listener:
    """The listener with the ports that the kernel has chosen."""
    return replace(listener, addresses=child.addresses.get(listener.name, listener.addresses))


def run(child: Child, options: Options, board: Board) -> int:
    """Serve until the drain, which finishes the answers under way, at most a few seconds. Returns the exit code."""
    options = replace(options, listeners=tuple(as_bound(one, child) for one in options.listeners))
    processes = Processes()
    config = options.process.config
    max_fds = resource.getrlimit(resource.RLIMIT_NOFILE)[
        0
    ]  # inherited from the master, as every process does
    identity = Identity(__version__, socket.gethostname(), os.path.abspath(config) if config else "", max_fds)

    def sample() -> None:
        processes.sample(roles_by_pid(board))

    def status() -> dict[str, Any]:
        return snapshot(board, options, identity, child.loop.now, processes.of)

    def events() -> dict[str, Any]:
        return describe_events(board, 0, child.loop.now)

    admin_address, metrics_address = options.process.admin_address, options.process.metrics
    pages = None if metrics_address is None else pages_of(child, options, board, status)
    pool_names = [pool.name for pool in options.pools]
    makers = makers_for(pool_names, events, pages.paths() if pages else None)
    answers = Answers(child.loop, status, makers, pages.since if pages else None)
    commands = Commands(
        board, options, child.loop, child.master_pid, answers, child.log, child.row,
        former=partial(former_master, board, processes.of),
    )  # fmt: skip
    acts = acts_of(child, options, commands, answers)
    servers: list[AdminServer | WebServer] = []
    if admin_address is not None:
        sockets = sockets_at(admin_address, child)
        servers.append(AdminServer(child.loop, sockets, commands.handle, child.log))
    if metrics_address is not None and pages is not None:
        servers.append(
            WebServer(
                child.loop, sockets_at(metrics_address, child), answers, child.log, pages.canonical, acts
            )
        )
    child.on_drain = drain_of(child, servers)
    child.on_new_sockets = refresh_of(servers)
    sample()
    child.loop.every(SAMPLE_EVERY, sample)
    look_at_expiry(child, options, board)
    child.loop.every(WARN_EVERY, partial(look_at_expiry, child, options, board))
    child.title.set(f"console [{place_of(child, metrics_address or admin_address)}]", child.loop.now)
    child.ready()
    return child.run()


def pages_of(child: Child, options: Options, board: Board, status: Callable[[], dict[str, Any]]) -> "Pages":
    """The pages over HTTP, and their history, which is sampled from now on. Imported only where there is a web server:
    in every process their code is half a megabyte."""
    from balancer.console.history import Sampler
    from balancer.console.pages import Pages
    from balancer.pool.kept_history import things_of
    from balancer.web.history import History

    sampler = Sampler(History(board.history), things_of(options.listeners, options.pools))
    remember(child, sampler, status)
    child.loop.every(STEP, partial(remember, child, sampler, status))
    names, has_acts = frozenset(view_names(options)), options.process.metrics_admin_token is not None
    epoch = f"{os.getpid()}.{int(child.loop.now * 1000)}"
    return Pages(sampler, names, epoch, lambda: child.loop.now, has_acts)


def acts_of(child: Child, options: Options, commands: Commands, answers: Answers) -> "PageActs | None":
    """What takes the acts of the page, imported only where there is a token for them."""
    if (token := options.process.metrics_admin_token) is None:
        return None
    from balancer.console.acts import PageActs

    views = frozenset(view_names(options))
    return PageActs(child.loop, token.digest, views, commands.handle, answers.outdate, child.log)


def remember(child: Child, sampler: "Sampler", status: Callable[[], dict[str, Any]]) -> None:
    """Take a sample of the state."""
    sampler.sample(status(), child.loop.now)


def look_at_expiry(child: Child, options: Options, board: Board) -> None:
    """A line for each certificate that expires soon."""
    warn_of_expiry(child.log, describe_certificates(board, options.listeners, options.pools, calendar_time()))


def view_names(options: Options) -> list[str]:
    """The names of the views of one listener or pool."""
    return [f"listener/{one.name}" for one in options.listeners] + [
        f"pool/{one.name}" for one in options.pools
    ]


def drain_of(child: Child, servers: Iterable[AdminServer | WebServer]) -> Callable[[float], None]:
    """What a drain does: accept no more clients, end once the last one is served."""

    def leave_when_done() -> None:
        if all(server.is_empty() for server in servers):
            child.loop.stop()
        else:
            child.loop.call_later(0.05, leave_when_done)

    def on_drain(deadline: float) -> None:
        for server in servers:
            server.stop()
        leave_when_done()

    return on_drain


def refresh_of(servers: Iterable[AdminServer | WebServer]) -> Callable[[], None]:
    """What new sockets do: they are accepted from, too."""

    def on_new_sockets() -> None:
        for server in servers:
            server.refresh()

    return on_new_sockets


def sockets_at(wanted: Address, child: Child) -> Callable[[], list[socket.socket]]:
    """The listening sockets of one address that there are by the time of the call."""
    return lambda: [one.sock for one in listening_at(wanted, child)]


def place_of(child: Child, wanted: Address | None) -> str:
    """Where the console listens, for its title."""
    found = [] if wanted is None else listening_at(wanted, child)
    return str(found[0].address) if found else "off"


def listening_at(wanted: Address, child: Child) -> list[ListeningSocket]:
    """The console's listening sockets of one configured address. While a reload moves it, the sockets of both places are
    inherited: the old one is the old console's. Port 0 means the port that the kernel has chosen."""
    mine = child.listening.get(0, ())
    exact = [one for one in mine if one.address == wanted]
    return exact or [
        one
        for one in mine
        if wanted.port == 0
        and (one.address.family, one.address.host) == (wanted.family, wanted.host)
        and wanted.family != "unix"
    ]
