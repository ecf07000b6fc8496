"""An installed wheel: its programs find what was shipped with them."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from balancer.sample_files import SAMPLES
from scripts.lab.process import ROOT, clean_environment

NOT_TO_BE_HAD = ("No matching distribution", "Could not find a version", "Temporary failure")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a wheel of this checkout is installed. Building it takes a setuptools from the registry."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"  # a build leaves things beside its source
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run(*pip, "wheel", "--no-deps", "--wheel-dir", str(directory), str(source))
    if built.returncode and any(word in built.stderr for word in NOT_TO_BE_HAD):
        pytest.skip("the build backend cannot be had here")
    assert built.returncode == 0, built.stderr
    [wheel] = directory.glob("*.whl")
    # Without --ignore-installed pip removes the installation of the environment that it runs in.
    before = installed()
    where = ("--ignore-installed", "--prefix", str(directory / "prefix"))
    done = run(*pip, "install", "--no-deps", *where, str(wheel))
    assert done.returncode == 0, done.stderr
    assert installed() == before
    return directory / "prefix"


def installed() -> list[str]:
    """The programs of the environment that the tests run in."""
    return sorted(path.name for path in Path(sysconfig.get_path("scripts")).iterdir())


def run(*command: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = clean_environment(environment)
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=300)


def test_print_sample_finds_the_files_of_the_wheel(prefix: Path) -> None:
    packages = sysconfig.get_path("purelib", vars={"base": str(prefix)})
    where = "import balancer; print(balancer.__file__)"
    environment = {"PYTHONPATH": packages}
    assert run(sys.executable, "-c", where, environment=environment).stdout.startswith(str(prefix))
    for which, names in SAMPLES.items():
        words = (sys.executable, "-m", "balancer", "--print-sample", which)
        done = run(*words, environment=environment)
        assert done.returncode == 0, done.stderr
        for name in names:
            assert (ROOT / "conf" / name).read_text().strip() in done.stdout
