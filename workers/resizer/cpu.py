"""A CPU process: one picture at a time out of its memory, the answer back into the same place.

RULES: owns no client and no queue. Carries out orders that name its pid, no others. It may be killed at any instant,
inside a decoder too, and costs no more than the picture it works on. The master ends it when no front is left.

    Order -> bytes(place) -> imaging.resize -> place -> Result
              a copy: the decoder works on memory that no other process writes, the answer overwrites the place
"""

import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from balancer.prefork.child import Child
from balancer.prefork.fork import EXIT_CRASH
from balancer.shm.layout import LOAD
from workers import imaging, sandbox
from workers.imaging.job import ResizeJob, parse_parameters
from workers.imaging.limits import PictureLimits, PictureRefused
from workers.resizer import counters
from workers.resizer.footprint import Footprint
from workers.resizer.options import ResizerOptions
from workers.resizer.orders import (
    LONGEST,
    Bye,
    Hello,
    Order,
    OrderError,
    Ping,
    Result,
    Transfer,
    decode,
    encode,
)
from workers.resizer.transfer import PLACES, TransferMemory

# What it gives up: the shared tables, which are replaced by zeros but for the page of its own row, then what any process
# that decodes gives up.
LAYERS: dict[str, Callable[[Child], None]] = {"own_row": Child.keep_own_row, **sandbox.LAYERS}
LEAST_ROOM = 32 << 20  # bytes for a picture, or the process does not start
RENEW_SECONDS = 10.0  # in which the CPU processes leave one by one after a rotation of the log
ALARM_SECONDS = 1.0  # after the front's deadline, less a tick: the kernel ends a process that no front kills


def run(child: Child, options: ResizerOptions) -> int:
    """The role: prepares this process for pictures, then works until it is told to leave. Returns the exit code."""
    versions = imaging.prepare()
    footprint = Footprint(imaging.trim)
    limits = options.limits
    if options.memory_limit:
        room = options.memory_limit - footprint.address_space() - PLACES * options.slot_bytes
        if room < LEAST_ROOM:
            reason = f"{room >> 20} MiB are left for a picture, at least {LEAST_ROOM >> 20} are needed"
            child.log.error("confine", reason=reason, then="exit; set a higher --memory-limit")
            return EXIT_CRASH
        limits = replace(limits, max_memory=room)
    _confine(child, options)
    worker, nice = CpuWorker(child, options, limits, footprint), os.nice(0)
    entered = _enter_sandbox(child, options)
    missing = "; ".join(f"{name}: {reason}" for name, reason in entered.missing.items())
    without = {"without": missing} if missing else {}
    if options.sandbox == "require" and not entered.is_whole:
        child.log.error("sandbox", entered=entered, **without, then="exit; --sandbox auto starts without")
        return EXIT_CRASH
    child.log.info("ready", cpu=child.slot, nice=nice, imaging=versions, sandbox=entered, **without)
    worker.start()
    return child.run()


def _enter_sandbox(child: Child, options: ResizerOptions) -> sandbox.Sandbox:
    if not options.wants_sandbox:
        return sandbox.Sandbox()
    entered = sandbox.enter(child, LAYERS)
    child.cells[counters.SANDBOX] = counters.bits_of(entered.layers)
    if options.log:
        child.on_reopen = partial(_renew, child)
    return entered


def _renew(child: Child) -> None:
    """The log file was rotated, and this process can open no file: a successor takes its place, in a while, so that few
    do at once."""
    child.loop.call_later(random.uniform(0, RENEW_SECONDS), partial(_leave_for_log, child))


def _leave_for_log(child: Child) -> None:
    child.log.info("leave", reason="the log was reopened")
    child.on_cut()


def _confine(child: Child, options: ResizerOptions) -> None:
    """Limit what this process takes of the machine. Best effort: it serves without the privilege too."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if options.memory_limit:
        # A fuse: pictures are reckoned before they are decoded. A decoder that trips it ends in an error or an abort.
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY or options.memory_limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (options.memory_limit, hard))
    try:
        if child.role == "express":
            return
        # On a machine of its own 5 lets the front and express run at once (small pictures beside two clients with 20 MP
        # ones: p99 17 ms at nice 0, 9 ms at 5). Beside other programs it halves the rate of small pictures (1,065 a
        # second at 0, 578 at 5) and helps nobody: p99 49 ms at 0, 66 to 78 at 5.
        os.nice(options.nice)
        if options.affinity:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[child.slot % len(cores)]})
    except OSError as error:
        child.log.warning("confine", cpu=child.slot, reason=error.strerror, then="go on without")


def job_of(order: Order) -> ResizeJob:
    """What `order` asks for."""
    return ResizeJob(
        width=order.width,
        height=order.height,
        fit=order.fit or "stretch",
        format=order.format,
        quality=order.quality,
        orient=order.orient,
        **parse_parameters(order.parameters),
    )


class CpuWorker:
    """One CPU process. `left`: pictures until it is replaced by a successor, -1: never."""

    def __init__(
        self, child: Child, options: ResizerOptions, limits: PictureLimits, footprint: Footprint
    ) -> None:
        self.child = child
        self.options = options
        self.limits = limits
        self.footprint = footprint
        self.seen = 0  # PICTURES at the last tick
        self.memory: TransferMemory | None = None  # of the front that sent the last Transfer
        self.expects_memory = True  # a Transfer, which has a descriptor, may be the next message
        assert child.channel is not None  # the role was planned with one
        self.channel = child.channel
        self.pid = os.getpid()
        self.front = 0
        spread = options.recycle // 10
        self.left = options.recycle + random.randint(-spread, spread) if options.recycle else -1
        self.title = child.role if child.role == "express" else f"cpu {child.slot}"
        self.busy_title = f"{self.title} [busy]"
        self.worked_us = 0  # PICTURE_US at the last tick
        self.ticked_at = child.loop.now
        self.is_armed = False  # the interval timer runs
        self.is_leaving = False  # Bye has been sent: orders that arrive now are for other processes

    def start(self) -> None:
        """Discard packets for a predecessor, then send Hello."""
        child = self.child
        self.channel.setblocking(False)
        while self._packet() is not None:
            pass
        # The master drains when no front is left; an operator may at any time.
        child.on_drain = lambda deadline: self.leave()
        child.on_cut = self.leave
        child.on_tick = self.tick
        child.loop.watch_level(self.channel.fileno(), self.on_packet)
        child.ready()
        self._send(Hello(self.pid, 0))

    def tick(self, now: float) -> None:
        """Runs between two pictures, never during one. The title says busy after an interval more than half worked."""
        worked_us = self.child.cells[counters.PICTURE_US]
        was_busy = (worked_us - self.worked_us) / 1e6 > (now - self.ticked_at) / 2
        self.worked_us, self.ticked_at = worked_us, now
        self.child.title.set(self.busy_title if was_busy else self.title, now)
        pictures = self.child.cells[counters.PICTURES]
        self.footprint.look(now, pictures != self.seen)
        self.seen = pictures
        if self.is_armed:
            self.is_armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def on_packet(self, mask: int) -> None:
        """Handle one message per turn, so that signals and the heartbeat get their turn between two pictures."""
        packet = None if self.is_leaving else self._packet()
        if packet is None:
            return
        try:
            message = decode(packet)
        except OrderError as error:
            self.child.log.error("receive", reason=str(error), then="ignore")
            return
        match message:
            case Order() if message.worker_pid == self.pid:
                if self.memory is None:
                    self.child.log.error("order", reason="its memory has not arrived", then="leave")
                    self.leave()
                else:
                    self._carry_out(message, self.memory)
            case Ping():
                self.expects_memory = True
                self._send(Hello(self.pid, message.front_pid))
            case _:
                pass  # for a predecessor

    def _carry_out(self, order: Order, memory: TransferMemory) -> None:
        child, cells = self.child, self.child.cells
        cells[LOAD] = 1
        child.title.set(self.busy_title, child.loop.now)
        if not self.is_armed:
            # In case no front kills this process at its deadline: the default actions of SIGALRM and SIGXCPU run no
            # Python code, so they work inside a decoder. The tick disarms the timer: fewer system calls for most
            # pictures. CPU time between two ticks is far below the margin of the limit.
            self.is_armed = True
            signal.setitimer(signal.ITIMER_REAL, self.options.job_timeout + ALARM_SECONDS)
            sandbox.limit_cpu(self.options.job_timeout)
        began = time.perf_counter_ns()
        result = self._resize(order, memory, began)
        cells[counters.PICTURES] += 1
        cells[counters.PICTURE_US] += (time.perf_counter_ns() - began) // 1000
        cells[LOAD] = 0
        self._send(result)
        if self.left > 0:
            self.left -= 1
            if not self.left:
                child.log.info("leave", pictures=cells[counters.PICTURES], reason="recycle")
                self.leave()

    def leave(self) -> None:
        """Begin nothing more: the front gives the orders that it has sent meanwhile to other processes."""
        if not self.is_leaving:
            self.is_leaving = True
            self._send(Bye(self.pid))
        self.child.loop.stop()

    def _resize(self, order: Order, memory: TransferMemory, began: int) -> Result:
        try:
            answer = imaging.resize(bytes(memory.view(order.place, order.length)), job_of(order), self.limits)
        except PictureRefused as refused:
            return self._failed(order, refused.status, refused.sentence)
        except MemoryError:
            return self._failed(order, 422, "the picture needs more memory than a picture may have")
        except Exception as error:  # a defect of a decoder costs this picture, not the process
            self.child.log.error(
                "resize", error=type(error).__name__, reason=str(error), then="answer an error"
            )
            return self._failed(order, 422, f"the picture cannot be resized: {type(error).__name__}")
        size = len(answer.data)
        if size > self.options.max_frame:
            return self._failed(order, 422, f"the answer of {size} bytes is over the frame limit")
        memory.view(order.place, size)[:] = answer.data
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
            answer.note,
        )

    def _failed(self, order: Order, status: int, sentence: str) -> Result:
        return Result(self.pid, order.serial, status, text=sentence)

    def _packet(self) -> bytes | None:
        try:
            if self.expects_memory:
                return self._packet_with_memory() or None
            return self.channel.recv(LONGEST) or None
        except BlockingIOError:
            return None

    def _packet_with_memory(self) -> bytes:
        """The next packet. The memory of a Transfer replaces the one before."""
        packet, fds, _flags, _address = socket.recv_fds(self.channel, LONGEST, 1)
        try:
            message = decode(packet) if fds else None
            if isinstance(message, Transfer) and message.worker_pid == self.pid:
                if self.memory is not None:
                    self.memory.close()
                self.memory = TransferMemory(fds[0], message.place_bytes)
                self.expects_memory = False
        finally:
            for fd in fds:
                os.close(fd)
        return packet

    def _send(self, message: Hello | Result | Bye) -> None:
        try:
            self.channel.send(encode(message))
        except OSError as error:
            self.child.log.error("send", reason=error.strerror, then="leave")
            self.child.loop.stop()
