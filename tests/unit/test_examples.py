"""The deployments in conf/examples/: ours passes --check-config without a note, and each has its counterparts."""

import re
from pathlib import Path

import pytest

from balancer.config.option import CommandLineAnswer
from balancer.configuration import parse
from tests.authority import Authority

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "conf" / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.ini"))
CERTIFICATE = "/etc/balancer/mqtt.pem"


@pytest.mark.parametrize("name", NAMES)
def test_ours_passes_the_check_without_a_note(name: str, tmp_path: Path) -> None:
    pem = tmp_path / "mqtt.pem"
    pem.write_bytes(Authority().issue("mqtt.example"))
    file = tmp_path / f"{name}.ini"
    file.write_text((EXAMPLES / f"{name}.ini").read_text().replace(CERTIFICATE, str(pem)))
    with pytest.raises(CommandLineAnswer) as answer:
        parse(["-c", str(file), "--check-config"], {})
    assert str(answer.value) == "balancer: configuration OK"


@pytest.mark.parametrize("name", NAMES)
def test_the_counterparts_have_the_same_addresses(name: str) -> None:
    ours = set(re.findall(r"\d+\.\d+\.\d+\.\d+(?:[:/]\d+)", (EXAMPLES / f"{name}.ini").read_text()))
    for other in (f"{name}.haproxy.cfg", f"{name}.nginx.conf"):
        theirs = set(re.findall(r"\d+\.\d+\.\d+\.\d+(?:[:/]\d+)", (EXAMPLES / other).read_text()))
        assert theirs - {"127.0.0.1:1"} == ours, other


def test_the_page_names_every_example() -> None:
    page = (ROOT / "docs" / "EXAMPLES.md").read_text()
    assert NAMES == ["long-sessions", "mail", "postgres", "sni", "tls"]
    for path in EXAMPLES.iterdir():
        assert f"(../conf/examples/{path.name})" in page
