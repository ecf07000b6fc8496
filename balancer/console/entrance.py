"""Whether clients come in at all: what pools do not know of "can a client be served".

RULES: pure; rows of status.py and answers of pool/serving.py in, such answers out. A pool that cannot serve keeps its own
reason unless no listener takes anybody.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from balancer.config.units import counted
from balancer.pool.serving import Serving, whole

NO_WORKER = "no worker is ready"
NO_ACCEPT = "every worker has reached a limit of this machine (the line `accept` of the log says which)"

Row = Mapping[str, Any]


def is_full(listener: Row) -> bool:
    """Whether it has as many sessions as its maxconns allows."""
    return bool(listener["maxconns"]) and listener["sessions"] >= listener["maxconns"]


def resting(workers: Sequence[Row], listeners: Sequence[Row]) -> list[Row]:
    """The ready workers that have run out of files, memory or places. With overflow = queue they also rest while all
    listeners are full, whose clients wait for a place in the kernel's queue."""
    if listeners and all(is_full(one) and one["overflow"] == "queue" for one in listeners):
        return []
    return [worker for worker in workers if worker["state"] == "ready" and not worker["accepting"]]


class Entrance:
    """Workers and listeners of one status."""

    def __init__(self, workers: Sequence[Row], listeners: Sequence[Row]) -> None:
        self._listeners = listeners
        self.shut = ""  # why no listener takes anybody
        ready = sum(worker["state"] == "ready" for worker in workers)
        if not ready:
            self.shut = NO_WORKER
        elif len(resting(workers, listeners)) == ready:
            self.shut = NO_ACCEPT

    def of_pool(self, name: str, found: Serving) -> Serving:
        """Whether a client of a pool is served: one of its listeners takes it, and the pool serves (`found`)."""
        if self.shut:
            return found._replace(is_serving=False, reason=self.shut)
        refusing = [refusal(one) for one in self._listeners if name in one["pools"]]
        if found.is_serving and refusing and all(refusing):
            return found._replace(is_serving=False, reason=" and ".join(refusing))
        return found

    def of_whole(self, pools: Mapping[str, Serving]) -> Serving:
        """Whether a client of any pool is served, by the pools that listeners lead to."""
        found = whole({name: self.of_pool(name, one) for name, one in pools.items()})
        return found._replace(is_serving=False, reason=self.shut) if self.shut else found


def refusal(listener: Row) -> str:
    """Why a listener refuses every client now, empty while it takes them or lets them wait."""
    if not is_full(listener) or listener["overflow"] == "queue":
        return ""
    return f"listener {listener['name']} has its {counted(listener['maxconns'], 'session')} (maxconns) and refuses more"
