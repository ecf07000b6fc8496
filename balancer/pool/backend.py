"""One backend as configured.

RULES: plain data and the parser of one `--upstream` text; no state (that is on the board), no sockets.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from ipaddress import ip_address

from balancer.config.ini import did_you_mean
from balancer.config.units import Address, parse_address
from balancer.config.words import quote, split_words

HEAVIEST = 256
MOST_SESSIONS = 1_000_000
SPARE = "spare"  # kind of a set whose slots take what an operator adds
MAIN_POOL = "main"  # the pool of a configuration without sections
WORDS = ("weight", "maxconn", "backup", "name", "source")
SET_WORDS = ("slots", "family", "obsolete", *WORDS)
FORM = "host:port [weight=N] [maxconn=N] [backup] [name=X] [source=ADDRESS,...]"
SET_FORM = "dns:HOST:PORT or srv:_SERVICE._tcp.NAME [slots=N] [family=4|6|both|prefer-6] [obsolete=N] and the other words"
FAMILIES = ("4", "6", "both", "prefer-6")
MOST_SLOTS = 1024
_SRV_NAME = re.compile(r"_[A-Za-z0-9-]+\._tcp(\.[A-Za-z0-9_-]+)+\.?")


@dataclass(frozen=True, slots=True)
class BackendSet:
    """Backends that a name server knows: those of a host, or of a service (SRV: ports, weights and priorities). Each
    takes one of `slots` places; one that is missing in `obsolete` answers in a row gives its place back."""

    kind: str  # "dns" or "srv"; SPARE: no name server knows it
    host: str  # the name
    port: int  # 0: the service says
    slots: int = 16
    family: str = ""  # of FAMILIES; "": 4, unless only IPv6 addresses are known
    obsolete: int = 1

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.kind, self.host, self.port) if part)


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
    set: BackendSet | None = None  # it is a slot: which backend it is, is on the board
    parity: int = 0  # of a slot: which of its two gauges counts the sessions of the present tenant

    @property
    def identity(self) -> str:
        """Its name over all pools: "pool/name", and the bare name in the pool main."""
        return self.name if self.pool == MAIN_POOL else f"{self.pool}/{self.name}"

    def spellings(self) -> tuple[str, ...]:
        """The names that mean it: its own, and with the pool before it. The one that a unix path with blanks gives has
        quotes, which a shell takes away."""
        names = [self.name]
        if self.address.family == "unix" and self.name == str(self.address):
            names.append(f"unix:{self.address.path}")
        return (*names, *(f"{self.pool}/{name}" for name in names))

    @property
    def is_spare(self) -> bool:
        """It is a slot for what an operator adds."""
        return self.set is not None and self.set.kind == SPARE

    @property
    def tls_host(self) -> str:
        """The host that its certificate is for: the configured one, of a set too, whose tenants have only addresses."""
        host = self.set.host if self.set and not self.is_spare else self.address.host
        if self.set and self.set.kind == "srv":
            host = host.partition("._tcp.")[2]
        return host.rstrip(".")

    def terms(self) -> str:
        """Everything but its name, as a user would write it."""
        backup = " backup" if self.backup else ""
        sources = f" source={','.join(one.host for one in self.sources)}" if self.sources else ""
        slots = f" slots={self.set.slots} family={self.set.family or 'auto'}" if self.set else ""
        slots += f" obsolete={self.set.obsolete}" if self.set else ""
        where = self.set or self.address
        return f"{where} weight={self.weight} maxconn={self.maxconn}{backup}{sources}{slots}"

    def expanded(self) -> "tuple[Backend, ...]":
        """Itself, or one backend for each slot of a set."""
        if self.set is None:
            return (self,)
        return tuple(replace(self, name=f"{self.name}-{place}") for place in range(1, self.set.slots + 1))


def is_called(spellings: Iterable[str], pattern: str) -> bool:
    """Whether one of a backend's names matches a pattern: web-*, api/*. A bracket may be the one of an IPv6 address:
    [::1]:*."""
    literal = pattern.replace("[", "[[]")
    return any(fnmatchcase(name, one) for name in spellings for one in (pattern, literal))


def parse_upstream(text: str) -> Backend:
    """A backend from "host:port weight=2 maxconn=8 backup name=x". Raises ValueError with a sentence."""
    try:
        return _parse(split_words(text))
    except ValueError as error:
        raise ValueError(f"upstream {text.strip()!r}: {error}") from None


def _parse(words: list[str]) -> Backend:
    if not words:
        raise ValueError(f"no address; write {FORM}")
    if words[0].startswith(("dns:", "srv:")):
        return _parse_set(words)
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


def _parse_set(words: list[str]) -> Backend:
    settings = _settings_of(words[1:], SET_WORDS, SET_FORM)
    kind, _, name = words[0].partition(":")
    if kind == "srv" and not _SRV_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a service: write srv:_http._tcp.web.internal")
    address = Address("name", name) if kind == "srv" else parse_address(name)
    if address.family != "name":
        raise ValueError(f"{name} is no name: write it without dns:")
    if kind == "dns" and address.port == 0:
        raise ValueError(f"port 0 cannot be dialled; write {SET_FORM}")
    family = settings.get("family", "")
    if family and family not in FAMILIES:
        raise ValueError(f"family={family} is not one of {', '.join(FAMILIES)}")
    found = BackendSet(
        kind,
        address.host,
        address.port,
        _number("slots", settings.get("slots", "16"), 1, MOST_SLOTS),
        family,
        _number("obsolete", settings.get("obsolete", "1"), 1, 100),
    )
    plain = " ".join(
        quote(word) for word in words[1:] if word.partition("=")[0] not in ("slots", "family", "obsolete")
    )
    backend = _parse([f"{address.host}:{address.port or 1}", *split_words(plain)])
    found = replace(found, family=_family_by(backend.sources, family))
    return replace(backend, address=address, name=settings.get("name", str(found)), set=found)


def _family_by(sources: tuple[Address, ...], family: str) -> str:
    """The addresses of a set that is connected from `sources`: those of their IP version, unless `family` says more."""
    versions = {"4" if source.family == "inet" else "6" for source in sources}
    if len(versions) != 1 or family == "both":
        return family
    [version] = versions
    if family.removeprefix("prefer-") not in ("", version):
        raise ValueError(f"nothing can be connected from {sources[0].host} with family={family}")
    return family or version


def _settings_of(words: list[str], known: tuple[str, ...] = WORDS, form: str = FORM) -> dict[str, str]:
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in known:
            raise ValueError(f"{word!r} is not understood{did_you_mean(key, known)}; write {form}")
        if (key == "backup") == bool(equals):
            raise ValueError(f"{word!r} is not understood; write {form}")
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
