"""Durations, sizes, counts and addresses as people write them, and back.

RULES: text in, plain numbers out; no socket is opened, and only resolve() asks a resolver. Every refusal is a ValueError
whose text quotes the input and shows a correct one: users read it unchanged."""

import ipaddress
import math
import re
import socket
from dataclasses import dataclass

from balancer.config.words import quote, unquote

_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([a-z]*)")
_BINARY_UNITS = {unit + tail: 1024**power for power, unit in enumerate("kmg", 1) for tail in ("", "b", "ib")}
_DECIMAL_UNITS = {"k": 10**3, "m": 10**6, "g": 10**9}
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_.-]{1,253}")
LONGEST_UNIX_PATH = 107  # sun_path holds 108 bytes, the last one is the NUL


def parse_duration(text: str) -> float:
    """Seconds of "250ms", "5s", "1m30s", "10m", "1h", "1d"; a bare number is seconds, as "0" for "never"."""
    word = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", word):
        seconds = float(word)
    else:
        parts = _DURATION_PART.findall(word)
        if not parts or "".join(number + unit for number, unit in parts) != word:
            raise ValueError(f"{text!r} is not a duration: write 250ms, 5s, 10m or 1h")
        seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
    if seconds == math.inf:
        raise ValueError(f"{text[:20]!r}... is no number of seconds that could be counted")
    return seconds


def parse_positive_duration(text: str) -> float:
    """A duration that is not zero."""
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError(f"{text!r} would mean no time at all")
    return seconds


def parse_timeout(text: str) -> float:
    """A duration after which something ends; 0 is never, which is infinity."""
    return parse_duration(text) or math.inf


def _parse_scaled(text: str, units: dict[str, int], what: str, examples: str) -> int:
    match = _NUMBER.fullmatch(text.strip().lower())
    factor = (units | {"": 1}).get(match[2]) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not {what}: write {examples}")
    value = float(match[1]) * factor if "." in match[1] else int(match[1]) * factor
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number")
    return int(value)


def parse_size(text: str) -> int:
    """Bytes of "64k", "32m", "1g" (powers of 1024, as HAProxy's and nginx's sizes) or of a bare number."""
    return _parse_scaled(text, _BINARY_UNITS | {"b": 1}, "a size", "64k, 32m or 1g")


def parse_count(text: str) -> int:
    """A number of things: "50m" pixels are 50,000,000 (megapixels are decimal, unlike sizes)."""
    return _parse_scaled(text, _DECIMAL_UNITS, "a count", "1000, 64k or 50m")


def format_duration(seconds: float) -> str:
    """The shortest spelling that parse_duration reads back as the same value (to a microsecond); "0" of infinity."""
    if seconds <= 0 or math.isinf(seconds):
        return "0"
    for unit in ("d", "h", "m"):
        if seconds >= _DURATION_UNITS[unit] and seconds % _DURATION_UNITS[unit] == 0:
            return f"{seconds / _DURATION_UNITS[unit]:.0f}{unit}"
    unit = "s" if seconds >= 1 else "ms" if seconds >= 1e-3 else "us"
    number = f"{seconds / _DURATION_UNITS[unit]:.6f}".rstrip("0").rstrip(".")
    return f"{number}{unit}"


def format_size(size: int) -> str:
    """Exact when a power of 1024 divides it ("32m"), else plain bytes."""
    for unit in ("g", "m", "k"):
        if size and size % _BINARY_UNITS[unit] == 0:
            return f"{size // _BINARY_UNITS[unit]}{unit}"
    return str(size)


def format_count(count: int) -> str:
    """As format_size, in powers of 1000."""
    for unit in ("g", "m", "k"):
        if count and count % _DECIMAL_UNITS[unit] == 0:
            return f"{count // _DECIMAL_UNITS[unit]}{unit}"
    return str(count)


def counted(count: int, noun: str, plural: str = "") -> str:
    """ "1 session", "2 sessions", "1,024 sessions"; `plural` where an s is not enough."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a socket: family "inet" | "inet6" | "unix" | "name" (a host name, not resolved yet)."""

    family: str
    host: str = ""
    port: int = 0
    path: str = ""  # unix only; "@name" is Linux's abstract namespace

    def __str__(self) -> str:
        if self.family == "unix":
            return f"unix:{quote(self.path)}"
        return f"[{self.host}]:{self.port}" if self.family == "inet6" else f"{self.host}:{self.port}"

    @property
    def socket_family(self) -> int:
        """AF_INET, AF_INET6 or AF_UNIX. Raises ValueError for a name."""
        families = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX}
        if self.family not in families:
            raise ValueError(f"{self} has to be resolved first")
        return families[self.family]

    @property
    def is_certain(self) -> bool:
        """Whether the address is known before bind(): not so for port 0, for which the kernel chooses one."""
        return self.family == "unix" or self.port != 0

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it: loopback or a unix socket."""
        if self.family in ("inet", "inet6"):
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        return self.family == "unix"

    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int] | str:
        """The argument of bind() and connect(). Raises ValueError for a name: a worker must never block in a resolver."""
        if self.family == "inet":
            return (self.host, self.port)
        if self.family == "inet6":
            host, _, scope = self.host.partition("%")
            number = 0 if not scope else int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
            return (host, self.port, 0, number)
        if self.family == "unix":
            return "\0" + self.path[1:] if self.path.startswith("@") else self.path
        raise ValueError(f"{self} has to be resolved first")


def parse_port(text: str) -> int:
    """A port number from 0 (the kernel chooses) to 65535."""
    if not re.fullmatch(r"[0-9]{1,5}", text.strip()) or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port: write a number from 0 to 65535")
    return int(text)


def parse_address(text: str, port: int | None = None) -> Address:
    """Address of "host:port", "1.2.3.4:port", "[v6]:port", "unix:/path", "unix:@abstract"; ":port" is every
    IPv4 address. Quotes may enclose a path or the whole text.

    With `port` given, a missing port takes it ("[::1]", "10.0.0.1", "::1"), as --bind's does."""
    word = unquote(text)
    if word.startswith("unix:"):
        path = unquote(word.removeprefix("unix:"))
        if len(path) < 2 or path[0] not in "/@." or len(path.encode()) > LONGEST_UNIX_PATH or "\0" in path:
            raise ValueError(
                f"{text!r} is not an address: write unix:/path of at most {LONGEST_UNIX_PATH} bytes"
            )
        return Address("unix", path=path)
    host, colon, tail = word.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")) or (word.startswith("[") and tail.endswith("]")):
        host, tail = word, ""  # no port: "name", "::1", "[::1]"
        if port is None:
            brackets = " (an IPv6 address goes in brackets)" if ":" in word else ""
            raise ValueError(f"{text!r} has no port: write host:port, [v6]:port or unix:/path{brackets}")
    number = port if not tail and port is not None else parse_port(tail)
    family, host = _parse_host(host, text)
    return Address(family, host, number)


def _parse_host(host: str, text: str) -> tuple[str, str]:
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if bare in ("", "*") and bare == host:
        return "inet", "0.0.0.0"
    try:
        number = ipaddress.ip_address(bare)
    except ValueError:
        if bare != host or not _HOST_NAME.fullmatch(bare) or bare.replace(".", "").isdigit():
            raise ValueError(
                f"{text!r} is not an address: write host:port, [v6]:port or unix:/path"
            ) from None
        return "name", bare
    return ("inet" if number.version == 4 else "inet6"), str(number)


def resolve(address: Address) -> tuple[Address, ...]:
    """Every numeric address of a name, in the resolver's order; any other address unchanged.

    Blocks in the resolver: for the boot of a master and for the prober, never for a worker. Raises OSError."""
    if address.family != "name":
        return (address,)
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    kinds = {int(socket.AF_INET): "inet", int(socket.AF_INET6): "inet6"}
    numeric = (
        Address(kinds[family], str(addr[0]), address.port) for family, *_, addr in found if family in kinds
    )
    return tuple(dict.fromkeys(numeric))
