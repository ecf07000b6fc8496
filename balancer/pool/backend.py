"""One backend as configured.

RULES: plain data and the parser of one `--upstream` text; no state (that is on the board), no sockets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from balancer.config.ini import did_you_mean
from balancer.config.units import Address, parse_address
from balancer.config.words import split_words

HEAVIEST = 256
MOST_SESSIONS = 1_000_000
MAIN_POOL = "main"  # the pool of a configuration without sections
WORDS = ("weight", "maxconn", "backup", "name", "source")
FORM = "host:port [weight=N] [maxconn=N] [backup] [name=X] [source=ADDRESS,...]"


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
    sources: tuple[Address, ...] = ()  # what it is dialled from, each with port 0; empty: the kernel chooses

    @property
    def identity(self) -> str:
        """Its name over all pools: "pool/name", and the bare name in the pool main."""
        return self.name if self.pool == MAIN_POOL else f"{self.pool}/{self.name}"

    def terms(self) -> str:
        """Everything but its name, as a user would write it."""
        backup = " backup" if self.backup else ""
        sources = f" source={','.join(one.host for one in self.sources)}" if self.sources else ""
        return f"{self.address} weight={self.weight} maxconn={self.maxconn}{backup}{sources}"


def parse_upstream(text: str) -> Backend:
    """A backend from "host:port weight=2 maxconn=8 backup name=x". Raises ValueError with a sentence."""
    try:
        return _parse(split_words(text))
    except ValueError as error:
        raise ValueError(f"upstream {text.strip()!r}: {error}") from None


def _parse(words: list[str]) -> Backend:
    if not words:
        raise ValueError(f"no address; write {FORM}")
    address = parse_address(words[0])
    if address.family != "unix" and address.port == 0:
        raise ValueError(f"port 0 cannot be dialled; write {FORM}")
    if address.family == "unix" and words[1:] and "=" not in words[1] and words[1] not in WORDS:
        quoted = f'unix:"{address.path} {words[1]}"'
        raise ValueError(f"{words[1]!r} is not understood; a path with a blank stands in quotes: {quoted}")
    settings = _settings_of(words[1:])
    name = settings.get("name", str(address))
    if not name.isprintable() or not name:
        raise ValueError("the name is empty or not printable")
    return Backend(
        name,
        address,
        _number("weight", settings.get("weight", "1"), 1, HEAVIEST),
        _number("maxconn", settings.get("maxconn", "0"), 0, MOST_SESSIONS),
        "backup" in settings,
        sources=_parse_sources(settings["source"], address) if "source" in settings else (),
    )


def _settings_of(words: list[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in WORDS:
            raise ValueError(f"{word!r} is not understood{did_you_mean(key, WORDS)}; write {FORM}")
        if (key == "backup") == bool(equals):
            raise ValueError(f"{word!r} is not understood; write {FORM}")
        if key in settings:
            raise ValueError(f"{key} is given twice")
        settings[key] = value
    return settings


def _number(key: str, text: str, least: int, most: int) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else -1
    if not least <= number <= most:
        raise ValueError(f"{key} is a number from {least} to {most}, not {text!r}")
    return number


def is_source(before: str, text: str) -> bool:
    """Whether the text behind a comma continues a list of source addresses: no backend is a bare address."""
    return before.split()[-1].startswith("source=") and _family_of(_bare(text.split()[0])) is not None


def _parse_sources(text: str, target: Address) -> tuple[Address, ...]:
    """The addresses to connect to `target` from, each with port 0."""
    if target.family == "unix":
        raise ValueError("a unix socket is not connected from an address: leave source out")
    found: list[Address] = []
    for host in text.split(","):
        family = _family_of(_bare(host))
        if family is None:
            raise ValueError(
                f"source {host!r} is no numeric address without port: write 10.0.0.5 or 2001:db8::5"
            )
        source = Address(family, str(ip_address(_bare(host))))
        if target.family not in ("name", family):
            raise ValueError(
                f"nothing can be connected to {target} from {host}, an address of another family"
            )
        if ip_address(source.host).is_unspecified:
            raise ValueError(f"source {host} is every address: leave source out")
        if source in found:
            raise ValueError(f"source {host} is given twice")
        found.append(source)
    return tuple(found)


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _family_of(host: str) -> str | None:
    try:
        return "inet" if ip_address(host).version == 4 else "inet6"
    except ValueError:
        return None


def with_indexes(backends: Iterable[Backend], blocks: Mapping[str, int]) -> tuple[Backend, ...]:
    """The backends with the blocks that the board gave to their identities."""
    return tuple(replace(backend, index=blocks[backend.identity]) for backend in backends)
