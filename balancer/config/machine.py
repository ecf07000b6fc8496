"""What this machine lets this process do: its own addresses, address families, low ports, files, lookups of names.

RULES: asks the kernel and changes nothing: no file is made and no address is bound. Sentences say what is wrong with the
thing they begin with."""

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv6Address, ip_address

from balancer.config.units import Address, resolve

WILDCARDS = ("0.0.0.0", "::")
_LOOPBACK = {"inet": "127.0.0.1", "inet6": "::1"}
_BIND_LOW_PORTS = 1 << 10  # CAP_NET_BIND_SERVICE among the capabilities of /proc/self/status

Lookup = Callable[[Address], tuple[Address, ...]]


# -- addresses


def is_own_address(host: str) -> bool:
    """Whether a numeric address is this machine's: the kernel connects to it from itself then. Nothing is sent."""
    address = ip_address(host.partition("%")[0])
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.connect((host, 9))
            return ip_address(probe.getsockname()[0].partition("%")[0]) == address
    except OSError:
        return False


def reaches(target: Address, listening: Address, is_own: Callable[[str], bool] = is_own_address) -> bool:
    """Whether a connect to `target` comes to a socket that listens on `listening`, as far as no name server has to be
    asked. An address of this machine comes to a wildcard, 0.0.0.0 and [::] to the loopback."""
    if "unix" in (target.family, listening.family):
        return target.family == listening.family and _is_same_path(target.path, listening.path)
    if not listening.port or target.port != listening.port:
        return False
    return any(
        family == listening.family
        and (host == listening.host or (listening.host in WILDCARDS and is_own(host)))
        for family, host in _numeric(target)
    )


def _numeric(target: Address) -> Iterable[tuple[str, str]]:
    """The families and numeric addresses that a connect to `target` leads to."""
    if target.family == "name":
        return _LOOPBACK.items() if target.host == "localhost" else ()
    if target.host in WILDCARDS:
        return ((target.family, _LOOPBACK[target.family]),)
    address = ip_address(target.host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return (("inet", str(address.ipv4_mapped)),)
    return ((target.family, target.host),)


def _is_same_path(one: str, other: str) -> bool:
    if one == other or "@" in (one[:1], other[:1]):
        return one == other
    try:
        return os.path.samefile(one, other)  # behind links, hard links and bind mounts too
    except OSError:  # one of them is not there yet
        return os.path.realpath(one) == os.path.realpath(other)


def has_family(address: Address) -> bool:
    """Whether this machine has any address of the family: IPv6 may be turned off."""
    if address.family != "inet6":
        return True
    try:
        with open("/proc/net/if_inet6", "rb") as table:
            return bool(table.read(1))
    except OSError:
        return False


def may_bind(port: int) -> bool:
    """Whether this process may bind the port, as far as privileges are concerned."""
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "rb") as file:
            first = int(file.read())
        with open("/proc/self/status", "rb") as file:
            effective = next(int(line.split()[1], 16) for line in file if line.startswith(b"CapEff:"))
    except (OSError, ValueError, StopIteration):
        return True
    return port == 0 or port >= first or bool(effective & _BIND_LOW_PORTS)


# -- names


def look_up_all(
    names: Iterable[Address], seconds: float, lookup: Lookup = resolve
) -> Mapping[Address, tuple[Address, ...] | str]:
    """The numeric addresses of each name, or why there are none, after at most so many seconds. A lookup that is still
    under way goes on in its thread: for a program that is about to end."""
    found: dict[Address, tuple[Address, ...] | str] = {}

    def ask(name: Address) -> None:
        try:
            found[name] = lookup(name)
        except (OSError, UnicodeError) as error:
            found[name] = getattr(error, "strerror", None) or str(error)

    asked = list(dict.fromkeys(names))
    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in asked]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: found.get(name, f"no answer within {seconds:g} s") for name in asked}


# -- files


def why_not_writable(path: str) -> str:
    """Why this process cannot write a file at the path, there already or not; nothing when it can."""
    if os.path.isdir(path):
        return f"{path} is a directory"
    if os.path.lexists(path):
        return "" if os.access(path, os.W_OK) else f"{path} {_why_no_access(path)}"
    return _why_nothing_new(path)


def why_no_socket(path: str) -> str:
    """Why this process cannot make a socket file at the path, nothing when it can: one that is there is replaced."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return f"{path} is there and is no socket"
        return _why_no_change_in(_directory_of(path))
    except OSError:
        return _why_nothing_new(path)


def why_no_directory(path: str) -> str:
    """Why this process cannot write into the directory, or make it; nothing when it can."""
    return why_nothing_in(path) if os.path.lexists(path) else _why_nothing_new(path)


def why_nothing_in(directory: str) -> str:
    """Why this process cannot make a file in the directory, nothing when it can."""
    return _why_no_change_in(directory) or (f"{directory} is full" if _lacks_inodes(directory) else "")


def _directory_of(path: str) -> str:
    try:
        return os.path.dirname(os.path.abspath(path))
    except OSError:
        return "the working directory"  # was removed; is missing, as the sentence goes on


def _why_no_change_in(directory: str) -> str:
    if not os.path.isdir(directory):
        return f"{directory} {'is no directory' if os.path.lexists(directory) else 'is missing'}"
    return "" if os.access(directory, os.W_OK | os.X_OK) else f"{directory} {_why_no_access(directory)}"


def _lacks_inodes(directory: str) -> bool:
    """Whether the file system has no inode left. Some count none (f_files is 0)."""
    try:
        info = os.statvfs(directory)
    except OSError:
        return False
    return info.f_files > 0 and not info.f_ffree


def _why_nothing_new(path: str) -> str:
    why = why_nothing_in(_directory_of(path))
    return why and f"{path} cannot be made: {why}"


def _why_no_access(path: str) -> str:
    try:
        is_read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError as error:
        return f"cannot be used: {error.strerror}"
    return "is read-only" if is_read_only else "may not be written by this user"
