"""When is a backend up, when down, and when is it asked next. Pure: time and chance come in as arguments.

RULES
- Failures count while they follow each other; one good check ends the streak, and the other way round. (Code that
  returns early on "same verdict as before" does not end it: failures then add up over days.)
- A failed connect of a worker (passive) is a failure like a failed check; it also calls for a check at once.
- Every backend starts up. The first failing check of a new one counts as any other.

            failed: streak + 1                 passed: streak + 1
      UP ----------------------- streak = fall ------------------> DOWN
      ^  passed: streak = 0                failed: streak = 0       |
      +--------------------------- streak = rise ------------------+

An unsettled backend (some, but not yet enough results against its verdict) is checked twice as often, so that a death
is known within 1 + (fall - 1) / 2 intervals even when no session finds out before.
"""

from dataclasses import dataclass

JITTER = 0.05  # of the interval, either way: checks of many balancers must not march in step
SOONEST = 0.1  # seconds between two checks of one backend, however many sessions complain
LONGEST_PAUSE = 300.0  # seconds that a backend without checks is down for, unless `check-interval` is longer
UNSETTLED = 0.5  # of the interval


@dataclass(slots=True)
class HealthState:
    """The verdict on one backend by rise and fall. `passed` and `failed` return whether it changed."""

    rise: int
    fall: int
    up: bool = True
    streak: int = 0  # results in a row that speak against the verdict
    since: float = 0.0  # monotonic seconds of the last change

    def passed(self, now: float) -> bool:
        """A check went well."""
        return self._count(not self.up, self.rise, now)

    def failed(self, now: float) -> bool:
        """A check failed, or a worker could not connect."""
        return self._count(self.up, self.fall, now)

    def take_down(self, now: float) -> None:
        """It is down, whatever the checks have said."""
        self.since = now if self.up else self.since
        self.up, self.streak = False, 0

    @property
    def limit(self) -> int:
        """Results in a row that would change the verdict."""
        return self.fall if self.up else self.rise

    def is_settled(self) -> bool:
        """Nothing speaks against the verdict."""
        return self.streak == 0

    def _count(self, against: bool, limit: int, now: float) -> bool:
        self.streak = self.streak + 1 if against else 0
        if self.streak < limit:
            return False
        self.up, self.streak, self.since = not self.up, 0, now
        return True


@dataclass(slots=True)
class Schedule:
    """When the checks of one backend begin."""

    interval: float  # seconds
    due: float  # monotonic seconds
    last: float = float("-inf")

    def begun(self, now: float) -> None:
        """A check begins now; the next one is not before `ended` says so."""
        self.last = now
        self.due = float("inf")

    def ended(self, settled: bool, chance: float) -> None:
        """The check is over: the next begins an interval after its begin, 5 % more or less (`chance` 0..1)."""
        span = self.interval * (1 if settled else UNSETTLED)
        self.due = self.last + span * (1 + JITTER * (2 * chance - 1))

    def hasten(self, now: float) -> None:
        """A worker could not connect: check at once, but at most once in SOONEST."""
        if self.due != float("inf"):
            self.due = min(self.due, max(now, self.last + SOONEST))


def first_due(now: float, place: int, count: int, interval: float) -> float:
    """When the first check of backend `place` of `count` begins: all within the first quarter of an interval."""
    return now + interval / 4 * place / max(count, 1)


@dataclass(slots=True)
class PassiveHealth:
    """The verdict without checks: `fall` failed connects close together take the backend down for `pause` seconds, each
    time for one `pause` more, up to LONGEST_PAUSE.

    Then it is up on trial: one more failure takes it down again, `pause` seconds without one end the trial, and each
    further `pause` forgives one of the times that it was down.
    """

    fall: int
    pause: float
    up: bool = True
    streak: int = 0
    since: float = 0.0
    last: float = 0.0  # of the last failure
    downs: int = 0  # that are not forgiven
    forgiven: float = 0.0  # when the last of them was

    @property
    def wait(self) -> float:
        """Seconds that it is down for."""
        return min(self.pause * max(1, self.downs), max(self.pause, LONGEST_PAUSE))

    def failed(self, now: float) -> bool:
        """A worker could not connect. Returns whether the verdict changed."""
        self.last = now
        self.streak = min(self.streak + 1, self.fall)
        if not self.up or self.streak < self.fall:
            return False
        self.up, self.since = False, now
        self.downs += 1
        return True

    def take_down(self, now: float) -> None:
        """It is down, whatever sessions have said."""
        self.since = now if self.up else self.since
        self.up = False

    def go_on(self, downs: int, now: float) -> None:
        """As the prober before left it: down or up since `since`, and then on trial for a `pause`."""
        self.downs = downs
        if self.up and downs and now - self.since < self.pause:
            self.streak = self.fall - 1

    def has_recovered(self, now: float) -> bool:
        """Asked now and then: whether the verdict has changed because `pause` seconds have passed."""
        if self.up:
            quiet = now - max(self.last, self.since, self.forgiven)
            if (self.streak or self.downs) and quiet >= self.pause:
                self.streak, self.downs, self.forgiven = 0, max(0, self.downs - 1), now
            return False
        if now - self.since < self.wait:
            return False
        self.up, self.since, self.streak = True, now, self.fall - 1
        return True


STEPS = 20  # of a slow start


def ramp(since: float, window: float, now: float) -> int:
    """Permille of its share that a backend is given, which came back at `since` and starts slowly over `window` seconds;
    0 when that is over."""
    part = int(STEPS * (now - since) / window) if window else STEPS
    return 0 if part >= STEPS else max(100, 1000 * part // STEPS)
