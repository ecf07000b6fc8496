"""What every program of this distribution reads: the sections of its file, log and profile options.

RULES: declarations and checks; no particular program.
"""

import os
from typing import Any

from balancer.config.option import Option, Settings

ALL_SECTIONS = ("balancer", "resizer", "resize-client")  # one file may serve the three programs


def check_debug(settings: Settings) -> None:
    """Raises ConfigError when profiles could not be written: one would learn of it only when the daemon
    ends."""
    directory: str = settings.values["debug-dir"]
    if settings.values["debug"] and not (os.path.isdir(directory) and os.access(directory, os.W_OK)):
        raise settings.refuse("debug-dir", f"{directory} is not a directory this process may write to")


_LOG: dict[str, Any] = {"group": "Log and profile"}
LOG_OPTIONS = (
    Option(
        "log", "", "log file, appended to; SIGUSR1 opens it again",
        metavar="FILE", unset="stderr", **_LOG,
    ),
    Option(
        "loglevel", "0", "0: lifecycle and health; 1: a line for each session too; 2: debug too",
        int, choices=("0", "1", "2"), **_LOG,
    ),
    Option(
        "debug", "no", "run every process under cProfile, which leaves <role>-<pid>.pstats in the debug "
        "directory when the process ends, and dump stacks on a crash",
        flag=True, **_LOG,
    ),
    Option("debug-dir", ".", "directory of the profiles", metavar="DIR", **_LOG),
)  # fmt: skip
