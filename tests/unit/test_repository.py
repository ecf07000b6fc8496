"""The repository as a whole: its files are there, no source uses a forbidden construct, container files fit together."""

import ast
import configparser
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from balancer.configuration import parse as parse_balancer

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for package in ("balancer", "workers") for path in sorted((ROOT / package).rglob("*.py"))]
# The only reader of the wall clock: a log line carries the time of day, and nothing else depends on it.
WALL_CLOCK = (ROOT / "balancer" / "eventloop" / "log.py", ROOT / "balancer/edge/certificates.py")
NEVER_IMPORTED = {"pickle", "marshal", "shelve", "dill"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}


def test_the_usual_files_are_there() -> None:
    wanted = [
        *(
            "Makefile",
            "README.md",
            "LICENSE",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "pyproject.toml",
            ".gitignore",
        ),
        *(".dockerignore", "Dockerfile", "docker-compose.yml", ".ci/run"),
        *("scripts/demo.py", "scripts/bench.py", "scripts/samples.py"),
    ]
    assert [name for name in wanted if not (ROOT / name).is_file()] == []
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def forbidden(tree: ast.AST, may_read_wall_clock: bool) -> Iterator[str]:
    """Each forbidden construct, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
            yield from (f"{node.lineno}: import {name}" for name in names if name in NEVER_IMPORTED)
        elif isinstance(node, ast.ImportFrom):
            if (node.module or "").split(".")[0] in NEVER_IMPORTED:
                yield f"{node.lineno}: from {node.module} import"
            locks = [
                alias.name
                for alias in node.names
                if node.module == "multiprocessing" and "Lock" in alias.name
            ]
            yield from (f"{node.lineno}: multiprocessing.{lock}" for lock in locks)
        elif isinstance(node, ast.Call):
            yield from forbidden_call(node, may_read_wall_clock)
        elif isinstance(node, ast.ExceptHandler) and swallows(node):
            yield f"{node.lineno}: swallows every exception"


def forbidden_call(node: ast.Call, may_read_wall_clock: bool) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called in NEVER_CALLED:
        yield f"{node.lineno}: {called}()"
    if called == "time.time" and not may_read_wall_clock:
        yield f"{node.lineno}: time.time() outside the log and the certificates"
    if called.endswith(".sendall"):
        yield f"{node.lineno}: sendall blocks, or loses the number of bytes sent"
    if re.fullmatch(r"(multiprocessing|mp)\.R?Lock", called):
        yield f"{node.lineno}: a lock that a killed process never releases"
    if any(word.arg == "shell" and ast.unparse(word.value) == "True" for word in node.keywords):
        yield f"{node.lineno}: shell=True"


def swallows(handler: ast.ExceptHandler) -> bool:
    everything = handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")
    return everything and all(isinstance(line, ast.Pass) for line in handler.body)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from marshal import loads",
        "eval('1')",
        "subprocess.run('ls', shell=True)",
        "time.time()",
        "sock.sendall(b'')",
        "from multiprocessing import Lock",
        "multiprocessing.Lock()",
        "try:\n    f()\nexcept Exception:\n    pass",
        "try:\n    f()\nexcept:\n    pass",
    ],
)
def test_the_search_for_forbidden_constructs_finds_each(source: str) -> None:
    assert list(forbidden(ast.parse(source), False))


def test_no_forbidden_construct_in_the_sources() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{what}"
        for path in SOURCES
        for what in forbidden(ast.parse(path.read_text()), path in WALL_CLOCK)
    ]
    assert not found, "\n".join(found)


def private_uses(tree: ast.AST) -> Iterator[str]:
    """Private names of a module or of another object, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value) not in ("self", "cls"):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.lineno}: {alias.name}" for alias in node.names if is_private(alias.name))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in STANDARD_LIBRARY


STANDARD_LIBRARY = ("_exit", "_accept")  # os._exit; socket._accept, which returns a descriptor


@pytest.mark.parametrize("source", ["relay._queue", "from balancer.worker import _Worker", "f(x)._y.z"])
def test_the_search_for_private_names_finds_each(source: str) -> None:
    assert list(private_uses(ast.parse(source)))


def test_tests_use_no_private_names() -> None:
    """A test hands in what it wants to see; what it reaches into cannot be changed any more."""
    found = [
        f"{path.relative_to(ROOT)}:{what}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for what in private_uses(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


def test_nothing_is_left_to_do_in_a_comment() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    files = [*SOURCES, *(ROOT / "scripts").rglob("*.py")]
    assert not [str(path.relative_to(ROOT)) for path in files if marks.search(path.read_text())]


def test_the_console_scripts_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"]) == {"balancer", "balancerctl", "resizer", "resize-client"}
    for target in project["scripts"].values():
        module, _, name = target.partition(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, target


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"([0-9.]+)(ms|s|m)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def drain_timeout(command: list[str]) -> float:
    flat = " ".join(command).replace("=", " ")
    return seconds(re.search(r"--drain-timeout (\S+)", flat)[1])  # type: ignore[index]


def test_compose_has_the_whole_system_and_stops_it_gracefully() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert set(services) == {"proxy-server", "backend-1", "backend-2", "backend-3", "client-1"}
    for name, service in services.items():
        assert service["container_name"] == name
        if name == "client-1":
            continue
        assert service["healthcheck"]["test"][0] == "CMD"
        assert seconds(service["stop_grace_period"]) > drain_timeout(service["command"])
    upstreams = [
        word.split("=", 1)[1] for word in services["proxy-server"]["command"] if word.startswith("--upstream")
    ]
    assert upstreams == [f"backend-{n}:9000" for n in (1, 2, 3)]
    assert services["client-1"]["depends_on"]["proxy-server"] == {"condition": "service_healthy"}


def test_the_image_does_not_run_as_root_and_copies_what_exists() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users and users[-1] not in ("root", "0")
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source


def test_the_makefile_has_every_target_that_the_readme_names() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test", "lint", "bench", "bench-images", "soak", "clean", "versus", "help"} <= targets
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    spoken = {name for page in pages for name in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert spoken <= targets


def test_a_page_shows_the_file_with_several_pools() -> None:
    path = "conf/balancer-pools.ini"
    page = (ROOT / "docs" / "CONFIGURATION.md").read_text()
    block = page.partition(f"<!-- {path} -->")[2].partition(f"<!-- /{path} -->")[0]
    assert block == f"\n```ini\n{(ROOT / path).read_text()}```\n"


DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    """In backticks from the root, in links from the document itself."""
    page = ROOT / document
    text = page.read_text()
    named = [
        ROOT / name for name in re.findall(r"`((?:balancer|workers|scripts|tests|conf|docs)/[\w./-]*)`", text)
    ]
    named += [page.parent / link for link in re.findall(r"\]\(([\w./-]+?)(?:#[\w-]*)?\)", text)]
    pictures = [page.parent / source for source in re.findall(r'<img [^>]*src="([^"]+)"', text)]
    assert [str(path) for path in named + pictures if not path.exists()] == []
    assert all(path.stat().st_size < 150_000 for path in pictures)
    assert text.count("<img ") == len(re.findall(r'<img [^>]*alt="[^"]{20,}"', text)), (
        "words for who sees no picture"
    )


def test_the_commands_of_the_readme_are_valid() -> None:
    """Those of the balancer are parsed; docs/GETTING-STARTED.md is run by a system test."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    commands = [words[1:] for words in lines if words[0] == "balancer"]
    assert commands
    for words in commands:
        assert parse_balancer(words, {}).pools[0].backends


def test_the_readme_is_read_in_five_minutes_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {"docs/PROTOCOL.md"} <= set(
        re.findall(r"\]\(([\w./-]+)\)", text)
    )


def test_every_ini_file_can_be_read() -> None:
    for path in sorted((ROOT / "conf").glob("*.ini")):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(path)
        assert parser.sections(), path
