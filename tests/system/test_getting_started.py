"""What README.md and docs/GETTING-STARTED.md say to type runs as it stands, in a fresh checkout: every command, in order,
in one shell. Only the ports differ, which are free here, and backends at 10.0.0.x, which are looked for on this machine.
`make test`, of which README tells too, is left out: it is what runs this."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lab.network import free_port
from scripts.lab.process import ROOT, clean_environment

README, PAGE = (ROOT / name for name in ("README.md", "docs/GETTING-STARTED.md"))
NAME = "prefork-balancer"  # of the checkout
OF_OTHERS = ("MAKE", "MFLAGS", "VIRTUAL_ENV", "PYTHON", "SAMPLES", "GIT_")  # set for whatever runs this test
NOT_TO_BE_HAD = (
    "No matching distribution",
    "Could not find a version",
    "Temporary failure",
    "Max retries exceeded",
    "ReadTimeoutError",
    "requires a different Python",
    "No module named venv",
    "ensurepip is not available",
)
TOLD = (
    "web-1 takes no new sessions (drain)",
    "route -> main: taken",
    "OK",
    "listener web maxconns",
)


def blocks(page: Path) -> list[str]:
    """The blocks of shell commands."""
    return re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)


def here(script: str) -> str:
    """On ports that are free, with backends on this machine."""
    for port in sorted(set(re.findall(r"\b(?:80\d\d|909\d)\b", script))):
        script = script.replace(port, str(free_port()))
    return script.replace("10.0.0.", "127.77.0.")


def run(script: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script in one shell, which ends its jobs and waits for them; they have its environment and nothing of ours."""
    env = {key: value for key, value in clean_environment().items() if not key.startswith(OF_OTHERS)}
    wrapped = f"set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{script}"
    return subprocess.run(
        ["bash", "-c", wrapped],
        cwd=directory,
        env=env | {"XDG_RUNTIME_DIR": str(directory)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )


def check(done: subprocess.CompletedProcess[str], *told: str) -> None:
    """Skips where the registry has nothing for us."""
    said = done.stdout + done.stderr
    if done.returncode and any(words in said for words in NOT_TO_BE_HAD):
        pytest.skip(f"pip cannot install here: {said.strip().splitlines()[-1]}")
    assert done.returncode == 0, said
    for words in told:
        assert words in said, (words, said)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files of this checkout as they are, for `git clone`."""
    if any(shutil.which(program) is None for program in ("git", "make", "curl")):
        pytest.skip("needs git, make and curl")
    origin = tmp_path_factory.mktemp("origin") / NAME
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True)
    if listed.returncode:  # no checkout: an unpacked archive, or that of another user
        ignored = shutil.ignore_patterns(
            ".venv", ".git", "*_cache", "*.egg-info", "__pycache__", "build", "samples"
        )
        shutil.copytree(ROOT, origin, ignore=ignored)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, origin / name)
    commit = "git init -q && git add -A && git -c user.name=a -c user.email=a@a.invalid commit -qm all"
    check(run(commit, origin))
    return origin


def test_readme_from_the_clone_to_a_balancer(repository: Path, tmp_path: Path) -> None:
    demo, service = blocks(README)[:2]
    assert "make demo" in demo and "balancerctl status" in service
    balancer, status = service.splitlines()
    script = demo.replace("<this repository>", str(repository))
    script += f"export PATH=$PWD/.venv/bin:$PATH\n{balancer} &\nbalancerctl wait ready --timeout 20s || true\n{status}\n"
    directory = tmp_path / ("a home with a long name" * 4)  # longer than the path of a socket may be
    directory.mkdir()
    check(
        run(here(script), directory, XDG_RUNTIME_DIR=str(tmp_path)),
        "Network Statistics",
        "contact-sheet",
        "BACKEND",
        "127.77.0.3:5432",
    )
    assert list((directory / NAME / "samples" / "resized").iterdir())


def test_every_command_of_getting_started_in_a_fresh_checkout(repository: Path, tmp_path: Path) -> None:
    clone = f"git clone -q {repository} && cd {NAME}\n"
    check(run(clone + here("\n".join(blocks(PAGE))), tmp_path), *TOLD)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_command_of_getting_started_with_the_programs_of_this_checkout(tmp_path: Path) -> None:
    """Where nothing can be installed, too."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, module in (("balancer", "balancer"), ("balancerctl", "balancer.ctl")):
        program = binaries / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m {module} "$@"\n')
        program.chmod(0o755)
    install, *commands = blocks(PAGE)
    assert "pip install" in install
    check(run(here("\n".join(commands)), tmp_path, PATH=f"{binaries}:{os.environ['PATH']}"), *TOLD)
