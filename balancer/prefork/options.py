"""The options of every daemon, and the readers of single values that several programs share.

RULES: declarations, and readers that look at nothing but the user database. The master acts on the values."""

import grp
import pwd
from dataclasses import dataclass, replace
from typing import Any

from balancer.config.common import CommonOptions
from balancer.config.cpus import available_cores
from balancer.config.option import ConfigError, Option, SectionSettings, made_from, options_in
from balancer.config.units import Address, parse_address, parse_port
from balancer.shm.layout import MAX_SLOTS


def parse_processes(text: str) -> int:
    """ "auto" (the CPUs this process may use) or a number of processes."""
    if text == "auto":
        return min(available_cores(), MAX_SLOTS)
    if not text.isdigit() or not 1 <= int(text) <= MAX_SLOTS:
        raise ValueError(f"{text!r} is neither auto nor a number from 1 to {MAX_SLOTS}")
    return int(text)


def parse_user(text: str) -> str:
    """A user that exists here, by name or number."""
    try:
        pwd.getpwuid(int(text)) if text.isdigit() else text and pwd.getpwnam(text)
    except KeyError:
        raise ValueError(f"user {text!r} does not exist here") from None
    return text


def parse_group(text: str) -> str:
    """A group that exists here, by name or number."""
    try:
        grp.getgrgid(int(text)) if text.isdigit() else text and grp.getgrnam(text)
    except KeyError:
        raise ValueError(f"group {text!r} does not exist here") from None
    return text


def parse_bind(text: str) -> str:
    """An address to listen on, checked and left as text: the port may come from --port."""
    parse_listen(text, port=0)
    return text


def parse_listen(text: str, port: int | None = None) -> Address:
    """As parse_address, for an address to bind. A name is refused: it would have to be resolved, and may mean another
    machine."""
    address = parse_address(text, port)
    if address.family != "name":
        return address
    if address.host == "localhost":
        return replace(address, family="inet", host="127.0.0.1")
    raise ValueError(f"{text!r} is a name: write the numeric address to listen on, or * for every one")


def binds(settings: SectionSettings) -> tuple[Address, ...]:
    """--bind with --port filled in; without --bind every IPv4 address. Raises ConfigError on a repeated one, and where a
    section with a name leaves the port open."""
    port: int | None = settings.values["port"]
    texts = settings.values["bind"]
    if settings.begins and settings.sources["port"] == "default":
        port = None
        if not texts:
            raise ConfigError(
                f"{settings.begins}: [{settings.title}] has neither bind nor port; write port = PORT"
            )
    found: list[Address] = []
    for item, text in enumerate(texts or ("0.0.0.0",)):
        try:
            address = parse_listen(text, port)
        except ValueError as error:
            raise settings.refuse("bind", str(error), item) from None
        if address in found and address.is_certain:
            raise settings.refuse("bind", f"{address} is given twice", item)
        found.append(address)
    return tuple(found)


def addresses_of(port: str, **properties: Any) -> Any:
    """A dataclass field of addresses to listen on, from options `port` and `bind`."""
    return made_from(
        Option(
            "port", port, "port to listen on; 0 lets the kernel choose", parse_port, short="p", **properties
        ),
        Option(
            "bind",
            "",
            "address to listen on: host, [v6], host:port, [v6]:port or unix:/path; --port where it has none",
            parse_bind,
            metavar="ADDRESS",
            repeat=True,
            unset="every IPv4 address",
            **properties,
        ),
    )


_process = options_in("Processes")


@dataclass(frozen=True, slots=True)
class DaemonOptions(CommonOptions):
    """The base of a daemon's options."""

    pidfile: str = _process("", "file to hold the master's pid", metavar="FILE", unset="none")
    user: str = _process(
        "", "user to become once the sockets are bound", parse_user, metavar="USER", unset="stay"
    )
    group: str = _process(
        "", "group to become; the user's own if unset", parse_group, metavar="GROUP", unset="stay"
    )
