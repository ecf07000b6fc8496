"""What balancerctl prints of answers other than a whole status: text from the dictionaries of the console.

RULES: as console/table.py: no socket, no board, no clock; a number that is not known is `-`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from balancer.console.table import (
    BACKEND_HEAD,
    LISTENER_HEAD,
    POOL_HEAD,
    SET_HEAD,
    WORKER_HEAD,
    backend_row,
    columns_text,
    listener_row,
    of_former,
    pool_row,
    set_row,
    sets_of,
    worker_row,
)
from balancer.eventloop.log_format import printable
from balancer.web.figures import human_age, human_bytes, human_number, of_limit

Reply = Mapping[str, Any]
SESSION_HEAD = (
    "SESSION",
    "CLIENT",
    "VIA",
    "SNI",
    "LISTENER",
    "POOL",
    "BACKEND",
    "STATE",
    "AGE",
    "IDLE",
    "IN",
    "OUT",
)
FAILURE_HEAD = ("TIME", "END", "CLIENT", "LISTENER", "POOL", "BACKEND", "REASON")
MOST_FAILURES = 20  # that text shows; JSON has up to 500
CERTIFICATE_HEAD = ("CERTIFICATE", "NAMES", "SUBJECT", "ISSUER", "KEY", "EXPIRES", "LOADED", "PRESENTED BY")
# What an end means, for `balancerctl errors`; docs/LOG.md has the cures.
ENDS = {
    "CC": "the client left while we connected",
    "CQ": "the client left the queue",
    "CD": "the client reset the connection",
    "cD": "nothing moved for idle-timeout, and it was the client's turn",
    "SC": "no backend could be reached",
    "sC": "the connect took longer than connect-timeout",
    "sQ": "no place within queue-timeout, or the queue was full",
    "SD": "the backend reset the connection",
    "sD": "nothing moved for idle-timeout, and it was the backend's turn",
    "DD": "the backend went down, and on-down closes its sessions",
    "cR": "no whole first bytes within preread-timeout",
    "PR": "turned away by a rule, a limit per source, or for a wrong header, hello or handshake",
    "RC": "this machine had no descriptor, port or memory",
    "RD": "a defect of the balancer",
    "KD": "closed by a drain, a stop or an operator",
}
TABLES: dict[str, tuple[Sequence[str], Any]] = {
    "listeners": (LISTENER_HEAD, listener_row),
    "pools": (POOL_HEAD, pool_row),
    "backends": (BACKEND_HEAD, backend_row),
    "workers": (WORKER_HEAD, worker_row),
}
TROUBLES = ("down", "all-down", "hang", "respawn", "limit")  # verbs of events
INFO = (
    "version",
    "host",
    "config",
    "serving",
    "reason",
    "generation",
    "uptime_s",
    "steering",
    "max_fds",
    "reload",
)


def part_of(status: Reply, command: str) -> dict[str, Any]:
    """What a command shows of the status, as JSON."""
    if command == "info":
        return {key: status[key] for key in INFO} | {"processes": status["processes"]}
    if command == "errors":
        return {
            "listeners": [
                {"name": one["name"], "refused_total": one["refused_total"], "failed_total": one["failed_total"],
                 "ends": {end: count for end, count in one["ends"].items() if count and end != "--"}}
                for one in status["listeners"]
            ],
            "backends": [
                {key: one[key] for key in ("pool", "name", "state", "connect_failures_total", "early_ends_total",
                                           "check", "check_failures_total", "downs_total")}
                for one in status["backends"] if is_troubled(one)
            ],
            "events": [one for one in status["events"] if one["verb"] in TROUBLES],
            "last": status["last"],
        }  # fmt: skip
    return {command: sets_of(status) if command == "dns" else status[command]}


def is_troubled(backend: Reply) -> bool:
    figures = ("connect_failures_total", "early_ends_total", "check_failures_total", "downs_total")
    return any(backend[key] for key in figures)


def part_text(status: Reply, command: str, colour: bool) -> str:
    """The same as text."""
    if command == "info":
        return info_text(status)
    if command == "errors":
        return errors_text(part_of(status, "errors"))
    if command == "dns":
        return dns_text(sets_of(status), colour)
    head, row = TABLES[command]
    return "\n".join(columns_text(head, [row(one) for one in status[command]], colour))


def dns_text(sets: Sequence[Reply], colour: bool) -> str:
    """The sets, and the backends that each has now."""
    if not sets:
        return "no pool has a set of backends (upstream = dns:... or srv:...)"
    lines = columns_text(SET_HEAD, [set_row(one) for one in sets], colour)
    rows = [
        [f"{one['pool']}/{tenant['name']}", tenant["address"], tenant["state"]]
        for one in sets
        for tenant in one["tenants"]
    ]
    return "\n".join(
        [*lines, "", *columns_text(("BACKEND", "ADDRESS", "STATE"), rows, colour)] if rows else lines
    )


def info_text(status: Reply) -> str:
    shown = dict(status) | {"uptime_s": human_age(status["uptime_s"])}
    shown["reload"] = (shown["reload"] or {}).get("text") or "none"
    lines = [(key.removesuffix("_s").replace("_", " "), shown[key]) for key in INFO]
    lines += [
        (f"pid of {one['role']}", f"{one['pid']} ({human_bytes(one['rss_bytes'] or 0)})")
        for one in status["processes"]
    ]
    return "\n".join(printable(f"{name:16} {'-' if value in (None, '') else value}") for name, value in lines)


def errors_text(found: Reply) -> str:
    rows = [
        [one["name"], end, human_number(count), ENDS.get(end, "")]
        for one in found["listeners"]
        for end, count in sorted(one["ends"].items(), key=lambda pair: -pair[1])
    ]
    lines = columns_text(("LISTENER", "END", "SESSIONS", "WHAT HAPPENED"), rows, False) if rows else []
    backends = [
        [f"{one['pool']}/{one['name']}", one["state"], human_number(one["connect_failures_total"]),
         human_number(one["early_ends_total"]), human_number(one["check_failures_total"]), one["check"] or "-"]
        for one in found["backends"]
    ]  # fmt: skip
    if backends:
        head = ("BACKEND", "STATE", "CONNECTS FAILED", "EARLY ENDS", "CHECKS FAILED", "LAST CHECK")
        lines += ["", *columns_text(head, backends, False)]
    if rows := [failure_row(one) for one in found["last"][-MOST_FAILURES:]]:
        lines += ["", *columns_text(FAILURE_HEAD, rows, False)]
    if found["events"]:
        lines += ["", *(printable(f"{one['at']} {one['verb']} {one['text']}") for one in found["events"])]
    return "\n".join(lines).strip("\n") or "no session has ended uncleanly, and no backend has failed"


def failure_row(one: Reply) -> list[str]:
    """A refused client or failed session."""
    why = str(one["reason"] or one["what"] or one["kind"])
    return [
        f"{one['at'][:19]}Z", one["end"] or one["kind"], one["client"] or "-", one["listener"] or "-", one["pool"] or "-",
        one["backend"] or "-", why + (f" (and {one['omitted']} more like it)" if one["omitted"] else ""),
    ]  # fmt: skip


def sessions_text(reply: Reply) -> str:
    """The sessions, the oldest first."""
    sessions = sorted(reply["sessions"], key=lambda one: -one["age_s"])
    rows = [
        [one["id"], one["client"], one["via"] or "-", one["sni"] or "-", one["listener"], one["pool"],
         one["backend"] or "-", requests_text(one["requests"]) or one["state"], human_age(one["age_s"]),
         human_age(one["idle_s"]), human_bytes(one["in"]), human_bytes(one["out"])]
        for one in sessions
    ]  # fmt: skip
    lines = columns_text(SESSION_HEAD, rows, False) if rows else ["no session"]
    lines += [f"no answer from the worker with pid {pid}" for pid in reply["unanswered"]]
    if former := of_former(reply):
        lines.append(f"{former}, which are not listed here")
    return "\n".join(lines)


def requests_text(requests: dict[str, int] | None) -> str:
    """What a framed client has asked for; "" for another one."""
    return f"framed {requests['under_way']} now, {requests['done']} done" if requests else ""


def certificates_text(reply: Reply) -> str:
    """The certificates, the one that expires first on top."""
    rows = [
        [one["path"], ", ".join(one["names"]) or "-", one["subject"] or "-", one["issuer"] or "-", one["key_type"],
         f"{one['expires_in_days']}d" if one["expires_in_s"] > 0 else "EXPIRED", one["loaded_at"][:16].replace("T", " "),
         ", ".join([*one["listeners"], *(f"pool {name}" for name in one["pools"])])]
        for one in reply["certificates"]
    ]  # fmt: skip
    return (
        "\n".join(columns_text(CERTIFICATE_HEAD, rows, False))
        if rows
        else "nothing here presents a certificate"
    )


def option_text(reply: Reply) -> str:
    """Where the value of an option comes from."""
    lines = [
        f"{reply['option']}: {reply['help']}",
        f"default {reply['default'] or '-'}, environment {reply['variable']}",
    ]
    for one in reply["values"]:
        begins = f" ({one['begins']})" if one["begins"] else ""
        lines += ["", f"[{one['section']}]{begins}", f"  {one['value'] or '-'}    {one['source']}"]
        lines += [f"  replaces {old['value'] or '-'}    {old['source']}" for old in one["replaced"]]
    return "\n".join(printable(line) for line in lines)


def elections_lines(reply: Reply) -> list[str]:
    """The elections of one session."""
    lines: list[str] = []
    for one in reply["elections"]:
        lines.append(
            f"{one['at']} pool {one['pool']}, {one['balance']}: {one['elected'] or 'none was to be had'}"
        )
        rows = [
            [seen["name"], seen["state"], str(seen["weight"]), str(seen["sessions"]), seen["verdict"]]
            for seen in one["backends"]
        ]
        lines += columns_text(("BACKEND", "STATE", "WEIGHT", "SESSIONS", "VERDICT"), rows, False)
        lines += [f"and {one['left_out']} more"] if one["left_out"] else []
    return lines


def explain_text(reply: Reply) -> str:
    """The way of a client in words, or where an option's value comes from."""
    if "option" in reply:
        return option_text(reply)
    return "\n".join(map(printable, elections_lines(reply) if "elections" in reply else way_lines(reply)))


def way_lines(reply: Reply) -> list[str]:
    """The way of a client."""
    asks = f" that asks for {reply['sni']}" if reply["sni"] else ""
    lines = [f"a client{' of ' + reply['source'] if reply['source'] else ''}{asks} at listener {reply['listener']} "
             f"({of_limit(*reply['maxconns'])} sessions{', ' + reply['full'] if 'full' in reply else ''})"]  # fmt: skip
    for route in reply["routes"]:
        word = (
            "taken"
            if route["is_taken"]
            else "matches, after the one taken"
            if route["matches"]
            else "does not match"
        )
        lines.append(f"  route {route['route']}: {word}")
    if reply["pool"] is None:
        return [*lines, f"  {reply['reason']}"]
    queued, elects, kept = of_limit(*reply["queued"]), reply["elects"], reply["connections"]
    lines.append(
        f"pool {reply['pool']}, {reply['balance']}{' for each request' if kept else ''}, {queued} {elects}s queued"
        + (f": {reply['reason']}" if reply["reason"] else "")
    )
    if kept:
        lines.append(f"connections to the backends: {kept['in_use']} in use, {kept['idle']} idle")
    head = ("BACKEND", "STATE", "WEIGHT", f"{elects.upper()}S", "SCORE", "VERDICT")
    rows = [
        [one["name"], one["state"], str(one["weight"]), of_limit(one["sessions"], one["maxconn"]),
         "-" if one["score"] is None else f"{one['score']:g}", one["verdict"]]
        for one in reply["backends"]
    ]  # fmt: skip
    return [*lines, *columns_text(head, rows, False)]
