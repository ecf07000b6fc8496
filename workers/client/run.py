"""The run of one process: jobs go to dispatchers, replies to files and statistics, until every job is settled.

RULES: the callbacks of dispatchers and connections end here. A reply is validated against its own request, saved at the
path that was fixed before the request was sent, and counted; it has no other effect. `_settle` is called exactly once
for each job.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from types import FrameType

from balancer.config.units import Address, counted
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.client.concurrency import INTERVAL, ConcurrencyLimit
from workers.client.connection import ClientConnection
from workers.client.dispatcher import DispatchCalls, Dispatcher, DispatchLimits
from workers.client.jobs import ClientJob, JobQueue
from workers.client.journal import Journal
from workers.client.naming import named_by_size
from workers.client.options import ClientOptions
from workers.client.output import OutputDirectory
from workers.client.picture_header import read_header
from workers.client.progress import Progress
from workers.client.report import Statistics, printable
from workers.client.scan import Picture
from workers.client.validation import validate
from workers.wire.messages import Request, Response

OVERHEAD = 4096  # upper bound of the bytes of a frame that are not the picture


@dataclass(frozen=True, slots=True)
class RunSpec:
    """The work of one process. `output` and `journal` are None in a dry run."""

    options: ClientOptions
    addresses: tuple[Address, ...]
    pictures: Sequence[Picture]
    targets: dict[str, str]
    output: OutputDirectory | None
    journal: Journal | None
    shows_progress: bool = True
    parent: int = 0  # pid of the process that forked this one and adds up the statistics; 0: none did


class ClientRun:
    """Runs from the first dial to the last reply."""

    def __init__(self, spec: RunSpec, loop: Loop, log: Log) -> None:
        options = spec.options
        self._spec = spec
        self._options = options
        self._loop = loop
        self._log = log
        self.statistics = Statistics()
        self._serials = count(1)
        self._ids = count(1)
        self._interruption = ""
        self._started_at = loop.now
        dispatchers = options.maxconns if options.flood else 1
        jobs_each = len(spec.pictures) * options.times
        self._total = self._left = jobs_each * dispatchers
        calls = DispatchCalls(lambda: loop.now, self._dial, self._start, self._settle)
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
        self._progress = Progress(self._total, loop.now)

    def go(self) -> Statistics:
        """Run until every job is settled or a signal arrives; the statistics."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self._loop.every(INTERVAL, self._tick)
        if self._spec.shows_progress:
            self._loop.every(self._progress.every, self._show)
        self._loop.at_turn_end(self._log.flush)
        if self._left:
            for dispatcher in self._dispatchers:
                dispatcher.dispatch()
            self._loop.run()
        for dispatcher in self._dispatchers:
            dispatcher.stop()
        self._loop.run_once(0)
        if self._spec.shows_progress:
            self._progress.finish()
        self.statistics.elapsed = self._loop.now - self._started_at
        if self._interruption and self._left:
            self.statistics.add_failure(
                counted(self._left, "picture"), f"not asked for: {self._interruption}"
            )
        return self.statistics

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
            typ=picture.typ,
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
        statistics = self.statistics
        server = ""
        if response is not None:
            server = response.server[:64]
            statistics.replies += 1
            statistics.add_latency(self._loop.now - job.started_at)
            statistics.servers[server] += 1
            reason = self._finish(job, response)
        tries = job.failed_tries
        statistics.retries += tries if not reason else min(tries, self._options.retries)
        if reason:
            statistics.add_failure(job.picture.path, reason)
        self._report(job, response, server, reason)
        job.request.data = b""  # a settled job may stay referenced by the pipeline of a lost connection
        self._left -= 1
        if not self._left:
            self._loop.stop()

    def _finish(self, job: ClientJob, response: Response) -> str:
        """Validate the reply and save its picture; why that failed, or ""."""
        if not response.is_ok():
            return f"{response.status}: {response.error}"
        difference = validate(job.request, job.source_header, response)
        if difference:
            return f"wrong reply: {difference}"
        output, journal = self._spec.output, self._spec.journal
        if not job.is_saved or output is None:
            return ""

        planned, found = job.target, read_header(response.data)
        if found is not None:
            asked = job.request.target_width, job.request.target_height
            job.target = named_by_size(planned, asked, (found.width, found.height))

        def note(saved: os.stat_result) -> None:
            if journal is not None:
                journal.note(job.picture, planned, saved, job.target)

        try:
            output.save(job.target, response.data, note)
        except OSError as error:
            return f"cannot save: {error.strerror}"
        self.statistics.saved += 1
        return ""

    def _report(self, job: ClientJob, response: Response | None, server: str, reason: str) -> None:
        """The log line and the report row of a settled job."""
        milliseconds = (self._loop.now - job.started_at) * 1000 if job.started_at else 0.0
        size = len(response.data) if response is not None else 0
        if self._log.level >= 1:
            end = f"failed reason={printable(reason)!r}" if reason else "done"
            self._log.session(
                f"request picture={printable(job.picture.path)!r} server={printable(server) or '-'} "
                f"total={milliseconds:.1f}ms in={job.picture.size} out={size} "
                f"retries={job.failed_tries}/{self._options.retries} end={end}"
            )
        if self._options.report:
            self.statistics.rows.append(
                {
                    "picture": job.picture.path,
                    "target": job.target if job.is_saved else "",
                    "bytes_in": job.picture.size,
                    "bytes_out": size,
                    "ms": round(milliseconds, 2),
                    "server": server,
                    "retries": min(job.failed_tries, self._options.retries),
                    "error": reason,
                }
            )

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
        self.statistics.sent += connection.bytes_out
        self.statistics.received += connection.bytes_in
        if pipeline.violation:
            self.statistics.violations.append(f"{connection.address}: {pipeline.violation}")
        self._log.debug(
            "session",
            connection=connection.serial,
            total=f"{(self._loop.now - connection.dialled_at) * 1000:.1f}ms",
            **{"in": connection.bytes_out, "out": connection.bytes_in},  # as the server counts them
            answered=pipeline.answered,
            reason=printable(reason) or "done",
        )
        dispatcher.on_lost(connection, reason)

    # -- time -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._spec.parent not in (
            0,
            os.getppid(),
        ):  # the parent was killed: no process reads the statistics
            self._interruption = "the parent process is gone"
            self._loop.stop()
            return
        for dispatcher in self._dispatchers:
            dispatcher.tick()

    def _show(self) -> None:
        done = self._total - self._left
        self._progress.show(done, self.statistics.failed, self.statistics.servers, self._loop.now)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # PEP 475 restarts the wait after the handler; the next tick, at most INTERVAL later, ends the run.
        self._interruption = f"stopped by {signal.Signals(number).name}"
        self._loop.stop()
