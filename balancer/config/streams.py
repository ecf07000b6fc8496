"""Standard output and standard error of a program: nothing that is written there ends in a traceback.

RULES: the only place where a program writes answers and complaints. A reader that has gone is no error: it has what it
wanted. Any other failure to write an answer is one sentence and exit code 1; a complaint that cannot be written is lost.

    sys.exit(answer("balancer", text))          the program's answer
    complain("balancer", "there is no user x")  a sentence on standard error
"""

import os
import select
import sys
from typing import TextIO


def open_streams() -> None:
    """To be called first by every program. /dev/null takes the number of a closed descriptor: the next file or socket
    that is opened would get it otherwise, and with it every line meant for the stream. A character that a stream cannot
    encode is written as an escape."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def answer(program: str, text: str) -> int:
    """Write the text and a line end to standard output; the exit code."""
    stream: TextIO | None = sys.stdout  # None: it was closed when the program began
    if stream is None:
        complain(program, "standard output is closed")
        return 1
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _silence(stream)
    except (OSError, ValueError) as error:
        _silence(stream)
        reason = error.strerror if isinstance(error, OSError) else error
        complain(program, f"cannot write to standard output: {reason}")
        return 1
    return 0


def complain(program: str, sentence: str) -> None:
    """Write the sentence behind the program's name to standard error."""
    write_error(f"{program}: {sentence}")


def write_error(text: str) -> None:
    """Write the text and a line end to standard error, as far as that can be written."""
    stream: TextIO | None = sys.stderr
    if stream is not None:
        try:
            print(text, file=stream, flush=True)
        except (OSError, ValueError):
            _silence(stream)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether the stream is open and a terminal."""
    return stream is not None and stream.isatty()


def wait_for_reader(seconds: float) -> bool:
    """Wait; False as soon as standard output has no reader: a pipe's has gone, noticed now or by the last `answer`."""
    stream: TextIO | None = sys.stdout
    try:
        fd = -1 if stream is None else stream.fileno()
        if os.fstat(fd).st_rdev == os.stat(os.devnull).st_rdev:
            return False
        poll = select.poll()
        poll.register(fd, 0)
        return not poll.poll(seconds * 1000)
    except (OSError, ValueError):
        return False


def _silence(stream: TextIO) -> None:
    """Let what the stream still holds go to /dev/null: the interpreter writes it once more at its exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
