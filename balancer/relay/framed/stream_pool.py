"""The connections of a pool in framed mode whose clients or backends speak TLS, in one worker: see connection_pool.py."""

from typing import Any

from balancer.edge.backend_tls import BackendTls
from balancer.relay.framed.connection import BackendConnection
from balancer.relay.framed.connection_pool import ConnectionPool
from balancer.relay.framed.requests import FramedRequest
from balancer.relay.framed.stream_connection import StreamConnection


class StreamConnectionPool(ConnectionPool):
    """`tls`: of the handshakes with the backends; None where the clients alone speak TLS."""

    _connection_type = StreamConnection

    def __init__(self, tls: BackendTls | None, *rest: Any) -> None:
        super().__init__(*rest)
        self.tls = tls

    def begin(self, request: FramedRequest) -> None:
        if self.queue.since:
            self.queue.enqueue(request, self.queue.why)
            return
        place = self._elect(request.owner.source_ip, self.loop.now)
        if place >= 0:
            kept = self._kept[place]
            request.backend = kept.backend
            if self._carry(request, kept):
                return
        self.dispatch(request)

    def handshake_failed(
        self, request: FramedRequest, connection: BackendConnection, code: int, fault: str
    ) -> None:
        """A handshake has failed: to a request that is a failed dial. `fault` says why where TLS knows."""
        backend = connection.kept.backend
        if fault:
            self._context.log_failed_handshake(backend.identity, fault)
        self._later(None, backend)
        if self._may_elect_again(request, backend, code, fault):
            self.dispatch(request)
