"""Pictures that crash CPU processes: after some crashes in a row a picture is refused for a while.

RULES: pure; knows fingerprints, not pictures. A picture that crashed a process may be sent again (the kernel may have
been short of memory, an operator may have killed the process), but not for ever: after QUARANTINE_CRASHES in a row the
picture is the cause. A crash is forgotten after QUARANTINE_SECONDS, or when the picture was resized after all.
"""

from collections import OrderedDict
from zlib import crc32

QUARANTINE_CRASHES = 3
QUARANTINE_SECONDS = 600.0  # from the last crash on; meanwhile every picture is compared with it
REMEMBERED = 64  # pictures at most; the one whose last crash is longest ago is forgotten first


def fingerprint_of(picture: memoryview) -> int:
    """A number that two different pictures hardly share. Takes a millisecond per megabyte."""
    return crc32(picture, len(picture)) << 32 | len(picture)


class Quarantine:
    """`crashes`: those of the last QUARANTINE_SECONDS by fingerprint; empty as long as no process crashes."""

    __slots__ = ("crashes",)

    def __init__(self) -> None:
        # crashes in a row, and the time of the last one; the latest at the end
        self.crashes: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def crashes_of(self, fingerprint: int) -> int:
        """Crashes in a row of this picture."""
        return self.crashes.get(fingerprint, (0, 0.0))[0]

    def is_quarantined(self, fingerprint: int) -> bool:
        """True when this picture is to be refused."""
        return self.crashes_of(fingerprint) >= QUARANTINE_CRASHES

    def record(self, fingerprint: int, now: float) -> None:
        """This picture has crashed a process."""
        self.crashes[fingerprint] = self.crashes.pop(fingerprint, (0, 0.0))[0] + 1, now
        if len(self.crashes) > REMEMBERED:
            self.crashes.popitem(last=False)

    def forgive(self, fingerprint: int) -> None:
        """This picture was resized."""
        self.crashes.pop(fingerprint, None)

    def expire(self, now: float) -> None:
        """Forget what is over its time."""
        crashes = self.crashes
        while crashes and next(iter(crashes.values()))[1] < now - QUARANTINE_SECONDS:
            crashes.popitem(last=False)
