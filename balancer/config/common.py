"""What every program of this distribution reads: the sections of its file, log and profile options, questions.

RULES: declarations and checks; no particular program.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from balancer.config.machine import why_nothing_in
from balancer.config.option import Option, SectionSettings, option, options_in

ALL_SECTIONS = ("balancer", "resizer", "resize-client")  # one file may serve the three programs
NAMED_SECTIONS = ("listener", "pool")  # the balancer's, each with a name: [pool web]
_log = options_in("Log and profile")
_GROUP = "Configuration"
_ASKS: dict[str, Any] = {"group": _GROUP, "flag": True, "command_line_only": True}


def parse_sessions(text: str) -> str:
    """Which sessions have a line: all, bad (those that did not end cleanly), none, or 1/N: the bad ones and one in N of
    the others. Raises ValueError."""
    if text in ("all", "bad", "none") or re.fullmatch(r"1/[1-9]\d{0,8}", text):
        return text
    raise ValueError(f"{text!r} is not all, bad, none or 1/N")


def parse_level(text: str) -> int:
    """A level by number or name. Raises ValueError."""
    names = {"0": 0, "1": 1, "2": 2, "info": 0, "sessions": 1, "debug": 2}
    if text not in names:
        raise ValueError(f"{text!r} is not one of {', '.join(names)}")
    return names[text]


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """The base of each program's options."""

    log: str = _log(
        "",
        "log file, appended to; SIGUSR1 opens it again; syslog: or syslog:/path is syslog's socket",
        metavar="FILE",
        unset="stderr",
    )
    loglevel: int = _log(
        "0",
        "0 or info: lifecycle and health; 1 or sessions: a line for each session too; 2 or debug: debug too",
        parse_level,
        metavar="LEVEL",
    )
    log_sessions: str = _log(
        "all",
        "which sessions have a line at loglevel 1 (of resize-client: pictures): all, bad (not ended cleanly), none, "
        "or 1/N: the bad ones and one in N of the others",
        parse_sessions,
        metavar="WHICH",
    )
    log_format: str = _log(
        "text",
        "text, or logfmt or json, which have the same keys",
        choices=("text", "logfmt", "json"),
    )
    debug: bool = _log(
        "no",
        "run every process under cProfile, which leaves <role>-<pid>.pstats in the debug directory when the process "
        "ends, and dump stacks on a crash",
        flag=True,
    )
    debug_dir: str = _log(".", "directory of the profiles", metavar="DIR")
    config: str = option("", "INI file to read", group=_GROUP, short="c", metavar="FILE", unset="none")


QUESTIONS = (  # what every program's table ends with; see loader.answer_early and answer_late
    Option("check-config", "no", "check everything, say OK and exit 0, or say why not and exit 2", **_ASKS),
    Option("print-config", "no", "print every value and where it came from, and exit", **_ASKS),
    Option("version", "no", "print the version and exit", **_ASKS),
    Option("help", "no", "print this and exit", **_ASKS),
)
DAEMON_QUESTIONS = (*QUESTIONS[:-1], replace(QUESTIONS[-1], short="h"))  # -h is a client's height


def check_debug(settings: SectionSettings) -> None:
    """Raises ConfigError when profiles could not be written, which the daemon would find out only when it ends."""
    directory: str = settings.values["debug-dir"]
    if settings.values["debug"] and (why := why_nothing_in(directory)):
        raise settings.refuse("debug-dir", why)
