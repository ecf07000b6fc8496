"""When each name is looked up again. Pure: time comes in as an argument.

RULES: a name is looked up again `refresh` seconds after its answer (getaddrinfo(3) does not say how long an answer
holds); sooner after a failure, and while a backend has no address that answers, each time later, up to `refresh`.
"""

from collections.abc import Iterable

AGAIN = 1.0  # seconds after the first failure, and the least between two lookups of a name


class LookupSchedule:
    """The names of one prober."""

    def __init__(self, names: Iterable[str], refresh: float) -> None:
        self._refresh = refresh
        self._due = dict.fromkeys(names, 0.0)
        self._begun: dict[str, float] = {}  # of the last lookup
        self._wanted: set[str] = set()  # names of which another address is wanted
        self._hastened: dict[str, int] = {}  # lookups in a row that were for that
        self.failures: dict[str, int] = {}  # lookups in a row that have failed

    def take_due(self, now: float) -> list[str]:
        """The names to look up now; none of them is due again before `ended`."""
        due = [name for name, when in self._due.items() if when <= now]
        for name in due:
            self._due[name] = float("inf")
            self._begun[name] = now
            self._hastened[name] = self._hastened.get(name, 0) + 1 if name in self._wanted else 0
        self._wanted.difference_update(due)
        return due

    def ended(self, name: str, has_addresses: bool, now: float) -> float:
        """A lookup has ended; in how many seconds the next one begins."""
        failures = self.failures[name] = 0 if has_addresses else self.failures.get(name, 0) + 1
        wait = min(self._refresh, AGAIN * 2.0 ** min(failures - 1, 16)) if failures else self._refresh
        self._due[name] = now + wait
        return wait

    def hasten(self, name: str, now: float) -> None:
        """A backend has no address that answers: there may be others now. A name server that fails is not asked more
        often for that."""
        if self._due[name] == float("inf") or self.failures.get(name):
            return
        wait = min(self._refresh, AGAIN * 2.0 ** min(self._hastened.get(name, 0), 16))
        self._due[name] = min(self._due[name], max(now, self._begun.get(name, 0.0) + wait))
        self._wanted.add(name)
