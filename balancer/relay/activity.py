"""What the sweep remembers of a session from one look to the next.

RULES: made at the first sweep after the accept, so a session that ends before it costs nothing here.
"""


class Activity:
    """The last sweep's view of one session. Times are the loop's."""

    __slots__ = (
        "answered",
        "backend_paused_since",
        "client_paused_since",
        "counted_in",
        "counted_out",
        "has_probes",
        "is_under_way",
        "last_activity",
        "movement",
    )

    def __init__(self, accepted_at: float) -> None:
        self.last_activity = accepted_at  # time of the last sweep that saw bytes move
        self.answered = False  # of the bytes that sweep saw, some came from the backend
        self.movement = 0  # `Session.movement()` then
        self.counted_in = self.counted_out = 0  # bytes that are on the board already
        self.has_probes = False  # the sockets have the options of a session that lasts
        self.is_under_way = False  # a peer has not acknowledged all that was sent to it
        self.client_paused_since = self.backend_paused_since = 0.0  # receive window closed; 0.0: it is open

    def uncounted(self, given: tuple[int, int]) -> tuple[int, int]:
        """Return the bytes (in, out), of all that were given so far, since the last call; the caller counts them."""
        uncounted = given[0] - self.counted_in, given[1] - self.counted_out
        self.counted_in, self.counted_out = given
        return uncounted
