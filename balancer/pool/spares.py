"""Backends that an operator adds to a pool by hand: the spare slots, and which backend is wanted in each.

RULES
- The console writes what is wanted in a slot, the prober moves it in (see backend_sets), and nothing else reads it.
- A request holds until the next reload that succeeds, also one that changes nothing: the configuration is what was read
  last. It is on the board, so a killed console, prober or worker loses nothing; a successor of an upgrade begins without.
"""

from dataclasses import replace
from itertools import count, islice
from typing import NamedTuple

from balancer.config.units import Address
from balancer.options import Pool
from balancer.pool.backend import SPARE, Backend, BackendSet
from balancer.pool.board import W_ADDED, W_ADDED_EPOCH, W_ADDED_TERMS, Board
from balancer.pool.targets import pack_addresses, text_at, unpack_address
from balancer.shm.layout import MASTER_RELOADS, MASTER_ROW

SLOTS = 8  # unless the configuration says otherwise


class Added(NamedTuple):
    """A backend that is wanted in a spare slot: a numeric address."""

    host: str
    port: int
    weight: int = 1

    def __str__(self) -> str:
        return text_at(self.host, self.port)


def spare_slots(pool: Pool) -> int:
    """How many a pool has. In framed mode each slot costs every request a little, so that they have to be asked for."""
    if pool.spare_slots is not None:
        return pool.spare_slots
    return 0 if pool.mode == "framed" else SLOTS


def with_spares(pool: Pool) -> Pool:
    """The pool with its spare slots behind its backends, under names that none of them has."""
    slots, taken = spare_slots(pool), {backend.name for backend in pool.backends}
    names = (name for number in count(1) if (name := f"{SPARE}-{number}") not in taken)
    kind = BackendSet(SPARE, "", 0, slots)
    spares = (Backend(name, Address("name"), pool=pool.name, set=kind) for name in islice(names, slots))
    return replace(pool, backends=(*pool.backends, *spares))


def added_to(board: Board, index: int) -> Added | None:
    """The backend that is wanted in a slot."""
    if board.word(index, W_ADDED_EPOCH) != _epoch(board):
        return None
    port, weight = divmod(board.word(index, W_ADDED_TERMS), 1 << 16)
    return Added(unpack_address(board.word(index, W_ADDED), board.word(index, W_ADDED + 1)), port, weight)


def write_added(board: Board, index: int, added: Added | None) -> None:
    """Console: which backend is wanted in a slot from now on."""
    cells, at = board.words.cells, board.backend_words_at(index)
    cells[at + W_ADDED_EPOCH] = 0  # the prober may look at any moment
    if added is not None:
        cells[at + W_ADDED], cells[at + W_ADDED + 1] = pack_addresses([added.host])
        cells[at + W_ADDED_TERMS] = added.port << 16 | added.weight
        cells[at + W_ADDED_EPOCH] = _epoch(board)


def _epoch(board: Board) -> int:
    """Never 0."""
    return int(board.cells[MASTER_ROW * board.columns + MASTER_RELOADS]) + 1
