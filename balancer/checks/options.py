"""The options of a pool that say how its backends' health is found out, and what follows from it.

RULES: declarations and readers of single values, as in balancer/options.py.
"""

import re
from dataclasses import dataclass

from balancer.checks.check import Check, check_of, parse_check_line
from balancer.config.option import at_least, options_in
from balancer.config.units import parse_duration, parse_port, parse_positive_duration

_health = options_in("Health")
_PATH = re.compile(r"/[\x21-\x7e]{0,1023}")


def parse_percent(text: str) -> int:
    """0 to 100 of "30%" or "30"."""
    number = text.strip().removesuffix("%").strip()
    if not re.fullmatch(r"\d{1,3}", number) or int(number) > 100:
        raise ValueError(f"{text!r} is no percentage: write 0% to 100%")
    return int(number)


def parse_path(text: str) -> str:
    """A path of HTTP, or nothing."""
    if text and not _PATH.fullmatch(text):
        raise ValueError(f"{text!r} is no path: write /agent")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthOptions:
    """How a pool's backends are checked. Times are seconds, 0 is off."""

    check: Check = _health(  # noqa: RUF009 - a dataclass field
        "tcp",
        "how backends are checked: tcp connects, and the connection must stay for 100 ms or bring a byte; tls does so "
        "behind a handshake; none takes them to be up; http GET /PATH [expect=200-399] [host=NAME], redis "
        "[role=primary], smtp, imap, pgsql [user=NAME] [role=primary], mysql [user=NAME], mqtt and frame (a resizer) ask "
        "the service whether it works; lines of send and expect ask any other; port=N address=A sni=NAME timeout=TIME "
        "behind each",
        parse_check_line,
        metavar="CHECK",
        repeat=True,
        commas=False,
        words=True,
        combine=check_of,
    )
    check_interval: float = _health("2s", "time between two checks of a backend", parse_positive_duration)
    check_rise: int = _health("2", "successes in a row that bring a backend up", at_least(1), metavar="N")
    check_fall: int = _health("3", "failures in a row that take a backend down", at_least(1), metavar="N")
    on_down: str = _health(
        "keep",
        "the sessions of a backend that goes down: keep leaves them to themselves; close ends them at once (for "
        "databases, whose old primary must not keep writers)",
        choices=("keep", "close"),
    )
    slow_start: float = _health(
        "0",
        "time over which a backend that comes back up is given its share of sessions, from 10 % on; 0 gives all at once",
        parse_duration,
    )
    panic: int = _health(
        "0%",
        "while fewer of the backends are up, those that are down are elected as well: the checks may be what is wrong; "
        "0% never",
        parse_percent,
        metavar="PERCENT",
    )
    agent_port: int = _health(
        "0",
        "port of each backend where it tells its state and weight, in the text protocol of HAProxy's agents; 0 is its "
        "own port with agent-path, else no agent",
        parse_port,
        metavar="PORT",
    )
    agent_path: str = _health(
        "",
        "path where the agent answers over HTTP instead: /agent of a resizer",
        parse_path,
        metavar="PATH",
        unset="none",
    )
    agent_interval: float = _health(
        "2s", "time between two questions to the agent of a backend", parse_positive_duration
    )

    @property
    def has_agent(self) -> bool:
        return bool(self.agent_port or self.agent_path)
