"""What a package holds: every file of conf/ has a place, the licence and the images say what installers read."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def shipped() -> list[Path]:
    patterns = chain.from_iterable(PYPROJECT["tool"]["setuptools"]["data-files"].values())
    return [path for pattern in patterns for path in ROOT.glob(pattern)]


def test_every_file_of_conf_is_shipped_once() -> None:
    wanted = sorted(path for path in (ROOT / "conf").rglob("*") if path.is_file())
    assert sorted(shipped()) == wanted


def test_each_pattern_of_shipped_files_finds_one() -> None:
    patterns = chain.from_iterable(PYPROJECT["tool"]["setuptools"]["data-files"].values())
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


def test_the_licence_is_an_expression_of_spdx_and_no_classifier() -> None:
    project = PYPROJECT["project"]
    assert project["license"] == "MIT"
    assert "MIT License" in (ROOT / "LICENSE").read_text()
    assert not [each for each in project["classifiers"] if each.startswith("License ::")]


@pytest.mark.parametrize("target", ["balancer", "resizer"])
def test_each_image_tells_its_port_its_health_and_its_command(target: str) -> None:
    stage = re.search(rf"^FROM programs AS {target}\n((?:.+\n)+)", DOCKERFILE, re.MULTILINE)
    assert stage is not None
    for word in ("EXPOSE ", "HEALTHCHECK ", "CMD "):
        assert re.search(rf"^{word}", stage[1], re.MULTILINE), word


def test_what_install_puts_uninstall_takes_away() -> None:
    programs = PYPROJECT["project"]["scripts"]
    assert re.search(r"^PROGRAMS +:= (.+)$", MAKEFILE, re.MULTILINE)[1].split() == list(programs)  # type: ignore[index]
    removal = MAKEFILE.split("\nuninstall:")[1].split("\n\n")[0]
    for place, patterns in PYPROJECT["tool"]["setuptools"]["data-files"].items():
        own = place.startswith("share/prefork-balancer")
        for pattern in patterns:
            assert own or place.split("/", 1)[1] in removal, f"{pattern} in {place} stays"


def test_installed_documents_find_what_they_link_to() -> None:
    """`make install` puts the README, what it links to beside it, and conf/ where the pages look for it."""
    recipe = MAKEFILE.split("\ninstall:")[1].split("\n\n")[0]
    [copied] = re.findall(r"cp -R (README.md .*) \$\(DESTDIR\)", recipe)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = {
        (page.parent / link).resolve().relative_to(ROOT).parts[0]
        for page in pages
        for link in re.findall(r"\]\((?!\w+:)([\w./-]+)", page.read_text())
    }
    assert links <= {*copied.split(), "conf"}
    assert "share/doc/prefork-balancer/conf\n" in recipe + "\n"


def test_a_source_distribution_holds_the_files_that_a_test_asks_for() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text()
    named = set(manifest.split("\n")[0].split()[1:]) | set(
        re.findall(r"^graft (\S+)", manifest, re.MULTILINE)
    )
    root = {path.name for path in ROOT.iterdir() if path.is_file() and path.suffix in (".md", ".yml")}
    own = {"README.md", "LICENSE", "pyproject.toml", "MANIFEST.in", ".git"}
    assert root | {"Makefile", "Dockerfile", ".dockerignore", ".gitignore", ".ci/run"} <= named | own
