"""A CPU process of --local: one picture at a time, from an open file into memory that it shares with the run.

RULES: it is trusted as little as a server on a network: it opens and writes no file, has no picture but those of its own
orders, and the run checks every reply. It enters the sandbox before its first order, as the resizer's CPU processes do.
"""

import mmap
import os
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from balancer.prefork.fork import bind_to_parent
from balancer.prefork.limits import limit_child
from workers import imaging, sandbox
from workers.client.local_orders import ORDER, PLACES, READY, LocalProcess, LocalReply
from workers.client.options import ClientOptions
from workers.imaging.job import ResizeJob, parse_parameters
from workers.imaging.limits import PictureLimits, PictureRefused


class ConfinedProcess(NamedTuple):
    """A CPU process as its sandbox sees it."""

    master_pid: int


@dataclass(frozen=True, slots=True)
class LocalWork:
    """What every CPU process of a run does: the same job with each picture."""

    job: ResizeJob
    limits: PictureLimits
    place_bytes: int
    sandbox: str = "auto"


def work_of(options: ClientOptions) -> LocalWork:
    """What `options` ask for with every picture."""
    job = ResizeJob(
        options.width,
        options.height,
        options.fit,
        options.format,
        options.quality,
        orient=True,
        **parse_parameters(options.parameters),
    )
    limits = PictureLimits(max_bytes=options.max_frame)
    return LocalWork(job, limits, options.max_frame, options.sandbox)


def spawn(work: LocalWork) -> LocalProcess:
    """Fork a CPU process. Raises OSError."""
    memory = mmap.mmap(-1, PLACES * work.place_bytes)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _run_child(theirs, memory, work, parent)
    theirs.close()
    ours.setblocking(False)
    return LocalProcess(pid, ours, memory)


def reap(process: LocalProcess) -> str:
    """End the process, whatever it does, and free what the run has of it; how it ended."""
    process.sock.close()
    os.kill(process.pid, signal.SIGKILL)  # not waited for: the pid is still its own
    _, status = os.waitpid(process.pid, 0)
    process.memory.close()
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _run_child(sock: socket.socket, memory: mmap.mmap, work: LocalWork, parent: int) -> NoReturn:
    code = 1
    try:
        # A terminal sends them to the whole group; the run decides.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        os.closerange(3, sock.fileno())
        os.closerange(sock.fileno() + 1, 1 << 30)
        bind_to_parent(parent)
        limit_child()
        imaging.prepare()
        layers = sandbox.LAYERS if work.sandbox != "off" else {}
        entered = sandbox.enter(ConfinedProcess(parent), layers)
        sock.send(readiness(entered, work.sandbox == "require").encode())
        serve(sock, memory, work)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # without the parent's stack and its exit handlers


def readiness(entered: sandbox.Sandbox, is_required: bool) -> LocalReply:
    """The first reply: what the process has given up; 503 when that is less than is required."""
    missing = "; ".join(f"{name}: {reason}" for name, reason in entered.missing.items())
    text = f"sandbox {entered}" + (f" without {missing}" if missing else "")
    return LocalReply(READY, 503 if is_required and not entered.is_whole else 200, text=text)


def serve(sock: socket.socket, memory: mmap.mmap, work: LocalWork) -> None:
    """Carry out orders until the run closes its end."""
    while True:
        packet, fds, _flags, _address = socket.recv_fds(sock, ORDER.size, 1)
        if not packet:
            return
        (serial,) = ORDER.unpack(packet)
        try:
            data = _content(fds[0], work.limits.max_bytes)
        except OSError as error:
            reply = LocalReply(serial, 422, text=f"cannot read: {error.strerror}")
        else:
            reply = _resized(serial, data, memory, work)
        sock.send(reply.encode())


def _content(fd: int, most: int) -> bytes:
    """The file's bytes, one more than `most` at most; closes it."""
    with open(fd, "rb", buffering=0) as file:
        return file.read(min(os.fstat(fd).st_size, most) + 1)


def _resized(serial: int, data: bytes, memory: mmap.mmap, work: LocalWork) -> LocalReply:
    try:
        result = imaging.resize(data, work.job, work.limits)
    except PictureRefused as refused:
        return LocalReply(serial, refused.status, text=refused.sentence)
    except MemoryError:
        return LocalReply(serial, 422, text="the picture needs more memory than there is")
    except Exception as error:  # a defect of a decoder costs this picture, not the process
        return LocalReply(serial, 422, text=f"the picture cannot be resized: {type(error).__name__}")
    length = len(result.data)
    if length > work.place_bytes:
        return LocalReply(
            serial, 422, text=f"the result of {length} bytes is over the limit of {work.place_bytes}"
        )
    start = serial % PLACES * work.place_bytes
    memory[start : start + length] = result.data
    return LocalReply(serial, 200, length, result.width, result.height, result.note)
