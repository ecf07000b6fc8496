"""The exposition, held against a whole expected text and against a reader of its own."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from balancer.console.prometheus import METRICS, exposition
from balancer.discovery.answers import ERRORS
from tests.unit.balancer.console.sample_status import (
    SET,
    TOTALS,
    backend,
    listener,
    pool,
    status,
    times,
    worker,
)

LINE = re.compile(
    r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (?P<value>\S+)'
)
UNDO = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\[\\"n])*)"')


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels, escapes undone: written from the format's description, not from our code."""
    found = {}
    for line in text.split("\n")[:-1]:
        if line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        assert match, line
        labels = tuple(
            (key, re.sub(r'\\[\\"n]', lambda found: UNDO[found[0]], value))
            for key, value in LABEL.findall(match["labels"] or "")
        )
        assert (match["name"], labels) not in found, line
        found[match["name"], labels] = float(match["value"])
    return found


GOLDEN_BACKEND = """\
# HELP balancer_backend_info Always 1; the address and whether it is a backup are labels.
# TYPE balancer_backend_info gauge
balancer_backend_info{pool="main",backend="a",address="10.0.0.1:80",backup="no"} 1
# HELP balancer_backend_up 1 when it is given new sessions: up, not drained, weight above 0.
# TYPE balancer_backend_up gauge
balancer_backend_up{pool="main",backend="a"} 1
# HELP balancer_backend_state 1 for the state it is in, 0 for the others.
# TYPE balancer_backend_state gauge
balancer_backend_state{pool="main",backend="a",state="up"} 1
balancer_backend_state{pool="main",backend="a",state="down"} 0
balancer_backend_state{pool="main",backend="a",state="unresolved"} 0
balancer_backend_state{pool="main",backend="a",state="empty"} 0
balancer_backend_state{pool="main",backend="a",state="agent"} 0
balancer_backend_state{pool="main",backend="a",state="weight-0"} 0
balancer_backend_state{pool="main",backend="a",state="drain"} 0
balancer_backend_state{pool="main",backend="a",state="maint"} 0
# HELP balancer_backend_state_age_seconds Since it came into its state.
# TYPE balancer_backend_state_age_seconds gauge
balancer_backend_state_age_seconds{pool="main",backend="a"} 1.5
# HELP balancer_backend_weight Weight in force.
# TYPE balancer_backend_weight gauge
balancer_backend_weight{pool="main",backend="a"} 1
# HELP balancer_backend_open_sessions Sessions open now.
# TYPE balancer_backend_open_sessions gauge
balancer_backend_open_sessions{pool="main",backend="a"} 2
# HELP balancer_backend_sessions_limit Its maxconn; 0 is no limit.
# TYPE balancer_backend_sessions_limit gauge
balancer_backend_sessions_limit{pool="main",backend="a"} 0
# HELP balancer_backend_sessions_total Sessions given to it.
# TYPE balancer_backend_sessions_total counter
balancer_backend_sessions_total{pool="main",backend="a"} 30
# HELP balancer_backend_connect_failures_total Failed connects.
# TYPE balancer_backend_connect_failures_total counter
balancer_backend_connect_failures_total{pool="main",backend="a"} 0
# HELP balancer_backend_early_ends_total Sessions that it ended before its first byte.
# TYPE balancer_backend_early_ends_total counter
balancer_backend_early_ends_total{pool="main",backend="a"} 0
# HELP balancer_backend_checks_total Health checks made.
# TYPE balancer_backend_checks_total counter
balancer_backend_checks_total{pool="main",backend="a"} 7
# HELP balancer_backend_check_failures_total Failed health checks.
# TYPE balancer_backend_check_failures_total counter
balancer_backend_check_failures_total{pool="main",backend="a"} 2
# HELP balancer_backend_check_seconds What the last good check took.
# TYPE balancer_backend_check_seconds gauge
balancer_backend_check_seconds{pool="main",backend="a"} 0.00125
# HELP balancer_backend_downs_total Falls from up to down.
# TYPE balancer_backend_downs_total counter
balancer_backend_downs_total{pool="main",backend="a"} 1
# HELP balancer_backend_bytes_in_total Bytes from clients to it.
# TYPE balancer_backend_bytes_in_total counter
balancer_backend_bytes_in_total{pool="main",backend="a"} 4096
# HELP balancer_backend_bytes_out_total Bytes from it to clients.
# TYPE balancer_backend_bytes_out_total counter
balancer_backend_bytes_out_total{pool="main",backend="a"} 5
"""


def test_the_text_of_a_backend_to_the_letter() -> None:
    text = exposition(status())
    assert text[text.index("# HELP balancer_backend_info") :] == GOLDEN_BACKEND


def test_every_figure_of_the_balancer_is_there() -> None:
    samples = read(exposition(status(totals={key: n for n, key in enumerate(TOTALS, 100)})))
    plain = {name: value for (name, labels), value in samples.items() if not labels}
    assert plain == {
        "balancer_uptime_seconds": 61.5, "balancer_generation": 2, "balancer_config_last_reload_successful": 1,
        "balancer_serving": 1, "balancer_steering": 1, "balancer_open_sessions": 100, "balancer_accepted_total": 101,
        "balancer_refused_total": 102, "balancer_failed_total": 103, "balancer_bytes_in_total": 104,
        "balancer_bytes_out_total": 105, "balancer_closed_total": 106, "balancer_cut_total": 107,
        "balancer_retries_total": 108, "balancer_pauses_total": 109, "balancer_resumes_total": 110,
        "balancer_queued_sessions": 111, "balancer_log_dropped_total": 112,
        "balancer_queued_total": 113, "balancer_respawns_total": 114, "balancer_hangs_total": 115,
        "balancer_process_max_fds": 1024,
    }  # fmt: skip
    assert samples["balancer_build_info", (("version", "1.2.3"),)] == 1


def test_listeners_and_pools_have_their_labels() -> None:
    backends = [backend("a", pool="api"), backend("a", pool="web", state="down")]
    samples = read(
        exposition(
            status(
                listeners=[listener("in", maxconns=9), listener("out", accepted_total=7)],
                backends=backends,
                pools=[pool("api", backends[:1], queued=3), pool("web", backends[1:])],
            )
        )
    )
    assert samples["balancer_listener_sessions_limit", (("listener", "in"),)] == 9
    assert samples["balancer_listener_accepted_total", (("listener", "out"),)] == 7
    for name in ("in", "out"):
        assert samples["balancer_sessions_total", (("listener", name), ("end", "CD"))] == 1200
        assert samples["balancer_sessions_total", (("listener", name), ("end", "KD"))] == 0
    assert samples["balancer_pool_queued_sessions", (("pool", "api"),)] == 3
    assert samples["balancer_serving", ()] == 1
    for pool_name, serves in (("api", 1), ("web", 0)):
        assert samples["balancer_pool_serving", (("pool", pool_name),)] == serves
        assert samples["balancer_pool_backends_up", (("pool", pool_name),)] == serves
    assert samples["balancer_backend_up", (("pool", "api"), ("backend", "a"))] == 1
    assert samples["balancer_backend_up", (("pool", "web"), ("backend", "a"))] == 0


@pytest.mark.parametrize(
    "state", ["up", "down", "unresolved", "empty", "agent", "weight-0", "drain", "maint"]
)
def test_a_backend_is_up_when_it_is_given_new_sessions(state: str) -> None:
    samples = read(exposition(status(backends=[backend("a", state=state)])))
    labels = (("pool", "main"), ("backend", "a"))
    assert samples["balancer_backend_up", labels] == samples["balancer_serving", ()] == (state == "up")
    states = {labels[2][1]: value for (name, labels), value in samples.items() if name.endswith("_state")}
    assert [name for name, value in states.items() if value] == [state]


def test_processes_are_summed_by_slot_and_have_no_pid() -> None:
    old = worker(0, state="draining", sessions=4, cpu_percent=None, rss_bytes=1)
    text = exposition(status(workers=[old, worker(0), worker(1, state="hung")]))
    samples = read(text)
    assert "4711" not in text and "pid" not in text
    assert samples["balancer_worker_open_sessions", (("slot", "0"),)] == 7
    assert samples["balancer_worker_cpu_ratio", (("slot", "0"),)] == 0.125
    assert samples["balancer_process_open_fds", (("role", "worker"),)] == 40
    assert samples["balancer_process_cpu_ratio", (("role", "master"),)] == 0.125
    assert samples["balancer_worker_resident_memory_bytes", (("slot", "0"),)] == 1048577
    states = {labels[0][1]: value for (name, labels), value in samples.items() if name == "balancer_workers"}
    assert states == {"starting": 0, "ready": 1, "draining": 1, "hung": 1}


def test_what_is_not_known_has_no_line() -> None:
    blind = [worker(0, cpu_percent=None, fds=None)]
    text = exposition(status(workers=blind, backends=[backend("a", since_s=None)]))
    for name in (
        "worker_cpu_ratio",
        "worker_open_fds",
        "backend_state_age_seconds",
        "config_last_reload_age_seconds",
    ):
        assert name not in text


def test_a_failed_reload_is_seen() -> None:
    samples = read(exposition(status(reload={"serial": 1, "ok": False, "text": "no", "age_s": 3.2})))
    assert samples["balancer_config_last_reload_successful", ()] == 0
    assert samples["balancer_config_last_reload_age_seconds", ()] == 3.2


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert (
            re.fullmatch(r"[a-z][a-z_]*", metric.name) and "\n" not in metric.help and "\\" not in metric.help
        )
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@given(st.lists(st.text(), unique=True, max_size=4))
def test_any_name_comes_back_out_of_the_text(names: list[str]) -> None:
    samples = read(exposition(status(backends=[backend(name, state="drain") for name in names])))
    found = {
        labels[1][1]: value for (name, labels), value in samples.items() if name == "balancer_backend_up"
    }
    assert found == dict.fromkeys(names, 0)


def test_a_pool_in_framed_mode_has_its_connections() -> None:
    framed = {"requests_per_s": 7, "connections_idle": 3, "connections_in_use": 2}
    samples = read(
        exposition(status(pools=[pool("a", [backend("x")], framed=framed), pool("b", [backend("y")])]))
    )
    found = {key: value for key, value in samples.items() if key[0].startswith("balancer_pool_connections")}
    assert found == {
        ("balancer_pool_connections_idle", (("pool", "a"),)): 3,
        ("balancer_pool_connections_in_use", (("pool", "a"),)): 2,
    }


TLS = {
    "certificates": [{"path": "/etc/a.pem", "expires_in_s": 864_000}],
    "handshakes_total": 5,
    "resumed_total": 3,
    "truncated_total": 1,
    "failures": {"alert": 2, "not-tls": 4},
}


def test_a_histogram_counts_up_to_each_bound() -> None:
    """A pool without framed mode has no replies; a listener without TLS no handshakes."""
    samples = read(exposition(status()))
    ours = {key: value for key, value in samples.items() if "session_seconds" in key[0]}
    name, label = "balancer_listener_session_seconds", ("listener", "main")
    assert ours == {
        (name + "_bucket", (label, ("le", "0.001"))): 5, (name + "_bucket", (label, ("le", "0.01"))): 8,
        (name + "_bucket", (label, ("le", "1.0"))): 8, (name + "_bucket", (label, ("le", "+Inf"))): 9,
        (name + "_sum", (label,)): 12.5, (name + "_count", (label,)): 9,
    }  # fmt: skip
    assert samples["balancer_pool_wait_seconds_count", (("pool", "main"),)] == 0
    assert not [key for key in samples if "reply" in key[0] or "handshake" in key[0]]


def test_a_set_has_its_last_answer_and_its_queries() -> None:
    found = read(exposition(status(pools=[pool("main", []) | {"sets": [SET]}])))
    labels = (("pool", "main"), ("set", "dns:web.test:80"), ("name", "web"))
    names = {key[0]: value for key, value in found.items() if key[0].startswith("balancer_dns")}
    assert names == {
        "balancer_dns_slots": 8, "balancer_dns_backends": 3, "balancer_dns_left_out": 0,
        "balancer_dns_answer_age_seconds": 0.4, "balancer_dns_ttl_seconds": 5.0,
        "balancer_dns_queries_total": 9, "balancer_dns_failures_total": 1, "balancer_dns_error": 0,
    }  # fmt: skip
    assert ("balancer_dns_slots", labels) in found or ("balancer_dns_slots", *labels) in found


def test_one_name_asked_for_twice_in_a_pool_has_series_of_its_own() -> None:
    sets = [SET, SET | {"slot_name": "web-v6"}]
    lines = exposition(status(pools=[pool("main", []) | {"sets": sets}])).splitlines()
    series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
    assert len(series) == len(set(series))


@pytest.mark.parametrize("error", [error for error in ERRORS if error])
def test_the_last_error_of_a_set_has_its_name(error: str) -> None:
    text = exposition(
        status(pools=[pool("main", []) | {"sets": [SET | {"error": error}, SET | {"name": "dns:b:80"}]}])
    )
    lines = [line for line in text.splitlines() if line.startswith("balancer_dns_error{")]
    assert lines == [
        f'balancer_dns_error{{pool="main",set="dns:web.test:80",name="web",error="{error}"}} 1',
        'balancer_dns_error{pool="main",set="dns:b:80",name="web",error=""} 0',
    ]


def test_a_reader_of_openmetrics_takes_every_family() -> None:
    """There a gauge must not have the name of a counter without `_total`."""
    framed = {"requests_per_s": 7, "connections_idle": 3, "connections_in_use": 2}
    handshakes = {"session": times(1, 0, 0, 0), "handshake": times(0, 2, 0, 0, sum_s=0.01)}
    found = status(
        listeners=[listener(times=handshakes, tls=TLS)],
        pools=[pool("main", [backend("a")], framed=framed) | {"sets": [SET]}],
        reload={"serial": 1, "ok": True, "text": "", "age_s": 3.2},
    )
    families = list(openmetrics.text_string_to_metric_families(exposition(found, is_open_metrics=True)))
    kinds = {family.name: family.type for family in families}
    assert kinds == {"balancer_" + one.name.removesuffix("_total"): one.kind for one in METRICS}
    as_text = parser.text_string_to_metric_families(exposition(found))
    values = {(one.name, *one.labels.items()): one.value for family in as_text for one in family.samples}
    assert values == {(one.name, *one.labels.items()): one.value for each in families for one in each.samples}


def test_a_listener_has_its_denials_by_the_rule() -> None:
    samples = read(exposition(status(listeners=[listener("web", denials={"deny": 7, "first-bytes": 0})])))
    found = {key[1]: value for key, value in samples.items() if "denials" in key[0]}
    of_web = ("listener", "web")
    assert found == {(of_web, ("reason", "deny")): 7, (of_web, ("reason", "first-bytes")): 0}


def test_a_listener_that_ends_tls_has_its_handshakes() -> None:
    samples = read(exposition(status(listeners=[listener("web", tls=TLS), listener("plain")])))
    found = {key: value for key, value in samples.items() if key[0].startswith("balancer_tls")}
    of_web = ("listener", "web")
    assert samples["balancer_certificate_expiry_seconds", (of_web, ("path", "/etc/a.pem"))] == 864_000
    assert found == {
        ("balancer_tls_handshakes_total", (of_web,)): 5,
        ("balancer_tls_resumed_total", (of_web,)): 3,
        ("balancer_tls_truncated_total", (of_web,)): 1,
        ("balancer_tls_failures_total", (of_web, ("reason", "alert"))): 2,
        ("balancer_tls_failures_total", (of_web, ("reason", "not-tls"))): 4,
    }
