"""`balancerctl top` drawn by rich: colours, and columns that fit the terminal.

RULES: imported only where rich is installed.
"""

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from balancer.console.top import Screen, Top, visible
from balancer.eventloop.log_format import printable

STYLES = {"good": "green", "bad": "bold red", "held": "yellow"}
LEFT = frozenset(("BACKEND", "LISTENER", "POOL", "WORKER", "STATE", "SERVES", "TREND", "EVENT", "WHAT"))


class RichTerminal:
    """The alternate screen of a terminal."""

    def __init__(self) -> None:
        self._console = Console()
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def __enter__(self) -> "RichTerminal":
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def draw(self, top: Top) -> None:
        width, height = self._console.size
        self._live.update(rendered(top.screen(width), height), refresh=True)


def line(text: str, style: str = "") -> Text:
    """A line that is cut and never wrapped."""
    return Text(printable(text), style=style, no_wrap=True, overflow="crop")


def rendered(screen: Screen, height: int) -> Group:
    """A screen of so many lines."""
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    for place, name in enumerate(screen.head):
        shown = f"{name}*" if place == screen.sorted_by else name
        wide = name in ("BACKEND", "LISTENER", "POOL", "WHAT")
        table.add_column(
            shown,
            justify="left" if name in LEFT else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if wide else None,
        )
    rows = visible(screen, height)
    for place, row in rows:
        style = "reverse" if place == screen.selected else ""
        cells = [
            line(cell, STYLES.get(row.style, "") if at < 3 and row.style else "")
            for at, cell in enumerate(row.cells)
        ]
        table.add_row(*cells, style=style)
    first, *others = screen.title
    bad = "bold red" if "NO CLIENT" in first else "bold"
    blank = height - len(screen.title) - 2 - len(rows)
    return Group(
        line(first, bad),
        *map(line, others),
        table,
        *(line("") for _ in range(max(0, blank))),
        line(screen.foot, "reverse"),
    )
