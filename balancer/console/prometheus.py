"""The status as Prometheus reads it: text exposition format 0.0.4 or OpenMetrics, out of the dictionary of `status.py`.

RULES
- Pure: no socket, no board, no clock. An unknown figure has no line; it is never 0.
- Names: one prefix, base units, `_total` on what only grows. Summing or averaging a metric over its
  labels means something.
- A histogram of what a configuration cannot have (replies without framed mode) is left out: it has 28 lines.
- Labels are few and live long: listener, pool, backend, slot, state. No pid: a counter of one process falls when it is
  replaced, and the old series stays. No client address. Figures of a process are gauges by slot; counters are sums over
  all processes, the dead included.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from balancer.eventloop.exposition import Labels, Sample, exposition_text, histogram_samples

PREFIX = "balancer_"
WORKER_STATES = ("starting", "ready", "draining", "hung")
BACKEND_STATES = ("up", "down", "unresolved", "empty", "agent", "weight-0", "drain", "maint")

Status = Mapping[str, Any]
Figure = tuple[Labels, Any]  # the number is a Value


@dataclass(frozen=True, slots=True)
class Metric:
    """One name: its TYPE, its HELP, and how its samples are read from a status."""

    name: str
    kind: str
    help: str
    read: Callable[[Status], Iterable[Figure]]

    def samples(self, status: Status) -> Iterable[Sample]:
        """Its samples in a status, as the exposition takes them."""
        return (("", *figure) for figure in self.read(status))


class TimesMetric(Metric):
    """A histogram: its figures are the TIMES of `status.py` and not numbers."""

    def samples(self, status: Status) -> Iterable[Sample]:
        for labels, times in self.read(status):
            yield from histogram_samples(status["bounds_s"], labels, times["counts"], times["sum_s"])


def one(*path: str) -> Callable[[Status], Iterable[Figure]]:
    """The single figure at a path of keys."""

    def read(status: Status) -> Iterable[Figure]:
        found: Any = status
        for key in path:
            found = found[key]
        return [({}, found)]

    return read


def each_of(kind: str, key: str, unit: float | None = None) -> Callable[[Status], Iterable[Figure]]:
    """One sample for each "listeners", "pools" or "backends"; None where the figure is not known."""

    def read(status: Status) -> Iterable[Figure]:
        values = [(labels_of(kind, one), one[key]) for one in status[kind]]
        return [
            (labels, value if unit is None or value is None else value * unit) for labels, value in values
        ]

    return read


def times_of(
    kind: str, name: str, exists: Callable[[Status], bool] = lambda one: True
) -> Callable[[Status], Any]:
    """One histogram for each "listeners" or "pools" that can have it."""
    return lambda status: [(labels_of(kind, one), one["times"][name]) for one in status[kind] if exists(one)]


def labels_of(kind: str, one: Mapping[str, Any]) -> Mapping[str, str]:
    if kind == "backends":
        return {"pool": one["pool"], "backend": one["name"]}
    return {kind.removesuffix("s"): one["name"]}


def set_figure(key: str) -> Callable[[Status], Iterable[Figure]]:
    """One sample for each set of backends that a name server knows; None before its first answer."""

    def read(status: Status) -> Iterable[Figure]:
        sets = [one for pool in status["pools"] for one in pool.get("sets", ())]
        return [(set_labels(one), one[key]) for one in sets]

    return read


def set_labels(one: Mapping[str, Any]) -> dict[str, str]:
    return {"pool": one["pool"], "set": one["name"], "name": one["slot_name"]}


def set_errors(status: Status) -> Iterable[Figure]:
    """1 with its name for each set whose last lookup has failed, 0 with an empty name for the others."""
    sets = [one for pool in status["pools"] for one in pool.get("sets", ())]
    return [(set_labels(one) | {"error": one["error"] or ""}, bool(one["error"])) for one in sets]


backend_figure = partial(each_of, "backends")
listener_figure = partial(each_of, "listeners")
pool_figure = partial(each_of, "pools")


def sessions_by_end(status: Status) -> Iterable[Figure]:
    return [
        ({**labels_of("listeners", listener), "end": end}, count)
        for listener in status["listeners"]
        for end, count in listener["ends"].items()
    ]


def tls_figure(key: str) -> Callable[[Status], Iterable[Figure]]:
    """One sample for each listener that ends TLS."""
    return lambda status: [
        (labels_of("listeners", listener), listener["tls"][key])
        for listener in status["listeners"]
        if listener["tls"]
    ]


def certificate_expiry(status: Status) -> Iterable[Figure]:
    return [
        ({**labels_of("listeners", listener), "path": one["path"]}, one["expires_in_s"])
        for listener in status["listeners"]
        if listener["tls"]
        for one in listener["tls"]["certificates"]
    ]


def handshake_failures(status: Status) -> Iterable[Figure]:
    return [
        ({**labels_of("listeners", listener), "reason": reason}, count)
        for listener in status["listeners"]
        if listener["tls"]
        for reason, count in listener["tls"]["failures"].items()
    ]


def denials(status: Status) -> Iterable[Figure]:
    return [
        ({**labels_of("listeners", listener), "reason": rule}, count)
        for listener in status["listeners"]
        for rule, count in listener["denials"].items()
    ]


def framed_figure(key: str) -> Callable[[Status], Iterable[Figure]]:
    """One sample for each pool in framed mode."""
    return lambda status: [
        (labels_of("pools", pool), pool["framed"][key]) for pool in status["pools"] if pool["framed"]
    ]


def each_slot(key: str, unit: float | None = None) -> Callable[[Status], Iterable[Figure]]:
    """Summed over the processes of a slot: in a reload the old and the new one share it for a while."""

    def read(status: Status) -> Iterable[Figure]:
        sums: dict[int, int | float] = {}
        for worker in status["workers"]:
            if (value := worker[key]) is not None:
                value = value if unit is None else value * unit
                sums[worker["slot"]] = sums.get(worker["slot"], 0) + value
        return [({"slot": str(slot)}, value) for slot, value in sorted(sums.items())]

    return read


def each_role(key: str, unit: float | None = None) -> Callable[[Status], Iterable[Figure]]:
    """Summed over the processes of a role."""

    def read(status: Status) -> Iterable[Figure]:
        sums: dict[str, int | float] = {}
        for process in status["processes"]:
            if (value := process[key]) is not None:
                sums[process["role"]] = sums.get(process["role"], 0) + (
                    value if unit is None else value * unit
                )
        return [({"role": role}, value) for role, value in sorted(sums.items())]

    return read


def workers_by_state(status: Status) -> Iterable[Figure]:
    states = [worker["state"] for worker in status["workers"]]
    return [({"state": state}, states.count(state)) for state in WORKER_STATES]


def backends_by_state(status: Status) -> Iterable[Figure]:
    return [
        ({**labels_of("backends", backend), "state": state}, backend["state"] == state)
        for backend in status["backends"]
        for state in BACKEND_STATES
    ]


def backends_up(status: Status) -> Iterable[Figure]:
    return [(labels_of("backends", backend), backend["state"] == "up") for backend in status["backends"]]


def backend_info(status: Status) -> Iterable[Figure]:
    return [
        (
            {
                **labels_of("backends", backend),
                "address": backend["address"],
                "backup": "yes" if backend["backup"] else "no",
            },
            1,
        )
        for backend in status["backends"]
    ]


def last_reload_ok(status: Status) -> Iterable[Figure]:
    """1 as well when there was none: the configuration in force is the one that was written."""
    reload = status.get("reload")
    return [({}, reload is None or bool(reload.get("ok")))]


def last_reload_age(status: Status) -> Iterable[Figure]:
    reload = status.get("reload")
    return [({}, reload.get("age_s"))] if reload else []


REFUSED = "Clients refused by a limit (sessions, queue, descriptors), by a rule (access, PROXY header), without a route."
FAILED = "Sessions for which no backend could be reached: none was up, or every connect failed."
CLOSED = "Clients whose connection is closed, refused ones included."
METRICS: tuple[Metric, ...] = (
    Metric("build_info", "gauge", "Always 1; the version is the label.", lambda s: [({"version": s["version"]}, 1)]),
    Metric("uptime_seconds", "gauge", "Since the master started.", one("uptime_s")),
    Metric("generation", "gauge", "Configurations put in force since the start.", one("generation")),
    Metric("config_last_reload_successful", "gauge", "0 when the last reload was given up.", last_reload_ok),
    Metric("config_last_reload_age_seconds", "gauge", "Since the last reload ended, well or not.", last_reload_age),
    Metric("serving", "gauge", "1 when a client can be served: a worker accepts, and a pool has a backend for it.",
           lambda s: [({}, s["serving"])]),
    Metric("steering", "gauge", "1 when new connections are steered to the less loaded workers.",
           lambda s: [({}, s["steering"] == "on")]),
    Metric("workers", "gauge", "Worker processes of all generations.", workers_by_state),
    Metric("worker_open_sessions", "gauge", "Sessions held.", each_slot("sessions")),
    Metric("worker_cpu_ratio", "gauge", "CPU used over the last second; 1 is one core.", each_slot("cpu_percent", 0.01)),
    Metric("worker_resident_memory_bytes", "gauge", "Resident memory, shared pages included.", each_slot("rss_bytes")),
    Metric("worker_open_fds", "gauge", "Open file descriptors.", each_slot("fds")),
    Metric("process_cpu_ratio", "gauge", "CPU used over the last second by the processes of a role; 1 is one core.",
           each_role("cpu_percent", 0.01)),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory, shared pages counted in each process.",
           each_role("rss_bytes")),
    Metric("process_open_fds", "gauge", "Open file descriptors.", each_role("fds")),
    Metric("process_max_fds", "gauge", "Limit of open file descriptors of each process.", one("max_fds")),
    Metric("open_sessions", "gauge", "Sessions open now.", one("totals", "sessions")),
    Metric("queued_sessions", "gauge", "Sessions that wait for a place at a backend.", one("totals", "queued")),
    Metric("queued_total", "counter", "Sessions that had to wait for a place.", one("totals", "queued_total")),
    Metric("respawns_total", "counter", "Processes that had to be replaced.", one("totals", "respawns_total")),
    Metric("hangs_total", "counter", "Processes killed because they hung.", one("totals", "hangs_total")),
    Metric("accepted_total", "counter", "Client connections accepted.", one("totals", "accepted_total")),
    Metric("refused_total", "counter", REFUSED, one("totals", "refused_total")),
    Metric("failed_total", "counter", FAILED, one("totals", "failed_total")),
    Metric("closed_total", "counter", CLOSED, one("totals", "closed_total")),
    Metric("cut_total", "counter", "Sessions ended by a drain or a stop.", one("totals", "cut_total")),
    Metric("sessions_total", "counter", "Sessions that have ended, by the end that the log has for them (-- is clean).",
           sessions_by_end),
    Metric("retries_total", "counter", "Connects made again at another backend.", one("totals", "retries_total")),
    Metric("pauses_total", "counter", "Times a sender had to wait for the other side.", one("totals", "pauses_total")),
    Metric("resumes_total", "counter", "Times such a sender could go on.", one("totals", "resumes_total")),
    Metric("log_dropped_total", "counter", "Log lines that could not be written.", one("totals", "log_dropped_total")),
    Metric("bytes_in_total", "counter", "Bytes from clients to backends.", one("totals", "bytes_in_total")),
    Metric("bytes_out_total", "counter", "Bytes from backends to clients.", one("totals", "bytes_out_total")),
    Metric("listener_open_sessions", "gauge", "Sessions open now.", listener_figure("sessions")),
    Metric("listener_sessions_limit", "gauge", "Its maxconns; 0 is no limit.", listener_figure("maxconns")),
    Metric("listener_accepted_total", "counter", "Client connections accepted.", listener_figure("accepted_total")),
    Metric("listener_refused_total", "counter", REFUSED, listener_figure("refused_total")),
    Metric("listener_denials_total", "counter", "Clients that a rule of it turns away, with dry-run: would.", denials),
    Metric("listener_failed_total", "counter", FAILED, listener_figure("failed_total")),
    Metric("listener_closed_total", "counter", CLOSED, listener_figure("closed_total")),
    Metric("listener_bytes_in_total", "counter", "Bytes from clients.", listener_figure("bytes_in_total")),
    Metric("listener_bytes_out_total", "counter", "Bytes to clients.", listener_figure("bytes_out_total")),
    TimesMetric("listener_session_seconds", "histogram", "From the accept of a session to its end.",
                times_of("listeners", "session")),
    TimesMetric("listener_handshake_seconds", "histogram", "TLS handshakes that have succeeded.",
                times_of("listeners", "handshake", lambda one: bool(one["times"]["handshake"]["count"]))),
    Metric("tls_handshakes_total", "counter", "TLS handshakes of clients that have succeeded.",
           tls_figure("handshakes_total")),
    Metric("tls_resumed_total", "counter", "Those that resumed an earlier session.", tls_figure("resumed_total")),
    Metric("tls_failures_total", "counter", "TLS handshakes of clients that have not succeeded.", handshake_failures),
    Metric("certificate_expiry_seconds", "gauge", "Time until a certificate expires; below 0 it has.",
           certificate_expiry),
    Metric("tls_truncated_total", "counter", "Clients that ended their connection without ending TLS.",
           tls_figure("truncated_total")),
    Metric("pool_serving", "gauge", "1 when a client of the pool can be served.", pool_figure("serving")),
    Metric("pool_backends_up", "gauge", "Backends that are given new sessions.", pool_figure("up")),
    Metric("pool_queued_sessions", "gauge", "Sessions that wait for a place at a backend.", pool_figure("queued")),
    Metric("pool_queue_limit", "gauge", "How many may: its max-queue, for each worker.", pool_figure("max_queue")),
    Metric("pool_queued_total", "counter", "Sessions that had to wait for a place.", pool_figure("queued_total")),
    TimesMetric("pool_connect_seconds", "histogram", "Connects to backends, unless connect(2) has done them at once.",
                times_of("pools", "connect")),
    TimesMetric("pool_wait_seconds", "histogram", "What sessions have waited for a place that had to.",
                times_of("pools", "wait")),
    TimesMetric("pool_reply_seconds", "histogram", "Framed mode: from a request's first byte to its reply's last.",
                times_of("pools", "reply", lambda one: bool(one["framed"]))),
    Metric("pool_connections_idle", "gauge", "Framed mode: kept connections to backends that carry no request.",
           framed_figure("connections_idle")),
    Metric("pool_connections_in_use", "gauge", "Framed mode: those that carry a request or rest behind one.",
           framed_figure("connections_in_use")),
    Metric("backend_info", "gauge", "Always 1; the address and whether it is a backup are labels.", backend_info),
    Metric("dns_slots", "gauge", "Places for backends of a set (dns:, srv:).", set_figure("slots")),
    Metric("dns_backends", "gauge", "Slots with a backend.", set_figure("backends")),
    Metric("dns_left_out", "gauge", "Backends of the last answer that found no slot.", set_figure("left_out")),
    Metric("dns_answer_age_seconds", "gauge", "Since the last answer.", set_figure("age_s")),
    Metric("dns_ttl_seconds", "gauge", "The smallest TTL of the last answer.", set_figure("ttl_s")),
    Metric("dns_queries_total", "counter", "Queries sent.", set_figure("queries_total")),
    Metric("dns_failures_total", "counter", "Lookups without an answer.", set_figure("failures_total")),
    Metric("dns_error", "gauge", "1 while the last lookup has failed; `error` says how.", set_errors),
    Metric("backend_up", "gauge", "1 when it is given new sessions: up, not drained, weight above 0.", backends_up),
    Metric("backend_state", "gauge", "1 for the state it is in, 0 for the others.", backends_by_state),
    Metric("backend_state_age_seconds", "gauge", "Since it came into its state.", backend_figure("since_s")),
    Metric("backend_weight", "gauge", "Weight in force.", backend_figure("weight")),
    Metric("backend_open_sessions", "gauge", "Sessions open now.", backend_figure("sessions")),
    Metric("backend_sessions_limit", "gauge", "Its maxconn; 0 is no limit.", backend_figure("maxconn")),
    Metric("backend_sessions_total", "counter", "Sessions given to it.", backend_figure("sessions_total")),
    Metric("backend_connect_failures_total", "counter", "Failed connects.", backend_figure("connect_failures_total")),
    Metric("backend_early_ends_total", "counter", "Sessions that it ended before its first byte.",
           backend_figure("early_ends_total")),
    Metric("backend_checks_total", "counter", "Health checks made.", backend_figure("checks_total")),
    Metric("backend_check_failures_total", "counter", "Failed health checks.", backend_figure("check_failures_total")),
    Metric("backend_check_seconds", "gauge", "What the last good check took.", backend_figure("check_ms", 0.001)),
    Metric("backend_downs_total", "counter", "Falls from up to down.", backend_figure("downs_total")),
    Metric("backend_bytes_in_total", "counter", "Bytes from clients to it.", backend_figure("bytes_in_total")),
    Metric("backend_bytes_out_total", "counter", "Bytes from it to clients.", backend_figure("bytes_out_total")),
)  # fmt: skip


def exposition(status: Status, is_open_metrics: bool = False) -> str:
    """Everything `/metrics` answers."""
    return exposition_text(
        ((PREFIX + metric.name, metric.kind, metric.help, metric.samples(status)) for metric in METRICS),
        is_open_metrics,
    )
