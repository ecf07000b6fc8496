"""The hour of history on the board: which place is whose, and its text for the successor of an upgrade.

RULES: a thing is known by its name, as in a reload: the successor may give it another place. Steps are counted by the
monotonic clock, which both masters share. What was never watched is left out, and so costs no memory.
"""

import binascii
import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable

from balancer.options import MOST_LISTENERS, Listener, Pool
from balancer.pool.board import Board
from balancer.web.history import History

WHOLE = ""  # the name of what is of the whole program, at place 0


def things_of(listeners: Iterable[Listener], pools: Iterable[Pool]) -> dict[str, int]:
    """The place of each thing's figures in the history: of the whole, "listener NAME" and "pool NAME"."""
    places = {f"listener {one.name}": 1 + one.index for one in listeners}
    return {WHOLE: 0} | places | {f"pool {one.name}": 1 + MOST_LISTENERS + one.index for one in pools}


def export_history(board: Board, listeners: Iterable[Listener], pools: Iterable[Pool]) -> str:
    """What has been watched of these, as one line; empty when nothing has."""
    history = History(board.history)
    things = things_of(listeners, pools)
    blocks = {name: history.export(thing) for name, thing in things.items() if history.is_known(thing)}
    texts = {name: b64encode(zlib.compress(block, 1)).decode() for name, block in blocks.items()}
    return json.dumps(texts) if texts else ""


def restore_history(board: Board, listeners: Iterable[Listener], pools: Iterable[Pool], text: str) -> None:
    """Put onto a fresh board what `export_history` wrote of these. Any other text is ignored: another version may have
    written it."""
    history = History(board.history)
    try:
        found = {str(name): b64decode(each) for name, each in dict(json.loads(text or "{}")).items()}
        for name, thing in things_of(listeners, pools).items():
            if name in found:
                history.restore(thing, zlib.decompress(found[name]))
    except (ValueError, TypeError, binascii.Error, zlib.error):
        return
