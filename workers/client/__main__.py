"""The program `resize-client`: reads the options, runs, prints the statistics.

Exit codes: 0 everything done, 1 pictures failed (one line each) or the run could not start, 2 usage.
"""

import os
import sys
from collections.abc import Sequence

from balancer.config.option import CommandLineAnswer, ConfigError
from workers.client.options import parse_client
from workers.client.report import format_failures, format_statistics, printable
from workers.client.start import StartError, resize_directory


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; its exit code."""
    try:
        options = parse_client(sys.argv[1:] if argv is None else argv, os.environ)
        if not options.dry_run and os.path.realpath(options.output) == os.path.realpath(options.input):
            raise ConfigError(
                f"--output: {options.output} is the input directory; results would be found as pictures"
            )
    except ConfigError as error:
        return _complain(str(error), 2)
    except CommandLineAnswer as answer:
        print(answer)
        return 0
    for note in options.notes:
        _complain(note, 0)
    try:
        statistics = resize_directory(options)
    except OSError as error:
        return _complain(f"{error.filename or options.output}: {error.strerror}", 1)
    except StartError as error:
        return _complain(str(error), 1)
    print(format_statistics(statistics), flush=True)
    if not statistics.is_clean():
        print(format_failures(statistics), file=sys.stderr)
    return 0 if statistics.is_clean() else 1


def _complain(sentence: str, code: int) -> int:
    print(f"resize-client: {printable(sentence)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
