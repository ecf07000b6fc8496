"""One side of a session that speaks TLS: a socket's bytes, through two memory BIOs.

    socket  --read-->  incoming  --decrypt-->  plaintext          plaintext  --encrypt-->  unsent  --write-->  socket

RULES
- Bounded: it reads no more from the socket before everything read is decrypted, and encrypts no more than one `write`
  holds before all of it is sent. What `write` returns is sent: a part of a record that the socket did not take counts
  with the call that sends it.
- Edge-triggered: `read` says "dry" only when the socket's short read is decrypted to the end, and reads on when no
  plaintext has come of it: a FIN behind it brings no second event.
- The end of the plaintext is the peer's close_notify. A FIN without it may have been forged by anybody on the way: it is
  an end all the same, and `is_truncated`.
- OpenSSL looks for the peer's close_notify while it sends ours, and breaks on data: whole records are read, and those
  that wait are taken out of its sight.
- Errors of TLS leave as OSError EPROTO, with OpenSSL's word in `fault`.
"""

import errno
from collections.abc import Callable
from contextlib import suppress
from os import read, write
from ssl import (
    MemoryBIO,
    SSLCertVerificationError,
    SSLContext,
    SSLError,
    SSLObject,
    SSLSession,
    SSLWantReadError,
    SSLZeroReturnError,
)

from balancer.eventloop.errnos import TRANSIENT
from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, URGENT, WRITE
from balancer.relay.half import LIMIT
from balancer.relay.sockets import reset_on_close, shut_writing, unacknowledged, write_last

LAST = READ_HANGUP | HANGUP | ERROR | URGENT
READABLE = READ | LAST
RECORD = 16_384  # bytes of plaintext in one, at most
MOST_CONTROL = LIMIT  # bytes of answers to key updates for a peer that asks and reads nothing


def words_of(error: SSLError) -> str:
    """Why a handshake has failed, for the log."""
    if isinstance(error, SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    return f"TLS: {(error.reason or 'broken message').lower().replace('_', ' ')}"


class TlsStream:
    """The plaintext of a TLS connection. `watch_writing(fd)` is called when bytes wait that no `write` is going to be
    called for: `flush` them when the socket has room."""

    __slots__ = (
        "_fd", "_held", "_incoming", "_is_dry", "_is_shutting", "_outgoing", "_plain", "_watch_writing", "fault",
        "has_ended", "is_truncated", "tls", "unsent",
    )  # fmt: skip

    fd: None = None  # for splice(2): the bytes of the socket are not those of the stream

    def __init__(
        self,
        fd: int,
        context: SSLContext,
        watch_writing: Callable[[int], object],
        server_name: str | None = None,
        session: SSLSession | None = None,
        is_server: bool = True,
    ) -> None:
        self._fd = fd
        self._watch_writing = watch_writing
        self._incoming, self._outgoing = MemoryBIO(), MemoryBIO()
        self.tls: SSLObject = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=is_server,
            server_hostname=server_name,
            session=session,
        )
        self.unsent = b""  # encrypted, and not taken by the socket
        self._held = 0  # bytes of plaintext in it that no `write` has returned as written
        self._plain = b""  # decrypted, and not returned by `read`
        self._is_dry = True  # the last read of the socket was a short one
        self._is_shutting = False  # FIN goes behind what is unsent
        self.has_ended = False  # the peer's close_notify, or its FIN
        self.is_truncated = False  # its FIN without close_notify, while this side was still open
        self.fault = ""

    # -- reading

    def read(self, size: int) -> tuple[bytes, bool]:
        """As Stream.read; returns a record's bytes or several records', up to `size`."""
        incoming = self._incoming
        if size == LIMIT and not (incoming.pending or self._plain or self.has_ended or self.fault):
            # The ordinary case: a short read with one record. The loop below does the same, at twice the cost.
            self.receive()
            if incoming.pending:
                try:
                    data = self.tls.read(RECORD)
                    if not data:
                        self._close_notified()
                except SSLError as error:
                    data = b""
                    self._not_read(error)
                if data and self._is_dry and not (incoming.pending or self._outgoing.pending):
                    return data, True
                self._plain = data
                if self._outgoing.pending:
                    self._answer()
        while True:
            if not incoming.pending and not self._plain:
                if self.has_ended:
                    return b"", True
                if self.fault:
                    raise OSError(errno.EPROTO, self.fault)
                self.receive()
            data = self._decrypt(size)
            if self._outgoing.pending:
                self._answer()
            if data:
                is_more = incoming.pending or self._plain or self.has_ended or self.fault
                return data, self._is_dry and not is_more
            if self.has_ended and not incoming.pending:
                return b"", True

    def receive(self) -> None:
        """Read the socket once. Raises OSError as read(2) does."""
        raw = read(self._fd, LIMIT)
        self._is_dry = len(raw) < LIMIT
        if raw:
            self._incoming.write(raw)
        else:
            self.has_ended = True
            self.is_truncated = not self._is_shutting

    def feed(self, data: bytes) -> None:
        """Take bytes of the peer that a phase has read."""
        self._incoming.write(data)

    @property
    def buffered(self) -> int:
        """Bytes that were read from the socket and not returned."""
        return self._incoming.pending + len(self._plain)

    @property
    def is_dry(self) -> bool:
        """Everything that was read is decrypted and taken, and the last read of the socket was a short one."""
        return self._is_dry and not self._incoming.pending and not self._plain

    def read_buffered(self, size: int) -> bytes:
        """Return plaintext that has arrived already, up to `size` bytes; what is wrong behind it raises with the next
        `read`."""
        try:
            return self._decrypt(size)
        except OSError:
            return b""

    def _decrypt(self, size: int) -> bytes:
        """Return up to `size` bytes of what is in `incoming`; a partial record stays with OpenSSL."""
        data, incoming = self._plain, self._incoming
        if data:
            self._plain = b""
        read_record = self.tls.read
        try:
            while len(data) < size and incoming.pending:
                record = read_record(RECORD)  # one record, whole
                if not record:
                    self._close_notified()
                    break
                data = data + record if data else record
        except SSLError as error:
            self._not_read(error)
            if self.fault and not data:
                raise OSError(errno.EPROTO, self.fault) from None
        if len(data) > size:
            data, self._plain = data[:size], data[size:]
        return data

    def _not_read(self, error: SSLError) -> None:
        """There is no whole record, or no record any more, or a wrong one."""
        if isinstance(error, SSLWantReadError):
            return
        if isinstance(error, SSLZeroReturnError):  # the close_notify, once ours is sent
            self._close_notified()
            return
        self.fault = error.reason or "bad record"
        self._answer()  # an alert

    def _close_notified(self) -> None:
        self.has_ended = True
        self._incoming.read()  # nothing behind it is the peer's

    def _answer(self) -> None:
        """Send what OpenSSL wants to say by itself: the answer to a key update, an alert."""
        self.unsent += self._outgoing.read()
        if not self._held:
            try:
                self.flush()
            except OSError:
                return  # the next read reports it
        if len(self.unsent) - self._held > MOST_CONTROL:
            self.fault = "asks for key updates and reads no answer"
            raise OSError(errno.EPROTO, self.fault)

    # -- writing

    def write(self, data: bytes) -> int:
        """As Stream.write. What was not taken has to be the beginning of the next call's data."""
        given = 0
        if self._held:
            given = self.flush()
            if self.unsent or given == len(data):
                return given
        self._encrypt(data[given:] if given else data)
        outgoing = self._outgoing.read()
        self._held = len(data) - given
        if self.unsent:
            self.unsent += outgoing
            return given + self.flush()
        return given + self._send(outgoing)

    def write_last(self, data: bytes) -> int:
        """As Stream.write_last: close_notify and FIN are behind the data."""
        if self.unsent or self._is_shutting:
            return self.write(data)
        self._encrypt(data)
        self._notify_close()
        self._held = len(data)
        return self._send(self._outgoing.read(), is_last=True)

    def _encrypt(self, data: bytes) -> None:
        try:
            sent = self.tls.write(data)
            while sent != len(data):
                sent += self.tls.write(memoryview(data)[sent:])
        except SSLError as error:
            self.fault = self.fault or error.reason or "closed"
            raise OSError(errno.EPROTO, self.fault) from None

    @property
    def is_held(self) -> bool:
        return self._held > 0

    def flush(self) -> int:
        """Write what is unsent; return how many bytes of plaintext count as written with it."""
        if self.unsent:
            return self._send(self.unsent)
        if self._is_shutting:
            shut_writing(self._fd)
        return 0

    def _send(self, unsent: bytes, is_last: bool = False) -> int:
        """As `flush`, of these bytes."""
        try:
            count = write_last(self._fd, unsent) if is_last else write(self._fd, unsent)
        except OSError as error:
            if error.errno not in TRANSIENT:
                self.unsent, self._held = b"", 0  # the peer takes nothing more
                raise
            count = 0
        held = self._held
        if count == len(unsent):
            self.unsent, self._held = b"", 0
            if self._is_shutting:
                shut_writing(self._fd)
            return held
        self.unsent = unsent[count:]
        if not held:
            self._watch_writing(self._fd)
            return 0
        given = held * count // len(unsent)
        self._held = held - given
        return given

    # -- the handshake

    def dial_on(self, mask: int) -> int | None:
        """`shake_hands` with a backend: None while it is under way, 0 when it is over, else the errno of its failure, of
        which `fault` may say more."""
        try:
            if self.shake_hands(mask):
                return 0
        except OSError as error:
            return errno.EPROTO if self.fault else error.errno or errno.EIO
        return errno.ECONNRESET if self.has_ended else None

    def shake_hands(self, mask: int) -> bool:
        """Go on with the handshake, of which the loop has reported `mask` since the last call, as far as the peer's bytes
        allow; return whether it is over. Raises SSLError when it has failed (the alert is sent), OSError when the
        connection has; `has_ended` says that the peer has left."""
        if mask & WRITE:
            self.flush()
        while True:
            if mask & READABLE:
                try:
                    self.receive()
                except OSError as error:
                    if error.errno in TRANSIENT:
                        return False
                    raise
            try:
                self.tls.do_handshake()
            except SSLWantReadError:
                self._send_handshake()
            except SSLError as error:
                self.fault = words_of(error)
                with suppress(OSError):  # it has gone
                    self._send_handshake()
                raise
            else:
                # Tickets leave at once. With the first answer they would cost no segment of their own, but a client that
                # has not set TCP_NODELAY holds its request back until the segment before it is acknowledged: 40 ms
                # without an answer.
                self._send_handshake()
                return True
            if self.has_ended or not mask & READABLE or (self._is_dry and not mask & LAST):
                return False

    def _send_handshake(self) -> None:
        self.unsent += self._outgoing.read()
        self.flush()

    # -- ends

    def shut(self) -> None:
        """Send close_notify and FIN, behind everything else."""
        if self._is_shutting:
            return
        self._notify_close()
        self.unsent += self._outgoing.read()
        with suppress(OSError):  # the peer is gone: the next read reports it
            self.flush()

    def _notify_close(self) -> None:
        self._is_shutting = True
        waiting = self._incoming.read()
        try:
            self.tls.unwrap()
        except SSLError:
            pass  # it wants to read the peer's, which comes in its own time; or the connection is broken
        if waiting:
            self._incoming.write(waiting)

    def reset(self) -> None:
        """A reset says no close_notify: the peer can tell that this is no end."""
        reset_on_close(self._fd)

    def unacknowledged(self) -> int:
        return unacknowledged(self._fd)
