"""The accounting of a session: amounts and ends of its two halves, and the next step that follows from them.

RULES: pure. Counts bytes and carries none; knows no socket, pipe or clock. Copying and splicing share it, and a test is a
transcript of amounts. A half changes only through its own methods.

              took(n)                       gave(n)
    source  ----------->  pending  ----------------------->  sink
    FLOWING                0 <= pending                      OPEN      takes bytes
    ENDED   sent FIN       taken == given + pending + lost   SHUT      got FIN, after the last byte
    BROKEN  sent RST                                         GONE      takes nothing more; what comes is lost

A half-close is forwarded, never promoted to a close: one half may be over for hours while the other flows.
"""

LIMIT = 65_536  # bytes one half may hold in user space
RESUME = LIMIT // 2  # a paused half reads again once no more than this is pending

FLOWING, ENDED, BROKEN = range(3)  # the source
OPEN, SHUT, GONE = range(3)  # the sink


class Half:
    """One direction of a session: from `source` to `sink`."""

    __slots__ = ("doomed", "lost", "paused", "pauses", "pending", "sink", "source", "taken")

    def __init__(self) -> None:
        self.taken = 0  # bytes read from the source, ever
        self.pending = 0  # of those: not yet given to the sink
        self.lost = 0  # of those: dropped because the sink was gone
        self.source = FLOWING
        self.sink = OPEN
        self.paused = False  # the sink was slow: the source is not read until pending <= RESUME
        self.pauses = 0
        self.doomed = False  # a failed write has consumed the source's reset: reading will return a clean end

    @property
    def given(self) -> int:
        return self.taken - self.pending - self.lost

    def took(self, amount: int) -> None:
        """Count `amount` bytes read from the source."""
        self.taken += amount
        if self.sink == GONE:
            self.lost += amount
        else:
            self.pending += amount

    def gave(self, amount: int) -> None:
        """Count `amount` of the pending bytes as written to the sink; resume reading when few are left."""
        self.pending -= amount
        if self.paused and self.pending <= RESUME:
            self.paused = False

    def pause(self) -> None:
        """Stop reading: the sink takes no more for now."""
        if not self.paused:
            self.paused = True
            self.pauses += 1

    def ended(self) -> None:
        """Note that reading returned the end: a FIN, or a reset that a write has consumed."""
        if self.source == FLOWING:
            self.source = BROKEN if self.doomed else ENDED

    def broke(self) -> None:
        """Note that the source was reset, or that the kernel has given it up."""
        self.source = BROKEN

    def sink_gone(self) -> None:
        """Note that the sink takes no more: what is pending is lost, and so is what still comes."""
        self.sink = GONE
        self.lost += self.pending
        self.pending = 0
        self.paused = False

    def shut(self) -> None:
        """Note that FIN was sent to the sink."""
        if self.sink == OPEN:
            self.sink = SHUT

    def is_sound(self) -> bool:
        """Return whether the invariants hold (for tests)."""
        return (
            self.pending >= 0
            and self.lost >= 0
            and self.given >= 0
            and not (self.pending and self.sink != OPEN)
            and not (self.sink == SHUT and self.source == FLOWING)
        )


# What the session does next. Plain numbers: a member of an Enum costs 0.2 us at each use.
(
    GO_ON,
    SHUT_BACKEND,  # pass the client's FIN on
    SHUT_CLIENT,
    CLOSE,  # both directions are over: close() loses nothing
    RESET_CLIENT,  # once the client has acknowledged every byte
    RESET_BACKEND,
    LINGER,  # drop what the client still sends until its FIN: close() with unread input would reset it under our bytes
) = range(7)


def next_step(up: Half, down: Half) -> int:
    """Return the next step of a session; `up` is client -> backend, `down` backend -> client.

    Bytes that were read come before a reset, in both directions. A client whose backend takes nothing more is kept
    (LINGER): it cannot ask again for the answer that it reads. A backend whose client is gone is reset: its work is of
    no use.
    """
    up_over = up.source and not up.pending
    down_over = down.source and not down.pending
    if up_over and down_over and (up.source == BROKEN) == (down.source == BROKEN):
        return CLOSE  # both ended, or both broken: neither needs a reset, and close() sends the FIN
    if up_over and up.source == ENDED and up.sink == OPEN:
        return SHUT_BACKEND
    if down_over and down.source == ENDED and down.sink == OPEN:
        return SHUT_CLIENT
    if up_over and (up.source == BROKEN or down.sink == GONE):
        return RESET_BACKEND
    if down_over and down.source == BROKEN:
        return RESET_CLIENT
    if down_over and up.sink == GONE:
        return LINGER
    return GO_ON
