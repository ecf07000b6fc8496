"""Verdicts, admin states and resolved addresses for the successor of an upgrade, as text.

RULES: exports words of one board, restores them on another; knows neither process nor socket. Identity is the backend's
name, as in a reload; a verdict and an address count only for the address text they were found for. A backend with
nothing but defaults is left out, so that a thousand healthy ones are an empty text.

Without it an upgrade would send clients to a backend that an operator has taken out, and to a dead one until the checks
have found that out again.
"""

import json
from collections.abc import Sequence
from functools import partial

from balancer.pool.backend import Backend
from balancer.pool.board import (
    ADMIN_NAMES,
    DOWN,
    VERDICT_NAMES,
    W_ADDRESS_HI,
    W_ADDRESS_LO,
    W_ADMIN_SINCE_MS,
    W_ADMIN_STATE,
    W_FAMILY,
    W_SINCE_MS,
    W_SUBJECT,
    W_VERDICT,
    W_WEIGHT,
    Board,
)

MOST_WEIGHT = 1 << 32
_FOUND = (W_SUBJECT, W_VERDICT, W_SINCE_MS, W_FAMILY, W_ADDRESS_HI, W_ADDRESS_LO)


def export_state(board: Board, backends: Sequence[Backend]) -> str:
    """{name: [[...found], admin state, weight, since]} of each backend that is down, resolved or changed by hand."""
    words = {}
    for backend in backends:
        word = partial(board.word, backend.index)
        if word(W_VERDICT) == DOWN or word(W_FAMILY) or word(W_ADMIN_STATE) or word(W_WEIGHT):
            words[backend.identity] = [
                [word(column) for column in _FOUND],
                word(W_ADMIN_STATE),
                word(W_WEIGHT),
                word(W_ADMIN_SINCE_MS),
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
            found, state, weight, since = words[backend.identity]
            board.write_verdict(backend.index, zip(_FOUND, found, strict=True))
            board.set_admin_state(backend.index, state, since)
            board.set_weight(backend.index, weight - 1 if weight else None, since)


def _read(text: str) -> dict[str, tuple[list[int], int, int, int]]:
    """Raises ValueError or TypeError for what `export_state` would not write. A version before wrote no `since`."""
    words: dict[str, tuple[list[int], int, int, int]] = {}
    for name, (found, state, weight, *rest) in dict(json.loads(text or "{}")).items():
        numbers = [int(value) for value in found]
        is_sound = len(numbers) == len(_FOUND) and numbers[1] < len(VERDICT_NAMES)
        if not is_sound or state not in range(len(ADMIN_NAMES)) or weight not in range(MOST_WEIGHT):
            raise ValueError(f"{name}: not a handover state")
        words[name] = numbers, int(state), int(weight), int(rest[0]) if rest else 0
    return words
