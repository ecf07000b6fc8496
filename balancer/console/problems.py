"""What the page says first: the headline, which balancer this is, and a sentence for everything that needs attention.

RULES: pure; the dictionary of `status.py` in, text out. The page is never calm while a client cannot be served, whether a
check, an operator, a limit or the sessions of the last minute say so.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from balancer.config.units import counted
from balancer.console.entrance import is_full, resting
from balancer.console.history import Sampler, totals_of
from balancer.console.table import MOST_ADDRESSES, address_text, expiring, identity, of_former
from balancer.web.figures import human_age, human_number
from balancer.web.view import BAD, NOTE, RANKS, WARN, Problem

MOST_BACKENDS = 8  # that have a sentence each
CONDITIONS = {
    "drain": "is drained by an operator",
    "maint": "is in maintenance by an operator",
    "weight-0": "has weight 0 by an operator",
    "agent": "is taken out by its agent",
    "empty": "has no backend",
}

Status = Mapping[str, Any]


def headline(status: Status) -> str:
    backends = status["backends"]
    up = sum(backend["state"] == "up" for backend in backends)
    sessions = counted(status["totals"]["sessions"], "session")
    figures = f"{up:,} of {counted(len(backends), 'backend')} up, {sessions}"
    if not status["serving"]:
        return f"No client can be served: {status['reason']}"
    out = [pool["name"] for pool in status["pools"] if not pool["serving"]]
    which = f"pool {out[0]}" if len(out) == 1 else counted(len(out), "pool")
    return f"No client of {which} can be served; {figures}" if out else figures


def assess(status: Status, sampler: Sampler | None = None) -> list[Problem]:
    """(level, sentence) for everything that needs attention, the worst first."""
    found: list[Problem] = []
    if not status["serving"]:
        found.append((BAD, f"No client can be served: {status['reason']}."))
    for pool in status["pools"]:
        found += pool_problems(pool, status["serving"])
    for listener in status["listeners"]:
        found += listener_problems(listener)
    if sampler is not None:
        found += last_minute(status, sampler)
    of_backends = [problem for backend in status["backends"] for problem in backend_problems(backend)]
    of_backends.sort(key=lambda problem: RANKS[problem[0]])
    found += of_backends[:MOST_BACKENDS]
    if (more := len(of_backends) - MOST_BACKENDS) > 0:
        found.append((of_backends[MOST_BACKENDS][0], f"{counted(more, 'more backend')} of the table below."))
    found += acceptor_problems(status)
    for worker in status["workers"]:
        if worker["state"] == "hung":
            then = "a sibling serves its queue until it is replaced"
            found.append((WARN, f"Worker {worker['slot']} (pid {worker['pid']}) is hung; {then}."))
    if status["processes"] and not any(one["role"] == "prober" for one in status["processes"]):
        found.append((WARN, "No backend is checked: the prober is being replaced."))
    found += [(WARN, f"The {sentence}.") for sentence in expiring(status)]
    if former := of_former(status):
        found.append((NOTE, f"{former[0].upper()}{former[1:]}, which are not counted here."))
    reload = status.get("reload")
    if reload and not reload.get("ok", True):
        found.append((WARN, f"The last reload failed, the old configuration stays: {reload.get('text', '')}"))
    return sorted(found, key=lambda problem: RANKS[problem[0]])


def acceptor_problems(status: Status) -> Iterable[Problem]:
    """A worker that has run out of files, memory or places rests, while its clients wait in the kernel's queue."""
    for worker in resting(status["workers"], status["listeners"]):
        name, limit = f"Worker {worker['slot']} (pid {worker['pid']})", "a limit of this machine"
        why = "the line `accept` of the log says which"
        yield WARN, f"{name} has reached {limit} and accepts no client for now ({why})."


def listener_problems(listener: Mapping[str, Any]) -> Iterable[Problem]:
    limit = listener["maxconns"]
    if is_full(listener):
        then = "wait in the kernel's queue" if listener["overflow"] == "queue" else "are refused"
        full = f"Listener {listener['name']} has as many sessions as maxconns allows ({limit:,})"
        yield WARN, f"{full}: more clients {then}."


def last_minute(status: Status, sampler: Sampler) -> Iterable[Problem]:
    """What clients have met, whatever the checks say."""
    totals = totals_of(status)
    for listener in status["listeners"]:
        key = f"listener {listener['name']}"
        lost, alerts, new = (sampler.grown(f"{key}/{part}", totals) for part in ("lost", "alerts", "new"))
        if alerts and lost + alerts >= new:
            yield (
                BAD,
                f"No client of listener {listener['name']} in the last minute was served: {counted(alerts, 'client')} "
                "broke off the TLS handshake with an alert, as those do that do not accept its certificate.",
            )
        elif lost and lost >= new:
            yield (
                BAD,
                f"Every client of listener {listener['name']} in the last minute was refused or failed ({lost:,}).",
            )
        elif lost:
            yield (
                WARN,
                f"{lost:,} of {new:,} clients of listener {listener['name']} in the last minute were refused or failed.",
            )


def pool_problems(pool: Mapping[str, Any], others_serve: bool) -> Iterable[Problem]:
    """`others_serve`: the first sentence does not say it already."""
    if not pool["serving"] and others_serve:
        yield BAD, f"No client of pool {pool['name']} can be served: {pool['reason']}."
    if waiting := pool["queued"]:
        verb = "waits" if waiting == 1 else "wait"
        place = f"a place in pool {pool['name']}, whose backends are at their maxconn"
        yield WARN, f"{counted(waiting, 'session')} {verb} for {place}."


def backend_problems(backend: Mapping[str, Any]) -> Iterable[Problem]:
    name, state, since = identity(backend), backend["state"], backend["since_s"]
    # Seconds would have a screen reader say each sentence again with every answer.
    ago = "" if since is None or since < 60 else f" for {rough_age(since)}"
    if state == "down":
        why = f" ({backend['check']})" if backend["check"] else ""
        yield WARN, f"{name} at {address_text(backend)} {'has been down' + ago if ago else 'is down'}{why}."
    elif state == "unresolved":
        yield WARN, f"{name}: no address of {backend['address']} is known."
    elif state != "up":
        held = counted(backend["sessions"], "session")
        # no warning: somebody wants it so; the note keeps it from being forgotten
        yield NOTE, f"{name} {CONDITIONS[state]}{ago}; {held} left there."


def facts(status: Status) -> list[str]:
    """Which balancer this is, where it listens up to which limits, and since when."""
    reload = status.get("reload")
    listeners = [listener_text(one) for one in status["listeners"][: MOST_ADDRESSES + 1]]
    if more := len(status["listeners"]) - len(listeners):
        listeners.append(f"{counted(more, 'more listener')}")
    parts = [
        f"balancer {status['version']} on {status['host']}",
        *listeners,
        f"configuration {status['config'] or 'without a file'}",
        f"up {rough_age(status['uptime_s'])}",
        f"generation {status['generation']}",
        f"steering {status['steering']}",
    ]
    if reload is None:
        return [*parts, "never reloaded"]
    age = reload.get("age_s")
    ago = "" if age is None else f" {rough_age(age)} ago"
    return [*parts, f"last reload{ago}: {reload.get('text', '') if reload.get('ok') else 'failed'}"]


def listener_text(listener: Mapping[str, Any]) -> str:
    addresses = ", ".join(listener["addresses"][:MOST_ADDRESSES])
    more = len(listener["addresses"]) - MOST_ADDRESSES
    limit = (
        f"at most {human_number(listener['maxconns'])} sessions"
        if listener["maxconns"]
        else "no limit of sessions"
    )
    return f"listener {listener['name']} on {addresses}{f' and {more} more' if more > 0 else ''}, {limit}"


def rough_age(seconds: float) -> str:
    """One unit: "12s", "3m", "2d". What stands in a table changes rarely then."""
    return human_age(seconds).partition(" ")[0]
