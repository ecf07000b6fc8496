"""What became of every job of one process: saved, failed or not done; counts, log lines, rows, progress, the run's end.

RULES: knows no server and no decoder. A reply is validated against its own request, saved at the path that was fixed
before the request was sent, and counted; it has no other effect. `answer` or `settle` is called once for each job that
was tried to its end, `abandon` for the others. A run ends by itself, by a signal, or because nothing more can be saved;
only the last two leave jobs undone.
"""

import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import FrameType

from balancer.config.units import Address
from balancer.eventloop.errnos import OUTPUT_IS_GONE
from balancer.eventloop.log import Log
from balancer.eventloop.log_format import value_text
from balancer.eventloop.loop import Loop
from workers.client.jobs import ClientJob
from workers.client.journal import Journal
from workers.client.naming import named_by_size
from workers.client.options import ClientOptions
from workers.client.output import OutputDirectory
from workers.client.progress import Progress, ProgressState
from workers.client.report import Statistics
from workers.client.scan import Picture
from workers.client.validation import validate
from workers.picture_header import read_header
from workers.wire.messages import Response


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


class JobTracker:
    """What has become of the `total` jobs of this process."""

    def __init__(self, spec: RunSpec, loop: Loop, log: Log, total: int) -> None:
        self.statistics = Statistics()
        self.is_ending = False
        self._spec = spec
        self._loop = loop
        self._log = log
        self._total = self.left = total
        self._bytes_done = 0
        self._started_at = loop.now
        self._progress = Progress()
        self._must_reopen = False

    # -- the run ---------------------------------------------------------------------------------------------------

    def watch_signals(self) -> None:
        """Let SIGINT and SIGTERM end the run, and SIGUSR1 open the log again."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.on_signal)

    def start(self) -> None:
        """Show progress from now on."""
        if self._spec.shows_progress:
            self._loop.every(self._progress.every, self._show)
        self._loop.at_turn_end(self._log.flush)

    def tick(self) -> None:
        """What a signal asked for, and a parent that is gone; to be called a few times a second."""
        if self._must_reopen:
            self._must_reopen = False
            self._log.reopen()
        if self._spec.parent not in (0, os.getppid()):  # it was killed: no process reads the statistics
            self.end("the parent process is gone")

    def end(self, sentence: str) -> None:
        """End the run before its time. The first reason is the one that is told."""
        if not self.is_ending:
            self.statistics.add_stop(sentence)
        self.is_ending = True
        self._loop.stop()

    def finish(self, unsettled: Iterable[ClientJob]) -> None:
        """Count what is left when the run is over: the jobs of `unsettled`."""
        if self._spec.shows_progress:
            self._progress.finish()
        self.statistics.elapsed = self._loop.now - self._started_at
        if self.left:
            reason = "not done: " + ", ".join(self.statistics.stops)
            self.statistics.unfinished += self.left
            if self._spec.options.report:
                for job in unsettled:
                    self._add_row(job, reason)

    # -- jobs ------------------------------------------------------------------------------------------------------

    def answer(self, job: ClientJob, response: Response) -> None:
        """The reply to `job` ends it: its picture is saved, or the job has failed."""
        server = response.server[:64]
        self.statistics.replies += 1
        self.statistics.add_latency(self._loop.now - job.started_at)
        self.statistics.servers[server] += 1
        if response.is_ok():
            difference = validate(job.request, job.source_header, response)
            reason = f"wrong reply: {difference}" if difference else self._save(job, response.data)
        else:
            reason = f"{response.status}: {response.error}"
        self.settle(job, reason, server, len(response.data), response.note[:200])

    def _save(self, job: ClientJob, data: bytes | memoryview) -> str:
        """Save the result of `job` under the name of its size; why that failed, or ""."""
        output, journal, options = self._spec.output, self._spec.journal, self._spec.options
        if not job.is_saved or output is None:
            return ""
        planned, header = job.target, read_header(data)
        if header is not None:
            job.target = named_by_size(
                planned, (options.width, options.height), (header.width, header.height)
            )

        def note(saved: os.stat_result) -> None:
            if journal is not None:
                journal.note(job.picture, planned, saved, job.target)

        try:
            output.save(job.target, data, note, job.picture.mtime_ns if options.preserve else None)
        except OSError as error:
            if error.errno in OUTPUT_IS_GONE:
                self.end(f"cannot save {job.target}: {error.strerror}")
            return f"cannot save: {error.strerror}"
        self.statistics.saved += 1
        return ""

    def settle(
        self, job: ClientJob, reason: str, server: str = "", bytes_out: int = 0, note: str = ""
    ) -> None:
        """The end of `job`: saved, or failed for `reason`. `bytes_out`: of the result; `note`: what it lacks."""
        statistics, tries = self.statistics, job.failed_tries
        statistics.retries += tries if not reason else min(tries, self._spec.options.retries)
        if note and not reason:
            statistics.notes[note] += 1
        if reason and self.is_ending:
            statistics.unfinished += 1  # the run's end is the reason, which is told once
        elif reason:
            statistics.add_failure(job.picture.path, reason)
        milliseconds = (self._loop.now - job.started_at) * 1000 if job.started_at else 0.0
        if self._log.wants_session(is_clean=not reason):
            end = f"failed reason={value_text(reason)}" if reason else "done"
            self._log.session(
                f"request picture={value_text(job.picture.path)} server={value_text(server or '-')} "
                f"total={milliseconds:.1f}ms in={job.picture.size} out={bytes_out} "
                f"retries={tries}/{self._spec.options.retries} end={end}"
            )
        self._add_row(job, reason, server, bytes_out, note, milliseconds)
        self._bytes_done += job.picture.size
        self._count_down()

    def abandon(self, jobs: Iterable[ClientJob], sentence: str) -> None:
        """`jobs` are not tried any further, for one reason that is told once."""
        self.statistics.add_stop(sentence)
        for job in jobs:
            self.statistics.unfinished += 1
            self._add_row(job, f"not done: {sentence}")
            self._count_down()

    def _count_down(self) -> None:
        self.left -= 1
        if not self.left:
            self._loop.stop()

    def _add_row(
        self,
        job: ClientJob,
        error: str,
        server: str = "",
        bytes_out: int = 0,
        note: str = "",
        milliseconds: float = 0.0,
    ) -> None:
        if not self._spec.options.report:
            return
        self.statistics.rows.append(
            {
                "picture": job.picture.path,
                "target": job.target if job.is_saved else "",
                "bytes_in": job.picture.size,
                "bytes_out": bytes_out,
                "ms": round(milliseconds, 2),
                "server": server,
                "retries": min(job.failed_tries, self._spec.options.retries),
                "error": error,
                "note": note,
            }
        )

    def _show(self) -> None:
        statistics, seconds = self.statistics, self._loop.now - self._started_at
        done = self._total - self.left
        self._progress.show(
            ProgressState(done, self._total, statistics.failed, self._bytes_done, seconds, statistics.servers)
        )

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals that a run watches."""
        # PEP 475 restarts the wait after the handler; the next tick of the run carries it out.
        if number == signal.SIGUSR1:
            self._must_reopen = True
        elif self.left:
            self.statistics.signal = number
            self.end(f"stopped by {signal.Signals(number).name}")
