"""Three balancers and ten resizers, each on a machine of its own: they are found by name, come and go, and no client
notices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lab.process import LabProcess
from tests.system.fleet import CANNOT
from tests.system.services import program

OF_ITS_OWN = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]


def test_resizers_are_scaled_up_and_down_while_clients_send_pictures(tmp_path: Path) -> None:
    for name in ("ip", "nsenter"):
        program(name)
    command = [program("unshare"), *OF_ITS_OWN]
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no network namespace to be had: {tried.stderr.strip()}")
    with LabProcess([*command, sys.executable, "-m", "tests.system.fleet"], tmp_path / "log") as fleet:
        code = fleet.wait_exit(100)
        if code == CANNOT:
            pytest.skip(fleet.log().strip())
        assert code == 0, fleet.log()
        figures = json.loads(fleet.log().splitlines()[-1])
    print(figures)  # on two cores at rest new ones are used after 0.9 to 1.4 s
    assert figures["pictures"] >= 1000, "none of which failed, or the code were another one"
