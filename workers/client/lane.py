"""A queue of jobs and the connections that work on it: who gets what, who is dialled, what is tried again.

    queue --take--> link (at most `in_flight` each) --answer--> settle(job, response, ...)
      ^                  | busy, draining: this link gets no more and ends when idle
      '--put_back--------+ lost, timed out: its jobs wait, then go to a connection dialled later

RULES: no sockets and no files, only links and callbacks; time is loop.now. Every job is settled exactly once. When
connections end without a single reply the lane dials one at a time, waits longer each time, sends one job on it, and
after PATIENCE of them gives up: a service that is gone must not eat the retries of a whole directory.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from workers.client.jobs import Job, Queue, back_off
from workers.client.link import Link
from workers.client.pacing import Pacer
from workers.wire.messages import BUSY, RETRYABLE, MessageError, Request, Response

DIAL_TIMEOUT = 5.0
PATIENCE = 8  # connections in a row without a reply: 7 s
NEVER_MET = 5  # the same when nothing ever answered, 1.5 s: the address is wrong, more likely than not
_WAITS = (0.1, 0.2, 0.4, 0.8, 1.6, 2.0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the options say about every lane. `timeout` in seconds."""

    in_flight: int
    retries: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Calls:
    """What a lane asks of the run."""

    now: Callable[[], float]
    dial: Callable[["Lane"], Link]  # a link with its callbacks set and its dial begun
    begin: Callable[[Job, float], Request | None]  # None: settled already, its file could not be read
    settle: Callable[[Job, Response | None, str], object]  # no response: the reason


class Lane:
    """One queue; `pacer` says how many connections it may have."""

    def __init__(self, queue: Queue, pacer: Pacer, limits: Limits, calls: Calls) -> None:
        self.queue = queue
        self.pacer = pacer
        self._limits = limits
        self._calls = calls
        self.links: list[Link] = []
        self._newest = 0
        self._fruitless = 0
        self._has_met = False
        self._dial_at = 0.0
        self._is_over = False

    # -- called by the run ----------------------------------------------------------------------------------------

    def work(self) -> None:
        """Hand out what can be handed out, dial what is missing."""
        now = self._calls.now()
        for link in sorted(self.links, key=lambda link: len(link.talk)):
            self._feed(link, now)
        for link in list(self.links):
            if (
                link.is_open
                and link.is_idle()
                and (link.is_sour or self.queue.is_waiting_for(link.serial, now))
            ):
                link.close("")
        self._dial_missing(now)

    def tick(self) -> None:
        """Timeouts, pacing, retries that have become due: to be called every few hundred milliseconds."""
        now = self._calls.now()
        for link in list(self.links):
            if not link.is_open and now - link.dialled_at > DIAL_TIMEOUT:
                link.close("cannot connect: timed out")
            elif any(job.deadline < now for job in link.talk.in_flight()):
                link.close(f"timeout: no reply in {self._limits.timeout:g} s")
        self.pacer.look(now)
        alive = [link for link in self.links if not link.is_sour]
        for link in alive[self.pacer.wanted :]:
            link.is_sour = True
        if not self._is_over:
            self.work()

    def end(self) -> None:
        """Close every connection; nothing is settled any more."""
        self._is_over = True
        for link in list(self.links):
            link.close("")

    # -- called by links ------------------------------------------------------------------------------------------

    def opened(self, link: Link) -> None:
        """The dial succeeded."""
        self._feed(link, self._calls.now())

    def answered(self, link: Link, answers: list[tuple[Job, Response]]) -> None:
        """Replies came in."""
        now = self._calls.now()
        self._fruitless, self._has_met, self._dial_at = 0, True, 0.0
        for job, response in answers:
            if response.status in RETRYABLE:
                link.is_sour = True
                if response.status == BUSY:
                    self.pacer.refused(now)
                said = f": {response.error}" if response.error else ""
                self._try_again(
                    job, ("busy" if response.status == BUSY else "draining") + said, now, is_suspect=False
                )
            else:
                self.pacer.answered()
                self._calls.settle(job, response, "")
        if self._is_over or link.is_closed:
            return
        if link.is_idle():
            link.is_alone = False
        self._feed(link, now)
        if link.is_idle():
            self.work()

    def lost(self, link: Link, reason: str) -> None:
        """The connection is over, whoever ended it."""
        self.links.remove(link)
        if self._is_over:
            return
        now = self._calls.now()
        if reason and not link.talk.answered:
            self._fruitless += 1
            self._dial_at = now + _WAITS[min(self._fruitless, len(_WAITS)) - 1]
        for job in link.talk.in_flight():
            if link.talk.violation:
                self._calls.settle(job, None, reason)
            else:
                self._try_again(job, reason, now, is_suspect=True)
        if self._fruitless >= (PATIENCE if self._has_met else NEVER_MET):
            for job in self.queue.give_up():
                self._calls.settle(job, None, reason)
        if not self._is_over:
            self._dial_missing(now)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _dial_missing(self, now: float) -> None:
        alive = [link for link in self.links if not link.is_sour]
        dialling = sum(not link.is_open for link in alive)
        wanted = self.pacer.wanted
        if self._fruitless:
            wanted = min(wanted, 1)
            if now < self._dial_at:
                return
        for _ in range(min(wanted - len(alive), self.queue.ready(now) - dialling)):
            link = self._calls.dial(self)
            self._newest = link.serial
            self.links.append(link)

    def _room(self, link: Link) -> int:
        if not link.is_open or link.is_sour or link.is_alone:
            return 0
        is_probe = self._fruitless and not link.talk.answered
        return (1 if is_probe else self._limits.in_flight) - len(link.talk)

    def _feed(self, link: Link, now: float) -> None:
        while self._room(link) > 0:
            job = self.queue.take(link.serial, now, link.is_idle())
            if job is None:
                break
            request = self._calls.begin(job, now)
            if request is None:
                continue
            job.deadline = now + self._limits.timeout * (len(link.talk) + 1)
            link.is_alone = job.is_suspect
            try:
                link.send(job, request)
            except MessageError as error:
                self._calls.settle(job, None, f"cannot send: {error}")
        link.flush()

    def _try_again(self, job: Job, reason: str, now: float, is_suspect: bool) -> None:
        job.tries += 1
        if job.tries > self._limits.retries:
            self._calls.settle(job, None, reason)
        else:
            due = now + back_off(job.tries, random.random())
            self.queue.put_back(job, due, self._newest, is_suspect)
