"""A whole status made by hand; keyword arguments replace keys."""

from typing import Any

TOTALS = (
    "sessions", "accepted_total", "refused_total", "failed_total", "bytes_in_total", "bytes_out_total",
    "closed_total", "cut_total", "retries_total", "pauses_total", "resumes_total", "queued",
    "log_dropped_total", "queued_total", "respawns_total", "hangs_total",
)  # fmt: skip


BOUNDS = [0.001, 0.01, 1.0]


def times(*counts: int, sum_s: float = 0.0) -> dict[str, Any]:
    """A histogram over BOUNDS."""
    return {
        "count": sum(counts),
        "sum_s": sum_s,
        "p50_s": None,
        "p90_s": None,
        "p99_s": None,
        "counts": [*counts],
    }


def backend(name: str, **changed: Any) -> dict[str, Any]:
    plain = {
        "name": name, "pool": "main", "address": "10.0.0.1:80", "address_in_use": None, "state": "up", "weight": 1,
        "sessions": 2, "sessions_total": 30, "connect_failures_total": 0, "early_ends_total": 0,
        "bytes_in_total": 4096, "bytes_out_total": 5,
        "check": "ok", "maxconn": 0, "backup": False, "since_s": 1.5, "checks_total": 7, "check_failures_total": 2,
        "downs_total": 1, "check_streak": 4, "check_ms": 1.25,
    }  # fmt: skip
    return plain | changed


def worker(slot: int, **changed: Any) -> dict[str, Any]:
    plain = {
        "slot": slot, "pid": 4711, "state": "ready", "generation": 1, "accepting": True, "sessions": 3,
        "accepted_total": 9, "cpu_percent": 12.5, "rss_bytes": 1048576, "fds": 20, "share_percent": 50.0,
        "drain_left_s": None,
    }  # fmt: skip
    return plain | changed


def listener(name: str = "main", **changed: Any) -> dict[str, Any]:
    plain = {
        "name": name, "addresses": ["0.0.0.0:9090"], "pools": ["main"], "sessions": 17, "maxconns": 0,
        "overflow": "drop", "tls": None, "accepted_total": 40, "refused_total": 3, "failed_total": 4,
        "bytes_in_total": 2048, "bytes_out_total": 1,
        "closed_total": 23, "cut_total": 0, "retries_total": 0, "pauses_total": 0, "resumes_total": 0,
        "ends": {"--": 12, "CD": 1200, "SC": 4, "sQ": 3, "KD": 0}, "denials": {"deny": 7, "first-bytes": 0},
        "times": {"session": times(5, 3, 0, 1, sum_s=12.5), "handshake": times()},
    }  # fmt: skip
    return plain | changed


def pool(name: str, backends: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    up = sum(one["state"] == "up" for one in backends)
    plain = {
        "name": name, "balance": "leastconn", "serving": up > 0, "up": up,
        "reason": "" if up else "every backend is down",
        "queued": 0, "queued_total": 6, "max_queue": 1024, "framed": None, "backends": backends,
        "times": {"connect": times(1, 0, 0, 0, sum_s=0.0005), "wait": times(), "reply": times()},
    }  # fmt: skip
    return plain | changed


SET = {
    "name": "dns:web.test:80", "slot_name": "web", "pool": "main",
    "slots": 8, "backends": 3, "left_out": 0, "age_s": 0.4, "ttl_s": 5.0,
    "ttl_left_s": 4.6, "server": "10.0.0.53", "error": None, "tenants": [], "queries_total": 9, "failures_total": 1,
}  # fmt: skip


def event(verb: str = "down", **changed: Any) -> dict[str, Any]:
    plain = {
        "serial": 7,
        "at": "2026-11-27T00:12:01.123Z",
        "age_s": 3.5,
        "verb": verb,
        "text": "backend=a check=refused",
    }
    return plain | changed


def status(**changed: Any) -> dict[str, Any]:
    """The pools follow from the backends unless they are given."""
    backends = changed.setdefault("backends", [backend("a")])
    names = dict.fromkeys(one["pool"] for one in backends) or {"main": None}
    pools = [pool(name, [one for one in backends if one["pool"] == name]) for name in names]
    serves = any(one["serving"] for one in pools)
    plain = {
        "schema": 2, "version": "1.2.3", "host": "lb-1", "config": "/etc/balancer.ini", "serving": serves,
        "reason": "" if serves else "every backend is down", "generation": 2, "uptime_s": 61.5, "steering": "on",
        "listeners": [listener()], "workers": [worker(0)], "reload": None, "pools": pools, "events": [event()],
        "bounds_s": BOUNDS, "max_fds": 1024,
        "processes": [
            {"role": role, "pid": pid, "cpu_percent": 12.5, "rss_bytes": 1 << 20, "fds": 20}
            for pid, role in enumerate(("master", "worker", "worker", "prober", "console"), 4711)
        ],
        "totals": {key: n for n, key in enumerate(TOTALS, 100)} | {"queued": 0, "ends": {"--": 12, "CD": 1200, "KD": 0}},
    }  # fmt: skip
    return plain | changed
