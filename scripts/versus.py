"""`make versus`: reload, crash, hang, counting and descriptors, ours beside HAProxy and nginx where they are installed.

    make versus                                     all rows, all peers; some five minutes
    make versus VERSUS='--rows 13,25 --peers haproxy'
    make versus VERSUS=--long                       20 reloads over 100,000 requests, 50 kills

Writes the table to docs/versus.md and every figure to bench-out/versus.json. Each peer uses its own way to reload and is
started again when it ends, as a service manager would. Run it on an otherwise quiet machine.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from scripts.benchlib.peers import INSTALL, missing
from scripts.lab.process import ROOT
from scripts.versuslib.peers import PEERS
from scripts.versuslib.rows import LONG, ROWS, Size, run

HEAD = """# Ours beside HAProxy and nginx, under faults

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
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="comma-separated numbers; default all")
    parser.add_argument("--peers", default="haproxy,nginx", help="comma-separated, beside ours")
    parser.add_argument("--long", action="store_true", help="the full numbers")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/versus.md")
    parser.add_argument("--json", type=Path, default=ROOT / "bench-out/versus.json")
    return parser.parse_args()


def machine() -> str:
    return f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}"


def table(cells: dict[str, dict[str, str]], names: list[str]) -> str:
    lines = [f"| | {' | '.join(PEERS[name].name for name in names)} |", f"| --- |{' --- |' * len(names)}"]
    for row in ROWS:
        if row.name in cells:
            shown = " | ".join(cells[row.name][name] for name in names)
            lines.append(f"| {row.name} | {shown} |")
    return "\n".join(lines)


def main() -> int:
    chosen = parse()
    names = ["ours"]
    for name in filter(None, chosen.peers.split(",")):
        if name not in PEERS:
            print(f"unknown peer {name}; there are: {', '.join(PEERS)}", file=sys.stderr)
            return 2
        if missing(name):
            print(f"missing: {name}; to have it: {INSTALL[name]}")
        elif name not in names:
            names.append(name)
    numbers = {int(word) for word in chosen.rows.split(",") if word} or {row.number for row in ROWS}
    size = LONG if chosen.long else Size()
    cells: dict[str, dict[str, str]] = {}
    figures: dict[str, dict[str, object]] = {}
    for row in ROWS:
        if row.number not in numbers:
            continue
        cells[row.name], figures[row.name] = {}, {}
        for name in names:
            figures[row.name][name], cells[row.name][name] = run(row, PEERS[name], size)
            print(f"{row.name}: {PEERS[name].name}: {cells[row.name][name]}", file=sys.stderr, flush=True)
    versions = ", ".join(f"{PEERS[name].name} {PEERS[name].version()}" for name in names)
    foot = (
        f"Measured on {machine()}; {versions}; {vars(size)}.".replace("{", "")
        .replace("}", "")
        .replace("'", "")
    )
    text = f"{HEAD}\n{table(cells, names)}\n\n{foot}\n{NOTES}"
    for path, content in (
        (chosen.out, text),
        (chosen.json, json.dumps({"machine": machine(), "size": vars(size), "rows": figures}, indent=1)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + ("" if content.endswith("\n") else "\n"))
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
