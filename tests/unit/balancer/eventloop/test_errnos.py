"""The classes of errno values, and that they stand in one place."""

import ast
import errno
from pathlib import Path

import balancer
from balancer.eventloop import errnos

TREES = [Path(balancer.__file__).parent, Path(balancer.__file__).parents[1] / "workers"]


def errno_names(node: ast.AST) -> int:
    return sum(
        isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "errno"
        for each in ast.walk(node)
    )


def test_no_other_module_lists_errno_values() -> None:
    own = Path(errnos.__file__)
    lists = [
        f"{path}:{node.lineno}"
        for tree in TREES
        for path in tree.rglob("*.py")
        if path != own
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Set | ast.Tuple | ast.List) and errno_names(node) > 1
    ]
    assert not lists


def test_a_wait_for_an_event_is_no_shortage() -> None:
    assert errnos.WOULD_BLOCK < errnos.TRANSIENT
    assert not errnos.WOULD_BLOCK & errnos.CAPACITY
    assert not errnos.STILLBORN & errnos.CAPACITY, "accept would go on where it has to rest"
    assert errno.EINVAL not in errnos.STILLBORN, "a listening socket that was shut down"
    assert not errnos.REFUSED & errnos.UNREACHABLE


def test_names() -> None:
    assert (errnos.name_of(errno.ECONNRESET), errnos.name_of(9999), errnos.name_of(None)) == (
        "ECONNRESET",
        "9999",
        "0",
    )
