"""What needs no process to be tried; the layers themselves are tried by tests/system/test_sandbox.py."""

from dataclasses import dataclass

import pytest

from workers import sandbox as shared
from workers.resizer import counters
from workers.resizer.cpu import LAYERS
from workers.sandbox import OPTIONAL, Confined, LayerMissing, Sandbox, enter


@dataclass(frozen=True)
class SomeProcess:
    master_pid: int = 1


CHILD = SomeProcess()


def test_every_layer_has_a_bit_of_its_own_and_the_filter_comes_last() -> None:
    assert tuple(LAYERS) == counters.LAYERS == ("own_row", *shared.LAYERS)
    assert {*OPTIONAL} < {*shared.LAYERS}
    assert tuple(LAYERS)[-1] == "seccomp", "it would forbid to enter the others"
    for name in LAYERS:
        assert counters.layers_of(counters.bits_of([name])) == [name]


def test_a_layer_that_is_missing_is_named_and_the_others_are_entered() -> None:
    def fail_in_libc(_child: Confined) -> None:
        raise PermissionError(1, "Operation not permitted")

    def fail_without_library(_child: Confined) -> None:
        raise LayerMissing("no such library")

    layers = {"first": fail_in_libc, "second": lambda _child: None, "third": fail_without_library}
    sandbox = enter(CHILD, layers)
    assert sandbox.layers == ["second"] and str(sandbox) == "second"
    assert sandbox.missing == {"first": "Operation not permitted", "third": "no such library"}


def test_a_defect_of_a_layer_is_no_missing_layer() -> None:
    with pytest.raises(ZeroDivisionError):
        enter(CHILD, {"first": lambda _child: 1 / 0 and None})


def test_without_a_layer_it_is_off() -> None:
    assert str(enter(CHILD, {})) == "off" and counters.bits_of(Sandbox().layers) == 0
