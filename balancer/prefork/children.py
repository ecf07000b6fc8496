"""Registry of child processes: which are wanted, which live, when the next fork is due, which row each one leases.

RULES: a plain registry. It forks nothing, kills nothing and reads no clock (`now` comes in), so a test can play every
history of forks and deaths. Kill only pids found here: the kernel may have given a reaped pid to another process.

    place    what the plan wants: one process of `role` in `slot` of a generation. Has at most one process.
    process  a pid with its row. A process told to drain leaves its place at once and stays in `processes` only.

    wanted --due--> spawned --ready--> serving --reaped--> due again (at once, or after a back-off)
                       |                  +-----drain----> draining ----reaped----> gone, its row free
                       +---reaped unready: back-off 1, 2, 4 .. 30 s
"""

import heapq
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

SHORT_LIFE = 0.25  # seconds from ready to death: below it the next fork backs off, as in a crash loop
SHORT_LIFE_BACKOFF = (0.0, 0.1, 2.0)  # first, second (then doubling), cap: one kill must cost less than 0.2 s
UNREADY_BACKOFF = (1.0, 2.0, 30.0)


@dataclass(eq=False)
class ChildProcess:
    """One forked child; `row` is its lease until it has been reaped."""

    pid: int
    role: str
    slot: int
    generation: int
    row: int
    started: float
    given: int = 0  # listening sockets it has, in order of slots
    reach: int = 0  # slots of which it has every socket
    control: socket.socket | None = None  # the master's end; the child sees its end as EOF
    ready_at: float | None = None
    draining: bool = False
    aborted_at: float | None = None
    killed: bool = False  # by the master, on purpose: its end is no warning

    def __str__(self) -> str:
        return f"{self.role} {self.slot}"


@dataclass(eq=False)
class Place:
    """One wanted process; `due` is when it may be forked next."""

    role: str
    slot: int
    generation: int
    due: float
    process: ChildProcess | None = None
    failures: int = 0  # in a row: deaths before ready, or short lives
    unready_deaths: int = 0
    was_ready: bool = False
    was_held: bool = False  # the next process is a replacement
    ended: str = ""  # how the last process ended

    @property
    def key(self) -> tuple[int, str, int]:
        return self.generation, self.role, self.slot


class NoLease(Exception):
    """Every row is held: more processes live than the shared table has room for."""


@dataclass
class Leases:
    """Free rows, lowest first: readers scan up to the highest live row."""

    first: int
    last: int
    _free: list[int] = field(init=False)
    _held: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._free = list(range(self.first, self.last))

    def take(self) -> int:
        """A free row. Raises NoLease."""
        if not self._free:
            raise NoLease(f"all {self.last - self.first} rows of the shared table are held")
        row = heapq.heappop(self._free)
        self._held.add(row)
        return row

    def give_back(self, row: int) -> None:
        """Only after waitpid, and after the row was folded and zeroed. Raises KeyError for a row not held."""
        self._held.remove(row)
        heapq.heappush(self._free, row)

    @property
    def free(self) -> int:
        """How many more processes may live."""
        return len(self._free)

    @property
    def end(self) -> int:
        """One past the highest row held."""
        return max(self._held, default=self.first - 1) + 1


def backoff(failures: int, first: float, second: float, cap: float) -> float:
    """Seconds to wait after the n-th failure in a row."""
    if failures <= 1:
        return first
    return min(cap, second * float(1 << min(failures - 2, 30)))


class Children:
    """The registry."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self.places: dict[tuple[int, str, int], Place] = {}
        self.processes: dict[int, ChildProcess] = {}

    # -- what is wanted --

    def want(self, generation: int, role: str, slot: int, now: float) -> Place:
        """Ask for a process; due at once. Asking twice changes nothing."""
        key = (generation, role, slot)
        if key not in self.places:
            self.places[key] = Place(role, slot, generation, due=now)
        return self.places[key]

    def unwant(self, generation: int, role: str, slot: int) -> ChildProcess | None:
        """Give the place up; its process, which the caller must stop, stays registered as draining."""
        place = self.places.pop((generation, role, slot), None)
        if place is None or place.process is None:
            return None
        place.process.draining = True
        return place.process

    def of_generation(self, generation: int) -> list[Place]:
        return [place for place in self.places.values() if place.generation == generation]

    # -- forks --

    def due(self, now: float) -> list[Place]:
        """Places that want a process now, the one with the fewest failures first."""
        waiting = [place for place in self.places.values() if place.process is None and place.due <= now]
        return sorted(waiting, key=lambda place: place.failures)

    def next_due(self) -> float | None:
        """When the next fork is due; None when every place has its process."""
        return min((place.due for place in self.places.values() if place.process is None), default=None)

    def spawned(self, place: Place, pid: int, row: int, now: float) -> ChildProcess:
        process = ChildProcess(pid, place.role, place.slot, place.generation, row, now)
        place.process, place.was_held = process, True
        self.processes[pid] = process
        return process

    def fork_failed(self, place: Place, now: float) -> None:
        """The kernel gave no process (EAGAIN, ENOMEM): again after a second; this is no failure of the place."""
        place.due = now + 1.0

    def became_ready(self, pid: int, now: float) -> ChildProcess | None:
        """The child has said so; None for a pid not known (it died meanwhile) or already ready."""
        process = self.processes.get(pid)
        if process is None or process.ready_at is not None:
            return None
        process.ready_at = now
        place = self.place_of(process)
        if place is not None:
            place.was_ready = True
            place.unready_deaths = 0
        return process

    # -- deaths --

    def reaped(self, pid: int, now: float) -> ChildProcess | None:
        """After waitpid: forget the process and set when its place is due. None for a pid that is not registered."""
        process = self.processes.pop(pid, None)
        if process is None:
            return None
        place = self.place_of(process)
        if place is not None:
            place.process = None
            place.due = now + self._delay(place, process, now)
        return process

    def _delay(self, place: Place, process: ChildProcess, now: float) -> float:
        if process.ready_at is None:
            place.failures += 1
            place.unready_deaths += 1
            return backoff(place.unready_deaths, *UNREADY_BACKOFF)
        if now - process.ready_at >= SHORT_LIFE:
            place.failures = 0
            return 0.0
        place.failures += 1
        return backoff(place.failures, *SHORT_LIFE_BACKOFF)

    # -- questions --

    def place_of(self, process: ChildProcess) -> Place | None:
        """The place a process holds; None when it drains or its place was given up."""
        place = self.places.get((process.generation, process.role, process.slot))
        return place if place is not None and place.process is process else None

    def holder(self, generation: int, role: str, slot: int) -> ChildProcess | None:
        place = self.places.get((generation, role, slot))
        return None if place is None else place.process

    def is_all_ready(self, generation: int) -> bool:
        """Whether every place of the generation has a ready process."""
        return all(
            place.process is not None and place.process.ready_at is not None
            for place in self.of_generation(generation)
        )

    def never_got_ready(self, generation: int, role: str, deaths: int) -> bool:
        """Whether no process of the role was ever ready and one place has lost `deaths` of them already."""
        places = [place for place in self.of_generation(generation) if place.role == role]
        return not any(place.was_ready for place in places) and any(
            place.unready_deaths >= deaths for place in places
        )

    def living(self, generation: int | None = None) -> Iterator[ChildProcess]:
        """Every process not yet reaped, draining ones included; a snapshot."""
        for process in list(self.processes.values()):
            if generation is None or process.generation == generation:
                yield process

    def generations(self) -> list[int]:
        """Generations with a process or a place, oldest first."""
        found = {process.generation for process in self.processes.values()}
        return sorted(found | {place.generation for place in self.places.values()})
