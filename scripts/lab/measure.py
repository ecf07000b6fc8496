"""CPU seconds of a process tree, user and system apart, and its memory as proportional set size.

RULES: reads /proc only. A tree is a process and all its descendants, so that masters, helpers and workers all count;
a process that has ended counts through its parent's cutime and cstime.
"""

import contextlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpu:
    """CPU seconds."""

    user: float
    system: float

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.user - other.user, self.system - other.system)


def tree(pid: int) -> list[int]:
    """`pid` and its descendants."""
    found = [pid]
    for member in found:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except FileNotFoundError:
            continue
    return found


def cpu_of(pid: int) -> Cpu:
    """CPU used so far by the tree of `pid`."""
    user = system = 0
    for member in tree(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        user += int(fields[11]) + int(fields[13])
        system += int(fields[12]) + int(fields[14])
    return Cpu(user / TICK, system / TICK)


def memory_of(pid: int) -> int:
    """Bytes of memory of the tree of `pid`, shared pages counted in proportion."""
    total = 0
    for member in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            total += memory_of_process(member)
    return total


def memory_of_process(pid: int) -> int:
    """Proportional set size in bytes; the resident set would count the pages of a fork once per process. Of one that only
    root may look into, the resident pages that it shares with no file."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except PermissionError:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1]) * 1024  # type: ignore[index]


def machine() -> str:
    """One line about this machine, for the foot of a table."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    kernel, python = os.uname().release, ".".join(map(str, sys.version_info[:3]))
    name = model[1].strip() if model else os.uname().machine
    return f"{len(os.sched_getaffinity(0))} cores of {name}, Linux {kernel}, Python {python}"
