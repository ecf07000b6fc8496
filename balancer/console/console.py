"""The console: the one process that tells and takes orders. Touches no traffic; its death costs nobody a byte.

RULES: one status for all workers of all generations (a balancer of many processes that shows only one of them cannot be
trusted); figures of processes are sampled once a second, here, never in the master.
"""

from collections.abc import Sequence
from typing import Any

from balancer import __version__
from balancer.console.admin import AdminServer
from balancer.console.commands import Commands
from balancer.console.processes import Processes
from balancer.console.status import snapshot, worker_pids
from balancer.pool.backend import Backend
from balancer.pool.board import Board
from balancer.prefork.child import Child

SAMPLE_EVERY = 1.0  # seconds


def run(child: Child, board: Board, backends: Sequence[Backend]) -> int:
    """Serve until told to go. Drains by finishing the answers under way, at most a few seconds."""
    processes = Processes()

    def sample() -> None:
        processes.sample(worker_pids(board))

    def status() -> dict[str, Any]:
        return snapshot(board, backends, __version__, child.loop.now, processes.of)

    commands = Commands(board, backends, child.loop, child.master_pid, status)
    servers = [
        AdminServer(child.loop, listener.sock, commands.handle, child.log)
        for listener in child.listeners.get(0, ())
    ]

    def leave_when_done() -> None:
        if any(server.clients for server in servers):
            child.loop.call_later(0.05, leave_when_done)
        else:
            child.loop.stop()

    def on_drain(deadline: float) -> None:
        for server in servers:
            server.stop()
        leave_when_done()

    child.on_drain = on_drain
    sample()
    child.loop.every(SAMPLE_EVERY, sample)
    where = ", ".join(str(listener.address) for listener in child.listeners.get(0, ()))
    child.title.set(f"console [{where}]", child.loop.now)
    child.ready()
    return child.run()
