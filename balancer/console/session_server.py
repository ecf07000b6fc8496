"""What a worker tells the console of its sessions, over a unix socket of its own; runs in the worker.

RULES
- The socket's name is abstract and follows from the pids of master and worker: nothing to clean up, and the board says
  all of it. The console's own rules of who may ask hold here too (console/admin.py).
- A list or a kill is done in slices of sessions, one a turn of the loop, so that no client waits longer than 5 ms for it.
  Measured with 20,000 sessions on 4 workers (November 2026): 1.8 ms of CPU for the longest turn of a list, 2 ms for one
  of a kill, which has the ends of its sessions to do as well (4.7 ms in slices of 128).
- A session is one JSON object and a comma: the console puts the workers' lists together without reading them.

    sessions FILTERS  ->  {...},{...},       kill FILTERS  ->  {"closed": 3}

A session: {"id", "client", "via", "sni", "listener", "pool", "backend", "state", "age_s", "idle_s", "in", "out",
"retries", "requests", "pid"}; `backend` is the session's, or with commas those of the requests of a framed client, which
a kill by backend closes whole; `requests` is {"under_way", "done"} of a framed client, else null; `state` is queued,
waiting (for first bytes), dialling, relaying, half-closed or framed; `idle_s` is exact to a second.
"""

import json
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from itertools import islice
from os import getpid
from typing import Any

from balancer.console.admin import AdminConnection, AdminServer
from balancer.pool.backend import Backend
from balancer.prefork.child import Child
from balancer.relay import ends
from balancer.relay.context import WorkerContext
from balancer.relay.framed.client import FramedClient
from balancer.relay.peers import DescribedPeer, peer_name, server_name
from balancer.relay.session import Session
from balancer.relay.session_line import session_id
from balancer.relay.timeouts import is_half_closed

SLICE = 128  # sessions a turn, of a list
KILL_SLICE = 48  # of a kill
BACKLOG = 8
FILTERS = ("id", "pool", "backend", "client", "older")


def worker_address(master_pid: int, pid: int) -> str:
    """The name of a worker's socket."""
    return f"\0prefork-balancer/{master_pid}/{pid}"


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions are meant; what is empty says nothing. `backend` is NAME or POOL/NAME, `client` an address or a
    network, `older` seconds."""

    id: str = ""
    pool: str = ""
    backend: str = ""
    client: str = ""
    older: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "SessionFilter":
        """What `text` has written."""
        return cls(**json.loads(text))

    def text(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def matches(self, session: Session, now: float) -> bool:
        """Whether a session is meant."""
        return (
            not session.closed
            and now - session.accepted_at >= self.older
            and (not self.id or session_id(session) == self.id)
            and (not self.pool or session.lane.pool_name == self.pool)
            and (not self.backend or any(self.backend in one.spellings() for one in backends_of(session)))
            and (not self.client or is_within(session.source_ip, self.client))
        )


def backends_of(session: Session) -> list[Backend]:
    """Those that a session is with: one, or in framed mode those of its client's requests, each once."""
    client = session.splicing
    found = (
        [one.backend for one in client.requests] if isinstance(client, FramedClient) else [session.backend]
    )
    return list(dict.fromkeys(one for one in found if one is not None))


def requests_of(session: Session) -> dict[str, int] | None:
    """The requests of a framed client: under way, and answered."""
    client = session.splicing
    if not isinstance(client, FramedClient):
        return None
    return {"under_way": len(client.requests), "done": client.served}


_network = lru_cache(8)(lambda text: ip_network(text, strict=False))  # each session asks for the same


def is_within(address: str, network: str) -> bool:
    """Whether a client's address is in a network or is that address; a unix socket's is in none."""
    return bool(address) and ip_address(address.partition("%")[0]) in _network(network)


def state_of_session(session: Session) -> str:
    """The word for what a session does now."""
    if isinstance(session.splicing, FramedClient):
        return "framed"
    if session.backend is None:
        return "queued" if session in session.lane.queue.since else "waiting"
    if not session.connected_at:
        return "dialling"
    return "half-closed" if is_half_closed(session) else "relaying"


def describe_session(session: Session, now: float) -> dict[str, Any]:
    """A session as the module's head says."""
    activity, peer = session.activity, session.peer
    bytes_in, bytes_out = session.given()
    return {
        "id": session_id(session),
        "client": session.peer_name(),
        "via": peer_name(peer.via) if isinstance(peer, DescribedPeer) and peer.via is not None else None,
        "sni": server_name(peer) or None,
        "listener": session.lane.listener_name,
        "pool": session.lane.pool_name,
        "backend": ",".join(one.name for one in backends_of(session)) or None,
        "state": state_of_session(session),
        "age_s": round(now - session.accepted_at, 3),
        "idle_s": round(now - (activity.last_activity if activity is not None else session.accepted_at), 3),
        "in": bytes_in,
        "out": bytes_out,
        "retries": session.retries,
        "requests": requests_of(session),
        "pid": getpid(),
    }


class SessionServer:
    """Answers the console in one worker."""

    def __init__(self, child: Child, context: WorkerContext[Session]) -> None:
        self._loop, self._sessions, self._log = child.loop, context.sessions, child.log
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(worker_address(child.master_pid, getpid()))
        self._socket.listen(BACKLOG)
        self.server = AdminServer(child.loop, lambda: [self._socket], self.handle, child.log)

    def handle(self, words: list[str], reply: AdminConnection) -> None:
        """Begin to answer one question of the console."""
        verb, text = words
        meant = SessionFilter.parse(text)
        sessions = iter(list(self._sessions))
        if verb == "kill":
            self._step(reply, lambda: self._kill(meant, sessions, reply, 0))
        else:
            self._step(reply, lambda: self._list(meant, sessions, reply))

    def _step(self, reply: AdminConnection, act: Callable[[], object]) -> None:
        """Do a slice. A defect in it costs the answer, and not the worker with all its sessions."""
        try:
            act()
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            self._log.error("fault", traceback=text, then="leave the console's question")
            reply.connection.close("fault")

    def _list(self, meant: SessionFilter, sessions: Iterator[Session], reply: AdminConnection) -> None:
        """Write a slice; the next one follows in the next turn, once the console has taken this one."""
        now, connection = self._loop.now, reply.connection
        some = list(islice(sessions, SLICE))
        found = [describe_session(one, now) for one in some if meant.matches(one, now)]
        if found:
            connection.write((json.dumps(found, separators=(",", ":")).encode()[1:-1] + b",",))
        if some:
            self._later(reply, lambda: self._list(meant, sessions, reply))
            connection.flush()
        else:
            reply.send_bytes(b"\n")

    def _kill(
        self, meant: SessionFilter, sessions: Iterator[Session], reply: AdminConnection, closed: int
    ) -> None:
        now = self._loop.now
        some = list(islice(sessions, KILL_SLICE))
        for session in some:
            if meant.matches(session, now):
                session.close(ends.KILLED, "operator")
                closed += 1
        if some:
            self._later(reply, lambda: self._kill(meant, sessions, reply, closed))
        else:
            reply.send({"closed": closed})

    def _later(self, reply: AdminConnection, act: Callable[[], object]) -> None:
        self._loop.call_next_turn(lambda: self._step(reply, act))
