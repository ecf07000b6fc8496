"""What --check-config of a daemon tries without binding: users, files, unix sockets, address families, low ports.

RULES: changes nothing. What would stop the daemon is a ConfigError, what may is a note."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from balancer.config.machine import has_family, is_own_address, may_bind, why_no_socket, why_not_writable
from balancer.config.option import SectionSettings
from balancer.config.units import Address
from balancer.prefork.bind import WILDCARDS


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked of the machine."""

    uid: int
    may_bind: Callable[[int], bool] = may_bind
    has_family: Callable[[Address], bool] = has_family
    is_own: Callable[[str], bool] = is_own_address

    @classmethod
    def this(cls) -> "Machine":
        """The one that this process runs on."""
        return cls(os.geteuid())


# An address to listen on, the section that gives it, its option, and its place in a list of several.
Listening = tuple[Address, SectionSettings, str, int | None]


def try_files(settings: SectionSettings, *names: str) -> None:
    """Raises ConfigError for the first of these options whose file could not be written."""
    for name in names:
        path: str = settings.values[name]
        if path and (why := why_not_writable(path)):
            raise settings.refuse(name, why)


def listening_of(settings: SectionSettings, addresses: Iterable[Address]) -> Iterator[Listening]:
    """The addresses that `bind` and `port` of one section give, with their places."""
    is_bind = bool(settings.values["bind"])
    for item, address in enumerate(addresses):
        yield address, settings, "bind" if is_bind else "port", item if is_bind else None


def try_user(settings: SectionSettings, machine: Machine) -> tuple[str, ...]:
    """A note when this user may not become the one that is configured."""
    user, group = settings.values["user"], settings.values["group"]
    if machine.uid == 0 or not (user or group):
        return ()
    name = "user" if user else "group"
    return (f"{settings.where(name)}: only root may become {name} {user or group}",)


def try_addresses(listening: Iterable[Listening], machine: Machine) -> tuple[str, ...]:
    """Notes on what may hinder a bind. Raises ConfigError for what does."""
    notes: list[str] = []
    for address, settings, name, item in listening:
        if address.family == "unix":
            if not address.path.startswith("@") and (why := why_no_socket(address.path)):
                raise settings.refuse(name, why, item)
            continue
        where = settings.where(name, item)
        if not machine.has_family(address):
            raise settings.refuse(name, f"{address}: this machine has no IPv6", item)
        if address.host not in WILDCARDS and not machine.is_own(address.host):
            notes.append(f"{where}: {address} is no address of this machine")
        if not machine.may_bind(address.port):
            notes.append(f"{where}: port {address.port} takes root, or the capability CAP_NET_BIND_SERVICE")
    return tuple(notes)
