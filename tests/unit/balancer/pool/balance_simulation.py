"""Workers that elect among the same backends, each with its own policy object: how evenly the sessions lie.

Sessions arrive at random workers at random moments; their lengths are random, of mean 1. A worker sees the sessions of
all as the board would show them, and is told of its own ends only.
"""

import random
from heapq import heappop, heappush
from itertools import count

from balancer.pool.choice import Candidate, Choice
from balancer.pool.policies import POLICIES


def busiest_above_mean(policy: str, workers: int, backends: int, sessions: int, steps: int) -> float:
    """How many sessions more than the mean the busiest backend holds, averaged over the second half of `steps` sessions
    of which about `sessions` last at a time. "exact" is the least of all at every pick, ties at random."""
    dice = random.Random(f"{policy} {workers} {backends} {sessions}")
    candidates = [Candidate(index, f"b{index}") for index in range(backends)]
    loads = [0] * backends
    ended: list[set[int]] = [set() for _ in range(workers)]

    def exact(source: str, skip: object) -> int:
        least = min(loads)
        return dice.choice([index for index, load in enumerate(loads) if load == least])

    choices = [
        Choice(candidates, candidates, loads.copy, loads.__getitem__, start, ended[start])
        for start in range(workers)
    ]
    picks = [exact if policy == "exact" else POLICIES[policy](choice) for choice in choices]
    running: list[tuple[float, int, int, int]] = []
    number, now, looks, above = count(), 0.0, 0, 0.0
    for step in range(steps):
        now += dice.expovariate(sessions)
        while running and running[0][0] <= now:
            _, _, worker, index = heappop(running)
            loads[index] -= 1
            ended[worker].add(index)
        worker = dice.randrange(workers)
        chosen = picks[worker]("", ())
        assert chosen is not None
        loads[chosen] += 1
        heappush(running, (now + dice.expovariate(1), next(number), worker, chosen))
        if step > steps // 2 and step % 50 == 0:
            above += max(loads) - len(running) / backends
            looks += 1
    return above / looks
