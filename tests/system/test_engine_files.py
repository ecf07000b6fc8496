"""The files for other programs, read by those programs."""

import subprocess
from pathlib import Path

import pytest

from tests.system.services import program

CONF = Path(__file__).resolve().parents[2] / "conf"


def test_bird_takes_its_file() -> None:
    subprocess.run([program("bird"), "-p", "-c", str(CONF / "bird" / "bird.conf")], check=True, timeout=60)


def test_keepalived_takes_its_file(tmp_path: Path) -> None:
    """It writes what it does not understand; its exit code says nothing, it ends its own group."""
    log = tmp_path / "log"
    command = [program("keepalived"), f"--config-test={log}", "-f"]
    path = CONF / "keepalived" / "keepalived.conf"
    wrong = tmp_path / "wrong.conf"
    wrong.write_text(path.read_text().replace("virtual_router_id", "virtual_rooter_id"))
    for file, is_right in ((path, True), (wrong, False)):
        log.unlink(missing_ok=True)
        subprocess.run([*command, str(file)], timeout=60, start_new_session=True, check=False)
        complaints = log.read_text() if log.exists() else ""
        assert ("Unknown keyword" not in complaints) == is_right, complaints


@pytest.mark.parametrize("name", ["balancer.yaml", "resizers.yaml"])
def test_kubernetes_takes_its_files(name: str) -> None:
    command = [program("kubernetes-validate"), "--strict", str(CONF / "kubernetes" / name)]
    subprocess.run(command, check=True, timeout=120)
