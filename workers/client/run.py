"""The run of one process over a network: jobs go to dispatchers, replies to files and the ledger.

RULES: the callbacks of dispatchers and connections end here. A reply is validated against its own request, saved at the
path that was fixed before the request was sent, and counted; it has no other effect. `_settle` is called exactly once
for each job that is not abandoned.
"""

import os
from collections.abc import Iterator
from itertools import count

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.client.concurrency import INTERVAL, ConcurrencyLimit
from workers.client.connection import ClientConnection
from workers.client.dispatcher import DispatchCalls, Dispatcher, DispatchLimits
from workers.client.jobs import ClientJob, JobQueue
from workers.client.ledger import Ledger, RunSpec
from workers.client.report import Statistics, printable
from workers.client.validation import validate
from workers.picture_header import read_header
from workers.wire.messages import GIF, JPEG, PNG, Request, Response

# The wire format knows three kinds. Resizers look at the content, so other formats are sent as the first kind.
KINDS = {"jpeg": JPEG, "png": PNG, "gif": GIF}
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
        self._ledger = Ledger(spec, loop, log, jobs_each * dispatchers)
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
        self._ledger.start()
        self._loop.every(INTERVAL, self._tick)
        if self._ledger.left:
            for dispatcher in self._dispatchers:
                dispatcher.dispatch()
            self._loop.run()
        self._ledger.finish(job for dispatcher in self._dispatchers for job in dispatcher.unsettled())
        for dispatcher in self._dispatchers:
            dispatcher.stop()
        self._loop.run_once(0)
        return self._ledger.statistics

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
        job.request = Request(
            original_name=os.path.basename(picture.path),
            typ=KINDS.get(picture.format, JPEG),
            data=data,
            target_width=options.width,
            target_height=options.height,
            dry_run=options.dry_run,
            fit="" if options.fit == "stretch" else options.fit,
            format=options.format,
            quality=options.quality,
            parameters=options.parameters,
        )
        return job.request

    def _settle(self, job: ClientJob, response: Response | None, reason: str) -> None:
        server, size, note = "", 0, ""
        if response is not None:
            server, size, note = response.server[:64], len(response.data), response.note[:200]
            self._ledger.count_reply(job, server)
            reason = self._finish(job, response)
        self._ledger.settle(job, reason, server, size, note)
        job.request.data = b""  # a settled job may stay referenced by the pipeline of a lost connection

    def _finish(self, job: ClientJob, response: Response) -> str:
        """Validate the reply and save its picture; why that failed, or ""."""
        if not response.is_ok():
            return f"{response.status}: {response.error}"
        difference = validate(job.request, job.source_header, response)
        if difference:
            return f"wrong reply: {difference}"
        output, found = self._spec.output, read_header(response.data)
        if not job.is_saved or output is None:
            return ""
        mtime = job.picture.mtime_ns if self._options.preserve else None
        size = (found.width, found.height) if found else (0, 0)
        return self._ledger.save(
            job, size, lambda target, note: output.save(target, response.data, note, mtime)
        )

    def _abandon(self, jobs: Iterator[ClientJob], connection: ClientConnection, reason: str) -> None:
        named, address = str(self._options.proxy), str(connection.address)
        server = named if named == address else f"{named} ({address})"
        what, _, why = reason.partition(": ")
        sentence = f"{what} to {server}: {why}" if what == "cannot connect" else f"{server}: {reason}"
        self._ledger.abandon(jobs, sentence)

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
        statistics = self._ledger.statistics
        statistics.sent += connection.bytes_out
        statistics.received += connection.bytes_in
        if pipeline.violation:
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
        self._ledger.tick()
        for dispatcher in self._dispatchers:
            dispatcher.tick()
