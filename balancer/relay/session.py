"""A session: a client, a backend, the fast path between them, and the one closer.

RULES: nearly every session is plain all its life: what is read is written at once and whole, each side says FIN when it
has finished, and two sums are the whole accounting. Nothing is pending here, nobody is reset, nothing is spliced.
Whatever else happens (a write falls short or fails, a read fails, many bytes at once, an event that says more than
bytes and FIN) goes to the splicing relay, which takes over for good. Two flows for everybody were 30,000 of
105,000 user instructions of a connection that carries one small request.

Everything ends in `close`, with an end and a reason, exactly once. Holds no reference that leads back to itself once it
is closed (the collector is off in workers).
"""

import errno
from os import read, write

from balancer.eventloop.errnos import TRANSIENT
from balancer.eventloop.loop import ERROR, READ, READ_HANGUP, URGENT, WRITE
from balancer.relay import ends
from balancer.relay.dial import Dial
from balancer.relay.flow import BULK
from balancer.relay.half import LIMIT
from balancer.relay.sockets import PROMPT, apply, shut_writing
from balancer.relay.splicing import BACKEND, CLIENT, LAST, READABLE, SplicingRelay

_UNUSUAL = ERROR | URGENT
MAX_EARLY_READ_BACKOFF = (
    31  # near dials in a row that are not tried at once: looking for what is not there costs 2 us
)


class Session(Dial):
    """One client connection plus its backend connection."""

    __slots__ = ()

    # -- the beginning

    def relay_at_once(self) -> bool:
        """Straight after connect(2): give the backend what the client has said. False when one of them is not so far;
        True also for a client that turns out to be gone."""
        hub = self.hub
        data = self.first
        if not data:
            if hub.early_read_skips:
                hub.early_read_skips -= 1
                return False
            try:
                data = read(self.client_fd, LIMIT)
            except OSError as error:
                if error.errno not in TRANSIENT:
                    # A reset is told once: the loop would see an end only.
                    self.close(ends.CLIENT_LEFT_CONNECTING)
                    return True
                data = b""
            if not data:  # nothing yet; or an end, which the loop will tell again
                hub.early_read_skips = hub.early_read_backoff
                hub.early_read_backoff = min(2 * hub.early_read_backoff + 1, MAX_EARLY_READ_BACKOFF)
                return False
            hub.early_read_backoff = 0
        try:
            sent = write(self.backend_fd, data)
        except OSError:  # not connected yet, or refused: the loop will tell
            self.first = data
            return False
        loop = hub.loop
        self.connected_at = loop.now
        self.first = b""
        loop.watch_reading(self.backend_fd, self.on_backend)
        # Either way the loop tells what is left of the client's, be it an end or the rest of a big read.
        if self.is_watched:
            loop.set_handler(self.client_fd, self.on_client_again)
            loop.rearm(self.client_fd)
        else:
            self.is_watched = True
            loop.watch_reading(self.client_fd, self.on_client_again)
        if sent == len(data):
            self.bytes_in = sent
        else:
            self.take_over().write_failed(self.client_fd, data, sent, None)
        return True

    def connected(self, mask: int) -> None:
        self.connected_at = self.hub.loop.now
        self.hub.loop.set_handler(self.client_fd, self.on_client)
        self._be_prompt()
        if self.first:
            self._give_first()
        if self.early & READABLE and not self.closed:
            (self.splicing or self).on_client(self.early)
        if mask & READABLE and not self.closed:
            (self.splicing or self).on_backend(mask & ~WRITE)

    def on_client_again(self, mask: int) -> None:
        """The second that a client says to a near backend. Its end alone is said without delay anyway, so a connection
        that carries one request does without the option and its system call."""
        if not mask & READ_HANGUP:
            self.hub.loop.set_handler(self.client_fd, self.on_client)
            self._be_prompt()
        self.on_client(mask)

    def _be_prompt(self) -> None:
        """From now on a small write does not wait for the acknowledgement of the one before it."""
        if self.is_tcp and not self.is_prompt and self.backend_socket is not None:
            self.is_prompt = True
            apply(self.backend_socket, PROMPT)

    def _give_first(self) -> None:
        data, self.first = self.first, b""
        try:
            sent = write(self.backend_fd, data)
        except OSError as error:
            self.take_over().write_failed(self.client_fd, data, 0, error)
            return
        if sent == len(data):
            self.bytes_in = sent
        else:
            self.take_over().write_failed(self.client_fd, data, sent, None)

    # -- handlers while relaying

    # One is the mirror of the other, written out: a call more would cost every message 0.1 us.

    def on_client(self, mask: int) -> None:
        if (mask != READ and mask & _UNUSUAL) or self.over == CLIENT:
            self.take_over().on_client(mask)
            return
        try:
            data = read(self.client_fd, LIMIT)
        except OSError as error:
            self._read_failed(self.client_fd, error)
            return
        if not data:
            self._ended(CLIENT)
            return
        try:
            sent = write(self.backend_fd, data)
        except OSError as error:
            self.take_over().write_failed(self.client_fd, data, 0, error)
            return
        if sent != len(data):
            self.take_over().write_failed(self.client_fd, data, sent, None)
            return
        self.bytes_in += sent
        if sent >= BULK or (mask != READ and mask & LAST):
            self._look_behind(CLIENT, sent, mask)

    def on_backend(self, mask: int) -> None:
        if (mask != READ and mask & _UNUSUAL) or self.over == BACKEND:
            self.take_over().on_backend(mask)
            return
        if mask == WRITE:  # a far backend's: its dial waited for room
            return
        try:
            data = read(self.backend_fd, LIMIT)
        except OSError as error:
            self._read_failed(self.backend_fd, error)
            return
        if not data:
            self._ended(BACKEND)
            return
        try:
            sent = write(self.client_fd, data)
        except OSError as error:
            self.take_over().write_failed(self.backend_fd, data, 0, error)
            return
        if sent != len(data):
            self.take_over().write_failed(self.backend_fd, data, sent, None)
            return
        self.bytes_out += sent
        if sent >= BULK or (mask != READ and mask & LAST):
            self._look_behind(BACKEND, sent, mask)

    def _read_failed(self, source_fd: int, error: OSError) -> None:
        if error.errno != errno.EAGAIN:
            self.take_over().read_failed(source_fd, error)

    def _look_behind(self, side: int, size: int, mask: int) -> None:
        """The read was a big one, or the side has announced its end. TCP with the FIN alone (no reset, no hang-up): what
        a short read leaves behind is the end."""
        is_tcp = self.source_ip if side == CLIENT else self.is_tcp
        if size < BULK and mask & LAST == READ_HANGUP and is_tcp:
            self._ended(side)
        else:
            source_fd = self.client_fd if side == CLIENT else self.backend_fd
            self.take_over().look_behind(source_fd, size, mask)

    def _ended(self, side: int) -> None:
        """A side has said FIN, and everything before it has been passed on."""
        if self.over:
            self.close(ends.CLEAN)
        else:
            self.over = side
            shut_writing(self.backend_fd if side == CLIENT else self.client_fd)

    # -- leaving the plain way

    def take_over(self) -> SplicingRelay:
        """From now on the splicing relay has the handlers."""
        self._be_prompt()
        self.splicing = splicing = SplicingRelay(self)
        self.hub.loop.set_handler(self.client_fd, splicing.on_client)
        self.hub.loop.set_handler(self.backend_fd, splicing.on_backend)
        return splicing

    def dial_again(self, code: int) -> None:
        """The backend broke with `code` before any byte moved: as if the dial had failed."""
        if self.dial_failed(code):
            self.splicing = None
            self.connected_at = 0.0
            self.hub.loop.set_handler(self.client_fd, self.on_client_early)
            self.dial()

    # -- asked by the sweep, the drain and the accounts

    def given(self) -> tuple[int, int]:
        """Bytes that the backend and the client have been given, ever."""
        return (self.bytes_in, self.bytes_out) if self.splicing is None else self.splicing.given()

    def movement(self) -> int:
        """A number that changes whenever a byte is read or written."""
        return 2 * (self.bytes_in + self.bytes_out) if self.splicing is None else self.splicing.movement()

    def is_half_closed(self) -> bool:
        return bool(self.over) if self.splicing is None else self.splicing.is_half_closed()

    def blame_for_silence(self) -> str:
        """Nothing has moved for too long: whose fault is it?"""
        splicing = self.splicing
        is_backends = self.over == CLIENT if splicing is None else splicing.is_backends_turn()
        return ends.BACKEND_IDLE if is_backends and self.backend_fd >= 0 else ends.CLIENT_IDLE

    # -- ending

    def close(self, end: str, reason: str = "") -> None:
        """The one closer. Descriptors are closed at the end of the batch, counts change after that."""
        if self.closed:
            return
        self.closed = True
        self.end = end
        self.reason = reason
        self.hub.retire_session(self)
