"""A queue of jobs and the connections that carry them: what is sent where, when to dial, what is retried.

    queue --take--> connection (at most `in_flight` each) --reply--> settle(job, response, ...)
      ^                  | busy, draining: it gets no more jobs and is closed when idle
      '--retry-----------+ lost, timed out: its jobs wait, then go to a connection that was dialled later

RULES: no sockets and no files, only connections and callbacks; the time is loop.now. Every job is settled exactly once.
After connections that ended without a reply the dispatcher dials one at a time, waits longer each time and sends one
job on it, and after PATIENCE of them abandons its jobs: a service that is gone must not use up the retries of a whole
directory, and is told once. So is one that speaks another protocol from its first byte on.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

from workers.client.concurrency import ConcurrencyLimit
from workers.client.connection import ClientConnection
from workers.client.jobs import ClientJob, JobQueue, retry_delay
from workers.wire.messages import BUSY, RETRYABLE, MessageError, Request, Response

DIAL_TIMEOUT = 5.0
PATIENCE = 8  # connections in a row without a reply: 7 s
PATIENCE_AT_FIRST = 5  # the same before the first reply of all, 1.5 s: the address is probably wrong
_REDIAL_DELAYS = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)


@dataclass(frozen=True, slots=True)
class DispatchLimits:
    """The options that apply to every dispatcher. `timeout` in seconds."""

    in_flight: int
    retries: int
    timeout: float


@dataclass(frozen=True, slots=True)
class DispatchCalls:
    """What a dispatcher calls in the run."""

    now: Callable[[], float]
    dial: Callable[["Dispatcher"], ClientConnection]  # a connection with its callbacks set, being dialled
    start: Callable[[ClientJob, float], Request | None]  # None: settled already, its file could not be read
    settle: Callable[[ClientJob, Response | None, str], object]  # without a response: the reason
    abandon: Callable[[Iterator[ClientJob], ClientConnection, str], object]  # the service is gone


class Dispatcher:
    """One queue; `concurrency` is how many connections it may have."""

    def __init__(
        self, queue: JobQueue, concurrency: ConcurrencyLimit, limits: DispatchLimits, calls: DispatchCalls
    ) -> None:
        self.queue = queue
        self.concurrency = concurrency
        self._limits = limits
        self._calls = calls
        self.connections: list[ClientConnection] = []
        self._newest_serial = 0
        self._lost_without_reply = 0  # connections in a row
        self._has_had_reply = False
        self._next_dial_at = 0.0
        self._is_stopped = False

    # -- called by the run ----------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Send the jobs that can be sent, close idle connections that may carry none, dial the missing ones."""
        now = self._calls.now()
        for connection in sorted(self.connections, key=lambda connection: len(connection.pipeline)):
            self._send_jobs(connection, now)
        for connection in list(self.connections):
            if (
                connection.is_open
                and connection.is_idle()
                and (connection.is_draining or self.queue.needs_newer_than(connection.serial, now))
            ):
                connection.close("")
        self._dial_missing(now)

    def tick(self) -> None:
        """Timeouts, the number of connections, and retries that are due; to be called every concurrency.INTERVAL."""
        now = self._calls.now()
        for connection in list(self.connections):
            if not connection.is_open and now - connection.dialled_at > DIAL_TIMEOUT:
                connection.close("cannot connect: timed out")
            elif any(job.deadline < now for job in connection.pipeline.in_flight()):
                connection.close(f"timeout: no reply in {self._limits.timeout:g} s")
        self.concurrency.adjust(now)
        for connection in self._usable()[self.concurrency.current :]:
            connection.is_draining = True
        if not self._is_stopped:
            self.dispatch()

    def unsettled(self) -> Iterator[ClientJob]:
        """Every job that is in flight or left, to be asked for once before stop()."""
        for connection in self.connections:
            yield from connection.pipeline.in_flight()
        yield from self.queue.take_all()

    def stop(self) -> None:
        """Close every connection; no job is settled after this."""
        self._is_stopped = True
        for connection in list(self.connections):
            connection.close("")

    # -- called by connections ------------------------------------------------------------------------------------

    def on_open(self, connection: ClientConnection) -> None:
        """The dial succeeded: send the first jobs."""
        self._send_jobs(connection, self._calls.now())

    def on_replies(self, connection: ClientConnection, answers: list[tuple[ClientJob, Response]]) -> None:
        """Settle or retry the answered jobs and send the next ones."""
        now = self._calls.now()
        self._lost_without_reply, self._has_had_reply, self._next_dial_at = 0, True, 0.0
        for job, response in answers:
            if response.status in RETRYABLE:
                connection.is_draining = True
                if response.status == BUSY:
                    self.concurrency.on_busy(now)
                reason = "busy" if response.status == BUSY else "draining"
                detail = f": {response.error}" if response.error else ""
                self._retry(job, reason + detail, now, is_suspect=False)
            else:
                self.concurrency.on_reply()
                self._calls.settle(job, response, "")
        if self._is_stopped or connection.is_closed:
            return
        if connection.is_idle():
            connection.carries_suspect = False
        self._send_jobs(connection, now)
        if connection.is_idle():
            self.dispatch()

    def on_lost(self, connection: ClientConnection, reason: str) -> None:
        """The connection has ended, by either side: retry or settle the jobs in flight and dial again."""
        self.connections.remove(connection)
        if self._is_stopped:
            return
        now = self._calls.now()
        pipeline = connection.pipeline
        if pipeline.is_foreign and not self._has_had_reply:
            self._calls.abandon(chain(pipeline.in_flight(), self.queue.take_all()), connection, reason)
            return
        if reason and not pipeline.answered:
            self._lost_without_reply += 1
            delay = _REDIAL_DELAYS[min(self._lost_without_reply, len(_REDIAL_DELAYS)) - 1]
            self._next_dial_at = now + delay
        for job in pipeline.in_flight():
            if pipeline.violation:
                self._calls.settle(job, None, reason)
            else:
                self._retry(job, reason, now, is_suspect=True)
        if self._lost_without_reply >= (PATIENCE if self._has_had_reply else PATIENCE_AT_FIRST):
            self._calls.abandon(self.queue.take_all(), connection, reason)
        if not self._is_stopped:
            self._dial_missing(now)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _usable(self) -> list[ClientConnection]:
        return [connection for connection in self.connections if not connection.is_draining]

    def _dial_missing(self, now: float) -> None:
        usable = self._usable()
        dialling = sum(not connection.is_open for connection in usable)
        wanted = self.concurrency.current
        if self._lost_without_reply:
            wanted = min(wanted, 1)
            if now < self._next_dial_at:
                return
        for _ in range(min(wanted - len(usable), self.queue.count_ready(now) - dialling)):
            connection = self._calls.dial(self)
            self._newest_serial = connection.serial
            self.connections.append(connection)

    def _free_places(self, connection: ClientConnection) -> int:
        if not connection.is_open or connection.is_draining or connection.carries_suspect:
            return 0
        is_trial = self._lost_without_reply and not connection.pipeline.answered
        return (1 if is_trial else self._limits.in_flight) - len(connection.pipeline)

    def _send_jobs(self, connection: ClientConnection, now: float) -> None:
        while self._free_places(connection) > 0:
            job = self.queue.take(connection.serial, now, connection.is_idle())
            if job is None:
                break
            request = self._calls.start(job, now)
            if request is None:
                continue
            job.deadline = now + self._limits.timeout * (len(connection.pipeline) + 1)
            connection.carries_suspect = job.is_suspect
            try:
                connection.send(job, request)
            except MessageError as error:
                self._calls.settle(job, None, f"cannot send: {error}")
        connection.flush()

    def _retry(self, job: ClientJob, reason: str, now: float, is_suspect: bool) -> None:
        job.failed_tries += 1
        if job.failed_tries > self._limits.retries:
            self._calls.settle(job, None, reason)
        else:
            due = now + retry_delay(job.failed_tries, random.random())
            self.queue.retry(job, due, self._newest_serial, is_suspect)
