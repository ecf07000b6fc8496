"""Which block of the board belongs to which backend, over reloads.

RULES: pure; lives in the master; a backend is its name. A block is given to another name only when no
living generation uses it: until the last worker of an old generation has gone, its sessions are still
counted there.
"""

from collections.abc import Iterable


class Blocks:
    """Names to block numbers, by generation."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._owner: dict[str, int] = {}  # every name that still has a block, used or not
        self._users: dict[int, frozenset[str]] = {}  # generation -> names it uses

    def assign(self, generation: int, names: Iterable[str]) -> tuple[dict[str, int], list[int]]:
        """Blocks for the names of a generation: (name -> block, blocks taken over from a forgotten name:
        wipe them).

        A name seen before gets its old block with all its totals, as long as nobody else needed it. Calling
        again for the same generation replaces its names. Raises ValueError when the board is full; nothing
        has changed then.
        """
        wanted = tuple(dict.fromkeys(names))
        users = {**self._users, generation: frozenset(wanted)}
        in_use = frozenset().union(*users.values())
        if len(in_use) > self.capacity:
            raise ValueError(
                f"{len(wanted)} backends are configured, but the board was made for {self.capacity} at start "
                f"({len(in_use)} with those draining): restart, or reload once the old workers have gone"
            )
        fresh = [name for name in wanted if name not in self._owner]
        owner = dict(self._owner)
        free = [block for block in range(self.capacity) if block not in set(owner.values())]
        forgotten = [name for name in owner if name not in in_use]
        reused: list[int] = []
        for name in fresh:
            if free:
                block = free.pop(0)
            else:
                block = owner.pop(forgotten.pop(0))
                reused.append(block)
            owner[name] = block
        self._owner, self._users = owner, users
        return {name: owner[name] for name in wanted}, reused

    def retire(self, generation: int) -> None:
        """The last process of a generation has gone (or it never came to life)."""
        self._users.pop(generation, None)
