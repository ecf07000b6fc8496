"""One backend as configured.

RULES: plain data and the parser of one `--upstream` text; no state (that is on the board), no sockets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from balancer.config.units import Address, parse_address

HEAVIEST = 256
MOST_SESSIONS = 1_000_000
MAIN_POOL = "main"  # the pool of a configuration without sections
FORM = "host:port [weight=N] [maxconn=N] [backup] [name=X]"


@dataclass(frozen=True, slots=True)
class Backend:
    """`index` is its block on the board, which it keeps over reloads as long as its identity is the same."""

    name: str
    address: Address
    weight: int = 1  # 1..256
    maxconn: int = 0  # sessions over all workers, 0 = no limit
    backup: bool = False  # serves only while no other is eligible
    index: int = -1  # given when the configuration is put on the board
    pool: str = MAIN_POOL

    @property
    def identity(self) -> str:
        """Its name over all pools: "pool/name", and the bare name in the pool main."""
        return self.name if self.pool == MAIN_POOL else f"{self.pool}/{self.name}"

    def terms(self) -> str:
        """Everything but its name, as a user would write it."""
        backup = " backup" if self.backup else ""
        return f"{self.address} weight={self.weight} maxconn={self.maxconn}{backup}"


def parse_upstream(text: str) -> Backend:
    """A backend from "host:port weight=2 maxconn=8 backup name=x". Raises ValueError with a sentence."""

    def refuse(why: str) -> NoReturn:
        raise ValueError(f"upstream {text.strip()!r}: {why}; write {FORM}")

    words = text.split()
    if not words:
        refuse("no address")
    try:
        address = parse_address(words[0])
    except ValueError as error:
        raise ValueError(f"upstream {text.strip()!r}: {error}") from None
    if address.family != "unix" and address.port == 0:
        refuse("port 0 cannot be dialled")
    settings: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if key not in ("weight", "maxconn", "backup", "name") or (key == "backup") == bool(equals):
            refuse(f"{word!r} is not understood")
        if key in settings:
            refuse(f"{key} is given twice")
        settings[key] = value
    name = settings.get("name", str(address))
    if not name.isprintable() or not name:
        refuse("the name is empty or not printable")
    weight = _number(settings.get("weight", "1"), 1, HEAVIEST)
    if weight is None:
        refuse(f"weight is a number from 1 to {HEAVIEST}")
    maxconn = _number(settings.get("maxconn", "0"), 0, MOST_SESSIONS)
    if maxconn is None:
        refuse("maxconn is a number of sessions, 0 = no limit")
    return Backend(name, address, weight, maxconn, "backup" in settings)


def _number(text: str, least: int, most: int) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        return None
    number = int(text)
    return number if least <= number <= most else None


def with_indexes(backends: Iterable[Backend], blocks: Mapping[str, int]) -> tuple[Backend, ...]:
    """The backends with the blocks that the board gave to their identities."""
    return tuple(replace(backend, index=blocks[backend.identity]) for backend in backends)
