"""Reading the sessions of backends for an election: of one, or of many at once, in all processes.

RULES: what does not change between two elections is settled when the reader is made. Boards of many workers have a
LoadTable, which is read instead of the rows.
"""

from collections.abc import Callable, Collection, Sequence

from balancer.pool.board import B_SESSIONS, BACKENDS, ODD, Board
from balancer.shm.layout import FIRST_LEASE


def load_reader(board: Board, odd: Collection[int] = ()) -> Callable[[int], int]:
    """A function giving the sessions of the backend of an index at the moment of the call. `odd`: indexes of slots
    whose tenant has an odd number."""
    cells, columns, live = board.cells, board.columns, board.live_cell
    first, size = FIRST_LEASE * columns + BACKENDS.at(0) + B_SESSIONS, BACKENDS.size

    def read(index: int) -> int:
        return sum(cells[first + index * size : cells[live] * columns : columns])

    def read_tenant(index: int) -> int:
        at = first + index * size + (ODD if index in odd else 0)
        return sum(cells[at : cells[live] * columns : columns])

    of_rows = read_tenant if odd else read
    return board.loads.reader(FIRST_LEASE, cells, live, odd, of_rows) if board.loads else of_rows


def loads_reader(board: Board, indexes: Sequence[int], odd: Collection[int] = ()) -> Callable[[], list[int]]:
    """A function giving the sessions of these backends at the moment of the call, in their order; `odd` as above."""
    cells, columns, live, column = board.cells, board.columns, board.live_cell, board.cells.__getitem__
    first = FIRST_LEASE * columns + B_SESSIONS
    if board.loads is not None:
        of_one = load_reader(board, odd)
        return lambda: [of_one(index) for index in indexes]
    offsets = [first + BACKENDS.at(index) + (ODD if index in odd else 0) for index in indexes]
    rows, slices = -1, [slice(0)]

    def read() -> list[int]:
        nonlocal rows, slices
        if cells[live] != rows:
            rows = cells[live]
            slices = [slice(offset, rows * columns, columns) for offset in offsets]
        return list(map(sum, map(column, slices)))

    return read
