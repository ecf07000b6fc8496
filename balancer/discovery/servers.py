"""Which name servers are asked for sets: those of /etc/resolv.conf, or the configured one.

RULES: reads one small file, again when it has changed; asks nobody.
"""

import os
import re
from dataclasses import dataclass, replace
from ipaddress import ip_address

RESOLV_CONF = "/etc/resolv.conf"


@dataclass(frozen=True, slots=True)
class NameServers:
    """Whom to ask, and how names are completed. `servers` are numeric addresses with their ports."""

    servers: tuple[tuple[str, int], ...]
    search: tuple[str, ...] = ()
    ndots: int = 1
    over_tcp: bool = False

    def __str__(self) -> str:
        shown = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.servers)
        return ",".join(shown) + (" tcp" if self.over_tcp else "")


def parse_resolv_conf(text: str) -> NameServers:
    """The servers, search domains and ndots of /etc/resolv.conf; as resolv.conf(5) says, of `search` and `domain` the
    last counts, and without a server this machine is asked."""
    servers: list[tuple[str, int]] = []
    search: tuple[str, ...] = ()
    ndots = 1
    for line in text.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        match words[:1]:
            case ["nameserver"] if len(words) > 1 and _is_numeric(words[1]):
                servers.append((words[1], 53))
            case ["search" | "domain"]:
                search = tuple(word.rstrip(".") for word in words[1:] if word != ".")
            case ["options"]:
                for word in words[1:]:
                    if word.startswith("ndots:") and word[6:].isdigit():
                        ndots = min(int(word[6:]), 15)
    return NameServers(tuple(servers[:3]) or (("127.0.0.1", 53),), search, ndots)


def _is_numeric(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def parse_resolver(text: str) -> NameServers | None:
    """The server of "10.0.0.53", "127.0.0.1:8600 tcp" or "[::1]:53"; None for nothing."""
    words = text.split()
    if not words:
        return None
    found = re.fullmatch(r"\[([^\]]+)\](?::(\d{1,5}))?|([0-9.]+)(?::(\d{1,5}))?|([0-9A-Fa-f:.]+)", words[0])
    host = next((found[group] for group in (1, 3, 5) if found[group]), "") if found else ""
    port = int((found and (found[2] or found[4])) or 53)
    try:
        ip_address(host)
    except ValueError:
        host = ""
    if not host or not 0 < port < 65536 or words[1:] not in ([], ["tcp"]):
        raise ValueError(f"{text!r} is no name server: write 10.0.0.53, or 127.0.0.1:8600 tcp")
    return NameServers(((host, port),), over_tcp=words[1:] == ["tcp"])


class ServerList:
    """The name servers at the moment of the call. `configured` replaces those of the file, whose search domains hold."""

    def __init__(self, configured: NameServers | None, path: str = RESOLV_CONF) -> None:
        self._configured, self._path = configured, path
        self._seen: object = None
        self._known = parse_resolv_conf("")

    def __call__(self) -> NameServers:
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen != self._seen:
                with open(self._path, encoding="ascii", errors="replace") as file:
                    self._known = parse_resolv_conf(file.read(1 << 16))
                self._seen = seen
        except OSError:
            pass  # what was known holds
        if self._configured is None:
            return self._known
        return replace(self._known, servers=self._configured.servers, over_tcp=self._configured.over_tcp)
