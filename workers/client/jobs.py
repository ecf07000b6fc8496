"""Jobs, one per picture and pass, and the queue from which a dispatcher takes them.

RULES: pure; time comes in as an argument. A job that failed on a connection is never given to that connection or an
older one again, so that the balancer elects a backend anew. A job whose connection broke is a suspect and is sent alone:
a picture that makes servers close the connection takes the other requests in flight down once at most.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from workers.client.options import ClientOptions
from workers.client.scan import Picture
from workers.picture_header import PictureHeader
from workers.wire.messages import GIF, JPEG, PNG, Request

# The wire format knows three kinds. Resizers look at the content, so other formats are sent as the first kind.
KINDS = {"jpeg": JPEG, "png": PNG, "gif": GIF}

RETRY_DELAYS = (0.15, 0.6, 2.0)  # seconds before the first, second, each further retry


@dataclass(slots=True, eq=False)
class ClientJob:
    """One picture to be resized once: its record from scan to report."""

    picture: Picture
    target: str  # as planned; once it is saved, as the file is called
    is_saved: bool = True  # False: the reply is counted, not saved
    failed_tries: int = 0
    after_serial: int = 0  # only connections with a higher serial may carry it
    due: float = 0.0
    is_suspect: bool = False
    started_at: float = 0.0  # when its first request was sent
    deadline: float = 0.0
    request: Request = field(default_factory=Request)
    source_header: PictureHeader | None = None


def retry_delay(failed_tries: int, jitter: float) -> float:
    """Seconds to wait before the next try; `jitter` in [0, 1) spreads clients that failed at the same time."""
    return RETRY_DELAYS[min(failed_tries, len(RETRY_DELAYS)) - 1] * (0.5 + jitter)


def request_of(options: ClientOptions, picture: Picture, data: bytes = b"") -> Request:
    """What `options` ask for with `picture`, whose content is `data`."""
    return Request(
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


class JobQueue:
    """`total` fresh jobs in order, made when they are taken, and the jobs to be retried."""

    def __init__(self, fresh: Iterator[ClientJob], total: int) -> None:
        self._fresh = fresh
        self._left = total
        self._retries: list[ClientJob] = []

    def retry(self, job: ClientJob, due: float, after_serial: int, is_suspect: bool) -> None:
        """Queue `job` again from time `due` on, for connections with a serial above `after_serial`."""
        job.due, job.after_serial, job.is_suspect = due, after_serial, is_suspect
        self._retries.append(job)

    def take(self, serial: int, now: float, is_idle: bool) -> ClientJob | None:
        """The next job for connection number `serial`; `is_idle`: the connection has no request in flight.

        A busy connection that may carry a due suspect gets no job until it is idle. If it were given fresh jobs it
        would never become idle, and the suspects would wait until all fresh jobs are done.
        """
        for job in self._retries:
            if job.after_serial < serial and job.due <= now:
                if job.is_suspect and not is_idle:
                    return None
                self._retries.remove(job)
                return job
        if not self._left:
            return None
        self._left -= 1
        return next(self._fresh)

    def count_ready(self, now: float) -> int:
        """How many jobs a new connection could be given now."""
        return self._left + sum(job.due <= now for job in self._retries)

    def needs_newer_than(self, serial: int, now: float) -> bool:
        """True when every due job that is left is for connections after number `serial`."""
        return not self._left and any(job.due <= now and job.after_serial >= serial for job in self._retries)

    def take_all(self) -> Iterator[ClientJob]:
        """Every job that is left, removed from the queue."""
        retries, self._retries = self._retries, []
        yield from retries
        while self._left:
            self._left -= 1
            yield next(self._fresh)
