"""One check: connects to one backend without blocking, has the talk of its protocol, calls `done` with the outcome.

A process that is out of descriptors, and a proxy whose own backend is gone, accept and close at once: connect(2) says
nothing of it. So without a talk the connection is kept for STAYS. A first byte (a banner) ends the wait.

    connect --+-- no talk: stays for STAYS, or brings a byte --> ok
              '-- talk (talk.py): send, receive, ... --> outcome --+-- the service closes: its end, or FAREWELL --> done
                                                                  '-- else --> done

A backend that expects a PROXY header gets one before all else, so that its log has no complaint about a missing one.

RULES: knows sockets and the loop, nothing of verdicts and nothing of protocols. Every probe ends in exactly one call of
`done`, also when its time limit ends it; it holds one descriptor for as long as it lasts.
"""

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from balancer.checks.talk import MOST_BYTES, Dialogue
from balancer.edge.proxy_protocol import Endpoint, SendProxy, endpoint_of, write_v1, write_v2
from balancer.eventloop.errnos import CAPACITY, CROWDED, REFUSED, UNREACHABLE
from balancer.eventloop.loop import Loop
from balancer.eventloop.timers import Timer
from balancer.pool.targets import Target

STAYS = 0.1  # seconds that a connection must stay open; no more than the time limit leaves
FAREWELL = 1.0  # seconds that a service has to close after the last word; no more than the time limit leaves
MOST_READS = 16  # at once, of a service that goes on after the last word


class ProbeStream(Protocol):
    """The plaintext of a TLS connection that we have begun."""

    fault: str
    has_ended: bool

    def shake_hands(self, mask: int) -> bool: ...
    def read(self, size: int) -> tuple[bytes, bool]: ...
    def write(self, data: bytes) -> int: ...
    def shut(self) -> None: ...


Secure = Callable[[int], ProbeStream]  # of a connected descriptor

# (outcome, seconds, what came instead): "ok" or another of board.CHECK_NAMES, "" = the check could not be made
Done = Callable[[str, float, str], object]


def outcome_of(error: int) -> str:
    """The word for the errno that connect() gave."""
    if error == 0:
        return "ok"
    if error in CAPACITY or error in CROWDED:
        return ""
    if error == errno.ETIMEDOUT:
        return "timeout"
    return "refused" if error in REFUSED else "unreachable" if error in UNREACHABLE else "error"


def check_header(send: SendProxy, sock: socket.socket) -> bytes:
    """Return the PROXY header of a check: LOCAL in version 2. Version 1 has no such word but UNKNOWN, from which the
    specification dissuades (section 2.1), so it names the two ends of the connection."""
    if send.version == 2:
        return write_v2(None, None)
    own, there = _endpoint(sock.getsockname()), _endpoint(sock.getpeername())
    return write_v1(own, there)


def _endpoint(address: object) -> Endpoint | None:
    return endpoint_of(address) if isinstance(address, tuple) else None


def fault_words(fault: str) -> str:
    """A fault of TLS for people, whole: OpenSSL's sentence. Behind the handshake a fault comes as a symbol."""
    return fault if ": " in fault else f"TLS: {fault.lower().replace('_', ' ')}"


class Probe:
    """A connect under way, then its connection. Without a talk the peer sees one that is closed without a byte, or with a
    PROXY header alone when the pool sends one."""

    def __init__(
        self,
        loop: Loop,
        target: Target,
        timeout: float,
        done: Done,
        send_proxy: SendProxy | None = None,
        dialogue: Dialogue | None = None,
        make_socket: Callable[[int, int], socket.socket] = socket.socket,
        secure: Secure | None = None,
    ) -> None:
        self._loop = loop
        self._secure = secure
        self._stream: ProbeStream | None = None
        self._is_shaking = False  # the handshake is unfinished
        self._done = done
        self._send_proxy = send_proxy
        self._dialogue = dialogue
        self._begun = loop.now
        self._deadline = loop.now + timeout
        self._took = -1.0  # seconds until the connect, or until the outcome of the talk
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        family, address = target
        try:
            sock = make_socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as failure:
            self._end(outcome_of(failure.errno or 0) if failure.errno in CAPACITY else "error")
            return
        self._sock = sock
        error = sock.connect_ex(address)
        if error not in (0, errno.EINPROGRESS):
            sock.close()
            self._sock = None
            self._end(outcome_of(error))
            return
        loop.watch(sock.fileno(), self._on_event)
        if error:
            self._timer = loop.call_at(self._deadline, self._on_timeout)
        else:
            self._on_event(0)

    @property
    def is_over(self) -> bool:
        """`done` was called, or the probe was abandoned."""
        return self._sock is None

    def abandon(self) -> None:
        """Give up without an answer; `done` is not called."""
        self._release()

    def _on_event(self, mask: int) -> None:
        if self._sock is None:
            return
        if self._took < 0:
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            # ECONNRESET is a reset behind a connect that has succeeded; one that is refused gives ECONNREFUSED.
            if error not in (0, errno.ECONNRESET):
                self._end(outcome_of(error))
                return
            self._connected()
        if self._is_shaking and not self._shake_hands(mask):
            return
        if self._dialogue is None:
            self._look()
        else:
            self._converse(self._dialogue)

    def _connected(self) -> None:
        self._took = self._loop.now - self._begun
        if self._send_proxy is not None:
            assert self._sock is not None
            with suppress(OSError):  # the peer has gone already, which the first read finds
                self._sock.send(check_header(self._send_proxy, self._sock))
        if self._secure is None:
            self._begin()
            return
        assert self._sock is not None
        self._stream = self._secure(self._sock.fileno())
        self._is_shaking = True
        self._wait_until(self._deadline, self._on_timeout)

    def _shake_hands(self, mask: int) -> bool:
        """Go on with the handshake; return whether it has succeeded."""
        stream = self._stream
        assert stream is not None
        try:
            self._is_shaking = not stream.shake_hands(mask)
        except OSError:
            self._end("tls" if stream.fault else "closed")
            return False
        if self._is_shaking:
            if stream.has_ended:
                self._end("closed")
            return False
        self._took = self._loop.now - self._begun
        self._begin()
        return True

    def _begin(self) -> None:
        """The connection is there. With TLS it is not to be believed yet: a peer that refuses our certificate says so
        behind its own end of the handshake (TLS 1.3)."""
        if self._dialogue is None:
            self._wait_until(self._loop.now + STAYS, self._on_stayed)
        else:
            self._wait_until(self._deadline, self._on_timeout)
            self._say(self._dialogue.advance())

    def _receive(self, size: int, flags: int = 0) -> bytes:
        """As recv(2), of the plaintext where there is TLS."""
        assert self._sock is not None
        return self._sock.recv(size, flags) if self._stream is None else self._stream.read(size)[0]

    def _wait_until(self, when: float, act: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(min(when, self._deadline), act)

    # -- without a talk

    def _look(self) -> None:
        """End with what the peer has done since the connect, if anything."""
        assert self._sock is not None
        try:
            data = self._receive(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        refused = self._stream is not None and self._stream.fault
        self._end("ok" if data else "tls" if refused else "closed")

    def _on_stayed(self) -> None:
        self._end("ok")

    # -- a talk

    def _converse(self, dialogue: Dialogue) -> None:
        """Read until nothing is left; the socket is edge-triggered. After the outcome only the end is waited for."""
        assert self._sock is not None
        was_reset = False
        for _ in range(MOST_READS):
            try:
                data = self._receive(MOST_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data, was_reset = b"", True
            if not data:
                dialogue.ended(was_reset)
                break
            if not dialogue.outcome:
                self._say(dialogue.advance(data))
                if dialogue.outcome:
                    self._took = self._loop.now - self._begun
                    self._wait_until(self._loop.now + FAREWELL, self._on_farewell)
            if dialogue.outcome and not dialogue.is_closed_by_peer:
                break
        self._on_farewell()

    def _say(self, words: bytes) -> None:
        """A talk's words are few and find room in an empty socket; what does not fails the check by its time limit."""
        assert self._sock is not None
        if words:
            with suppress(OSError):  # its end comes as an event
                if self._stream is None:
                    self._sock.send(words)
                else:
                    self._stream.write(words)

    def _on_farewell(self) -> None:
        assert self._dialogue is not None
        self._end(self._dialogue.outcome)

    def _on_timeout(self) -> None:
        self._end("timeout")

    def _end(self, outcome: str) -> None:
        self._release()
        is_ok = outcome == "ok"
        came = self._dialogue.came() if self._dialogue is not None and not is_ok else ""
        if self._stream is not None and self._stream.fault:
            came = fault_words(self._stream.fault)
        self._done(outcome, self._took if is_ok else self._loop.now - self._begun, came)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock is not None:
            if self._stream is not None and not self._is_shaking:
                self._stream.shut()  # without a close_notify a server logs an unexpected end
            self._loop.forget(self._sock.fileno())
            self._loop.retire(self._sock.close)
            self._sock = None
