"""`balancer`: read the options, hand over to the master."""

import os
import sys
from collections.abc import Sequence

from balancer.config.loader import ask
from balancer.config.streams import open_streams
from balancer.prefork.master import run_master
from balancer.service import BalancerService


def main(argv: Sequence[str] | None = None) -> int:
    open_streams()
    service = BalancerService(sys.argv[1:] if argv is None else argv, os.environ)
    return ask("balancer", lambda: run_master(service))


if __name__ == "__main__":
    sys.exit(main())
