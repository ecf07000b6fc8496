"""docs/RUNBOOK.md has a section for every alert, and none that there is not."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_every_alert_has_its_section() -> None:
    groups = yaml.safe_load((ROOT / "conf" / "prometheus" / "alerts.yml").read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    text = (ROOT / "docs" / "RUNBOOK.md").read_text()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == alerts
    assert text.count("Do: ") == text.count("Look: ") == len(alerts)
