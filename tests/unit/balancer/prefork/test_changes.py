"""What a reload changes, what it cannot change, and the text that reports it."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from balancer.config.units import parse_address
from balancer.eventloop.log_format import LogSettings
from balancer.prefork.bind import Bind
from balancer.prefork.changes import PlanChanges, compare, is_same, obstacle, report
from balancer.prefork.child import Child
from balancer.prefork.plan import Plan, Role
from balancer.shm.notice import NOTICE_BYTES


def run(_child: Child) -> int:
    return 0


def make(*ports: int, workers: int = 2) -> Plan:
    return Plan(
        title="toy",
        roles=(Role("worker", workers, run), Role("prober", 1, run), Role("cpu", 2, run, channel=True)),
        binds=tuple(Bind("worker", parse_address(f"127.0.0.1:{port}")) for port in ports),
        columns=32,
    )


def test_nothing_changed_is_said_so() -> None:
    assert compare(make(80), make(80), 2) == PlanChanges()
    assert str(PlanChanges()) == "nothing changed"


def test_processes_that_were_scaled_are_a_change() -> None:
    assert compare(make(80), make(80), 5).changed == ("workers 5 -> 2",)


MADE = replace(make(80), made_from="options")
OTHER: dict[str, object] = {
    "title": "x",
    "roles": (*MADE.roles, Role("more", 1, run)),
    "binds": make(81).binds,
    "columns": 33,
    "totals": (range(1),),
    "drain_timeout": 1.0,
    "reload_timeout": 0.0,
    "config_path": "x",
    "log_path": "x",
    "log": LogSettings(1),
    "pidfile": "x",
    "user": "x",
    "group": "x",
    "debug_dir": "x",
    "steering": False,
    "most": 1,
    "summary": (("a", "b"),),
    "made_from": "other options",
}
NOT_COMPARED = {"notes": ("x",), "refresh": str, "handover_state": lambda: ""}


@pytest.mark.parametrize("name", [one.name for one in fields(Plan)])
def test_every_value_of_a_plan_counts(name: str) -> None:
    """Fails where a reload compares the summary only: what the summary does not name would never be in force."""
    changes: dict[str, Any] = {name: {**OTHER, **NOT_COMPARED}[name]}
    assert is_same(MADE, replace(MADE, **changes)) == (name in NOT_COMPARED)


@pytest.mark.parametrize("name", [one.name for one in fields(Role)])
def test_every_value_of_a_role_counts_but_its_function(name: str) -> None:
    other = {"name": "x", "count": 3, "run": lambda _child: 1, "hang_after": 9.0, "channel": True}
    changes: dict[str, Any] = {name: other[name]}
    roles = (replace(MADE.roles[0], **changes), *MADE.roles[1:])
    assert is_same(MADE, replace(MADE, roles=roles)) == (name == "run")


def test_what_cannot_be_compared_counts_as_changed() -> None:
    assert not is_same(make(80), make(80))
    assert not is_same(replace(MADE, made_from=object()), replace(MADE, made_from=object()))


def test_addresses_counts_and_summaries_are_compared() -> None:
    old = replace(make(80, 81), summary=(("backend a", "x:1"), ("backend b", "x:2")))
    new = replace(make(80, 82, workers=3), summary=(("backend a", "x:9"), ("backend c", "x:3")))
    difference = compare(old, new, 2)
    assert difference.added == ("bind 127.0.0.1:82 worker backlog=1024 mode=600", "backend c x:3")
    assert difference.removed == ("bind 127.0.0.1:81", "backend b")
    assert difference.changed == ("workers 2 -> 3", "backend a x:1 -> x:9")
    assert str(difference) == "2 added, 2 removed, 2 changed"


def test_a_renamed_listener_is_a_change_of_its_address() -> None:
    def named(*names: str) -> Plan:
        binds = tuple(Bind("worker", parse_address("127.0.0.1:0"), name=name) for name in names)
        return replace(make(), binds=binds)

    assert compare(named("web"), named("www"), 2).changed == (
        "bind 127.0.0.1:0 worker web backlog=1024 mode=600 -> worker www backlog=1024 mode=600",
    )
    assert compare(named("web"), named("web", "mail"), 2).added == (
        "bind 127.0.0.1:0 #2 worker mail backlog=1024 mode=600",
    )


def test_what_needs_a_restart_is_named() -> None:
    assert obstacle(make(80), make(81, workers=9)) == ""
    assert "32 columns and the new configuration needs 64" in obstacle(
        make(80), replace(make(80), columns=64)
    )
    assert "user changes from none to www" in obstacle(make(80), replace(make(80), user="www"))
    assert "log changes from none to x.log" in obstacle(make(80), replace(make(80), log_path="x.log"))
    assert "would become worker" in obstacle(make(80), replace(make(80), roles=(Role("worker", 1, run),)))


def test_the_notice_of_any_reload_is_whole_json() -> None:
    names = tuple("ü" * 300 for _ in range(40))
    for text, difference in (
        ("ü" * 5000, PlanChanges()),
        ("x", PlanChanges(names, names, names)),
        ("x", PlanChanges()),
    ):
        found = report({"serial": 1}, text, difference)
        assert len(found.encode()) <= NOTICE_BYTES
        assert json.loads(found)["serial"] == 1 and json.loads(found)["text"]
    assert json.loads(report({}, "x", PlanChanges(added=("y" * 90,))))["added"] == ["y" * 90]
