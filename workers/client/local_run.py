"""The run of --local: jobs go to CPU processes on this machine, results to files and the tracker.

RULES: one thread, one event loop, which decodes nothing. A CPU process that dies takes down the picture in its hands, at
most `--retries` + 1 times, and no other; one that takes longer than `--timeout` is killed, and its picture has failed. A
process that dies before it is ready says nothing about pictures: after START_FAILURES of them the run is over.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.client.concurrency import INTERVAL
from workers.client.job_tracker import JobTracker, RunSpec
from workers.client.jobs import ClientJob, JobQueue, request_of
from workers.client.local_orders import LONGEST, ORDER, PLACES, READY, LocalProcess, LocalReply, decode_reply
from workers.client.report import Statistics
from workers.picture_header import PictureHeader
from workers.wire.messages import Response

START_FAILURES = 3


@dataclass(slots=True, eq=False)
class LocalWorker:
    """One CPU process and its orders: serials and jobs, the one in work first."""

    number: int
    process: LocalProcess
    orders: deque[tuple[int, ClientJob]] = field(default_factory=deque)
    serial: int = READY
    is_ready: bool = False
    began_at: float = 0.0  # when the first order was begun


class LocalRun:
    """Runs from the first fork to the last result. `spawn` makes a CPU process, `reap` ends one and says how."""

    def __init__(
        self,
        spec: RunSpec,
        loop: Loop,
        log: Log,
        spawn: Callable[[], LocalProcess],
        reap: Callable[[LocalProcess], str],
    ) -> None:
        self._spec = spec
        self._loop = loop
        self.tracker = JobTracker(spec, loop, log, len(spec.pictures) * spec.options.times)
        self._log = log
        self._spawn = spawn
        self._reap = reap
        self._queue = JobQueue(self._jobs(), self.tracker.left)
        self._workers: list[LocalWorker] = []
        self._start_failures = 0

    def go(self) -> Statistics:
        """Run until every job is settled or a signal arrives; the statistics."""
        self.tracker.start()
        self._loop.every(INTERVAL, self._tick)
        if self.tracker.left:
            for number in range(min(self._spec.options.cpus, self.tracker.left)):
                self._start_worker(number)
            self._loop.run()
        for worker in list(self._workers):
            self._end(worker)
        self.tracker.finish(self._unsettled())
        return self.tracker.statistics

    def _jobs(self) -> Iterator[ClientJob]:
        for _ in range(self._spec.options.times):
            for picture in self._spec.pictures:
                yield ClientJob(picture, self._spec.targets[picture.path])

    def _unsettled(self) -> Iterator[ClientJob]:
        for worker in self._workers:
            yield from (job for _, job in worker.orders)
        yield from self._queue.take_all()

    # -- orders ---------------------------------------------------------------------------------------------------

    def _fill(self, worker: LocalWorker) -> None:
        """Give orders: the next one ahead as well, but not the last ones, which another process may begin sooner."""
        is_plenty = self._queue.count_ready(self._loop.now) > PLACES * len(self._workers)
        while len(worker.orders) < (PLACES if is_plenty else 1):
            job = self._queue.take(1, self._loop.now, True)
            if job is None:
                return
            self._send(worker, job)

    def _send(self, worker: LocalWorker, job: ClientJob) -> None:
        options, picture, now = self._spec.options, job.picture, self._loop.now
        job.started_at = job.started_at or now
        try:
            source = os.open(
                os.path.join(options.input, picture.path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            )
        except OSError as error:
            self.tracker.settle(job, f"cannot read: {error.strerror}")
            return
        job.request = request_of(options, picture)
        job.source_header = PictureHeader(picture.format)
        worker.serial += 1
        if not worker.orders:
            worker.began_at = now
        worker.orders.append((worker.serial, job))
        try:
            socket.send_fds(worker.process.sock, [ORDER.pack(worker.serial)], [source])
        except OSError:
            pass  # it has died, which its socket reports next
        finally:
            os.close(source)
        self.tracker.statistics.sent += picture.size

    # -- replies --------------------------------------------------------------------------------------------------

    def _on_packet(self, worker: LocalWorker) -> None:
        try:
            packet = worker.process.sock.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._replace(worker)
            return
        reply = decode_reply(packet)
        if reply is None or not self._is_expected(worker, reply):
            self._replace(worker, "protocol: its CPU process sent nonsense")
            return
        if worker.is_ready:
            _, job = worker.orders.popleft()
            worker.began_at = self._loop.now
            self.tracker.answer(job, self._response(worker, reply))
        elif reply.status != 200:
            self.tracker.end(f"{reply.text}; --sandbox auto starts without")
        else:
            self._log.debug("ready", cpu=worker.number, child=worker.process.pid, note=reply.text)
        worker.is_ready = True
        self._start_failures = 0
        if not self.tracker.is_ending:
            self._fill(worker)

    def _is_expected(self, worker: LocalWorker, reply: LocalReply) -> bool:
        if not worker.is_ready:
            return reply.serial == READY
        limit = len(worker.process.memory) // PLACES
        return bool(worker.orders) and reply.serial == worker.orders[0][0] and reply.length <= limit

    def _response(self, worker: LocalWorker, reply: LocalReply) -> Response:
        is_ok = reply.status == 200
        start = reply.serial % PLACES * (len(worker.process.memory) // PLACES)
        # A copy: what is checked is what is saved, whatever the process does with its memory meanwhile.
        data = worker.process.memory[start : start + reply.length] if is_ok else b""
        self.tracker.statistics.received += len(data)
        return Response(
            data=data,
            resized_width=reply.width,
            resized_height=reply.height,
            status=reply.status,
            error="" if is_ok else reply.text,
            note=reply.text if is_ok else "",
            server=f"cpu {worker.number}",
        )

    # -- processes ------------------------------------------------------------------------------------------------

    def _start_worker(self, number: int) -> None:
        try:
            worker = LocalWorker(number, self._spawn())
        except OSError as error:
            self.tracker.end(f"cannot start a CPU process: {error.strerror}")
            return
        self._workers.append(worker)
        self._loop.watch_level(worker.process.sock.fileno(), lambda mask: self._on_packet(worker))

    def _end(self, worker: LocalWorker) -> str:
        self._loop.forget(worker.process.sock.fileno())
        return self._reap(worker.process)

    def _replace(self, worker: LocalWorker, reason: str = "") -> None:
        """The process has died, or has to for `reason`: settle or retry the picture in its hands and start another."""
        how = self._end(worker)
        self._workers.remove(worker)
        for _, job in reversed(worker.orders):
            if job is not worker.orders[0][1]:
                self._queue.retry(job, self._loop.now, 0, False)
        if worker.orders:
            self._fail(worker.orders[0][1], reason, how)
        if not worker.is_ready:
            self._start_failures += 1
        if self._start_failures >= START_FAILURES:
            self.tracker.end(f"CPU processes do not start: {how}")
        elif self.tracker.left and not self.tracker.is_ending:
            self._start_worker(worker.number)

    def _fail(self, job: ClientJob, reason: str, how: str) -> None:
        if reason:
            self.tracker.settle(job, reason)
            return
        job.failed_tries += 1
        if job.failed_tries > self._spec.options.retries:
            self.tracker.settle(job, f"lost: its CPU process died ({how})")
        else:
            self._queue.retry(job, self._loop.now, 0, False)

    def _tick(self) -> None:
        self.tracker.tick()
        timeout = self._spec.options.timeout
        for worker in list(self._workers):
            if worker.orders and self._loop.now - worker.began_at > timeout:
                self._replace(worker, f"timeout: no result in {timeout:g} s")
