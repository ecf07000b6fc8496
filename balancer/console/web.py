"""The second window, the shell: HTTP by h11 between the answers and a bounded number of clients.

RULES
- Knows connections and deadlines, not what is asked: `Answers` is given from outside.
- A stranger costs little: 32 clients at once (who has idled longest makes room for a newcomer), a head of 8 KiB, no body,
  5 s for a head to arrive and for an answer to be taken, one answer per client and turn of the loop.
- What arrives after a refusal is drained before the close: close() over unread bytes resets the connection, and the
  reset overtakes the answer.

    read --request--> write --taken--> read ...          (keep-alive, 75 s between two requests)
                        |  refused, or the client's last
                        +------------> linger --> closed
"""

import socket
from collections.abc import Callable

import h11

from balancer.console.answers import Answer, Answers, refusal
from balancer.eventloop.acceptor import Acceptor, Connections, ShortageLog
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer

CLIENT_LIMIT = 32
HEAD_LIMIT = 8192  # bytes
HEAD_DEADLINE = 5.0  # seconds from its first byte (or the accept) to the end of a head
TAKE_DEADLINE = 5.0  # seconds for the peer to take an answer
IDLE_LIMIT = 75.0  # seconds between two requests: longer than the usual scrape interval
LINGER_DEADLINE = 2.0  # seconds to drain what a refused client still sends
LINGER_BYTES = 256 * 1024


class Visitor:
    """One connection. `step` is what it is doing now."""

    def __init__(self, server: "WebServer", conn: socket.socket) -> None:
        self.server = server
        self.loop = server.loop
        self.conn = conn
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT - 1)
        self.step: Callable[[], None] = self.read
        self._out = b""
        self._request: h11.Request | None = None
        self._drained = 0
        self._closed = False
        self._timer: Timer = self.loop.call_later(HEAD_DEADLINE, self.close)
        self.loop.watch(conn.fileno(), self.on_event)

    def on_event(self, mask: int = 0) -> None:
        """The socket has something for us, or it is our turn again."""
        if self._closed:
            return
        try:
            self.step()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    # -- read

    def read(self) -> None:
        """Until a request is whole; BlockingIOError ends the wait for more."""
        while self.step == self.read and not self._closed:
            try:
                event = self.http.next_event()
            except h11.RemoteProtocolError as error:
                is_long = error.error_status_hint == 431
                sentence = (
                    f"a head has at most {HEAD_LIMIT} bytes"
                    if is_long
                    else f"not HTTP as it should be: {error}"
                )
                self.send(refusal(error.error_status_hint, sentence), last=True)
                return
            if event is h11.NEED_DATA:
                self.receive()
            elif isinstance(event, h11.Request):
                self._request = event
                if has_body(event):
                    self.send(self.refuse_body(event), last=True)
            elif isinstance(event, h11.EndOfMessage):
                self.reply()
            else:  # ConnectionClosed: the client has left between two requests
                self.close()

    def receive(self) -> None:
        # Never more than a head may have: h11 limits what is incomplete, and would take a long head that came whole.
        data = self.conn.recv(HEAD_LIMIT - len(self.http.trailing_data[0]))
        if data and self in self.server.idlers:
            del self.server.idlers[self]
            self.limit(HEAD_DEADLINE)
        self.http.receive_data(data)

    def reply(self) -> None:
        assert self._request is not None
        method, target = (
            part.decode("ascii", "replace") for part in (self._request.method, self._request.target)
        )
        self.send(self.server.answers.to(method, target, self.loop.now))

    def refuse_body(self, request: h11.Request) -> Answer:
        answer = self.server.answers.to(request.method.decode("ascii", "replace"), "/", self.loop.now)
        return answer if answer.status == 405 else refusal(413, "a question has no body")

    # -- write

    def send(self, answer: Answer, last: bool = False) -> None:
        """Begin to answer; `last`: this connection ends with it."""
        if self.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.close()
            return
        headers = list(answer.headers)
        if last or self.server.is_stopping:
            headers.append(("Connection", "close"))
        response = h11.Response(status_code=answer.status, headers=headers, reason=answer.reason.encode())
        parts = [self.http.send(response)]
        if self._request is None or self._request.method != b"HEAD":
            parts.append(self.http.send(h11.Data(data=answer.body)))
        parts.append(self.http.send(h11.EndOfMessage()))
        self._request = None
        self.server.idlers.pop(self, None)
        self._out = b"".join(part for part in parts if part)
        self.limit(TAKE_DEADLINE)
        self.step = self.write
        self.write()

    def write(self) -> None:
        while self._out:
            self._out = self._out[self.conn.send(self._out) :]
        if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
            self.rest()
        else:
            self.conn.shutdown(socket.SHUT_WR)
            self.limit(LINGER_DEADLINE)
            self.step = self.linger
            self.linger()

    def rest(self) -> None:
        """Between two requests; one that is here already has its turn after everybody else's."""
        self.http.start_next_cycle()
        if self.http.trailing_data[0]:
            self.limit(HEAD_DEADLINE)
        else:
            self.server.idlers[self] = None
            self.limit(IDLE_LIMIT)
        self.step = self.read
        self.loop.call_next_turn(self.on_event)

    # -- ends

    def linger(self) -> None:
        while self._drained < LINGER_BYTES and (data := self.conn.recv(16384)):
            self._drained += len(data)
        self.close()

    def dismiss(self) -> None:
        """No further request is wanted; the one under way is answered."""
        if self in self.server.idlers:
            self.close()

    def limit(self, seconds: float) -> None:
        """What is going on may take so long from now on."""
        self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.close)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self.server.idlers.pop(self, None)
        self.server.connections.discard(self)
        self.loop.forget(self.conn.fileno())
        self.loop.retire(self.conn.close)


class WebServer:
    """Serves the visitors of one listening socket that the master owns."""

    def __init__(self, loop: Loop, listener: socket.socket, answers: Answers, log: Log) -> None:
        self.loop = loop
        self.answers = answers
        self.is_stopping = False
        # Who is between two requests; who has idled longest comes first.
        self.idlers: dict[Visitor, None] = {}
        self.connections: Connections[Visitor] = Connections(
            CLIENT_LIMIT, self.connection_for, self.make_room
        )
        shortage = ShortageLog(loop, log, lambda: {"socket": "metrics"})
        self.acceptor = Acceptor(loop, self.connections.begin, shortage)
        self.acceptor.serve([listener])

    def connection_for(self, conn: socket.socket) -> Visitor:
        return Visitor(self, conn)

    def make_room(self) -> None:
        """Send away who has idled longest."""
        if self.idlers:
            next(iter(self.idlers)).close()

    def stop(self) -> None:
        """Accept nobody any more; answers under way are finished by their own deadlines."""
        self.is_stopping = True
        self.acceptor.serve([])
        for visitor in self.connections:
            visitor.dismiss()

    def is_empty(self) -> bool:
        return not self.connections


def has_body(request: h11.Request) -> bool:
    """Whether the head announces one (`Content-Length: 0` does not)."""
    headers = dict(request.headers)
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > 0
