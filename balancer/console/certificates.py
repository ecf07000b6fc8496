"""The certificates that are presented: of listeners to clients, of pools to backends.

RULES: reads the configuration and what the master has handed over since; the files themselves are not read again.

    {"certificates": [{"path", "key_path", "subject", "issuer", "names": [...], "key_type", "expires_at", "expires_in_s",
                       "expires_in_days", "loaded_at", "listeners": [names], "pools": [names]}]}

The one that expires first is the first. Times are UTC, `expires_in_days` is whole days, negative once it has expired.
"""

from collections.abc import Iterable
from dataclasses import astuple, replace
from math import floor
from typing import Any

from balancer.console.events import time_text
from balancer.console.table import EXPIRES_SOON, days_text
from balancer.edge.certificates import CertificateFile
from balancer.eventloop.log import Log
from balancer.options import Listener, Pool
from balancer.pool.board import Board

DAY = 86_400.0
LOADED_TOGETHER = 60.0  # seconds; each section that names a file reads it, one after the other


def presented(board: Board, listener: Listener) -> tuple[CertificateFile, ...]:
    """The certificates of a listener as its workers have them, one that is given twice once."""
    handover = board.certificates.get(listener.name)
    return tuple({file.path: file for file in handover.files()}.values()) if handover is not None else ()


def describe_certificates(
    board: Board, listeners: Iterable[Listener], pools: Iterable[Pool], calendar: float
) -> list[dict[str, Any]]:
    """Each certificate once, with those that present it; `calendar` is seconds since 1970."""
    used = [(file, "listeners", one.name) for one in listeners for file in presented(board, one)]
    used += [(one.tls_cert, "pools", one.name) for one in pools if one.tls_cert is not None]
    rows: list[dict[str, Any]] = []
    last: dict[object, tuple[float, dict[str, Any]]] = {}  # when it was read first, and its row
    for file, kind, name in sorted(used, key=lambda one: (one[0].not_after, one[0].path, one[0].read_at)):
        same = astuple(replace(file, read_at=0.0))
        if same not in last or file.read_at - last[same][0] > LOADED_TOGETHER:
            last[same] = file.read_at, described(file, calendar)
            rows.append(last[same][1])
        last[same][1][kind].append(name)
    return rows


def described(file: CertificateFile, calendar: float) -> dict[str, Any]:
    """A certificate as the module's head says, used by none."""
    left = file.not_after - calendar
    return {
        "path": file.path, "key_path": file.key_path, "subject": file.subject, "issuer": file.issuer,
        "names": list(file.names), "key_type": file.key_type,
        "expires_at": time_text(int(file.not_after * 1e9)), "expires_in_s": round(left),
        "expires_in_days": floor(left / DAY), "loaded_at": time_text(int(file.read_at * 1e9)),
        "listeners": [], "pools": [],
    }  # fmt: skip


def warn_of_expiry(log: Log, certificates: Iterable[dict[str, Any]]) -> None:
    """A line for each certificate that expires soon."""
    for one in certificates:
        if one["expires_in_s"] < EXPIRES_SOON:
            where = {kind[:-1]: ",".join(one[kind]) for kind in ("listeners", "pools") if one[kind]}
            renewed = "balancerctl reload certificates" if not one["pools"] else "balancerctl reload"
            left = days_text(one["expires_in_s"]) if one["expires_in_s"] > 0 else "expired"
            log.warning(
                "certificate", path=one["path"], **where, expires_in=left,
                then=f"renew it, then {renewed}",
            )  # fmt: skip
