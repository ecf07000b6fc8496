"""What a policy is built from, and what it gives back.

RULES: data only.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

Pick = Callable[[str, Collection[int]], int | None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a policy may know of a backend. `index` is its block on the board."""

    index: int
    name: str
    weight: int = 1
    key: str = ""  # what a hash knows it by: its address and port

    @property
    def identity(self) -> str:
        return self.key or self.name


@dataclass(frozen=True)
class Choice:
    """What a policy is built for. `start` differs per worker, so that they do not all begin with the same backend."""

    eligible: Sequence[Candidate]
    everyone: Sequence[
        Candidate
    ]  # the whole tier of the eligible: the ring does not move when one of it is down
    loads: Callable[[], list[int]]  # sessions of the eligible, in their order
    load: Callable[[int], int]  # sessions of one index
    start: int = 0
    # indexes whose backends have lost sessions of this worker; leastconn removes what it has seen
    ended: set[int] = field(default_factory=set)
    hash_load: int = 0  # percent of the mean that a hash may give one backend, 0: no limit
