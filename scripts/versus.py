"""`make versus`: faults, reloads, pauses, names, unix backends: ours beside HAProxy and nginx where they are installed.

    make versus                                     all rows, all peers; some six minutes
    make versus VERSUS='--rows 13,25 --peers haproxy'
    make versus VERSUS=--long                       20 reloads over 100,000 requests, 50 kills

Writes the table to docs/versus.md, before the sections that scripts.bench_servers writes there, and every figure to
bench-out/versus.json. A run without some of the rows or peers only
prints its table: the document has every row, and all of them from one run. Each peer uses its own way to reload and is
started again when it ends, as a service manager would. Run it on an otherwise quiet machine.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from scripts.benchlib.peers import INSTALL, missing
from scripts.lab.process import ROOT
from scripts.versuslib.peers import PEERS, PeerKind
from scripts.versuslib.rows import LONG, ROWS, Figures, Row, Size, run

HEAD = """# Ours beside HAProxy and nginx, under faults and patience

The same harness against all three (`make versus`; the figures behind the cells are in `bench-out/versus.json`). Every
peer relays TCP to one backend with two workers (HAProxy: one process with two threads, as it is meant to be run), is
reloaded its own way (ours and nginx: HUP; HAProxy: USR2 in master-worker mode with its listeners exposed to the next
process) and is started again 100 ms after it ended, as systemd does. A request is a connection of its own whose bytes
are verified in both directions.
"""
NOTES = """
How to read it:

- kill -9: what a killed process held is lost with it, in every proxy; anything beyond that is the proxy's doing.
- HAProxy in master-worker mode ends as a whole when its worker is killed; what is refused then is refused until the
  service manager has started it again.
- SIGSTOP: a hung worker keeps its share of new connections unless another process may take them from its queue. HAProxy's
  one process is stopped with both its threads; its watchdog sees a thread that spins, not a process that stands still.
- Its own count: nginx's stream module has no counter; shown is `stub_status`, which counts connections of all protocols.
- Descriptors: to be turned away at once and to wait for room are both answers; to spin or to fill the disk is none.
- A reload has 5 s for the sessions of the processes before it, in every peer.
- Pauses: ours `user-timeout`, HAProxy `tcp-ut` on both sides; nginx has no such option and finds a dead peer by its
  `proxy_timeout` only. The kernel's TCP_USER_TIMEOUT, which `tcp-ut` sets, also ends a connection whose reader pauses.
- The name is in each peer's configuration as it is. HAProxy takes the first address that the name has at its start unless
  it is told of name servers; nginx takes all of them.
"""


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    rows = "\n".join(f"  {row.number:3}  {row.name}" for row in ROWS)
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=f"rows:\n{rows}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--rows", default="", help="comma-separated numbers of the rows below; default all")
    parser.add_argument(
        "--peers", default="haproxy,nginx", help=f"beside ours, comma-separated, of {', '.join(PEERS)}"
    )
    parser.add_argument("--long", action="store_true", help="the full numbers")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/versus.md")
    parser.add_argument("--json", type=Path, default=ROOT / "bench-out/versus.json")
    return parser.parse_args(words)


def machine() -> str:
    return f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}"


def table(cells: dict[str, dict[str, str]], peers: list[PeerKind]) -> str:
    lines = [f"| | {' | '.join(peer.name for peer in peers)} |", f"| --- |{' --- |' * len(peers)}"]
    lines += [f"| {row} | {' | '.join(of_row.values())} |" for row, of_row in cells.items()]
    return "\n".join(lines)


def chosen_peers(text: str, peers: Mapping[str, PeerKind], missing: Callable[[str], bool]) -> list[str]:
    """Ours and those of the text that are installed. Raises ValueError for one that is not known."""
    names = ["ours"]
    for name in filter(None, text.split(",")):
        if name not in peers:
            raise ValueError(f"unknown peer {name}; there are: {', '.join(peers)}")
        if missing(name):
            print(f"missing: {name}; to have it: {INSTALL[name]}")
        elif name not in names:
            names.append(name)
    return names


def chosen_rows(text: str, rows: Sequence[Row]) -> list[Row]:
    """Those of the text (none: all) that this machine can measure. Raises ValueError for one that is not known."""
    wanted = {word for word in text.split(",") if word} or {str(row.number) for row in rows}
    if unknown := sorted(wanted - {str(row.number) for row in rows}):
        numbers = ", ".join(f"{row.number} ({row.name})" for row in rows)
        raise ValueError(f"unknown row {unknown[0]}; there are: {numbers}")
    found = []
    for row in rows:
        if str(row.number) in wanted:
            if lacks := row.lacks():
                print(f"left out: {row.name}; it needs {lacks}")
            else:
                found.append(row)
    return found


def main(
    words: Sequence[str] | None = None,
    rows: Sequence[Row] = ROWS,
    peers: Mapping[str, PeerKind] = PEERS,
    measure: Callable[[Row, PeerKind, Size], tuple[Figures, str]] = run,
    missing: Callable[[str], bool] = missing,
) -> int:
    chosen = parse(words)
    try:
        names, wanted = chosen_peers(chosen.peers, peers, missing), chosen_rows(chosen.rows, rows)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    size = LONG if chosen.long else Size()
    cells: dict[str, dict[str, str]] = {}
    figures: dict[str, dict[str, object]] = {}
    for row in wanted:
        cells[row.name], figures[row.name] = {}, {}
        for name in names:
            figures[row.name][name], cells[row.name][name] = measure(row, peers[name], size)
            print(f"{row.name}: {peers[name].name}: {cells[row.name][name]}", file=sys.stderr, flush=True)
    text = document(cells, [peers[name] for name in names], size)
    print(text)
    if left_out := [row.name for row in rows if row not in wanted] + [
        name for name in peers if name not in names
    ]:
        print(f"Not written to {chosen.out}: this run is without {'; '.join(left_out)}.")
        return 0
    write(chosen.out, text + sections_of(chosen.out))
    write(
        chosen.json, json.dumps({"machine": machine(), "size": vars(size), "rows": figures}, indent=1) + "\n"
    )
    return 0


def document(cells: dict[str, dict[str, str]], peers: list[PeerKind], size: Size) -> str:
    versions = ", ".join(f"{peer.name} {peer.version()}" for peer in peers)
    sizes = ", ".join(f"{key}: {value}" for key, value in vars(size).items())
    foot = f"Measured on {machine()}; {versions}; {sizes}."
    return f"{HEAD}\n{table(cells, peers)}\n\n{foot}\n{NOTES}"


def sections_of(path: Path) -> str:
    """What a document has from its first section on, other than the one that is written here; "" without any."""
    _, mark, rest = path.read_text().partition("\n## ") if path.exists() else ("", "", "")
    return mark + rest


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
