"""What choosing a backend and keeping the accounts costs a session, in a small house and in a large one.

    .venv/bin/python scripts/relay_costs.py

One session = elect (counted in the own row before the dial), then release with the bytes it moved. CPU time of
this process, not wall time; the large and the small case in turns, the least of all rounds each, because whatever else
the machine does can only add. Beside it the bytecode instructions executed, which no other process can change.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from balancer.options import Pool
from balancer.pool.backend import parse_upstream, with_indexes
from balancer.pool.board import BACKENDS, LISTENERS, POOLS, Board, columns_for
from balancer.pool.election import Elector
from balancer.shm.layout import FIRST_LEASE, MASTER_LIVE_ROWS, MASTER_ROW, make_shared

SESSIONS = 3000
ROUNDS = 7


def house(backends: int, rows: int, policy: str) -> Callable[[], None]:
    """A worker's part of one session, ready to be run."""
    shared = make_shared(columns_for(backends), rows=FIRST_LEASE + rows)
    shared.rows.row(MASTER_ROW)[MASTER_LIVE_ROWS] = FIRST_LEASE + rows
    board = Board(shared, backends)
    texts = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:80" for n in range(backends)]
    pool = with_indexes([parse_upstream(text) for text in texts], {text: n for n, text in enumerate(texts)})
    for kind, count in ((LISTENERS, 1), (POOLS, 1), (BACKENDS, backends)):
        board.give_out(kind, range(count), ())
    board.assign_pool(0, range(backends))
    elector = Elector(board, Pool("main", pool, balance=policy, index=0), FIRST_LEASE)

    def one() -> None:
        backend = elector.elect("10.9.8.7")
        assert backend is not None
        elector.release(backend, 1000, 1000)

    return one


def microseconds(act: Callable[[], None]) -> float:
    began = time.process_time()
    for _ in range(SESSIONS):
        act()
    return (time.process_time() - began) / SESSIONS * 1e6


def instructions(act: Callable[[], None]) -> int:
    """Bytecode instructions of one call, the median of a few."""
    counts = []
    for _ in range(9):
        count = 0

        def trace(frame: object, event: str, _: object) -> object:
            nonlocal count
            frame.f_trace_opcodes = True  # type: ignore[attr-defined]
            count += event == "opcode"
            return trace

        sys.settrace(trace)  # type: ignore[arg-type]
        act()
        sys.settrace(None)
        counts.append(count)
    return sorted(counts)[len(counts) // 2]


def compare(title: str, small: Callable[[], None], large: Callable[[], None]) -> bool:
    """Print both costs and their ratio; whether it stays below 2."""
    times = [(microseconds(small), microseconds(large)) for _ in range(ROUNDS)]
    low, high = (min(column) for column in zip(*times, strict=True))
    few, many = instructions(small), instructions(large)
    print(f"{title:46} {low:5.2f} -> {high:6.2f} us  x{high / low:4.2f}   {few:4} -> {many:5} instructions")
    return bool(high < 2 * low)


def main() -> int:
    print(f"{SESSIONS} sessions a round, {ROUNDS} rounds, {os.cpu_count()} cores")
    held = [
        compare("p2c, 3 -> 1000 backends, 2 rows", house(3, 2, "p2c"), house(1000, 2, "p2c")),
        compare("p2c, 3 backends, 1 -> 64 rows", house(3, 1, "p2c"), house(3, 64, "p2c")),
        compare("p2c, 1000 backends, 1 -> 64 rows", house(1000, 1, "p2c"), house(1000, 64, "p2c")),
    ]
    for policy in ("leastconn", "roundrobin", "random", "source"):
        compare(f"{policy}, 3 -> 1000 backends, 2 rows", house(3, 2, policy), house(1000, 2, policy))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
