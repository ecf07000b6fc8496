"""One process's run: jobs into lanes, replies into files and figures, until every job is settled.

RULES: the loop's callbacks meet here and nowhere else. What a reply is allowed to do: be judged against its own request,
become the content of the file that was decided before, be counted. Exactly one `settle` per job ends it.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from types import FrameType

from balancer.config.units import Address
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.client.jobs import Job, Queue
from workers.client.journal import Journal
from workers.client.judge import objection, read_header
from workers.client.lane import Calls, Lane, Limits
from workers.client.link import Link
from workers.client.pacing import INTERVAL, Pacer
from workers.client.progress import Progress
from workers.client.report import Statistics, printable
from workers.client.save import Output
from workers.client.scan import Picture
from workers.options import ClientOptions
from workers.wire.messages import Request, Response

OVERHEAD = 4096  # bytes of a frame that are not the picture, at most


@dataclass(frozen=True, slots=True)
class Task:
    """What one process is to do. `output` and `journal` are None in a dry run."""

    options: ClientOptions
    addresses: tuple[Address, ...]
    pictures: Sequence[Picture]
    targets: dict[str, str]
    output: Output | None
    journal: Journal | None
    shows_progress: bool = True
    parent: int = 0  # pid that must stay our parent; 0: nobody has forked us to work for him


class Run:
    """From the first dial to the last reply."""

    def __init__(self, task: Task, loop: Loop, log: Log) -> None:
        options = task.options
        self._task = task
        self._options = options
        self._loop = loop
        self._log = log
        self.figures = Statistics(is_flood=options.flood)
        self._serials = count(1)
        self._ids = count(1)
        self._interrupted = ""
        self._began = loop.now
        lanes = options.maxconns if options.flood else 1
        per_lane = len(task.pictures) * options.times
        self._total = self._left = per_lane * lanes
        calls = Calls(lambda: loop.now, self._dial, self._begin, self._settle)
        limits = Limits(options.in_flight, options.retries, options.timeout)
        self._lanes = [
            Lane(
                Queue(self._jobs(number == 0), per_lane),
                Pacer(1, 1) if options.flood else Pacer(options.minconns, options.maxconns),
                limits,
                calls,
            )
            for number in range(lanes)
        ]
        self._progress = Progress(self._total, loop.now)

    def go(self) -> Statistics:
        """Work until everything is settled or a signal says stop; the figures."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        self._loop.every(INTERVAL, self._tick)
        if self._task.shows_progress:
            self._loop.every(self._progress.every, self._show)
        self._loop.at_turn_end(self._log.flush)
        if self._left:
            for lane in self._lanes:
                lane.work()
            self._loop.run()
        for lane in self._lanes:
            lane.end()
        self._loop.run_once(0)
        if self._task.shows_progress:
            self._progress.finish()
        self.figures.elapsed = self._loop.now - self._began
        self.figures.passes = self.figures.replies / (len(self._task.pictures) or 1)
        if self._interrupted and self._left:
            self.figures.add_failure(f"{self._left} pictures", f"not asked for: {self._interrupted}")
        return self.figures

    # -- jobs -----------------------------------------------------------------------------------------------------

    def _jobs(self, keep: bool) -> Iterator[Job]:
        keep = keep and self._task.output is not None
        for _ in range(self._options.times):
            for picture in self._task.pictures:
                yield Job(picture, self._task.targets[picture.path], keep)

    def _begin(self, job: Job, now: float) -> Request | None:
        """The request of `job`, its file read now; None when it could not be, and the job is settled."""
        options, picture = self._options, job.picture
        job.began = job.began or now
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
        job.source = read_header(data)
        job.asked = Request(
            original_name=os.path.basename(picture.path),
            typ=picture.typ,
            data=data,
            target_width=options.width,
            target_height=options.height,
            dry_run=options.dry_run,
            fit="" if options.fit == "stretch" else options.fit,
            format=options.format,
            quality=options.quality,
        )
        return job.asked

    def _settle(self, job: Job, response: Response | None, reason: str) -> None:
        figures = self.figures
        server = ""
        if response is not None:
            server = response.server[:64]
            figures.replies += 1
            figures.add_latency(self._loop.now - job.began)
            figures.servers[server] += 1
            reason = self._finish(job, response)
        figures.retries += job.tries if not reason else min(job.tries, self._options.retries)
        if reason:
            figures.add_failure(job.picture.path, reason)
        self._tell(job, response, server, reason)
        job.asked.data = b""  # a million settled jobs must not hold a million pictures
        self._left -= 1
        if not self._left:
            self._loop.stop()

    def _finish(self, job: Job, response: Response) -> str:
        """Judge and save; the reason why not, or ""."""
        if not response.is_ok():
            return f"{response.status}: {response.error}"
        wrong = objection(job.asked, job.source, response)
        if wrong:
            return f"wrong reply: {wrong}"
        output, journal = self._task.output, self._task.journal
        if not job.keep or output is None:
            return ""

        def note(saved: os.stat_result) -> None:
            if journal is not None:
                journal.note(job.picture, job.target, saved)

        try:
            output.save(job.target, response.data, note)
        except OSError as error:
            return f"cannot save: {error.strerror}"
        self.figures.saved += 1
        return ""

    def _tell(self, job: Job, response: Response | None, server: str, reason: str) -> None:
        """The log's line and the report's row."""
        milliseconds = (self._loop.now - job.began) * 1000 if job.began else 0.0
        size = len(response.data) if response is not None else 0
        if self._log.level >= 1:
            end = f"failed={printable(reason)!r}" if reason else "done"
            self._log.session(
                f"close picture={printable(job.picture.path)!r} bytes={job.picture.size}/{size} ms={milliseconds:.1f} "
                f"server={printable(server) or '-'} tries={job.tries}/{self._options.retries} {end}"
            )
        if self._options.report:
            self.figures.rows.append(
                {
                    "picture": job.picture.path,
                    "target": job.target if job.keep else "",
                    "bytes_in": job.picture.size,
                    "bytes_out": size,
                    "ms": round(milliseconds, 2),
                    "server": server,
                    "retries": min(job.tries, self._options.retries),
                    "error": reason,
                }
            )

    # -- links ----------------------------------------------------------------------------------------------------

    def _dial(self, lane: Lane) -> Link:
        serial = next(self._serials)
        address = self._task.addresses[serial % len(self._task.addresses)]
        link = Link(self._loop, address, serial, self._ids.__next__, self._options.max_frame)
        link.on_open = lane.opened
        link.on_answers = lane.answered
        link.on_lost = lambda link, reason: self._lost(lane, link, reason)
        link.dial()
        self._log.debug("dial", link=serial, address=str(address))
        return link

    def _lost(self, lane: Lane, link: Link, reason: str) -> None:
        self.figures.sent += link.sent
        self.figures.received += link.received
        if link.talk.violation:
            self.figures.violations.append(f"{link.address}: {link.talk.violation}")
        self._log.debug(
            "close", link=link.serial, reason=printable(reason) or "done", answered=link.talk.answered
        )
        lane.lost(link, reason)

    # -- time -----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        if self._task.parent not in (0, os.getppid()):  # killed: there is nobody left to report to
            self._interrupted = "the parent process is gone"
            self._loop.stop()
            return
        for lane in self._lanes:
            lane.tick()

    def _show(self) -> None:
        done = self._total - self._left
        self._progress.show(done, self.figures.failed, self.figures.servers, self._loop.now)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # The wait is restarted after a handler returns; the next tick, at most INTERVAL away, ends it.
        self._interrupted = f"stopped by {signal.Signals(number).name}"
        self._loop.stop()
