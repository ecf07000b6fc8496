"""A resizer whose decoder is in a stranger's hands: a "picture" that begins with ATTACK is carried out inside the CPU
process, and what came of it is the sentence of the refusal.

    HOSTILE_LAYERS=landlock,rlimits python -m tests.system.hostile_resizer OPTIONS     only these layers of the sandbox
    b"ATTACK signal 4711"    ->    422 "denied: [Errno 1] Operation not permitted", or 422 "done: ..."

RULES: what an attack does is harmless when it succeeds, but for the row and the log that it is to write to.
"""

import _thread
import ctypes
import hashlib
import mmap
import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from balancer.prefork.child import Child
from balancer.shm.layout import PID
from workers import imaging, sandbox
from workers.imaging.limits import PictureRefused
from workers.resizer import cpu, orders
from workers.resizer.__main__ import main

LOG_BYTES = 1 << 20
GARBAGE = 123_456_789
libc = ctypes.CDLL(None, use_errno=True)
children: list[Child] = []


def call(name: str, *args: Any) -> int:
    """A function of libc. Raises OSError for -1."""
    found = int(getattr(libc, name)(*args))
    if found == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found


def fork() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def connect(host: str, port: str) -> None:
    with socket.socket() as sock:
        sock.connect((host, int(port)))


def listen() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()


def ptrace(pid: str) -> None:
    call("ptrace", 16, int(pid), None, None)  # PTRACE_ATTACH
    os.waitpid(int(pid), 0)
    call("ptrace", 17, int(pid), None, None)


def read_process(pid: str) -> None:
    with open(f"/proc/{pid}/mem", "rb"):
        pass


def read_process_directly(pid: str) -> None:
    """process_vm_readv of the first bytes of a page that every process here has at the same address."""
    space = ctypes.create_string_buffer(8)
    here = (ctypes.c_size_t * 2)(ctypes.addressof(space), 8)
    there = (ctypes.c_size_t * 2)(ctypes.cast(libc.getpid, ctypes.c_void_p).value or 0, 8)
    libc.process_vm_readv.restype = ctypes.c_ssize_t
    call("process_vm_readv", int(pid), here, ctypes.c_ulong(1), there, ctypes.c_ulong(1), ctypes.c_ulong(0))


def write_table() -> None:
    """Write to every cell of every table but those of the own row."""
    shared, row = children[0].shared, children[0].row
    columns = shared.rows.columns
    for cells in (shared.rows.cells, shared.slots.cells, shared.events.heads[:4096]):
        for at in range(min(len(cells), 16 * columns)):
            if cells is not shared.rows.cells or at // columns != row:
                cells[at] = GARBAGE


def grow_log() -> None:
    """Twice what a process may add to a log file."""
    for _ in range(2 * LOG_BYTES // 4096):
        if os.write(2, b"x" * 4095 + b"\n") != 4096:
            raise OSError("cut")


def lie_in_row(pid: str) -> None:
    """Name another process in the own row, and be silent: a new front kills the silent ones."""
    children[0].cells[PID] = int(pid)
    hang()


def hang() -> None:
    while True:
        signal.pause()


def name_another(pid: str) -> None:
    """Say Hello as another process, which the front would kill for being too slow."""
    channel = children[0].channel
    assert channel is not None
    channel.send(orders.encode(orders.Hello(int(pid), 0)))


def find(beginning: str, digest: str) -> int:
    """How often a text of 24 bytes is in the memory and the descriptors of this process. It is not told the text, which
    would be here then: its first 12 bytes and its SHA-256, in hex."""
    count = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps.read().splitlines():
            place, access, *_, name = line.split()
            if access.startswith("r") and not name.startswith(("/usr", "[v")):
                start, stop = (int(part, 16) for part in place.split("-"))
                memory.seek(start)
                count += count_in(memory.read(stop - start), bytes.fromhex(beginning), digest)
    for fd in os.listdir("/proc/self/fd"):
        if os.path.islink(f"/proc/self/fd/{fd}") and "memfd" in os.readlink(f"/proc/self/fd/{fd}"):
            count += count_in(os.pread(int(fd), 1 << 30, 0), bytes.fromhex(beginning), digest)
    return count


def count_in(data: bytes, beginning: bytes, digest: str) -> int:
    found = (data[match.start() :][:24] for match in re.finditer(re.escape(beginning), data))
    return sum(hashlib.sha256(text).hexdigest() == digest for text in found)


def is_prctl(option: str, value: str) -> None:
    """Succeeds where the process is not in the state wanted."""
    if call("prctl", int(option), 0, 0, 0, 0) == int(value):
        raise PermissionError("as it should be")


ATTACKS: dict[str, Callable[..., object]] = {
    "open": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
    "create": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)),
    "list": lambda: os.listdir("/"),
    "connect": connect,
    "unix": lambda: socket.socketpair(),
    "listen": listen,
    "fork": fork,
    "thread": lambda: _thread.start_new_thread(lambda: None, ()),
    "execve": lambda: os.execv("/bin/true", ["true"]),
    "signal": lambda pid: os.kill(int(pid), 0),
    "pidfd": lambda pid: os.close(os.pidfd_open(int(pid))),
    "ptrace": ptrace,
    "mem": read_process,
    "vm": read_process_directly,
    "exec_memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "memfd": lambda: os.memfd_create("x"),
    "become": lambda: os.setgroups([]),
    "dumpable": lambda: is_prctl("3", "0"),
    "privileges": lambda: is_prctl("39", "1"),
    "table": write_table,
    "log": grow_log,
    "name": name_another,
    "find": find,
    "abort": os.abort,
    "hang": hang,
    "row": lie_in_row,
}


def resize(data: bytes, *rest: Any) -> imaging.ResizedPicture:
    """imaging.resize, taken over."""
    if not data.startswith(b"ATTACK "):
        return imaging.resize(data, *rest)
    name, *words = data.partition(b"\0")[0].decode().split()[1:]
    try:
        outcome = ATTACKS[name](*words)
    except (OSError, RuntimeError) as error:  # RuntimeError: no thread
        raise PictureRefused(422, f"denied: {error}") from None
    raise PictureRefused(422, f"done: {outcome!r}")


class TakenOver:
    """The module `imaging` as a CPU process sees it."""

    prepare, trim = staticmethod(imaging.prepare), staticmethod(imaging.trim)
    resize = staticmethod(resize)


def remember(child: Child, *rest: Any, **options: Any) -> int:
    children.append(child)
    return run(child, *rest, **options)


if __name__ == "__main__":
    run, cpu.run, cpu.imaging = cpu.run, remember, TakenOver  # type: ignore[attr-defined, assignment]
    sandbox.LOG_BYTES = LOG_BYTES
    if "HOSTILE_LAYERS" in os.environ:
        wanted = os.environ["HOSTILE_LAYERS"].split(",")
        for name in [*cpu.LAYERS]:
            if name not in wanted:
                del cpu.LAYERS[name]
    sys.exit(main())
