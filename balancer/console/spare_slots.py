"""The commands add and remove: which spare slot a backend gets that is added by hand, which one it leaves, and why not.

RULES: writes the request for a slot, and of its admin words those about the same backend before; the prober does
the rest. Every ValueError is a sentence for the person who typed the command.
"""

from collections.abc import Callable
from typing import Any

from balancer.config.units import parse_address
from balancer.console.questions import CommandRefused, whole_number
from balancer.discovery.resolver import usable
from balancer.eventloop.loop import Loop
from balancer.options import Pool
from balancer.pool.backend import HEAVIEST, Backend
from balancer.pool.board import ADMIN_READY, W_TENANT_KEY, Board
from balancer.pool.spares import Added, added_to, write_added
from balancer.pool.targets import (
    address_in_use,
    left_over,
    pack_addresses,
    targets_of,
    tenant_key,
    text_at,
    unpack_address,
)

POLL = 0.05  # seconds between two looks at a slot
DEADLINE = 3.0  # seconds; the prober looks four times a second
UNDONE = "not done, a reload or another command has come in between; ask again"

Tell = Callable[..., object]
Send = Callable[[dict[str, Any]], object]


class SpareSlots:
    """The spare slots of all pools. `answer` says what became of a backend. Of each act, `tell` writes the line and the
    event, and `send` takes its answer, which comes when the prober has done it."""

    def __init__(self, board: Board, loop: Loop, answer: Callable[..., dict[str, Any]]) -> None:
        self._board, self._loop, self._answer = board, loop, answer

    def add(self, pool: Pool, address: str, weight: str, tell: Tell, send: Send) -> None:
        """Put a backend into a spare slot. Raises CommandRefused."""
        board, number = self._board, whole_number(weight, "a weight", 1, HEAVIEST)
        try:
            added = added_of(address, number)
            slot = free_slot(board, pool, added)
        except ValueError as error:
            raise CommandRefused(str(error)) from None
        if board.word(slot.index, W_TENANT_KEY) == tenant_key(added.host, added.port):
            board.set_admin_state(slot.index, ADMIN_READY)  # of when it was here before
            board.set_weight(slot.index, None)
            board.set_maxconn(slot.index, None)
        write_added(board, slot.index, added)
        tell(backend=slot.identity, before="empty", after=f"{added} weight {number}")
        done = f"{slot.identity} is {added} with weight {number} until the next reload; the configuration keeps it longer"
        self._answer_once(slot, added, True, done, send)

    def remove(self, pool: Pool, text: str, tell: Tell, send: Send) -> None:
        """Empty a spare slot. Raises CommandRefused."""
        try:
            slot, added = slot_of(self._board, pool, text)
        except ValueError as error:
            raise CommandRefused(str(error)) from None
        write_added(self._board, slot.index, None)
        tell(backend=slot.identity, before=f"{added} weight {added.weight}", after="empty")
        done = f"{added} takes no new sessions (removed from pool {pool.name})"
        self._answer_once(slot, added, False, done, send)

    def _answer_once(self, slot: Backend, added: Added, is_there: bool, done: str, send: Send) -> None:
        """Answer when the backend is in the slot, or no longer, or when that is not asked for any more."""
        give_up = self._loop.now + DEADLINE

        def poll() -> None:
            address = address_in_use(self._board, slot)
            if (address == str(added)) is is_there:
                send(self._answer(slot, done, address=address or None))
            elif (added_to(self._board, slot.index) == added) is not is_there:
                send({"error": f"{slot.identity}: {UNDONE}"})
            elif self._loop.now > give_up:
                send({"error": f"{slot.identity}: asked for, but not done within {DEADLINE:g} s; the prober does it when "
                      "there is one again, see the log"})  # fmt: skip
            else:
                self._loop.call_later(POLL, poll)

        poll()


def added_of(text: str, weight: int = 1) -> Added:
    """The backend of "10.0.0.9:80". Raises ValueError."""
    address = parse_address(text)
    if address.family == "unix":
        raise ValueError(
            f"{text!r}: only host:port can be added by hand; put a unix socket into the configuration"
        )
    if address.family == "name":
        raise ValueError(
            f"{text!r}: only a numeric address can be added by hand, names are not resolved; write 10.0.0.9:80, or "
            f"upstream = {address} or dns:{address} in the configuration"
        )
    if not address.port:
        raise ValueError(f"{text!r}: port 0 cannot be dialled")
    if not usable([address.host], (4, 6)):
        raise ValueError(f"{text!r}: {address.host} is the address of no machine that could be dialled")
    return Added(unpack_address(*pack_addresses([address.host])), address.port, weight)


def free_slot(board: Board, pool: Pool, added: Added) -> Backend:
    """The slot of a new backend: the one that it had, or the one with the least left of its last. Raises ValueError."""
    if holder := _holder(board, pool, str(added)):
        raise ValueError(f"{added} is in pool {pool.name} already, as {holder.identity}")
    spares = [one for one in pool.backends if one.is_spare]
    free = [one for one in spares if added_to(board, one.index) is None]
    if not free:
        how = f"has none of its {len(spares)} spare slots left" if spares else "has no spare slots"
        raise ValueError(
            f"pool {pool.name} {how}: remove a backend that was added, or give it more spare-slots"
        )
    key = tenant_key(added.host, added.port)
    return min(
        free, key=lambda one: (board.word(one.index, W_TENANT_KEY) != key, left_over(board, one.index))
    )


def slot_of(board: Board, pool: Pool, text: str) -> tuple[Backend, Added]:
    """The slot of a backend that was added, by its address or by the slot's name. Raises ValueError."""
    try:
        where = str(added_of(text))
    except ValueError:
        where = ""
    for one in pool.backends:
        added = added_to(board, one.index)
        if added is not None and (text in one.spellings() or str(added) == where):
            return one, added
    named = (one for one in pool.backends if text in one.spellings() and not one.is_spare)
    if holder := _holder(board, pool, where) or next(named, None):
        source = f"found by {holder.set}" if holder.set else "from the configuration"
        raise ValueError(f"{holder.identity} is {source}, and cannot be removed by hand: use drain or maint")
    raise ValueError(f"no backend of pool {pool.name} was added as {text!r}")


def _holder(board: Board, pool: Pool, where: str) -> Backend | None:
    """The backend of a pool that has this address, or will have it at once."""
    for one in pool.backends:
        if one.is_spare:
            hosts = [str(added_to(board, one.index) or "")]
        else:
            hosts = [text_at(*at[:2]) for _, at in targets_of(board, one) if not isinstance(at, str)]
        if where and where in hosts:
            return one
    return None
