"""Verdicts, admin states, words of agents and resolved addresses for the successor of an upgrade, as text.

RULES: exports words of one board, restores them on another; knows neither process nor socket. Identity is the backend's
name, as in a reload; a verdict and an address count only for the address text they were found for. A backend with
nothing but defaults is left out, so that a thousand healthy ones are an empty text.

Without it an upgrade would send clients to a backend that an operator or its agent has taken out, and to a dead one until
the checks have found that out again. An agent says `drain` once: it would not say it again.
"""

import json
from collections.abc import Sequence
from functools import partial

from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_NAMES,
    DOWN,
    MOST_ADDRESSES,
    NAME_ANSWERED,
    NAME_ASKED,
    TENANT_WORDS,
    VERDICT_NAMES,
    W_ADDRESS,
    W_ADDRESSES,
    W_ADMIN_SINCE_MS,
    W_ADMIN_STATE,
    W_AGENT,
    W_AGENT_MAXCONN,
    W_AGENT_MODE,
    W_AGENT_WEIGHT,
    W_DNS_NAME,
    W_EJECTIONS,
    W_IN_USE,
    W_NAME,
    W_PENALTIES,
    W_PENALTY_MS,
    W_RAMP,
    W_SINCE_MS,
    W_SUBJECT,
    W_TENANT_KEY,
    W_VERDICT,
    W_WEIGHT,
    Board,
)
from balancer.pool.targets import has_admin_state

MOST_WEIGHT = 1 << 32
Handed = tuple[list[int], int, int, int, list[int], list[int]]
_FOUND = (W_SUBJECT, W_VERDICT, W_SINCE_MS, W_IN_USE, W_ADDRESSES)  # then the addresses, two words each
_OF_SLOT = (*TENANT_WORDS, W_TENANT_KEY, W_DNS_NAME)  # versions before wrote no name, and no key
_LAYERS = (
    W_AGENT,
    W_AGENT_WEIGHT,
    W_AGENT_MAXCONN,
    W_RAMP,
    W_PENALTIES,
    W_PENALTY_MS,
    W_AGENT_MODE,
    W_EJECTIONS,
)  # versions before wrote none, or not the last two
_FORMER = 6  # words of a version with one address: the first three, a family and the address


def export_state(board: Board, backends: Sequence[Backend]) -> str:
    """{name: [[...found], admin state, weight, since, [...of a slot], [...layers]]} of each backend that is down,
    resolved, or changed by hand, by its agent, a slow start or a penalty."""
    words = {}
    for backend in backends:
        word = partial(board.word, backend.index)
        wish = partial(board.admin_word, backend.index)
        layers = [word(column) for column in _LAYERS]
        if (
            word(W_VERDICT) == DOWN
            or word(W_ADDRESSES)
            or any(layers)
            or has_admin_state(board, backend.index)
        ):
            addresses = range(W_ADDRESS, W_ADDRESS + 2 * word(W_ADDRESSES))
            words[backend.identity] = [
                [word(column) for column in (*_FOUND, *addresses)],
                wish(W_ADMIN_STATE),
                wish(W_WEIGHT),
                wish(W_ADMIN_SINCE_MS),
                [word(column) for column in _OF_SLOT] if backend.set else [],
                layers,
            ]
    return json.dumps(words, separators=(",", ":")) if words else ""


def restore_state(board: Board, backends: Sequence[Backend], text: str) -> None:
    """Put onto a fresh board what `export_state` wrote of these backends. Any other text is ignored: another version may
    have written it, and the checks find verdicts and addresses again."""
    try:
        words = _read(text)
    except (ValueError, TypeError):
        return
    for backend in backends:
        if backend.identity in words:
            found, state, weight, since, tenant, layers = words[backend.identity]
            columns = (*_FOUND, *range(W_ADDRESS, W_ADDRESS + len(found) - len(_FOUND)))
            name = (W_NAME, NAME_ANSWERED if len(found) > len(_FOUND) else NAME_ASKED)
            more = (*zip(_OF_SLOT, tenant, strict=False), *zip(_LAYERS, layers, strict=False))
            board.write_verdict(backend.index, [*zip(columns, found, strict=True), *more, name])
            board.set_admin_state(backend.index, state, since)
            board.set_weight(backend.index, weight - 1 if weight else None, since)


def _read(text: str) -> dict[str, Handed]:
    """Raises ValueError or TypeError for what `export_state` would not write. A version before wrote no `since`, and
    one address at most, which is asked for again."""
    words: dict[str, Handed] = {}
    for name, (found, state, weight, *rest) in dict(json.loads(text or "{}")).items():
        numbers = [int(value) for value in found]
        if len(numbers) == _FORMER:
            numbers = [*numbers[:3], 0, 0]
        count = (len(numbers) - len(_FOUND)) / 2
        is_sound = (
            count in range(MOST_ADDRESSES + 1) and numbers[4] == count and numbers[1] < len(VERDICT_NAMES)
        )
        if not is_sound or state not in range(len(ADMIN_NAMES)) or weight not in range(MOST_WEIGHT):
            raise ValueError(f"{name}: not a handover state")
        tenant, layers = ([int(value) for value in each] for each in [*rest[1:], [], []][:2])
        words[name] = numbers, int(state), int(weight), int(rest[0]) if rest else 0, tenant, layers
    return words
