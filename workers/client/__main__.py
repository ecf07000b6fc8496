"""The program `resize-client`: reads the options, runs, prints the statistics.

Exit codes: 0 everything done, 1 pictures failed (one line each) or the run could not start or go on, 2 usage, 128 + the
number of the signal that ended the run.
"""

import os
import signal
import sys
from collections.abc import Sequence

from balancer.config.loader import ask
from balancer.config.streams import answer, complain, open_streams, write_error
from workers.client.options import parse_client
from workers.client.report import format_end, format_failures, format_statistics, printable
from workers.client.start import StartError, resize_directory

PROGRAM = "resize-client"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; its exit code."""
    open_streams()
    try:
        return _resize(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # before the run, which watches signals itself: nothing is begun
        return _complain("stopped by SIGINT", 128 + signal.SIGINT)


def _resize(argv: Sequence[str]) -> int:
    options = ask(PROGRAM, lambda: parse_client(argv, os.environ))
    for note in options.notes:
        _complain(note, 0)
    try:
        statistics = resize_directory(options)
    except OSError as error:
        return _complain(f"{error.filename or options.output}: {error.strerror}", 1)
    except StartError as error:
        return _complain(str(error), 1)
    code = answer(PROGRAM, format_statistics(statistics))
    if failures := format_failures(statistics):
        write_error(failures)
    if end := format_end(statistics):
        complain(PROGRAM, end)
    return statistics.exit_code() or code


def _complain(sentence: str, code: int) -> int:
    complain(PROGRAM, printable(sentence))
    return code


if __name__ == "__main__":
    sys.exit(main())
