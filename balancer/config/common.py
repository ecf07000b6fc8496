"""What every program of this distribution reads: the sections of its file, log and profile options, questions.

RULES: declarations and checks; no particular program.
"""

from dataclasses import dataclass, replace
from typing import Any

from balancer.config.machine import why_nothing_in
from balancer.config.option import Option, SectionSettings, option, options_in

ALL_SECTIONS = ("balancer", "resizer", "resize-client")  # one file may serve the three programs
NAMED_SECTIONS = ("listener", "pool")  # the balancer's, each with a name: [pool web]
_log = options_in("Log and profile")
_GROUP = "Configuration"
_ASKS: dict[str, Any] = {"group": _GROUP, "flag": True, "command_line_only": True}


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """The base of each program's options."""

    log: str = _log("", "log file, appended to; SIGUSR1 opens it again", metavar="FILE", unset="stderr")
    loglevel: int = _log(
        "0",
        "0: lifecycle and health; 1: a line for each session too; 2: debug too",
        int,
        choices=("0", "1", "2"),
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
