"""The state handed over to an upgrade: everything that must last, nothing else, and no nonsense restored."""

import json
from dataclasses import replace

import pytest

from balancer.pool.backend import Backend, parse_upstream, with_indexes
from balancer.pool.board import (
    ADMIN_MAINT,
    AGENT_OUT,
    DOWN,
    MOST_ADDRESSES,
    NAME_ANSWERED,
    UP,
    W_ADMIN_SINCE_MS,
    W_ADMIN_STATE,
    W_AGENT,
    W_AGENT_MAXCONN,
    W_AGENT_MODE,
    W_AGENT_WEIGHT,
    W_DNS_NAME,
    W_EJECTIONS,
    W_NAME,
    W_PENALTIES,
    W_PENALTY_MS,
    W_RAMP,
    W_SINCE_MS,
    W_SUBJECT,
    W_TENANT_KEY,
    W_VERDICT,
    Board,
)
from balancer.pool.handover_state import export_state, restore_state
from balancer.pool.serving import state_of
from balancer.pool.targets import NameAddresses, addresses_of
from balancer.pool.verdicts import VerdictWriter
from balancer.shm.layout import FIRST_LEASE
from tests.unit.balancer.pool.boards import make_board


def board() -> Board:
    return make_board(1000)


def pool(*names: str) -> tuple[Backend, ...]:
    parsed = [parse_upstream(f"10.0.0.{place}:80 name={name}") for place, name in enumerate(names, 1)]
    return with_indexes(parsed, {name: place for place, name in enumerate(names)})


def test_verdict_admin_state_and_address_last_whatever_block_they_get() -> None:
    old, new = board(), board()
    a, b, c = pool("a", "b", "c")
    old.write_verdict(0, [(W_VERDICT, DOWN), (W_SINCE_MS, 9_000), (W_SUBJECT, 77)])
    old.write_verdict(1, [(W_VERDICT, UP)])
    old.set_admin_state(1, ADMIN_MAINT, 7_000)
    old.set_weight(2, 0, 8_000)
    c2, a2, b2, d2 = pool("c", "a", "b", "d")
    restore_state(new, (a2, b2, c2, d2), export_state(old, (a, b, c)))
    assert [new.word(a2.index, column) for column in (W_VERDICT, W_SINCE_MS, W_SUBJECT)] == [DOWN, 9_000, 77]
    assert new.word(b2.index, W_ADMIN_STATE) == ADMIN_MAINT
    assert (new.weight_of(c2.index, 5), new.weight_of(a2.index, 5)) == (0, 5)
    assert [new.word(one.index, W_ADMIN_SINCE_MS) for one in (a2, b2, c2)] == [0, 7_000, 8_000]
    assert new.word(d2.index, W_VERDICT) == 0
    assert new.versions(0)[0] % 2 == 0


def test_what_a_version_without_ages_and_with_one_address_wrote_is_read() -> None:
    new = board()
    [a] = pool("a")
    restore_state(new, [a], json.dumps({"a": [[0, 2, 0, 0, 0, 0], ADMIN_MAINT, 0]}))
    assert (new.word(0, W_ADMIN_STATE), new.word(0, W_ADMIN_SINCE_MS)) == (ADMIN_MAINT, 0)


@pytest.mark.parametrize(
    "column",
    [W_AGENT, W_AGENT_WEIGHT, W_AGENT_MAXCONN, W_AGENT_MODE, W_RAMP, W_PENALTIES, W_PENALTY_MS, W_EJECTIONS],
)
@pytest.mark.parametrize("text", ["10.0.0.1:80 name=a", "dns:web.test:80 slots=1 name=web"])
def test_what_only_one_layer_says_lasts(column: int, text: str) -> None:
    old, new = board(), board()
    [one] = parse_upstream(text).expanded()
    one, moved = replace(one, index=3), replace(one, index=5)
    for each in (3, 4):
        VerdictWriter(old, FIRST_LEASE).restore(replace(one, index=each), 0.0)
    assert not export_state(old, [one])
    old.write_verdict(3, [(column, 2)])
    exported = export_state(old, [one])
    restore_state(new, [moved], exported)
    assert new.word(5, column) == 2
    assert VerdictWriter(new, FIRST_LEASE).restore(moved, 9.0) == (True, 0.0) and new.word(5, column) == 2
    former = json.loads(exported)
    former[one.identity].pop()  # what a version before wrote
    restore_state(newer := board(), [moved], json.dumps(former))
    assert newer.word(5, column) == 0


def test_what_an_agent_has_taken_out_stays_out_for_the_successor() -> None:
    old, new = board(), board()
    [a] = pool("a")
    VerdictWriter(old, FIRST_LEASE).restore(a, 0.0)
    VerdictWriter(old, FIRST_LEASE).write_agent(0, (AGENT_OUT, 0, 0, 1))
    restore_state(new, [a], export_state(old, [a]))
    assert state_of(old, a) == state_of(new, a) == "agent"


@pytest.mark.parametrize("count", range(1, MOST_ADDRESSES + 1))
def test_the_addresses_of_a_name_last_and_which_is_in_use(count: int) -> None:
    old, new = board(), board()
    (web,) = with_indexes([parse_upstream("web:80")], {"web:80": 3})
    known = NameAddresses(("::1", *(f"10.0.0.{number}" for number in range(1, count))), count // 2)
    writer = VerdictWriter(old, FIRST_LEASE)
    writer.restore(web, 0.0)
    writer.write_addresses(3, known)
    moved = replace(web, index=5)
    restore_state(new, [moved], export_state(old, [web]))
    assert addresses_of(new, moved) == known
    assert new.word(5, W_NAME) == NAME_ANSWERED


def test_a_slot_knows_its_tenant_and_the_name_that_has_answered() -> None:
    old, new = board(), board()
    [slot] = parse_upstream("dns:web.test:80 slots=1 name=web").expanded()
    slot, moved = replace(slot, index=3), replace(slot, index=5)
    VerdictWriter(old, FIRST_LEASE).restore(slot, 0.0)
    VerdictWriter(old, FIRST_LEASE).write_addresses(3, NameAddresses(("10.0.0.1",)))
    for column, value in ((W_TENANT_KEY, 7), (W_DNS_NAME, 9)):
        old.note(3, column, value)
    text = export_state(old, [slot])
    restore_state(new, [moved], text)
    assert (new.word(5, W_TENANT_KEY), new.word(5, W_DNS_NAME)) == (7, 9)
    former = json.loads(text)
    former[slot.identity][4].pop()  # as a version before wrote it
    restore_state(other := board(), [moved], json.dumps(former))
    assert (other.word(5, W_TENANT_KEY), other.word(5, W_DNS_NAME)) == (7, 0)


def test_healthy_backends_are_left_out() -> None:
    old = board()
    every = pool(*(f"backend-{number}" for number in range(200)))
    for backend in every:
        old.write_verdict(backend.index, [(W_VERDICT, UP)])
    assert export_state(old, every) == ""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[1]", "7", '{"a": 1}', '{"a": [[1], 0, 0]}', '{"a": [["x"], 0, 0]}',
     json.dumps({"a": [[0, 9, 0, 0, 0], 0, 0]}), json.dumps({"a": [[0, 2, 0, 0, 0], 9, 0]}),
     json.dumps({"a": [[0, 2, 0, 0, 0], 0, -1]}), json.dumps({"a": [[0, 2, 0, 0, 1], 0, 0]}),
     json.dumps({"a": [[0, 2, 0, 0, 9, *[0] * 18], 0, 0]})],
)  # fmt: skip
def test_a_text_that_is_no_handover_state_changes_nothing(text: str) -> None:
    new = board()
    [a] = pool("a")
    restore_state(new, [a], text)
    assert (new.word(0, W_VERDICT), new.word(0, W_ADMIN_STATE), new.versions(0)) == (0, 0, (0, 0))


def test_a_backend_is_found_by_its_pool_and_name() -> None:
    """The text of a version without pools has bare names: they are those of the pool main."""
    old, new = board(), board()
    main, api = (
        pool("a", "b"),
        tuple(replace(backend, pool="api", index=backend.index + 2) for backend in pool("a", "b")),
    )
    old.set_admin_state(main[0].index, ADMIN_MAINT)
    old.set_weight(api[1].index, 9)
    text = export_state(old, main + api)
    assert set(json.loads(text)) == {"a", "api/b"}
    restore_state(new, api[::-1] + main[::-1], text)
    states = [
        (new.word(backend.index, W_ADMIN_STATE), new.weight_of(backend.index, 1)) for backend in main + api
    ]
    assert states == [(ADMIN_MAINT, 1), (0, 1), (0, 1), (0, 9)]
