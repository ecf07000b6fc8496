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
    """The crashes of the last QUARANTINE_SECONDS; empty as long as no process crashes."""

    __slots__ = ("_crashes",)

    def __init__(self) -> None:
        # fingerprint -> crashes in a row, and the time of the last one; the latest at the end
        self._crashes: OrderedDict[int, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._crashes)

    def crashes_of(self, fingerprint: int) -> int:
        """Crashes in a row of this picture."""
        return self._crashes.get(fingerprint, (0, 0.0))[0]

    def is_quarantined(self, fingerprint: int) -> bool:
        """True when this picture is to be refused."""
        return self.crashes_of(fingerprint) >= QUARANTINE_CRASHES

    def record(self, fingerprint: int, now: float) -> None:
        """This picture has crashed a process."""
        self._crashes[fingerprint] = self._crashes.pop(fingerprint, (0, 0.0))[0] + 1, now
        if len(self._crashes) > REMEMBERED:
            self._crashes.popitem(last=False)

    def forgive(self, fingerprint: int) -> None:
        """This picture was resized."""
        self._crashes.pop(fingerprint, None)

    def expire(self, now: float) -> None:
        """Forget what is over its time."""
        crashes = self._crashes
        while crashes and next(iter(crashes.values()))[1] < now - QUARANTINE_SECONDS:
            crashes.popitem(last=False)
