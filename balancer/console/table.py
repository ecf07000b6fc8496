"""The status as tables for a terminal: text from the dictionary that `status --json` prints.

RULES: no socket, no board, no clock. A number that is not known is shown as `-`, never as 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from balancer.config.units import counted
from balancer.eventloop.log_format import printable
from balancer.pool.backend import MAIN_POOL
from balancer.web.figures import human_age, human_bytes, human_number, of_limit

BOLD, DIM, RED, YELLOW, GREEN, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[0m"
WORKER_HEAD = ("WORKER", "PID", "STATE", "SESSIONS", "ACCEPTED", "CPU", "RSS", "FDS", "SHARE")
LISTENER_HEAD = ("LISTENER", "ADDRESSES", "POOLS", "SESSIONS", "ACCEPTED", "REFUSED", "FAILED", "IN", "OUT")
SOURCE_HEAD = ("SOURCE", "LISTENER", "SESSIONS", "CLIENTS", "REFUSED", "LIMIT", "LAST")
POOL_HEAD = ("POOL", "BALANCE", "SERVES", "UP", "SESSIONS", "QUEUED", "WAITED")
SET_HEAD = ("SET", "POOL", "BACKENDS", "SERVER", "ANSWERED", "TTL LEFT", "ERROR")
LEFT = frozenset(
    (
        "WORKER",
        "BACKEND",
        "ADDRESS",
        "STATE",
        "CHECK",
        "LISTENER",
        "ADDRESSES",
        "POOLS",
        "POOL",
        "BALANCE",
        "SERVES",
        "SOURCE",
        "LIMIT",
        "SET",
        "SERVER",
        "ERROR",
        "TIME",
        "EVENT",
        "WHAT",
        "TREND",
        "END",
        "CLIENT",
        "REASON",
        "CERTIFICATE",
        "NAMES",
        "SUBJECT",
        "ISSUER",
        "KEY",
        "LOADED",
        "PRESENTED BY",
    )
)
BACKEND_HEAD = (
    "BACKEND", "ADDRESS", "STATE", "WEIGHT", "SESSIONS", "TOTAL", "FAILED", "IN", "OUT", "CHECK"
)  # fmt: skip
EXPIRES_SOON = 14 * 86_400.0  # seconds
MOST_ADDRESSES = 3  # of listeners that one line names
STATE_COLOURS = {
    "up": GREEN,
    "ready": GREEN,
    "down": RED,
    "unresolved": RED,
    "hung": RED,
    "yes": GREEN,
    "NO": RED,
    "drain": YELLOW,
    "draining": YELLOW,
    "maint": YELLOW,
    "weight-0": YELLOW,
    "starting": YELLOW,
}


def columns_text(head: Sequence[str], rows: Sequence[Sequence[str]], colour: bool) -> list[str]:
    """Aligned columns: the first is left-aligned, numbers right-aligned, words for states coloured."""
    table = [list(head), *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    left = {i for i, name in enumerate(head) if name in LEFT}
    lines = []
    for number, row in enumerate(table):
        cells = []
        for i, text in enumerate(row):
            cell = text.ljust(widths[i]) if i in left else text.rjust(widths[i])
            if colour and number and head[i] in ("STATE", "SERVES") and text in STATE_COLOURS:
                cell = f"{STATE_COLOURS[text]}{cell}{PLAIN}"
            cells.append(cell)
        line = "  ".join(cells).rstrip()
        lines.append(f"{DIM}{line}{PLAIN}" if colour and number == 0 else line)
    return lines


def worker_state(worker: Mapping[str, Any]) -> str:
    left = worker.get("drain_left_s")
    return str(worker["state"]) if left is None else f"{worker['state']}, {human_age(left)} left"


def of_former(status: Mapping[str, Any]) -> str:
    """What is not known of sessions of the master before an upgrade, empty without one."""
    former = status.get("former_master")
    return f"the master before the upgrade (pid {former}) still has its sessions" if former else ""


def worker_row(worker: Mapping[str, Any]) -> list[str]:
    cpu = worker.get("cpu_percent")
    return [
        str(worker["slot"]),
        str(worker["pid"]),
        worker_state(worker),
        human_number(worker["sessions"]),
        human_number(worker["accepted_total"]),
        "-" if cpu is None else f"{cpu:.1f} %",
        human_bytes(worker.get("rss_bytes")),
        human_number(worker.get("fds")),
        "-" if worker.get("share_percent") is None else f"{worker['share_percent']:.0f} %",
    ]


def listener_row(listener: Mapping[str, Any]) -> list[str]:
    return [
        str(listener["name"]),
        ", ".join(listener["addresses"]),
        ", ".join(listener["pools"]),
        of_limit(listener["sessions"], listener["maxconns"]),
        human_number(listener["accepted_total"]),
        human_number(listener["refused_total"]),
        human_number(listener["failed_total"]),
        human_bytes(listener["bytes_in_total"]),
        human_bytes(listener["bytes_out_total"]),
    ]


def unclean_ends(ends: Mapping[str, int]) -> str:
    """How sessions ended that did not end cleanly: CD 3, sQ 1."""
    return ", ".join(f"{end} {human_number(count)}" for end, count in ends.items() if count and end != "--")


def pool_row(pool: Mapping[str, Any]) -> list[str]:
    backends = pool["backends"]
    return [
        str(pool["name"]),
        str(pool["balance"]),
        "yes" if pool["serving"] else "NO",
        f"{pool['up']}/{len(backends)}",
        human_number(sum(backend["sessions"] for backend in backends)),
        of_limit(pool["queued"], pool["max_queue"]),
        human_number(pool["queued_total"]),
    ]


def set_row(found: Mapping[str, Any]) -> list[str]:
    """A set of backends that a name server knows, and its last answer."""
    left_out = f", {found['left_out']} left out" if found["left_out"] else ""
    return [
        str(found["name"]),
        str(found["pool"]),
        f"{found['backends']}/{found['slots']} slots{left_out}",
        str(found["server"] or "-"),
        "-" if found["age_s"] is None else f"{human_age(found['age_s'])} ago",
        "-" if found["ttl_left_s"] is None else human_age(found["ttl_left_s"]),
        str(found["error"] or "-"),
    ]


def sets_of(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sets of all pools."""
    return [one for pool in status["pools"] for one in pool.get("sets", ())]


def framed_text(pool: Mapping[str, Any]) -> list[str]:
    """A line for a pool in framed mode, none for another."""
    found = pool["framed"]
    if not found:
        return []
    idle, in_use = human_number(found["connections_idle"]), human_number(found["connections_in_use"])
    return [f"{human_number(found['requests_per_s'])} requests/s, connections: {in_use} in use, {idle} idle"]


def listening(status: Mapping[str, Any]) -> str:
    """Where clients are accepted: the first addresses, and how many more."""
    addresses = [str(address) for listener in status["listeners"] for address in listener["addresses"]]
    shown = addresses if len(addresses) <= MOST_ADDRESSES + 1 else addresses[:MOST_ADDRESSES]
    more = len(addresses) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def identity(backend: Mapping[str, Any]) -> str:
    """A backend's name over all pools: POOL/NAME, and the bare name in the pool main."""
    return str(backend["name"]) if backend["pool"] == MAIN_POOL else f"{backend['pool']}/{backend['name']}"


def address_text(backend: Mapping[str, Any]) -> str:
    """Where it is: as configured, and the address that a name stands for now."""
    in_use = backend["address_in_use"]
    return f"{backend['address']} at {in_use}" if in_use else str(backend["address"])


def backend_row(backend: Mapping[str, Any]) -> list[str]:
    return [
        identity(backend),
        address_text(backend),
        str(backend["state"]),
        human_number(backend["weight"]),
        of_limit(backend["sessions"], backend["maxconn"]),
        human_number(backend["sessions_total"]),
        human_number(backend["connect_failures_total"]),
        human_bytes(backend["bytes_in_total"]),
        human_bytes(backend["bytes_out_total"]),
        check_text(backend),
    ]


def check_text(backend: Mapping[str, Any]) -> str:
    """The last health check: `ok 1.2 ms`, `refused`, `-` when there was none; `refused, 2 in a row` while as many results
    speak against the state it is in; `ok 1.2 ms, 4 early ends` when it has ended sessions before its first byte."""
    check, took, streak = backend["check"], backend["check_ms"], backend["check_streak"]
    shown = f"ok {took:.1f} ms" if check == "ok" and took is not None else check or "-"
    in_a_row = f", {streak} in a row" if streak else ""
    early = backend["early_ends_total"]
    return shown + in_a_row + (f", {counted(early, 'early end')}" if early else "")


def expiring(status: Mapping[str, Any]) -> list[str]:
    """A sentence for each certificate that expires soon, and for revocation lists that have expired: nobody with a
    certificate of their authority is let in any more."""
    lists = ((one["name"], one["tls"].get("revoked")) for one in status["listeners"] if one["tls"])
    late = [
        f"revocation list {found['path']} of {name} has EXPIRED, and its authority's certificates are refused"
        for name, found in lists
        if found and found["expires_in_s"] <= 0
    ]
    return late + [
        f"certificate {one['path']} of {listener['name']} "
        + (f"expires in {days_text(one['expires_in_s'])}" if one["expires_in_s"] > 0 else "has EXPIRED")
        for listener in status["listeners"]
        if listener["tls"]
        for one in listener["tls"]["certificates"]
        if one["expires_in_s"] < EXPIRES_SOON
    ]


def days_text(seconds: float) -> str:
    """9.3 days -> "9d", 9.3 hours -> "9h"."""
    return f"{seconds // 86_400:.0f}d" if seconds >= 86_400 else f"{seconds // 3600:.0f}h"


def status_text(status: Mapping[str, Any], colour: bool = False) -> str:
    """Everything that `balancerctl status` prints."""

    def paint(text: str, code: str) -> str:
        return f"{code}{printable(text)}{PLAIN}" if colour else printable(text)

    totals = status["totals"]
    lines = [
        paint(
            f"balancer {status['version']} on {status['host']}  generation {status['generation']}  "
            f"up {human_age(status['uptime_s'])}",
            BOLD,
        ),
        paint(f"listening on {listening(status)}  configuration {status['config'] or 'without a file'}", ""),
        f"sessions {human_number(totals['sessions'])}   accepted {human_number(totals['accepted_total'])}   "
        f"refused {human_number(totals['refused_total'])}   failed {human_number(totals['failed_total'])}   "
        f"in {human_bytes(totals['bytes_in_total'])}   out {human_bytes(totals['bytes_out_total'])}",
    ]
    if unclean := unclean_ends(totals.get("ends", {})):
        lines.append(f"unclean ends: {unclean}")
    if not status["serving"]:
        lines.append(paint(f"NO CLIENT CAN BE SERVED: {status['reason']}", RED))
    elif status["reason"]:
        lines.append(paint(status["reason"], RED))
    if former := of_former(status):
        lines.append(f"{former}, which are not counted here")
    lines += [paint(sentence, RED) for sentence in expiring(status)]
    reload = status.get("reload")
    if reload and not reload.get("ok", True):
        lines.append(paint(f"last reload FAILED: {reload.get('text', '')}", RED))
    for head, row, kind in (
        (LISTENER_HEAD, listener_row, "listeners"),
        (POOL_HEAD, pool_row, "pools"),
        (BACKEND_HEAD, backend_row, "backends"),
        (WORKER_HEAD, worker_row, "workers"),
    ):
        lines += ["", *columns_text(head, [row(one) for one in status[kind]], colour)]
        if kind == "pools":
            lines += [
                printable(f"{one['name']}: {line}") for one in status[kind] for line in framed_text(one)
            ]
            if sets := sets_of(status):
                lines += ["", *columns_text(SET_HEAD, [set_row(one) for one in sets], colour)]
    return "\n".join(lines)


def sources_text(reply: Mapping[str, Any]) -> str:
    """Everything that `balancerctl sources` prints."""
    listeners = reply["listeners"]
    if not listeners:
        return "no listener has limits per source (source-maxconn, source-rate)"
    rows = [source_row(listener, one) for listener in listeners for one in listener["sources"]]
    if not rows:
        return "no sessions, and no client was refused"
    return "\n".join(columns_text(SOURCE_HEAD, rows, False))


def source_row(listener: Mapping[str, Any], source: Mapping[str, Any]) -> list[str]:
    clients, rate = source["clients"], listener["source_rate"]
    return [
        str(source["source"]),
        str(listener["name"]),
        of_limit(source["sessions"], listener["source_maxconn"]),
        "-" if clients is None else f"{human_number(clients)} of {rate}",
        human_number(source["refused"]),
        str(source["limit"] or "-"),
        "-" if source["age_s"] is None else f"{human_age(source['age_s'])} ago",
    ]
