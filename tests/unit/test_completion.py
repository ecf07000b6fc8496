"""The completion scripts know every command and option, and complete them in a real shell."""

import shutil
import subprocess
from pathlib import Path

import pytest

from balancer.ctl_options import COMMANDS, FLAGS

DIRECTORY = Path(__file__).resolve().parents[2] / "conf" / "completion"
ASK = """
source "$1"
balancerctl() { printf 'BACKEND ADDRESS\\nweb-1 a\\nweb-2 b\\nother c\\n'; }
COMP_WORDS=(balancerctl "${@:2}"); COMP_CWORD=$(($# - 1)); _shtab_balancerctl; echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("file", ["balancerctl.bash", "_balancerctl", "balancerctl.fish"])
def test_every_command_and_option_is_in_the_script(file: str) -> None:
    text = (DIRECTORY / file).read_text()
    for word in (*COMMANDS, *(flag.name for flag in FLAGS)):
        assert word in text, f"{word}: run python -m scripts.completion"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "found"),
    [(["dr"], ["drain"]), (["drain", "we"], ["web-1", "web-2"]), (["sessions", "--ol"], ["--older"])],
)
def test_bash_completes(words: list[str], found: list[str]) -> None:
    script = DIRECTORY / "balancerctl.bash"
    run = subprocess.run(["bash", "-c", ASK, "-", script, *words], capture_output=True, text=True, timeout=30)
    assert run.stdout.split() == found, run.stderr
