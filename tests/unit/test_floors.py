"""Structure of the source tree: who imports whom, how large a module and a function are, which names are taken.

FLOORS is the only place that says which module may import which. A module stands on the floor of the longest entry that
matches its name. It imports from lower floors, and from modules of its own package on its own floor as long as no circle
arises. An import under `TYPE_CHECKING` counts as any other. ORDER is the same for the modules inside one package.
"""

import ast
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("balancer", "workers", "scripts")
MODULE_LINES = 500
FUNCTION_LINES = 50

GROUND, PROCESSES, OPTIONS, PAIRS, CHOICE, TRAFFIC, VERDICTS, PROBING, ROLE, SERVICE, ENTRY, LAB, SCRIPT = (
    range(13)
)
FLOORS = {
    "balancer": GROUND,  # __init__: the version
    "balancer.eventloop": GROUND,
    "balancer.config": GROUND,
    "balancer.shm": GROUND,
    "balancer.web": GROUND,
    "balancer.prefork": PROCESSES,
    "balancer.pool.backend": PROCESSES,
    "balancer.admin_socket": PROCESSES,
    "balancer.options": OPTIONS,
    "balancer.option_values": PROCESSES,
    "balancer.sample_files": PROCESSES,
    "balancer.edge": PROCESSES,
    "balancer.configuration": CHOICE,
    "balancer.combinations": PAIRS,
    "balancer.pool": CHOICE,
    "balancer.preflight": TRAFFIC,
    "balancer.relay": TRAFFIC,
    "balancer.relay.framed.frame_format": PROCESSES,
    "balancer.discovery": TRAFFIC,
    "balancer.discovery.servers": PROCESSES,
    "balancer.checks": TRAFFIC,
    "balancer.checks.check": PROCESSES,
    "balancer.checks.options": PROCESSES,
    "balancer.worker": ROLE,
    "balancer.prober": ROLE,
    "balancer.announcer": VERDICTS,
    "balancer.backend_names": PROBING,
    "balancer.backend_sets": PROBING,
    "balancer.console": ROLE,
    "balancer.service": SERVICE,
    "balancer.__main__": ENTRY,
    "balancer.ctl": ENTRY,
    "balancer.ctl_options": OPTIONS,
    "balancer.ctl_rich": SERVICE,
    "balancer.ctl_top": SERVICE,
    "workers": GROUND,
    "workers.wire": GROUND,
    "workers.imaging": GROUND,
    "workers.sandbox": OPTIONS,
    "workers.resizer": ROLE,
    "workers.resizer.options": OPTIONS,
    "workers.resizer.service": SERVICE,
    "workers.resizer.__main__": ENTRY,
    "workers.client": ROLE,
    "workers.client.options": OPTIONS,
    "workers.client.__main__": ENTRY,
    "scripts": SCRIPT,
    "scripts.lab": LAB,
}
# Inside a package, lowest first: a module imports from its own line and from those before it.
ORDER = {
    "balancer.prefork": (
        ("bind", "children", "heap", "limits", "notify", "options", "slots", "steering", "titles"),
        ("inherited", "pidfile", "preflight"),
        ("sockets",),
        ("child", "socket_files", "upgrade"),
        ("plan",),
        ("changes", "channels"),
        ("fork",),
        ("boot", "processes"),
        ("retirement", "slot_table"),
        ("generations",),
        ("master",),
    ),
    "balancer.checks": (
        ("check", "own_listeners", "talk"),
        ("agent", "options", "probe", "protocols"),
        ("race",),
        ("monitored",),
        ("agent_polls",),
    ),
    "balancer.pool": (
        ("backend", "blocks", "choice", "early_ends", "election_log", "health", "load_table"),
        ("hashing",),
        ("policies",),
        ("board",),
        ("handover_state", "kept_history", "loads", "shared_limit", "targets"),
        ("spares",),
        ("serving",),
        ("election", "verdicts"),
        ("request_election",),
    ),
    "balancer.relay": (
        ("activity", "ends", "framed.frame_format", "half", "peers", "pipes", "routes", "sockets"),
        ("framed", "framed.transfer", "stream"),
        (
            "account",
            "context",
            "early_read",
            "pauses",
            "queue",
            "sources",
            "tls",
            "tls.handshakes",
            "tls.stream",
        ),
        ("flow", "framed.requests", "framed.stream_transfer"),
        ("framed.connection", "splicing"),
        ("framed.connection_pool", "framed.stream_connection", "lane"),
        ("framed.client", "framed.stream_pool"),
        ("framed.stream_client",),
        ("session",),
        ("session_line",),
        ("election_recorder", "failures"),
        ("closer", "deny", "downed", "proxy_header", "source_limits", "timeouts"),
        ("preread", "tls.session"),
        ("postgres", "tls.handshake"),
        ("phases",),
        ("accept",),
        ("assembly",),
    ),
    "workers.resizer": (
        ("arena", "counters", "frame_assembler", "options", "orders", "protocol", "quarantine", "rates"),
        ("footprint", "transfer"),
        ("cost", "front_connection", "http_api", "metrics", "status_page", "task"),
        ("fair_queue", "holders", "idle_set", "replies", "retry"),
        ("dispatch", "worker_pool"),
        ("scheduler",),
        ("frame_protocol", "http_protocol"),
        ("cpu", "front"),
        ("service",),
        ("__main__",),
    ),
}
# Roots a module may import from. The two products never know each other; scripts may know both.
MACHINE = ("balancer.eventloop", "balancer.config", "balancer.shm", "balancer.web", "balancer.prefork")
MAY_REACH = {"balancer": ("balancer",), "workers": ("workers", *MACHINE), "scripts": PACKAGES}
USE_PILLOW = ("workers.imaging", "scripts")


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in MODULES.items()}


def floor(name: str) -> int:
    while name not in FLOORS:
        name = name.rpartition(".")[0]
    return FLOORS[name]


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """Each imported module, inside functions too; `from package import module` is an import of the module."""
    is_package = MODULES[name].name == "__init__.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield known(name, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                up = parts[: len(parts) - node.level + is_package]
                base = ".".join(up + ([node.module] if node.module else []))
            for alias in node.names:
                whole = known(name, f"{base}.{alias.name}")
                yield whole if whole in MODULES else known(name, base)


def known(name: str, target: str) -> str:
    """A script started by its path finds its neighbours without the package's name."""
    return f"scripts.{target}" if within(name, "scripts") and f"scripts.{target}" in MODULES else target


@cache
def edges() -> list[tuple[str, str]]:
    """(module, module it imports), both of this tree."""
    return [
        (name, target)
        for name, tree in TREES.items()
        for target in imports(name, tree)
        if within(target, *PACKAGES, "tests") and target != name
    ]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# --- the checks: each yields one sentence per offence


def climbing_imports() -> Iterator[str]:
    for name, target in edges():
        if within(target, "tests"):
            continue
        if floor(target) > floor(name) or (floor(target) == floor(name) and not are_kin(name, target)):
            yield f"{name} (floor {floor(name)}) imports {target} (floor {floor(target)})"


def are_kin(name: str, target: str) -> bool:
    """Whether two modules on one floor may import each other: of one package, or the target is common ground."""
    rooms = [".".join(module.split(".")[:2]) for module in (name, target)]
    if within(name, "scripts") or rooms[0] == rooms[1]:
        return True
    return within(target, "balancer.prefork") or target in ("balancer", "workers")


def imports_against_the_order() -> Iterator[str]:
    for package, lines in ORDER.items():
        place = {f"{package}.{module}": number for number, line in enumerate(lines) for module in line}
        for name in MODULES:
            if within(name, package) and name not in (package, *place):
                yield f"{name} has no place in ORDER"
        for name, target in edges():
            if name in place and target in place and place[target] > place[name]:
                yield f"{name} imports {target} against ORDER"


def foreign_imports() -> Iterator[str]:
    for name, target in edges():
        allowed = MACHINE if within(name, *MACHINE) else MAY_REACH[name.split(".")[0]]
        if not within(target, *allowed) and target not in ("balancer", "workers"):
            yield f"{name} imports {target}, which is none of {', '.join(allowed)}"


def circles() -> Iterator[str]:
    """Each import that lies on a circle."""
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, target in edges():
        if target in MODULES:
            graph[name].add(target)
    reached = {name: reachable(name, graph) for name in graph}
    for name, targets in graph.items():
        for target in targets:
            if name in reached[target]:
                yield f"{name} imports {target} in a circle"


def reachable(name: str, graph: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    left = [name]
    while left:
        new = graph[left.pop()] - found
        found |= new
        left += new
    return found


def pillow_outside() -> Iterator[str]:
    for name, tree in TREES.items():
        for target in imports(name, tree):
            if target.split(".")[0] in ("PIL", "cykooz", "cykooz_resizer") and not within(name, *USE_PILLOW):
                yield f"{name} imports {target}"


def large_modules() -> Iterator[str]:
    for name, path in MODULES.items():
        if (lines := len(path.read_text().splitlines())) > MODULE_LINES:
            yield f"{name} has {lines} lines"


def large_functions() -> Iterator[str]:
    for name, tree in TREES.items():
        for node in functions(tree):
            if (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES:
                yield f"{name}.{node.name} has {lines} lines"


def names_taken_twice() -> Iterator[str]:
    """A class name stands for one thing in the whole tree."""
    counts = Counter(
        node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)
    )
    for name, count in counts.items():
        if count > 1:
            yield f"class {name} is defined more than once"


def stubs() -> Iterator[str]:
    """A method that only raises NotImplementedError is a sign of a class cut in two."""
    for name, tree in TREES.items():
        for node in functions(tree):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if [ast.unparse(line).partition("(")[0] for line in body] == ["raise NotImplementedError"]:
                yield f"{name}.{node.name} is a stub"


def modules_without_docstring() -> Iterator[str]:
    for name, tree in TREES.items():
        if tree.body and not ast.get_docstring(tree):
            yield f"{name} does not say what it is for"


CHECKS = (
    climbing_imports,
    imports_against_the_order,
    foreign_imports,
    circles,
    pillow_outside,
    large_modules,
    large_functions,
    names_taken_twice,
    stubs,
    modules_without_docstring,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_no(check: Callable[[], Iterator[str]]) -> None:
    found = sorted(set(check()))
    assert not found, "\n".join(found)


def test_every_module_has_a_floor_and_every_entry_a_module() -> None:
    assert MODULES, "no module found: the test looks in the wrong place"
    assert not [name for name in MODULES if name.split(".")[0] not in FLOORS]
    placed = {f"{package}.{module}" for package, lines in ORDER.items() for line in lines for module in line}
    assert not sorted(({*FLOORS, *ORDER} | placed) - MODULES.keys())


ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()


def packages() -> set[str]:
    """Those with a subject of their own: one level below `balancer` and `workers`."""
    return {
        str(path.parent.relative_to(ROOT)) + "/"
        for root in ("balancer", "workers")
        for path in (ROOT / root).glob("*/__init__.py")
    }


def test_the_page_of_the_architecture_explains_each_package() -> None:
    assert set(re.findall(r"^\| `((?:balancer|workers)/\w+/)` \|", ARCHITECTURE, re.MULTILINE)) == packages()


def test_the_drawing_of_the_architecture_has_each_package_on_its_floor() -> None:
    drawing = ARCHITECTURE.split("## Floors")[1].split("```")[1]
    levels = []
    for line in drawing.strip().splitlines():
        modules = []
        for column in re.split(r"   +", line)[1:]:
            root = column.split("/")[0]
            for word in re.findall(r"[\w/]+(?:\.py|/)", column):
                path = word if word.startswith((f"{root}/", "workers/")) else f"{root}/{word}"
                assert (ROOT / path).exists(), path
                modules.append(path.removesuffix(".py").rstrip("/").replace("/", "."))
        levels.append({name: floor(name) for name in modules})
    for above, below in itertools.pairwise(levels):
        assert min(above.values()) >= max(below.values()), (above, below)
    drawn = {name.replace(".", "/") + "/" for level in levels for name in level}
    assert packages() <= drawn
