"""The pure accounting of a session: amounts and ends of its two halves, and what they ask for next.

RULES: counts bytes, never carries them, never sees a socket, a pipe or a clock; so the copying and the splicing
shell share it, and a test is a transcript of amounts. Changes only through its own verbs.

              took(n)                       gave(n)
    source  ----------->  pending  ----------------------->  sink
    FLOWING               0 <= pending                       OPEN      takes bytes
    ENDED  said FIN       taken == given + pending + lost    SHUT      was told FIN, after the last byte
    BROKEN was reset                                         GONE      cannot be told anything; what comes is lost

A half-close is forwarded, never promoted to a close: one half may be over for hours while the other flows.
"""

LIMIT = 65_536  # bytes one half may hold in user space
RESUME = LIMIT // 2  # a paused half reads again once no more than this is pending

FLOWING, ENDED, BROKEN = range(3)  # the source
OPEN, SHUT, GONE = range(3)  # the sink


class Half:
    """One direction of a session."""

    __slots__ = ("doomed", "lost", "paused", "pauses", "pending", "sink", "source", "taken")

    def __init__(self) -> None:
        self.taken = 0  # bytes read from the source, ever
        self.pending = 0  # of those: not yet given to the sink
        self.lost = 0  # of those: thrown away because the sink was gone
        self.source = FLOWING
        self.sink = OPEN
        self.paused = False  # the sink was slow: the source is not read until pending <= RESUME
        self.pauses = 0
        self.doomed = False  # a write has consumed the news of the source's reset: its end will look clean

    @property
    def given(self) -> int:
        return self.taken - self.pending - self.lost

    def took(self, amount: int) -> None:
        """`amount` bytes came from the source."""
        self.taken += amount
        if self.sink == GONE:
            self.lost += amount
        else:
            self.pending += amount

    def gave(self, amount: int) -> None:
        """`amount` of the pending bytes went to the sink, which may want more of them later."""
        self.pending -= amount
        if self.paused and self.pending <= RESUME:
            self.paused = False

    def pause(self) -> None:
        """The sink refused bytes: stop reading."""
        if not self.paused:
            self.paused = True
            self.pauses += 1

    def ended(self) -> None:
        """Reading gave the end: a FIN, unless the source is known to be reset."""
        if self.source == FLOWING:
            self.source = BROKEN if self.doomed else ENDED

    def broke(self) -> None:
        """The source was reset or declared dead: its bytes end here, and not by its will."""
        self.source = BROKEN

    def sink_gone(self) -> None:
        """The sink takes no more. What is pending is lost, what is still to come will be."""
        self.sink = GONE
        self.lost += self.pending
        self.pending = 0
        self.paused = False

    def shut(self) -> None:
        """The sink was told that nothing more comes."""
        if self.sink == OPEN:
            self.sink = SHUT

    def is_sound(self) -> bool:
        """The invariants, for tests."""
        return (
            self.pending >= 0
            and self.lost >= 0
            and self.given >= 0
            and not (self.pending and self.sink != OPEN)
            and not (self.sink == SHUT and self.source == FLOWING)
        )


# What the session should do now. Plain numbers: members of an Enum cost 0.2 us each time one is named.
(
    GO_ON,
    SHUT_BACKEND,  # pass the client's FIN on
    SHUT_CLIENT,
    CLOSE,  # both directions are over: close() loses nothing
    RESET_CLIENT,  # once it has acknowledged what was sent to it
    RESET_BACKEND,
    LINGER,  # swallow what the client still sends until its FIN: a close now would reset it under our bytes
) = range(7)


def next_step(up: Half, down: Half) -> int:
    """Decide from the two halves alone; `up` is client -> backend, `down` backend -> client.

    The client is protected to the last byte, the backend to the last acknowledged one: a client reads an answer
    that cannot be had again, while a backend whose client has gone has nobody left to work for.
    """
    up_over = up.source and not up.pending
    down_over = down.source and not down.pending
    if up_over and down_over and (up.source == BROKEN) == (down.source == BROKEN):
        return CLOSE  # both ended, or both broken: nobody is left to be told, and close() sends the FIN
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
