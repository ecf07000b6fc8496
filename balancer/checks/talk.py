"""The talk of a check with a service: bytes in, the next bytes to say out, until the outcome is known. Pure.

RULES: no socket, no clock. Steps are generators that wait with `yield from`: what a service says is read in the order of
its protocol. A service may say anything at all, at any length and in any pieces, so every wait ends: with a match, with
`Unexpected`, or when MOST_BYTES have come without either.

    Dialogue.advance(bytes) --> bytes to send          outcome: ""  -->  "ok" | "reply" | "status" | "closed"
"""

import re
from collections.abc import Callable, Generator

MOST_BYTES = 4096  # that a service may say
SHOWN = 60  # characters of what came instead

Steps = Generator[None, None, None]


class Unexpected(Exception):
    """The service said something else: `outcome` is "reply" or "status", `came` what it was."""

    def __init__(self, came: bytes, outcome: str = "reply") -> None:
        super().__init__(outcome)
        self.came, self.outcome = came, outcome


class Talk:
    """What has come and is not read yet, and what is to be sent. `is_closed_by_peer`: after the last word the service
    closes the connection, and a client that closes first would leave a line in its log."""

    def __init__(self) -> None:
        self.received = b""
        self.to_send = b""
        self.is_closed_by_peer = False
        self.may_be_cut = False  # what has come is an answer even when the service closes behind it

    def send(self, data: bytes) -> None:
        """Say something; it goes out before the next wait."""
        self.to_send += data

    def goodbye(self, data: bytes) -> None:
        """Say the last word of a protocol in which the service then closes."""
        self.send(data)
        self.is_closed_by_peer = True

    def exactly(self, count: int) -> Generator[None, None, bytes]:
        """Wait for so many bytes."""
        while len(self.received) < count:
            yield
        found, self.received = self.received[:count], self.received[count:]
        return found

    def line(self, good: str, outcome: str = "reply") -> Generator[None, None, bytes]:
        """Wait for a line that begins with a match of the pattern `good`."""
        while b"\n" not in self.received:
            yield
        line, _, rest = self.received.partition(b"\n")
        if not re.match(good.encode("latin-1"), line):
            raise Unexpected(self.received, outcome)
        self.received = rest
        return line

    def prefix(self, wanted: bytes) -> Steps:
        """The next bytes are these; others are known at once."""
        while len(self.received) < len(wanted) and wanted.startswith(self.received):
            yield
        if not self.received.startswith(wanted):
            raise Unexpected(self.received)
        self.received = self.received[len(wanted) :]

    def pattern(self, wanted: "re.Pattern[bytes]") -> Steps:
        """A match comes, sooner or later."""
        while (found := wanted.search(self.received)) is None:
            yield
        self.received = self.received[found.end() :]


class Dialogue:
    """One check's talk. `outcome` is "" while it goes on."""

    def __init__(self, begin: Callable[[Talk], Steps]) -> None:
        self.outcome = ""
        self._talk = Talk()
        self._steps = begin(self._talk)
        self._count = 0
        self._came = b""

    def advance(self, data: bytes = b"") -> bytes:
        """What to send after the service has said `data`; the first call begins the talk."""
        talk = self._talk
        talk.received += data
        self._count += len(data)
        try:
            next(self._steps)
        except StopIteration:
            self.outcome = "ok"
        except Unexpected as error:
            self._end(error.outcome, error.came)
        else:
            if self._count >= MOST_BYTES:
                self._end("reply", talk.received)
        words, talk.to_send = talk.to_send, b""
        return words

    def ended(self, was_reset: bool = False) -> None:
        """The service has closed the connection, or reset it."""
        if self.outcome:
            return
        talk = self._talk
        if talk.may_be_cut and talk.received and not was_reset:
            self.outcome = "ok"
        else:
            self._end("closed", talk.received)

    @property
    def is_closed_by_peer(self) -> bool:
        """Whether it is the service that closes, after a talk that went well."""
        return self._talk.is_closed_by_peer

    @property
    def rest(self) -> bytes:
        """What has come and was not read."""
        return self._talk.received

    def came(self) -> str:
        """The beginning of what came instead, printable; "" when nothing did."""
        return printable(self._came or self._talk.received)

    def _end(self, outcome: str, came: bytes) -> None:
        self.outcome, self._came = outcome, came
        self._steps.close()


def printable(data: bytes) -> str:
    """At most SHOWN printable ASCII characters for these bytes: a blank for white space, a dot for what is no text."""
    words = b" ".join(data[: 2 * SHOWN].split())[:SHOWN]
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in words)
