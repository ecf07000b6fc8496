"""The house keeps its floors: who may import whom, and how big a module and a function may grow.

FLOORS is the only place that says so. A module stands on the floor of the longest name that
matches it; it imports only from lower floors, or from siblings on its own floor as long as no circle arises.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("balancer", "workers")
MODULE_LINES = 500
FUNCTION_LINES = 50

GROUND, PROCESSES, OPTIONS, CHOICE, TRAFFIC, ROLE, SERVICE, ENTRY = range(8)
FLOORS = {
    "balancer": GROUND,  # __init__: the version and the picture
    "balancer.eventloop": GROUND,
    "balancer.config": GROUND,
    "balancer.shm": GROUND,
    "balancer.prefork": PROCESSES,
    "balancer.pool.backend": PROCESSES,
    "balancer.options": OPTIONS,
    "balancer.pool": CHOICE,
    "balancer.relay": TRAFFIC,
    "balancer.discovery": TRAFFIC,
    "balancer.checks": TRAFFIC,
    "balancer.worker": ROLE,
    "balancer.prober": ROLE,
    "balancer.console": ROLE,
    "balancer.service": SERVICE,
    "balancer.__main__": ENTRY,
    "balancer.ctl": ENTRY,
    "workers": GROUND,
    "workers.option_tables": PROCESSES,
    "workers.options": OPTIONS,
    "workers.wire": GROUND,
    "workers.imaging": GROUND,
    "workers.resizer": ROLE,
    "workers.resizer.service": SERVICE,
    "workers.resizer.__main__": ENTRY,
    "workers.client": ROLE,
    "workers.client.__main__": ENTRY,
}
# Roots a module may import from besides its own; the two products never know each other.
MACHINE = ("balancer.eventloop", "balancer.config", "balancer.shm", "balancer.prefork")
MAY_REACH = {"balancer": ("balancer",), "workers": ("workers", *MACHINE)}
PILLOW_ROOM = "workers.imaging"


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


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_for_types_only(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_nodes(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import below `node`, inside functions too; `if TYPE_CHECKING` binds nobody at run time."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and is_for_types_only(child.test):
            for other in child.orelse:
                yield from import_nodes(other)
        else:
            yield from import_nodes(child)


def imports(name: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(module, line) of each import, `from package import module` taken as the module."""
    is_package = MODULES[name].name == "__init__.py"
    for node in import_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
            continue
        base = node.module or ""
        if node.level:
            parts = name.split(".")
            up = parts[: len(parts) - node.level + is_package]
            base = ".".join(up + ([node.module] if node.module else []))
        for alias in node.names:
            whole = f"{base}.{alias.name}"
            yield (whole if whole in MODULES else base), node.lineno


def edges() -> Iterator[tuple[str, str, int]]:
    for name, tree in TREES.items():
        for target, line in imports(name, tree):
            if any(within(target, package) for package in PACKAGES):
                yield name, target, line


def test_floors_name_only_what_exists_or_is_a_package() -> None:
    assert MODULES, "no module found: the test looks in the wrong place"
    unknown = [name for name in MODULES if name.split(".")[0] not in FLOORS]
    assert not unknown


def test_a_module_imports_only_from_lower_floors() -> None:
    climbs = {
        f"{name}:{line} (floor {floor(name)}) imports {target} (floor {floor(target)})"
        for name, target, line in edges()
        if floor(target) > floor(name) or (floor(target) == floor(name) and not kin(name, target))
    }
    assert not climbs, "\n".join(climbs)


def kin(name: str, target: str) -> bool:
    """Neighbours on one floor: modules of one room, or of a room everybody stands on."""
    rooms = [".".join(module.split(".")[:2]) for module in (name, target)]
    return rooms[0] == rooms[1] or rooms[1] in ("balancer.prefork", "balancer", "workers")


def test_the_products_do_not_know_each_other() -> None:
    strays = []
    for name, target, line in edges():
        allowed = MAY_REACH[name.split(".")[0]]
        if any(within(name, room) for room in MACHINE):
            allowed = MACHINE
        if not any(within(target, root) for root in allowed) and target not in ("balancer", "workers"):
            strays.append(f"{name}:{line} imports {target}")
    assert not strays, "\n".join(strays)


def test_no_circle_of_imports() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for name, target, _ in edges():
        if target in MODULES and target != name:
            graph[name].add(target)
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "circle: " + " -> ".join((*path[path.index(name) :], name))
        if name in done:
            return
        for target in sorted(graph[name]):
            walk(target, (*path, name))
        done.add(name)

    for name in graph:
        walk(name, ())


def test_only_the_imaging_room_imports_pillow() -> None:
    strays = [
        f"{name}:{line}"
        for name, tree in TREES.items()
        for target, line in imports(name, tree)
        if target.split(".")[0] in ("PIL", "cykooz", "cykooz_resizer") and not within(name, PILLOW_ROOM)
    ]
    assert not strays


def test_modules_stay_small() -> None:
    big = {
        name: lines
        for name, path in MODULES.items()
        if (lines := len(path.read_text().splitlines())) > MODULE_LINES
    }
    assert not big


def test_functions_stay_small() -> None:
    big = {
        f"{name}:{node.lineno} {node.name}": lines
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    }
    assert not big


def test_every_module_says_what_it_is_for() -> None:
    silent = [name for name, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    assert not silent
