"""What a status page shows, as plain values: page.py writes them as HTML, changes.py sends those that have changed.

RULES
- Every figure is text already, written for a person; the script in page.html formats nothing.
- A row stands at its `place`: those in trouble (rank 0) first, then in the order of `number`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from balancer.web.figures import human_bytes, human_number, of_limit

GOOD, NOTE, WARN, BAD = "good", "note", "warn", "bad"
RANKS = {BAD: 0, WARN: 1, NOTE: 2, GOOD: 3}

Problem = tuple[str, str]  # level, sentence


class Cell(NamedTuple):
    """One cell. `look`: words of page.html's style; `part`: percent of a bar, below 0 without one; `order`: what the
    column is sorted by, instead of the text; `points`: of a chart; `act`: whose form (View.acts) is in it."""

    text: str
    small: str = ""
    look: str = ""
    part: float = -1.0
    order: float | str = ""
    link: str = ""
    points: str = ""
    act: str = ""

    def short(self) -> list[Any]:
        """As JSON, without the defaults at the end."""
        values = list(self)
        while len(values) > 1 and values[-1] == _DEFAULTS[len(values) - 1]:
            values.pop()
        return values


_DEFAULTS = Cell("")


class PageRow(NamedTuple):
    """A row; the first cell names it. `key` is its own within the table."""

    key: str
    cells: Sequence[Cell]
    rank: int = RANKS[GOOD]
    number: int = 0

    @property
    def place(self) -> tuple[int, int]:
        return self.rank, self.number


@dataclass(frozen=True, slots=True)
class PageTable:
    """`head`: words, those of numbers begin with `#`."""

    name: str
    title: str
    head: Sequence[str]
    rows: Sequence[PageRow]


class Tile(NamedTuple):
    """An important figure, what stands below it, and its last hour."""

    key: str
    label: str
    shown: str
    small: str
    points: str


class ActForm(NamedTuple):
    """Where the forms of a page are sent, and what they say of the page that they are on."""

    path: str
    view: str


@dataclass(frozen=True, slots=True)
class View:
    """A whole page. `base`: the way from its path to the root; `source`: where its changes are; `links`: (path, word)
    above the headline; `documents`: paths of what programs read; `acts`: where its cells may have forms."""

    host: str
    headline: str
    facts: Sequence[str]
    problems: Sequence[Problem]
    tiles: Sequence[Tile]
    tables: Sequence[PageTable]
    documents: Sequence[str]
    source: str
    base: str = ""
    links: Sequence[tuple[str, str]] = field(default=())
    acts: ActForm | None = None

    @property
    def level(self) -> str:
        return worst(self.problems)

    @property
    def title(self) -> str:
        return f"{self.host}: {self.headline}"


def worst(problems: Iterable[Problem]) -> str:
    """The level of a page with these problems; a note is none."""
    levels = {level for level, _ in problems}
    return BAD if BAD in levels else WARN if WARN in levels else GOOD


# -- cells


def words(text: str, small: str = "") -> Cell:
    return Cell(text, small)


def number(value: float | None, look: str = "") -> Cell:
    return Cell(human_number(value), look=f"n {look}".strip(), order=-1 if value is None else value)


def trouble(count: int) -> Cell:
    """A count that should be 0."""
    return number(count, "some" if count else "")


def size(count: int | None, rate: float | None = None) -> Cell:
    """Bytes, and how many per second."""
    return Cell(human_bytes(count), rate_text(rate, is_bytes=True), "n", order=-1 if count is None else count)


def total(count: int, rate: float | None = None) -> Cell:
    """A total, and how much it grows per second."""
    return Cell(human_number(count), rate_text(rate), "n", order=count)


def rate_text(rate: float | None, is_bytes: bool = False) -> str:
    """Empty while it is not known, or 0: tables stay calm."""
    return f"{per_second(rate, is_bytes)} / s" if rate else ""


def per_second(rate: float, is_bytes: bool = False) -> str:
    if is_bytes:
        return human_bytes(round(rate))
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}" if rate else "0"


def pill(word: str, level: str, small: str = "") -> Cell:
    """A state. Its sign tells the level, too: no meaning is in a colour alone."""
    return Cell(word, small, f"pill {level}")


def bar(count: float, limit: float, shown: str = "") -> Cell:
    """A figure over a bar of its share of a limit, without a bar where there is none."""
    part = round(100 * min(count / limit, 1.0), 1) if limit else -1.0
    return Cell(shown or of_limit(int(count), int(limit)), look="bar", part=part, order=count)
