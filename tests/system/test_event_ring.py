"""The event rings over real processes: appended by several at once, followed by one, some of them killed meanwhile."""

import os
import random
import signal
import time
from itertools import pairwise
from mmap import mmap

from balancer.shm.events import Event, EventRing

WRITERS = 4


def write_for_ever(ring: EventRing, row: int, followed_ms: memoryview) -> None:
    """Waits for a follower that gets no turn: the ring holds what is written in a second."""
    number = 0
    while True:
        if time.monotonic() * 1000 - followed_ms[0] < 300:
            number += 1
            ring.append(row, "up", f"pid={os.getpid()} n={number}", number, number)
        time.sleep(0.008)


def fork_writer(ring: EventRing, row: int, followed_ms: memoryview) -> int:
    pid = os.fork()
    if not pid:
        try:
            write_for_ever(ring, row, followed_ms)
        finally:
            os._exit(1)
    return pid


def test_a_follower_sees_every_event_of_every_writer_once_and_in_order() -> None:
    ring, followed_ms = EventRing(WRITERS), memoryview(mmap(-1, 8)).cast("q")
    pids = {row: fork_writer(ring, row, followed_ms) for row in range(WRITERS)}
    seen: list[Event] = []
    kills = 0
    end = time.monotonic() + 60
    try:
        while (kills <= 5 or len(seen) <= 1000) and time.monotonic() < end:
            seen += ring.read(seen[-1].serial if seen else 0)
            followed_ms[0] = int(time.monotonic() * 1000)
            if len(seen) > 150 * (kills + 1):
                kills += 1
                row = random.randrange(WRITERS)
                os.kill(pids[row], signal.SIGKILL)
                os.waitpid(pids[row], 0)
                pids[row] = fork_writer(ring, row, followed_ms)  # the row is leased again
            time.sleep(0.01)
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    ring.read(seen[-1].serial)
    time.sleep(1.1)  # for those that were killed in the middle of an append
    seen += ring.read(seen[-1].serial)
    assert kills > 5 and len(seen) > 1000
    assert all(first.serial <= second.serial for first, second in pairwise(seen))
    by_writer: dict[str, list[int]] = {}
    for event in seen:
        pid, number = event.text.split()
        by_writer.setdefault(pid, []).append(int(number[2:]))
    assert len(by_writer) == WRITERS + kills
    for numbers in by_writer.values():
        assert numbers == list(range(1, len(numbers) + 1))
    assert ring.read() == seen[-500:]
