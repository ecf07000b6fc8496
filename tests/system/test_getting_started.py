"""docs/GETTING-STARTED.md runs as it stands: every command, in order, in one shell, on ports that are free here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lab.network import free_port
from scripts.lab.process import ROOT, clean_environment

PAGE = ROOT / "docs" / "GETTING-STARTED.md"
PORTS = ("8001", "8002", "9090", "9091", "9092", "9093")


def commands() -> list[str]:
    """The blocks of shell commands; the first one installs what the tests have."""
    return re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)[1:]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_of_the_page_succeeds(tmp_path: Path) -> None:
    script = "\n".join(commands())
    for port in PORTS:
        assert port in script
        script = script.replace(port, str(free_port()))
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, module in (("balancer", "balancer"), ("balancerctl", "balancer.ctl")):
        program = binaries / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m {module} "$@"\n')
        program.chmod(0o755)
    env = clean_environment() | {"PATH": f"{binaries}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(tmp_path)}
    # The jobs are ended by the shell that has started them, and waited for.
    wrapped = f"set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n{script}"
    run = subprocess.run(
        ["bash", "-c", wrapped], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for told in (
        "web-1 takes no new sessions (drain)",
        "route -> main: taken",
        "OK",
        "listener web maxconns",
    ):
        assert told in run.stdout + run.stderr, (told, run.stdout)
