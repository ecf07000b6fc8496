"""A CPU process: one picture at a time out of its slot, the answer back into the same slot.

RULES: owns no client and no queue; obeys orders that name its pid and no other. It may be killed at any
instant, inside a decoder too, and nothing is lost but the picture in work. The master lets it go when no
front is left to serve.

    Order -> bytes(slot) -> imaging.resize -> slot -> Result
              the one copy: the decoder works on what nobody else can change, the answer overwrites the slot
"""

import os
import random
import resource
import signal
import time

from balancer.prefork.child import Child
from balancer.shm.layout import LOAD
from workers import imaging
from workers.imaging.job import ResizeJob
from workers.imaging.limits import PictureRefused
from workers.resizer import tally
from workers.resizer.arena import Arena
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import LONGEST, Bye, Hello, Order, OrderError, Result, Roll, decode, encode

NET_SECONDS = 1.0  # after the front's deadline (less a tick): the kernel ends whom no front kills any more


def run(child: Child, settings: ResizerOptions, arena: Arena) -> int:
    """The role: prepares this process for pictures, then works until let go. Returns the exit code."""
    versions = imaging.prepare()
    _confine(child, settings, arena)
    worker = Worker(child, settings, arena)
    child.log.info("ready", cpu=child.slot, nice=os.nice(0), imaging=versions)
    worker.start()
    return child.run()


def _confine(child: Child, settings: ResizerOptions, arena: Arena) -> None:
    """What this process may take of the machine. Best effort: without the right to it one still serves."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if settings.memory_limit:
        # A fuse, not a quota: what trips it ends in an error or an abort, never in the machine's last page.
        # The arena is address space of this process too.
        most = settings.memory_limit + arena.total_bytes + _address_space()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        if child.role == "express":
            return
        # On a full machine the front and express must get their turn at once: a CPU process that waits for its next
        # order, or a client for a refusal, waits for nothing else. Small pictures beside two clients with 20 MP
        # ones: p99 17 ms at 0, 9 at 5 and at 10, where other programs would leave us a tenth of a core.
        os.nice(settings.nice)
        if settings.affinity:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[child.slot % len(cores)]})
    except OSError as error:
        child.log.warning("confine", cpu=child.slot, reason=error.strerror, then="go on without")


def _address_space() -> int:
    """Bytes of address space this process has now, the arena included."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()


class Worker:
    """One CPU process at work. `left`: pictures until it makes room for a successor, -1 = never."""

    def __init__(self, child: Child, settings: ResizerOptions, arena: Arena) -> None:
        self.child = child
        self.settings = settings
        self.arena = arena
        assert child.channel is not None  # the role was planned with one
        self.channel = child.channel
        self.pid = os.getpid()
        self.front = 0
        spread = settings.recycle // 10
        self.left = settings.recycle + random.randint(-spread, spread) if settings.recycle else -1
        self.title = child.role if child.role == "express" else f"cpu {child.slot}"
        self.busy_title = f"{self.title} [busy]"
        self.worked = 0  # microseconds, by the last tick
        self.ticked_at = child.loop.now
        self.is_armed = False  # the second net is up
        self.is_leaving = False  # bye has been said: what is sent now is somebody else's

    def start(self) -> None:
        """Throw away what was said to a predecessor, then say hello."""
        child = self.child
        self.channel.setblocking(False)
        while self._packet() is not None:
            pass
        # The master asks when no front is left; an operator may at any time.
        child.on_drain = lambda deadline: self.leave()
        child.on_cut = self.leave
        child.on_tick = self.tick
        child.loop.watch_level(self.channel.fileno(), self.listen)
        child.ready()
        self._say(Hello(self.pid, 0))

    def tick(self, now: float) -> None:
        """Comes between two pictures, never during one. Who worked for half of the time since the last is busy."""
        worked = self.child.cells[tally.PICTURE_US]
        was_busy = (worked - self.worked) / 1e6 > (now - self.ticked_at) / 2
        self.worked, self.ticked_at = worked, now
        self.child.title.set(self.busy_title if was_busy else self.title, now)
        if self.is_armed:
            self.is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def listen(self, mask: int) -> None:
        """One message a turn, so that signals and the heartbeat have theirs."""
        packet = None if self.is_leaving else self._packet()
        if packet is None:
            return
        try:
            message = decode(packet)
        except OrderError as error:
            self.child.log.error("listen", reason=str(error), then="ignored")
            return
        match message:
            case Order() if message.worker == self.pid:
                self._obey(message)
            case Roll():
                self._say(Hello(self.pid, message.front))
            case _:
                pass  # an order to a predecessor: its slot may be somebody else's by now

    def _obey(self, order: Order) -> None:
        child, cells = self.child, self.child.cells
        cells[LOAD] = 1
        child.title.set(self.busy_title, child.loop.now)
        if not self.is_armed:
            # The second net: SIGALRM's default action needs no Python code, so it works inside a decoder. It
            # is taken down by the tick, not after each picture: two system calls fewer for most of them.
            self.is_armed = True
            signal.setitimer(signal.ITIMER_REAL, self.settings.job_timeout + NET_SECONDS)
        began = time.perf_counter_ns()
        result = self._resize(order, began)
        cells[tally.PICTURES] += 1
        cells[tally.PICTURE_US] += (time.perf_counter_ns() - began) // 1000
        cells[LOAD] = 0
        self._say(result)
        if self.left > 0:
            self.left -= 1
            if not self.left:
                child.log.info("leave", pictures=cells[tally.PICTURES], reason="recycle")
                self.leave()

    def leave(self) -> None:
        """Begin nothing more: what has been sent meanwhile goes to others."""
        if not self.is_leaving:
            self.is_leaving = True
            self._say(Bye(self.pid))
        self.child.loop.stop()

    def _resize(self, order: Order, began: int) -> Result:
        job = ResizeJob(
            width=order.width,
            height=order.height,
            fit=order.fit or "stretch",
            format=order.format,
            quality=order.quality,
            orient=order.orient,
            icc=self.settings.icc,
        )
        try:
            answer = imaging.resize(
                bytes(self.arena.piece(order.offset, order.length)), job, self.settings.limits
            )
        except PictureRefused as refused:
            return self._failed(order, refused.status, refused.sentence)
        except MemoryError:
            return self._failed(order, 422, "the picture needs more memory than a picture may have")
        except Exception as error:  # a decoder's surprise is this picture's misfortune, not this process's
            self.child.log.error(
                "resize", error=type(error).__name__, reason=str(error), then="answer an error"
            )
            return self._failed(order, 422, f"the picture cannot be resized: {type(error).__name__}")
        place = self.arena.slot(order.slot)
        size = len(answer.data)
        if size > self.settings.max_frame:
            return self._failed(order, 422, f"the answer of {size} bytes is over the frame limit")
        place[:size] = answer.data
        return Result(
            self.pid,
            order.serial,
            200,
            size,
            answer.width,
            answer.height,
            answer.source_width,
            answer.source_height,
            time.perf_counter_ns() - began,
            answer.format,
        )

    def _failed(self, order: Order, status: int, sentence: str) -> Result:
        return Result(self.pid, order.serial, status, text=sentence)

    def _packet(self) -> bytes | None:
        try:
            return self.channel.recv(LONGEST) or None
        except BlockingIOError:
            return None

    def _say(self, message: Hello | Result | Bye) -> None:
        try:
            self.channel.send(encode(message))
        except OSError as error:
            self.child.log.error("say", reason=error.strerror, then="leave")
            self.child.loop.stop()
