"""What the sweep remembers of a session from one look to the next.

RULES: made at the first sweep after the accept, so a session that ends before it costs nothing here.
"""


class Activity:
    """The last sweep's view of one session. Times are the loop's."""

    __slots__ = ("answered", "counted_in", "counted_out", "has_probes", "last_activity", "movement")

    def __init__(self, accepted_at: float) -> None:
        self.last_activity = accepted_at  # time of the last sweep that saw bytes move
        self.answered = False  # of the bytes that sweep saw, some came from the backend
        self.movement = 0  # `Session.movement()` then
        self.counted_in = self.counted_out = 0  # bytes that are on the board already
        self.has_probes = False  # the backend's socket has its keepalive options
