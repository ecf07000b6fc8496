"""The files for orchestrators: what they run is understood by our own readers, and a stop has the time that it needs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from balancer.configuration import parse
from workers.resizer.options import parse_resizer

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def documents(*parts: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CONF.joinpath(*parts)).read_text()))


def container(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["spec"]["template"]["spec"]["containers"][0]
    return found


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


BALANCER = {one["kind"]: one for one in documents("kubernetes", "balancer.yaml")}
RESIZERS = {one["kind"]: one for one in documents("kubernetes", "resizers.yaml")}
SWARM = documents("swarm", "stack.yml")[0]["services"]
NOMAD = (CONF / "nomad" / "balancer.nomad.hcl").read_text()


def texts() -> dict[str, str]:
    nomad = re.search(r"<<EOT\n(.*?)EOT\n", NOMAD, re.DOTALL)
    assert nomad is not None
    return {
        "kubernetes": BALANCER["ConfigMap"]["data"]["balancer.ini"],
        "nomad": re.sub(r"{{.*?}}", "10.0.0.1", nomad[1]),
    }


@pytest.mark.parametrize("engine", ["kubernetes", "nomad"])
def test_the_balancers_configuration_is_understood(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "balancer.ini"
    path.write_text(texts()[engine])
    read = parse(["-c", str(path)], {})
    assert read.pools[0].backends[0].set is not None and len(read.pools[0].backends) == 64
    assert (read.pools[0].check.kind, read.pools[0].has_agent, read.process.drain_timeout) == (
        "frame",
        True,
        25,
    )
    assert (read.process.resolver is not None) == (engine == "nomad")


def test_consuls_files_belong_together() -> None:
    read = parse(["-c", str(CONF / "consul" / "balancer.ini")], {})
    assert read.process.resolver is not None and str(read.process.resolver) == "127.0.0.1:8600 tcp"
    services = {
        one["name"]: one for one in json.loads((CONF / "consul" / "services.json").read_text())["services"]
    }
    wanted = read.pools[0].backends[0].set
    assert wanted is not None and wanted.host == f"_{services['web']['name']}._tcp.service.consul"
    own = services["balancer"]
    assert own["port"] == read.listeners[0].addresses[0].port
    assert own["check"]["http"] == f"http://{read.process.metrics}/ready"


def test_the_swarms_command_lines_are_understood() -> None:
    read = parse(SWARM["balancer"]["command"][1:], {})
    assert len(read.pools[0].backends) == 64
    assert parse_resizer(SWARM["resizer"]["command"][1:], {}).drain_timeout == 15
    assert seconds(SWARM["balancer"]["stop_grace_period"]) > read.process.drain_timeout


def test_a_pod_has_time_to_leave_its_service_and_to_drain() -> None:
    spec = BALANCER["Deployment"]["spec"]["template"]["spec"]
    wait = int(container(BALANCER["Deployment"])["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > wait + 25
    resizer = container(RESIZERS["Deployment"])
    options = parse_resizer([word.replace("$(POD)", "pod") for word in resizer["args"][1:]], {})
    wait = int(resizer["lifecycle"]["preStop"]["exec"]["command"][1])
    patience = RESIZERS["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert patience > wait + options.drain_timeout and wait > 10, "resolver-refresh is 10 s"


def test_no_pod_may_write_or_gain_anything() -> None:
    for each in (BALANCER, RESIZERS):
        security = container(each["Deployment"])["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert each["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"]


def test_there_are_slots_for_all_that_may_be_there_together() -> None:
    assert RESIZERS["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] < 64
    assert RESIZERS["Service"]["spec"]["clusterIP"] == "None"
