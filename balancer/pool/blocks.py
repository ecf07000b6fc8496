"""Which block of the board belongs to which listener, pool and backend, over reloads.

RULES: pure; lives in the master. A listener and a pool are their names, a backend is its identity (pool/name). A block
is given to another name only when no living generation uses it: until the last process of an old generation has gone,
its sessions are still counted there.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Assignment(NamedTuple):
    """The blocks of a generation's names, and those of them taken over from a forgotten name: they must be wiped."""

    blocks: dict[str, int]
    reused: list[int]


class Blocks:
    """Names of one kind to block numbers, by generation."""

    def __init__(self, capacity: int, kind: str = "backends") -> None:
        self.capacity = capacity
        self._kind = kind
        self._owner: dict[str, int] = {}  # every name that still has a block, used or not
        self._users: dict[int, frozenset[str]] = {}  # generation -> names it uses

    def check(self, generation: int, names: Iterable[str]) -> None:
        """Raises ValueError when there are not enough blocks for these names beside those that living generations use."""
        wanted = frozenset(names)
        in_use = self._in_use(generation, wanted)
        if len(in_use) > self.capacity:
            raise ValueError(
                f"{len(wanted)} {self._kind} are configured, but the board was made for {self.capacity} at start "
                f"({len(in_use)} with those draining): restart, or reload once the old workers have gone"
            )

    def assign(self, generation: int, names: Iterable[str]) -> Assignment:
        """Blocks for the names of a generation.

        A name seen before gets its old block with all its totals, as long as no other name needed it. Calling again for
        the same generation replaces its names. Raises ValueError as `check` does; nothing has changed then.
        """
        wanted = tuple(dict.fromkeys(names))
        self.check(generation, wanted)
        in_use = self._in_use(generation, frozenset(wanted))
        taken = frozenset(self._owner.values())
        free = (block for block in range(self.capacity) if block not in taken)
        forgotten = iter([name for name in self._owner if name not in in_use])
        reused: list[int] = []
        for name in wanted:
            if name in self._owner:
                continue
            block = next(free, -1)
            if block < 0:
                block = self._owner.pop(next(forgotten))
                reused.append(block)
            self._owner[name] = block
        self._users[generation] = frozenset(wanted)
        return Assignment({name: self._owner[name] for name in wanted}, reused)

    def retire(self, generation: int) -> None:
        """The last process of a generation has gone (or it never came to life)."""
        self._users.pop(generation, None)

    def _in_use(self, generation: int, wanted: frozenset[str]) -> frozenset[str]:
        others = (names for other, names in self._users.items() if other != generation)
        return wanted.union(*others)


class BoardBlocks:
    """The blocks of all kinds: a generation gets all that it needs, or none."""

    def __init__(self, listeners: int, pools: int, backends: int) -> None:
        self.backends = backends
        self._kinds = (Blocks(listeners, "listeners"), Blocks(pools, "pools"), Blocks(backends, "backends"))

    def assign(
        self, generation: int, listeners: Iterable[str], pools: Iterable[str], backends: Iterable[str]
    ) -> tuple[Assignment, Assignment, Assignment]:
        """Blocks for the listeners, the pools and the backends (by identity) of a generation. Raises ValueError when
        there are too many of one kind; nothing has changed then."""
        wanted = (tuple(listeners), tuple(pools), tuple(backends))
        for blocks, names in zip(self._kinds, wanted, strict=True):
            blocks.check(generation, names)
        first, second, third = (
            blocks.assign(generation, names) for blocks, names in zip(self._kinds, wanted, strict=True)
        )
        return first, second, third

    def retire(self, generation: int) -> None:
        """The last process of a generation has gone (or it never came to life)."""
        for blocks in self._kinds:
            blocks.retire(generation)
