"""The scripts that measure, as somebody calls them who does not know their choices."""

import re
import subprocess
import sys

import pytest

from scripts.lab.process import ROOT

OPTIONS = {
    "bench": ("--work", "--peers"),
    "bench_framed": ("--what",),
    "bench_images": ("--pipelines",),
    "bench_servers": ("--peers", "--what"),
    "bench_service": ("--designs", "--what"),
    "bench_sizes": ("--formats",),
    "versus": ("--rows", "--peers"),
}
NEEDED = {"bench_sizes": ("--input=.",)}


def called(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"scripts.{script}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", OPTIONS)
def test_a_name_that_does_not_exist_is_refused_with_those_that_do_and_help_lists_them(script: str) -> None:
    text = re.sub(r"-\n *", "-", called(script, "--help").stdout)  # wrapped at a hyphen
    shown = " ".join(text.split())
    for option in OPTIONS[script]:
        refused = called(script, f"{option}=nonsense", *NEEDED.get(script, ()))
        assert refused.returncode == 2
        told = refused.stderr.splitlines()[-1]
        assert re.search(r"unknown.* nonsense; (there are:|works are) ", told), told
        there_are = re.sub(
            r"(there are:|works are|peers are) | \([^()]*\)", "", told.partition(" nonsense; ")[2]
        )
        names = re.split(r"[,;] ", there_are)
        assert len(names) > 1
        assert all(name in shown for name in names), (names, shown)


@pytest.mark.parametrize("script", [name for name in OPTIONS if name not in ("bench_sizes", "versus")])
def test_no_rounds_measure_nothing_and_are_refused(script: str) -> None:
    for number in ("0", "-1", "x"):
        refused = called(script, f"--rounds={number}")
        assert refused.returncode == 2
        assert "write 1 or more" in refused.stderr
