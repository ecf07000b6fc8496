"""One client connection of a front: its socket, what is still to be sent, and how it ends.

RULES: one closer (`close`), which takes a reason. What the bytes mean is the speaker's business: the first
byte decides between frames (0xaa) and HTTP. Reading stops by not reading: `blocked` says for what, and only
`resume` goes on.

    OPEN --peer's EOF--> ENDED (what was asked is answered) --\\
    OPEN --finish()----> FINISHING (flush) --> LINGER (FIN sent, input thrown away) --> CLOSED
    any  --close(reason)--------------------------------------------------------------> CLOSED
LINGER because close() with unread input resets the connection and takes the answer with it.
"""

import socket
from functools import partial
from typing import Protocol

from balancer.eventloop.loop import ERROR, HANGUP, READ, READ_HANGUP, WRITE
from workers.resizer import tally
from workers.resizer.desk import Desk
from workers.resizer.outbox import Outbox, Part
from workers.resizer.speaking import Block, Life, Speaker

TURN_BYTES = 2 << 20  # read from one client before the others have their turn
SCRATCH = 16 * 1024  # one read of what has no slot yet
PRIVATE = 64 * 1024  # bytes a slow client's answers may take of ordinary memory so that their slots are free
LEAST_RATE = 16 * 1024  # bytes per second: a frame or an answer slower than that after its grace is cut
LINGER_SECONDS = 2.0


class Clients(Protocol):
    """Who keeps the clients."""

    def speaker_for(self, client: "Client", first: int) -> Speaker:
        """The speaker of a connection whose first byte is `first`."""

    def gone(self, client: "Client") -> None:
        """The client is closed."""


class Client:
    """Owned by the front's `clients`; `late` ones (over the limit) may ask how the service is but not for
    work.
    """

    __slots__ = (
        "address",
        "blocked",
        "born",
        "bytes_in",
        "bytes_out",
        "desk",
        "fd",
        "heard_at",
        "is_late",
        "keeper",
        "life",
        "outbox",
        "reading",
        "reading_flags",
        "sending",
        "sock",
        "speaker",
    )
    scratch = memoryview(bytearray(SCRATCH))  # shared: its content is valid within one `take`

    def __init__(self, sock: socket.socket, address: str, desk: Desk, keeper: Clients, is_late: bool) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.address = address
        self.desk = desk
        self.keeper = keeper
        self.is_late = is_late
        self.life = Life.OPEN
        self.blocked: Block | None = None
        self.outbox = Outbox()
        self.speaker: Speaker | None = None
        self.born = self.heard_at = desk.loop.now
        # (time, bytes so far) when the request being read, or the answers being sent, began
        self.reading: tuple[float, int] | None = (desk.loop.now, 0)
        self.sending = (desk.loop.now, 0)
        self.reading_flags = 0
        self.bytes_in = self.bytes_out = 0

    def on_event(self, mask: int) -> None:
        """The loop's handler (edge-triggered)."""
        if mask & (ERROR | HANGUP) and self.life is not Life.LINGER:
            self.close("reset")
            return
        if mask & WRITE and self.outbox.pending:
            self.flush()
        if mask & (READ | READ_HANGUP):
            self.read(bool(mask & READ_HANGUP))

    def may_read(self) -> bool:
        return self.blocked is None and self.life is Life.OPEN

    def read(self, hung: bool = False) -> None:
        """Everything there is, as far as this client may go on. `hung`: the peer's FIN is among it."""
        speaker, before = self.speaker, self.bytes_in
        while self.blocked is None and self.life is Life.OPEN:
            room = speaker.room() if speaker is not None else None
            place = self.scratch if room is None else room
            try:
                count = self.sock.recv_into(place, 0, self.reading_flags)
            except BlockingIOError:
                break
            except OSError:
                self.close("reset")
                break
            if not count:
                self._ended()
                break
            if self.reading is None:
                self.reading = (self.desk.loop.now, self.bytes_in)
            self.bytes_in += count
            if speaker is None:
                speaker = self.speaker = self.keeper.speaker_for(self, self.scratch[0])
            if room is None:
                speaker.take(place[:count])
                speaker.advance()
            elif speaker.fill(count):
                speaker.advance()
            if count < len(place) and not hung:
                break
            if self.bytes_in - before >= TURN_BYTES:
                self.desk.loop.call_next_turn(
                    partial(self.read, True)
                )  # its FIN may have been reported by now
                break
        if self.bytes_in != before:
            self.heard_at = self.desk.loop.now
            self.desk.cells[tally.BYTES_IN] += self.bytes_in - before
        if self.outbox.pending and self.life is not Life.LINGER:
            self.flush()
        elif self.life is Life.LINGER:
            self._discard()

    def mark(self) -> None:
        """A request is complete: what follows is judged by its own time."""
        self.reading = None

    def resume(self) -> None:
        """What `blocked` waited for may be there."""
        if self.life is not Life.OPEN or self.blocked is None:
            return
        self.blocked = None
        self.mark()  # the wait was ours, not the peer's
        assert self.speaker is not None
        self.speaker.advance()
        self.read(True)

    # -- sending --

    def put(self, parts: tuple[Part, ...], slot: int = -1) -> None:
        """Queue an answer; `flush` sends. The slot comes back when it has gone."""
        if self.life is Life.CLOSED:
            self.desk.release(slot)
            return
        if not self.outbox.pending:
            self.sending = (self.desk.loop.now, self.bytes_out)
        self.outbox.put(parts, slot)

    def flush(self) -> None:
        """Send what the socket takes."""
        outbox = self.outbox
        while outbox.pending:
            try:
                count = self.sock.sendmsg(outbox.gather())
            except BlockingIOError:
                self._free(outbox.keep_copies(PRIVATE))
                return
            except OSError:
                self.close("reset")
                return
            self.bytes_out += count
            self.desk.cells[tally.BYTES_OUT] += count
            for slot in outbox.sent(count):
                self.desk.release(slot)
        self.heard_at = self.desk.loop.now
        if self.life is Life.FINISHING:
            self._linger()
        elif self.life is Life.ENDED and not (self.speaker and self.speaker.owes()):
            self.close("done")
        elif self.blocked is Block.PIPELINE:
            self.desk.loop.call_next_turn(self.resume)

    def _free(self, slots: list[int]) -> None:
        for slot in slots:
            self.desk.release(slot)

    # -- ending --

    def finish(self) -> None:
        """No further reading; close once everything put so far has been sent."""
        if self.life in (Life.OPEN, Life.ENDED):
            self.life = Life.FINISHING
            if self.speaker is not None:
                self.speaker.drop()
            if not self.outbox.pending:
                self._linger()

    def close(self, reason: str) -> None:
        """The one closer."""
        if self.life is Life.CLOSED:
            return
        self.life = Life.CLOSED
        loop = self.desk.loop
        loop.forget_closing(self.fd)
        if self.speaker is not None:
            self.speaker.drop()
        self._free(self.outbox.clear())
        loop.retire(self.sock.close)
        log = self.desk.log
        if log.level >= 1:
            log.session(
                f"close client={self.address} reason={reason} seconds={loop.now - self.born:.3f}"
                f" in={self.bytes_in} out={self.bytes_out}"
            )
        self.keeper.gone(self)

    def fail(self, reason: str) -> None:
        """The peer broke the rules: one line, and the end (after what it is owed so far has been sent)."""
        self.desk.log.warning("refuse", client=self.address, reason=reason, then="close")
        self.finish()
        if self.outbox.pending:
            self.flush()

    def check(self, now: float, frame_timeout: float, idle_timeout: float) -> None:
        """Cut what is too slow. Called about once a second.

        A frame being read, or answers being sent, must be done within `frame_timeout` plus its bytes at
        LEAST_RATE; time in which reading waited for us does not count.
        """
        if self.life is Life.LINGER:
            if now - self.sending[0] > LINGER_SECONDS:
                self.close("done")
            return
        speaker = self.speaker
        if self.outbox.pending:
            self._cut_when_slow(now, frame_timeout, self.sending, self.bytes_out, "slow reader")
        elif self.blocked is not None or (speaker is not None and speaker.owes()):
            return
        elif speaker is None or not speaker.is_between():
            if self.reading is None:  # its beginning came with the end of the request before
                self.reading = (now, self.bytes_in)
            self._cut_when_slow(now, frame_timeout, self.reading, self.bytes_in, "slow sender")
        elif now - self.heard_at > idle_timeout:
            self.close("idle")

    def _cut_when_slow(
        self, now: float, grace: float, begun: tuple[float, int], total: int, reason: str
    ) -> None:
        since, before = begun
        moved = total - before
        allowed = grace + moved / LEAST_RATE
        if now - since > allowed:
            self.desk.count(tally.CUT)
            seconds = f"{now - since:.1f}/{allowed:.1f}"
            log = self.desk.log
            log.info("cut", client=self.address, reason=reason, bytes=moved, seconds=seconds, then="close")
            self.close(reason.replace(" ", "-"))

    def _ended(self) -> None:
        speaker = self.speaker
        if speaker is None or (not speaker.owes() and not self.outbox.pending):
            self.close("done" if speaker is None or speaker.is_between() else "cut-short")
        else:
            self.life = Life.ENDED
            if self.outbox.pending:
                self.flush()

    def _linger(self) -> None:
        self.life = Life.LINGER
        self.sending = (self.desk.loop.now, self.bytes_out)
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close("reset")
            return
        self._discard()

    def _discard(self) -> None:
        while True:
            try:
                count = self.sock.recv_into(self.desk.void, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                return
            except OSError:
                count = 0
            if not count:
                self.close("done")
                return
