"""A short text in shared memory, with one writer and many readers: a sequence lock with a checksum.

RULES: the writer never waits, a reader's retries are bounded.
"""

import zlib

from balancer.shm.memory import shared_memory

NOTICE_BYTES = 4000
_HEAD = 24  # serial, length, checksum
SIZE = _HEAD + NOTICE_BYTES


class Notice:
    """The text and its serial number.

    The serial is odd while the writer writes. The checksum covers machines that reorder stores, and a writer killed half
    way; the reader's retries are bounded because that writer never comes back.
    """

    def __init__(self, memory: memoryview | None = None) -> None:
        self.memory = memoryview(shared_memory(SIZE)) if memory is None else memory
        self._head = self.memory[:_HEAD].cast("q")

    def write(self, text: str) -> int:
        """Replace the text (cut to 4000 bytes); returns its serial number."""
        raw = text.encode()[:NOTICE_BYTES].decode(errors="ignore").encode()
        head = self._head
        begun = (head[0] | 1) if head[0] & 1 else head[0] + 1
        head[0] = begun
        self.memory[_HEAD : _HEAD + len(raw)] = raw
        head[1] = len(raw)
        head[2] = zlib.crc32(raw)
        head[0] = begun + 1
        return (begun + 1) // 2

    def read(self) -> tuple[int, str]:
        """(serial, text); serial 0 means that nothing was ever written, -1 that no whole text could be read."""
        for _ in range(100):
            serial = self._head[0]
            if serial & 1:
                continue
            length = min(max(self._head[1], 0), NOTICE_BYTES)
            raw = bytes(self.memory[_HEAD : _HEAD + length])
            if self._head[0] == serial and (serial == 0 or zlib.crc32(raw) == self._head[2]):
                return serial // 2, raw.decode()
        return -1, ""
