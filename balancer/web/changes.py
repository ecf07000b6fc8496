"""Which parts of a page have changed since a version of it: what the page's script asks for every 2 s.

RULES
- Pure. A version is `EPOCH-N`: N grows with each view that differs from the one before.
- Each item, cell and place has the number of the version that brought it. So any number of browsers, each at its own
  version, cost one number per cell.

    {"version": "...", "all": true when rows that are not named here are gone,
     "items": {"level", "title", "headline", "facts", "problems", "tile KEY": ...},
     "rows": {TABLE: {KEY: null for a row that is gone, or {"place": [rank, number], COLUMN: cell, ...}}}}
"""

from collections.abc import Iterable
from typing import Any

from balancer.web.view import View

# Rows that have gone and are remembered; whoever knows only what was before them gets everything.
MOST_GONE = 1000


class Changes:
    """The last view of one page, and the version of each of its parts."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._number = 0
        self._items: dict[str, tuple[Any, int]] = {}
        self._rows: dict[tuple[str, str], tuple[list[Any], list[int]]] = {}
        self._gone: dict[tuple[str, str], int] = {}
        self._complete_since = 0  # rows that went before this version are forgotten

    @property
    def version(self) -> str:
        return f"{self._epoch}-{self._number}"

    def update(self, view: View) -> None:
        """Take a view; the version grows if anything differs."""
        new = self._number + 1
        rows = {
            (table.name, row.key): [list(row.place), *(cell.short() for cell in row.cells)]
            for table in view.tables
            for row in table.rows
        }
        has_changed = self._update_items(view, new)
        for key, cells in rows.items():
            has_changed |= self._update_row(key, cells, new)
        for key in self._rows.keys() - rows.keys():
            del self._rows[key]
            self._gone[key] = new
            has_changed = True
        while len(self._gone) > MOST_GONE:
            oldest = next(iter(self._gone))
            self._complete_since = max(self._complete_since, self._gone.pop(oldest))
        self._number += has_changed

    def _update_items(self, view: View, new: int) -> bool:
        before = self._items
        found = dict(items_of(view))
        self._items = {
            key: before[key] if key in before and before[key][0] == value else (value, new)
            for key, value in found.items()
        }
        return any(number == new for _, number in self._items.values())

    def _update_row(self, key: tuple[str, str], cells: list[Any], new: int) -> bool:
        old, numbers = self._rows.get(key, ([], []))
        if old == cells:
            return False
        self._gone.pop(key, None)
        if len(old) != len(cells):
            self._rows[key] = (cells, [new] * len(cells))
            return True
        for column, (was, now) in enumerate(zip(old, cells, strict=True)):
            if was != now:
                numbers[column] = new
        self._rows[key] = (cells, numbers)
        return True

    def since(self, version: str) -> dict[str, Any]:
        """What differs from a version; everything where that one is not known here."""
        known = self._number_of(version)
        rows: dict[str, dict[str, Any]] = {}
        for (table, key), (cells, numbers) in self._rows.items():
            if max(numbers) > known:
                names = ("place", *map(str, range(len(cells) - 1)))
                changed = {
                    name: cell
                    for name, cell, number in zip(names, cells, numbers, strict=True)
                    if number > known
                }
                rows.setdefault(table, {})[key] = changed
        for (table, key), number in self._gone.items():
            if number > known >= 0:
                rows.setdefault(table, {})[key] = None
        items = {key: value for key, (value, number) in self._items.items() if number > known}
        return {"version": self.version, "all": known < 0, "items": items, "rows": rows}

    def _number_of(self, version: str) -> int:
        """-1 for a version that is not known here."""
        epoch, _, number = version.rpartition("-")
        is_number = number.isascii() and number.isdigit() and len(number) < 16
        if epoch != self._epoch or not is_number:
            return -1
        return int(number) if self._complete_since <= int(number) <= self._number else -1

    def canonical(self, version: str) -> str:
        """The version itself if it is known here, else an empty word: equal answers for all that are not."""
        return version if self._number_of(version) >= 0 else ""


def items_of(view: View) -> Iterable[tuple[str, Any]]:
    """Everything but the tables."""
    yield "level", view.level
    yield "title", view.title
    yield "headline", view.headline
    yield "facts", list(view.facts)
    yield "problems", [list(problem) for problem in view.problems]
    for tile in view.tiles:
        yield f"tile {tile.key}", [tile.shown, tile.small, tile.points]
