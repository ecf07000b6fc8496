"""A balancer with a defect: what a backend sends raises in the handler of its session."""

import sys

from balancer.__main__ import main
from balancer.relay.session import Session


def on_backend(session: Session, mask: int) -> None:
    raise RuntimeError("a defect of the test")


if __name__ == "__main__":
    Session.on_backend = on_backend  # type: ignore[method-assign]
    sys.exit(main())
