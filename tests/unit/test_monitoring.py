"""What watches the balancer asks for metrics that exist: rules, dashboard, documents; every alert can fire."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from balancer.console.prometheus import METRICS, PREFIX
from scripts import options_table
from tests.unit.balancer.console.sample_status import SET, backend, listener, pool, status, times

ROOT = Path(__file__).resolve().parents[2]
RULES = [ROOT / "conf" / "prometheus" / name for name in ("rules.yml", "alerts.yml")]
DASHBOARD = ROOT / "conf" / "grafana" / "balancer.json"
HISTOGRAM = ("_bucket", "_sum", "_count")
NEEDS_PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)"
)


def series() -> set[str]:
    """Every name a query may have."""
    plain = {PREFIX + one.name for one in METRICS if one.kind != "histogram"}
    return plain | {
        PREFIX + one.name + end for one in METRICS if one.kind == "histogram" for end in HISTOGRAM
    }


def rules() -> Iterator[dict[str, str]]:
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def queries() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of every rule and panel."""
    yield from ((rule.get("alert") or rule["record"], rule["expr"]) for rule in rules())
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel.get("targets", ()))


def test_every_query_asks_for_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known, asked = series() | recorded, set()
    for where, query in queries():
        names = set(re.findall(r"(?:[a-z]+:)?balancer_[a-z_0-9:]+", re.sub(r'"[^"]*"', "", query)))
        assert names <= known, (where, names - known)
        asked |= names
    assert len(asked) > 20


@NEEDS_PROMTOOL
def test_every_alert_fires_in_its_trouble_and_none_when_all_is_calm() -> None:
    cases = ROOT / "tests" / "unit" / "prometheus_alerts.yml"
    run = subprocess.run(["promtool", "test", "rules", cases], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    trouble = next(one for one in yaml.safe_load(cases.read_text())["tests"] if one["name"] == "trouble")
    [case] = trouble["promql_expr_test"]
    fired = {re.sub(r'.*"(.*)".*', r"\1", sample["labels"]) for sample in case["exp_samples"]}
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


@NEEDS_PROMTOOL
def test_promtool_finds_nothing_to_mend() -> None:
    directory = ROOT / "conf" / "prometheus"
    for command in (["rules", "--lint=all", "rules.yml", "alerts.yml"], ["config", "scrape.yml"]):
        run = subprocess.run(
            ["promtool", "check", *command], cwd=directory, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stdout + run.stderr


def cells() -> dict[str, tuple[list[str], str]]:
    """name -> (labels, when to worry) of each row of docs/METRICS.md."""
    rows = re.findall(
        r"^\| `balancer_(\w+)` \| \w+ \| (.*?) \| .* \| (.*) \|$",
        options_table.METRICS_PAGE.read_text(),
        re.MULTILINE,
    )
    return {name: (re.findall(r"`(\w+)`", labels), worry) for name, labels, worry in rows}


def test_the_page_gives_each_metric_the_labels_that_it_has() -> None:
    framed = {"requests_per_s": 7, "connections_idle": 3, "connections_in_use": 2}
    tls = {
        "certificates": [{"path": "/etc/a.pem", "expires_in_s": 864_000}],
        "handshakes_total": 5,
        "resumed_total": 3,
        "truncated_total": 1,
        "failures": {"alert": 2},
    }
    handshakes = {"session": times(1, 0, 0, 0), "handshake": times(1, 0, 0, 0)}
    whole = status(
        listeners=[listener(tls=tls, times=handshakes)],
        pools=[pool("main", [backend("a")], framed=framed) | {"sets": [SET]}],
        reload={"serial": 1, "ok": True, "text": "", "age_s": 3.2},
    )
    page = cells()
    for metric in METRICS:
        kinds = {tuple(labels) for _, labels, _ in metric.samples(whole)}
        [found] = {tuple(label for label in labels if label != "le") for labels in kinds}
        assert page[metric.name][0] == list(found), metric.name


def test_the_page_says_when_to_worry_and_names_each_alert_where_its_metric_stands() -> None:
    page = cells()
    assert [name for name, (_, worry) in page.items() if len(worry) < 5] == []
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    named = {
        (alert, name)
        for name, (_, worry) in page.items()
        for alert in re.findall(r"\bBalancer[A-Z]\w+", worry)
    }
    wanted = set()
    for rule in rules():
        if "alert" in rule:
            query = rule["expr"]
            for record, expression in recorded.items():
                query = query.replace(record, expression)
            for name in re.findall(r"balancer_(\w+)", re.sub(r'"[^"]*"', "", query)):
                wanted.add((rule["alert"], re.sub(r"_(?:bucket|sum|count)$", "", name)))
    assert named >= wanted, wanted - named
    assert {alert for alert, _ in named} <= {rule["alert"] for rule in rules() if "alert" in rule}


def test_the_page_of_metrics_has_them_all() -> None:
    text = options_table.METRICS_PAGE.read_text()
    assert text == options_table.in_metrics_page(text), "run: python scripts/options_table.py --write"
    assert all(f"`{PREFIX}{one.name}`" in text for one in METRICS)
