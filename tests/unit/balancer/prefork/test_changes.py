"""What a reload changes, what it cannot change, and the text that reports it."""

import json
from dataclasses import replace

from balancer.config.units import parse_address
from balancer.prefork.bind import Bind
from balancer.prefork.changes import PlanChanges, compare, obstacle, report
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
    assert compare(make(80), make(80)) == PlanChanges()
    assert str(PlanChanges()) == "nothing changed"


def test_addresses_counts_and_summaries_are_compared() -> None:
    old = replace(make(80, 81), summary=(("backend a", "x:1"), ("backend b", "x:2")))
    new = replace(make(80, 82, workers=3), summary=(("backend a", "x:9"), ("backend c", "x:3")))
    difference = compare(old, new)
    assert difference.added == ("bind 127.0.0.1:82 worker backlog=1024 mode=600", "backend c x:3")
    assert difference.removed == ("bind 127.0.0.1:81", "backend b")
    assert difference.changed == ("workers 2 -> 3", "backend a x:1 -> x:9")
    assert str(difference) == "2 added, 2 removed, 2 changed"


def test_a_renamed_listener_is_a_change_of_its_address() -> None:
    def named(*names: str) -> Plan:
        binds = tuple(Bind("worker", parse_address("127.0.0.1:0"), name=name) for name in names)
        return replace(make(), binds=binds)

    assert compare(named("web"), named("www")).changed == (
        "bind 127.0.0.1:0 worker web backlog=1024 mode=600 -> worker www backlog=1024 mode=600",
    )
    assert compare(named("web"), named("web", "mail")).added == (
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
