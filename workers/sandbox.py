"""The sandbox of a process that decodes: what it gives up before its first picture, since a decoder's bug makes it a
stranger's. The resizer's CPU processes and those of `resize-client --local` enter it; the resizer's give up more before.

RULES: entered once, by a process that has all its files, libraries and memory; nothing can be taken back. Each layer is
tried by itself: one that the machine lacks is named with its reason, and the others hold. A layer here says how it is
entered, the rest of the house does not know it.

    net_namespace    a network with nothing in it; without privileges in a user namespace, where that is allowed
    rlimits          no process, no core file, little growth of the log file; CPU seconds are set for each picture
    capabilities     none, for root too
    not_dumpable     no ptrace by the same user, /proc/PID belongs to root
    no_new_privs     no gain by execve
    landlock         no file, no TCP port, no abstract socket, no signal to others
    seccomp          only the system calls that decoding, the loop and a stack dump make (measured with strace: decoding
                     itself makes none but for memory); all others fail with EPERM

pyseccomp and landlockpy rather than own code: an allow-list in BPF by hand is a program for each architecture, and
landlock's attributes differ with each version of the kernel. Both are pure Python. pyseccomp needs libseccomp.so.2;
apt depends on it, so it is on every Debian. Without it that layer is missing. The others are single calls of libc.
"""

import codecs
import ctypes
import errno
import importlib
import os
import resource
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol, TypeVar

from balancer.prefork.fork import bind_to_parent

LOG_BYTES = 64 << 20  # by which a process may make a log file longer: the stack dump of a crash fits
CPU_SECONDS = 2  # beyond a picture's time, until the kernel ends a process that nothing else has ended

_PR_SET_NAME, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 15, 4, 38
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_CAPABILITY_VERSION = 0x20080522
_PROT_EXEC = 4
_FIONBIO = 0x5421
_AT_EMPTY_PATH = 0x1000

# Neither open nor socket, connect, execve, clone, kill, ptrace, process_vm_readv, memfd_create, pidfd_open, setns.
_ALLOWED = """
    brk munmap mremap madvise membarrier
    read readv write writev close fstat lseek fcntl recvfrom recvmsg sendto sendmsg
    epoll_wait epoll_pwait epoll_pwait2 epoll_ctl poll ppoll select pselect6
    futex sched_yield nanosleep clock_nanosleep restart_syscall
    clock_gettime clock_getres gettimeofday time times getrusage setitimer getitimer
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack
    getpid getppid gettid getuid geteuid getgid getegid getcpu getrandom sched_getaffinity sysinfo uname exit exit_group
"""


_CODECS = (
    "ascii",
    "cp1252",
    "latin-1",
    "unicode_escape",
    "utf-8",
    "utf-16-be",
    "utf-16-le",
    "utf-16",
    "utf-32",
)


class Confined(Protocol):
    """The process that enters: what the layers ask of it."""

    @property
    def master_pid(self) -> int:
        """Of the process that has forked it."""


P = TypeVar("P", bound=Confined)


class LayerMissing(Exception):
    """The machine lacks a layer; the text says why."""


@dataclass(slots=True)
class Sandbox:
    """What a process has entered, by name, and what it lacks, with the reason."""

    layers: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """True when no layer is missing but those of OPTIONAL."""
        return self.missing.keys() <= {*OPTIONAL}

    def __str__(self) -> str:
        return ",".join(self.layers) or "off"


def enter(child: P, layers: Mapping[str, Callable[[P], None]]) -> Sandbox:
    """Enter layers in their order."""
    for codec in _CODECS:
        codecs.lookup(codec)  # imports a module, which is a file
    sandbox = Sandbox()
    for name, layer in layers.items():
        try:
            layer(child)
        except (OSError, LayerMissing, AttributeError) as error:  # AttributeError: not in this libc
            sandbox.missing[name] = getattr(error, "strerror", None) or str(error)
        else:
            sandbox.layers.append(name)
    return sandbox


def limit_cpu(seconds: float) -> None:
    """Let this process use `seconds` of CPU from now on, give or take CPU_SECONDS."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + seconds) + CPU_SECONDS
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or most <= hard:
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


# -- the layers --


def _net_namespace(child: Confined) -> None:
    try:
        _call("unshare", _CLONE_NEWNET)
    except OSError:
        _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
        bind_to_parent(child.master_pid)  # the change of credentials has cleared the signal


def _rlimits(_child: Confined) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    longest = max(_file_bytes(fd) for fd in range(_descriptors())) + LOG_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest))


def _descriptors() -> int:
    return max(map(int, os.listdir("/proc/self/fd"))) + 1


def _file_bytes(fd: int) -> int:
    try:
        status = os.fstat(fd)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _capabilities(_child: Confined) -> None:
    _call("capset", (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())


def _not_dumpable(_child: Confined) -> None:
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def _no_new_privs(_child: Confined) -> None:
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _landlock(_child: Confined) -> None:
    landlockpy = _library("landlockpy")
    scoped = landlockpy.Scope.ABSTRACT_UNIX_SOCKET | landlockpy.Scope.SIGNAL
    with landlockpy.Ruleset(scoped=scoped) as ruleset:
        ruleset.restrict()


def _seccomp(_child: Confined) -> None:
    pyseccomp = _library("pyseccomp")
    arg, equal, masked = pyseccomp.Arg, pyseccomp.EQ, pyseccomp.MASKED_EQ
    allowed = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    # The kernel's default before 5.16, a slower CPU for the process, is against code that measures its own timing.
    allowed.set_attr(pyseccomp.Attr.CTL_SSB, 1)
    for name in _ALLOWED.split():
        allowed.add_rule(pyseccomp.ALLOW, name)
    for name in ("mmap", "mprotect"):
        allowed.add_rule(pyseccomp.ALLOW, name, arg(2, masked, _PROT_EXEC, 0))
    allowed.add_rule(pyseccomp.ALLOW, "newfstatat", arg(3, equal, _AT_EMPTY_PATH))  # fstat of glibc
    allowed.add_rule(pyseccomp.ALLOW, "ioctl", arg(1, equal, _FIONBIO))
    allowed.add_rule(pyseccomp.ALLOW, "prctl", arg(0, equal, _PR_SET_NAME))  # the title
    allowed.add_rule(pyseccomp.ALLOW, "prlimit64", arg(0, equal, 0), arg(1, equal, resource.RLIMIT_CPU))
    allowed.add_rule(pyseccomp.ALLOW, "tgkill", arg(0, equal, os.getpid()))  # abort(3)
    allowed.load()


def _library(name: str) -> Any:
    """A module that was imported before any layer was entered. Raises LayerMissing."""
    found = _libraries[name]
    if isinstance(found, Exception):
        raise LayerMissing(str(found))
    return found


def _import(name: str) -> ModuleType | Exception:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # RuntimeError: pyseccomp without libseccomp
        return error


def _call(name: str, *args: object) -> None:
    """A function of libc. Raises OSError."""
    if getattr(_libc, name)(*args):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


_libc = ctypes.CDLL(None, use_errno=True)
_libraries = {name: _import(name) for name in ("landlockpy", "pyseccomp")}
LAYERS: dict[str, Callable[[Confined], None]] = {
    "net_namespace": _net_namespace,
    "rlimits": _rlimits,
    "capabilities": _capabilities,
    "not_dumpable": _not_dumpable,
    "no_new_privs": _no_new_privs,
    "landlock": _landlock,
    "seccomp": _seccomp,
}
OPTIONAL = ("net_namespace",)  # containers often refuse it, and seccomp allows no socket anyway
