"""The files for other programs, read by those programs or by the schemas of their formats: what they hold passes, and a
slip in it does not."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system.services import program

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"


def ran(*command: object) -> subprocess.CompletedProcess[str]:
    """Its outcome, with both outputs in `stdout`."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False
    )


def takes(*command: object) -> Callable[[Path, Path], str]:
    """A program that says by its exit code whether it takes the file behind these words; returns its complaints."""

    def complaints(path: Path, directory: Path) -> str:
        done = ran(program(str(command[0])), *command[1:], path)
        return done.stdout if done.returncode else ""

    return complaints


def by_keepalived(path: Path, directory: Path) -> str:
    """It writes what it does not understand; its exit code says nothing, it ends its own group."""
    log = directory / "keepalived.log"
    log.unlink(missing_ok=True)
    command = [program("keepalived"), f"--config-test={log}", "-f", str(path)]
    subprocess.run(command, timeout=60, start_new_session=True, check=False)
    return log.read_text() if log.exists() and "Unknown keyword" in log.read_text() else ""


def by_systemd(path: Path, directory: Path) -> str:
    """Units beside each other under the names of instances, with programs that are there."""
    analyze, units = program("systemd-analyze"), directory / "units"
    units.mkdir(exist_ok=True)
    for each in [*CONF.glob("*.service"), *CONF.glob("*.socket"), path]:
        name = each.name.replace("@.", "@9000.")
        text = each.read_text().replace("/usr/local/bin/balancer", "/bin/true")
        (units / name).write_text(text.replace("/usr/local/bin/resizer", "/bin/true"))
    done = ran(analyze, "verify", "--man=no", units / path.name.replace("@.", "@9000."))
    # A group of system calls that is younger than the manager here says nothing against the file.
    return "\n".join(line for line in done.stdout.splitlines() if "Unknown system call group" not in line)


def by_logrotate(path: Path, directory: Path) -> str:
    """It complains with exit code 0."""
    path.chmod(0o644)  # it reads no file that others may write
    done = ran(program("logrotate"), "--debug", "--state", directory / "state", path)
    return "\n".join(line for line in done.stdout.splitlines() if line.startswith("error:"))


def by_nomad(path: Path, directory: Path) -> str:
    """A parser of its language, and the stanzas that a task cannot do without."""
    done = ran(program("hcl2tojson"), path)
    if done.returncode:
        return done.stdout
    try:
        [job] = json.loads(done.stdout[done.stdout.index("{") :])["job"]  # behind the name of the file
        for groups in job.values():
            for group in groups["group"]:
                [tasks] = [found["task"] for found in group.values()]
                for [task] in (task.values() for task in tasks):
                    assert task["driver"] == '"docker"' and task["config"] and task["kill_timeout"]
    except (AssertionError, KeyError, ValueError) as error:
        return repr(error)
    return ""


def by_consul(path: Path, directory: Path) -> str:
    """The fields of a service definition; Consul itself is in no registry that is asked here."""
    known = {
        "name",
        "id",
        "port",
        "address",
        "tags",
        "meta",
        "weights",
        "check",
        "checks",
        "enable_tag_override",
    }
    known_of = {
        "weights": {"passing", "warning"},
        "check": {"tcp", "http", "interval", "timeout", "id", "name"},
    }
    found = json.loads(path.read_text())
    strange = [key for key in found if key != "services"]
    for service in found.get("services", []):
        strange += [key for key in service if key not in known]
        strange += [
            word for key, words in known_of.items() for word in service.get(key, ()) if word not in words
        ]
        if not isinstance(service.get("port"), int) or not {"tcp", "http"} & set(service.get("check", ())):
            strange.append(str(service))
    return "" if found.get("services") and not strange else f"strange: {strange}"


COMPOSE = takes("check-jsonschema", "--builtin-schema", "vendor.compose-spec")
KUBERNETES = takes("kubernetes-validate", "--strict")
FILES: list[Any] = [
    ("docker-compose.yml", "stop_grace_period", COMPOSE),
    ("conf/compose/compose.yaml", "stop_grace_period", COMPOSE),
    ("conf/swarm/stack.yml", "endpoint_mode", COMPOSE),
    ("conf/kubernetes/balancer.yaml", "terminationGracePeriodSeconds", KUBERNETES),
    ("conf/kubernetes/resizers.yaml", "terminationGracePeriodSeconds", KUBERNETES),
    ("conf/nomad/balancer.nomad.hcl", "driver", by_nomad),
    ("conf/consul/services.json", "interval", by_consul),
    ("conf/bird/bird.conf", "router id", takes("bird", "-p", "-c")),
    ("conf/keepalived/keepalived.conf", "virtual_router_id", by_keepalived),
    ("conf/balancer.service", "ExecStart", by_systemd),
    ("conf/balancer.socket", "ListenStream", by_systemd),
    ("conf/resizer@.service", "ExecStart", by_systemd),
    ("conf/resizer@.socket", "ListenStream", by_systemd),
    ("conf/logrotate/prefork-balancer", "delaycompress", by_logrotate),
    ("conf/completion/_balancerctl", "()", takes("zsh", "-n")),
    ("conf/completion/balancerctl.fish", "'", takes("fish", "--no-execute")),
    ("conf/completion/balancerctl.bash", "()", takes("bash", "-n")),
]


@pytest.mark.parametrize(("name", "word", "complaints"), FILES, ids=[each[0] for each in FILES])
def test_a_file_is_taken_and_a_slip_in_it_is_not(
    name: str, word: str, complaints: Callable[[Path, Path], str], tmp_path: Path
) -> None:
    path, text = tmp_path / Path(name).name, (ROOT / name).read_text()
    assert word in text
    path.write_text(text)
    assert complaints(path, tmp_path) == ""
    path.write_text(text.replace(word, f"{word}x" if word.isidentifier() else "("))
    assert complaints(path, tmp_path) != ""


def test_every_file_for_another_program_is_checked_by_one() -> None:
    """The rest has a test of its own: ours and the examples by --check-config, HAProxy and nginx, the pages by groff, the
    rules and alerts by promtool, the dashboard by the metrics that it asks for."""
    others = {"examples", "grafana", "man", "prometheus"}
    found = {
        str(path.relative_to(ROOT))
        for path in CONF.rglob("*")
        if path.is_file() and path.suffix != ".ini" and path.relative_to(CONF).parts[0] not in others
    }
    assert found | {"docker-compose.yml"} == {name for name, _, _ in FILES}
