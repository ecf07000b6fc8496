"""What the sweep remembers of a session from one look to the next.

RULES: made at the first look, so that a session that is over before it costs nothing here.
"""


class Activity:
    """Of one session. Times as the loop's clock has them."""

    __slots__ = ("answered", "counted_in", "counted_out", "last_activity", "seen", "tuned")

    def __init__(self, accepted_at: float) -> None:
        self.last_activity = accepted_at
        self.answered = False  # of the last bytes the sweep saw, some came from the backend
        self.seen = 0  # the sweep's measure of movement
        self.counted_in = self.counted_out = 0  # bytes already folded into the board
        self.tuned = False  # the backend socket has its keepalive options
