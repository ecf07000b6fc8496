"""The console: the process that shows the state and takes commands. It touches no traffic.

RULES: one status for all workers of all generations; figures of processes are sampled once a second, here, never in the
master.
"""

from collections.abc import Callable, Iterable
from typing import Any

from balancer import __version__
from balancer.config.units import Address
from balancer.console.admin import AdminServer
from balancer.console.answers import Answers
from balancer.console.commands import Commands
from balancer.console.processes import Processes
from balancer.console.status import snapshot, worker_pids
from balancer.console.web import WebServer
from balancer.options import Options
from balancer.pool.board import Board
from balancer.prefork.child import Child
from balancer.prefork.sockets import ListeningSocket

SAMPLE_EVERY = 1.0  # seconds


def run(child: Child, options: Options, board: Board) -> int:
    """Serve until the drain, which finishes the answers under way, at most a few seconds. Returns the exit code."""
    processes = Processes()

    def sample() -> None:
        processes.sample(worker_pids(board))

    def status() -> dict[str, Any]:
        return snapshot(board, options, __version__, child.loop.now, processes.of)

    answers = Answers(child.loop, status)
    commands = Commands(board, options.pools, child.loop, child.master_pid, answers)
    admin = listening_at(options.process.admin_address, child)
    metrics = listening_at(options.process.metrics, child)
    servers: list[AdminServer | WebServer] = [
        AdminServer(child.loop, one.sock, commands.handle, child.log) for one in admin
    ]
    servers += [WebServer(child.loop, one.sock, answers, child.log) for one in metrics]
    child.on_drain = drain_of(child, servers)
    sample()
    child.loop.every(SAMPLE_EVERY, sample)
    where = ", ".join(str(one.address) for one in metrics or admin) or "off"
    child.title.set(f"console [{where}]", child.loop.now)
    child.ready()
    return child.run()


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


def listening_at(wanted: Address | None, child: Child) -> list[ListeningSocket]:
    """The console's listening sockets of one configured address. While a reload moves it, the sockets of both places are
    inherited: the old one is the old console's. Port 0 means the port that the kernel has chosen."""
    if wanted is None:
        return []
    mine = child.listening.get(0, ())
    exact = [one for one in mine if one.address == wanted]
    return exact or [
        one
        for one in mine
        if wanted.port == 0
        and (one.address.family, one.address.host) == (wanted.family, wanted.host)
        and wanted.family != "unix"
    ]
