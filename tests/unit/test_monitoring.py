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


def test_the_page_of_metrics_has_them_all() -> None:
    text = options_table.METRICS_PAGE.read_text()
    assert text == options_table.in_metrics_page(text), "run: python scripts/options_table.py --write"
    assert all(f"`{PREFIX}{one.name}`" in text for one in METRICS)
