"""The run of one process over a network: jobs go to dispatchers, replies to files and the tracker.

RULES: the callbacks of dispatchers and connections end here. `_settle` is called exactly once for each job that is not
abandoned.
"""

import os
from collections.abc import Iterator
from itertools import count

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.client.concurrency import INTERVAL, ConcurrencyLimit
from workers.client.connection import ClientConnection
from workers.client.dispatcher import DispatchCalls, Dispatcher, DispatchLimits
from workers.client.job_tracker import JobTracker, RunSpec
from workers.client.jobs import ClientJob, JobQueue, request_of
from workers.client.report import Statistics, printable
from workers.picture_header import read_header
from workers.wire.messages import Request, Response

OVERHEAD = 4096  # upper bound of the bytes of a frame that are not the picture


class ClientRun:
    """Runs from the first dial to the last reply."""

    def __init__(self, spec: RunSpec, loop: Loop, log: Log) -> None:
        options = spec.options
        self._spec = spec
        self._options = options
        self._loop = loop
        self._log = log
        self._serials = count(1)
        self._ids = count(1)
        dispatchers = options.maxconns if options.flood else 1
        jobs_each = len(spec.pictures) * options.times
        self.tracker = JobTracker(spec, loop, log, jobs_each * dispatchers)
        calls = DispatchCalls(lambda: loop.now, self._dial, self._start, self._settle, self._abandon)
        limits = DispatchLimits(options.in_flight, options.retries, options.timeout)
        connections = (1, 1) if options.flood else (options.minconns, options.maxconns)
        self._dispatchers = [
            Dispatcher(
                JobQueue(self._jobs(is_saved=number == 0), jobs_each),
                ConcurrencyLimit(*connections),
                limits,
                calls,
            )
            for number in range(dispatchers)
        ]

    def go(self) -> Statistics:
        """Run until every job is settled or a signal arrives; the statistics."""
        self.tracker.start()
        self._loop.every(INTERVAL, self._tick)
        if self.tracker.left:
            for dispatcher in self._dispatchers:
                dispatcher.dispatch()
            self._loop.run()
        self.tracker.finish(job for dispatcher in self._dispatchers for job in dispatcher.unsettled())
        for dispatcher in self._dispatchers:
            dispatcher.stop()
        self._loop.run_once(0)
        return self.tracker.statistics

    # -- jobs -----------------------------------------------------------------------------------------------------

    def _jobs(self, is_saved: bool) -> Iterator[ClientJob]:
        is_saved = is_saved and self._spec.output is not None
        for _ in range(self._options.times):
            for picture in self._spec.pictures:
                yield ClientJob(picture, self._spec.targets[picture.path], is_saved)

    def _start(self, job: ClientJob, now: float) -> Request | None:
        """Read the file of `job` and return its request; None when that failed and the job is settled."""
        options, picture = self._options, job.picture
        job.started_at = job.started_at or now
        data = b""
        if not options.dry_run:
            try:
                with open(os.path.join(options.input, picture.path), "rb") as file:
                    data = file.read(options.max_frame + 1)
            except OSError as error:
                self._settle(job, None, f"cannot read: {error.strerror}")
                return None
            if len(data) > options.max_frame - OVERHEAD:
                self._settle(
                    job, None, f"too big: {picture.size} bytes do not fit max-frame {options.max_frame}"
                )
                return None
        job.source_header = read_header(data)
        job.request = request_of(options, picture, data)
        return job.request

    def _settle(self, job: ClientJob, response: Response | None, reason: str) -> None:
        if response is not None:
            self.tracker.answer(job, response)
        else:
            self.tracker.settle(job, reason)
        job.request.data = b""  # a settled job may stay referenced by the pipeline of a lost connection

    def _abandon(self, jobs: Iterator[ClientJob], connection: ClientConnection, reason: str) -> None:
        named, address = str(self._options.proxy), str(connection.address)
        server = named if named == address else f"{named} ({address})"
        what, _, why = reason.partition(": ")
        sentence = f"{what} to {server}: {why}" if what == "cannot connect" else f"{server}: {reason}"
        self.tracker.abandon(jobs, sentence)

    # -- connections ----------------------------------------------------------------------------------------------

    def _dial(self, dispatcher: Dispatcher) -> ClientConnection:
        serial = next(self._serials)
        address = self._spec.addresses[serial % len(self._spec.addresses)]
        connection = ClientConnection(
            self._loop, address, serial, self._ids.__next__, self._options.max_frame
        )
        connection.on_open = dispatcher.on_open
        connection.on_replies = dispatcher.on_replies
        connection.on_lost = lambda connection, reason: self._on_lost(dispatcher, connection, reason)
        connection.dial()
        self._log.debug("dial", connection=serial, address=str(address))
        return connection

    def _on_lost(self, dispatcher: Dispatcher, connection: ClientConnection, reason: str) -> None:
        pipeline = connection.pipeline
        statistics = self.tracker.statistics
        statistics.sent += connection.bytes_out
        statistics.received += connection.bytes_in
        if pipeline.violation and not pipeline.is_foreign:
            statistics.violations.append(f"{connection.address}: {pipeline.violation}")
        self._log.debug(
            "session",
            connection=connection.serial,
            total=f"{(self._loop.now - connection.dialled_at) * 1000:.1f}ms",
            **{"in": connection.bytes_out, "out": connection.bytes_in},  # as the server counts them
            answered=pipeline.answered,
            reason=printable(reason) or "done",
        )
        dispatcher.on_lost(connection, reason)

    def _tick(self) -> None:
        self.tracker.tick()
        for dispatcher in self._dispatchers:
            dispatcher.tick()
