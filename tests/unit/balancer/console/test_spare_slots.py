"""add and remove: which slot a backend gets, when the answer comes, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from balancer.console.questions import CommandRefused
from balancer.console.spare_slots import DEADLINE, SpareSlots, added_of
from balancer.options import Pool
from balancer.pool.backend import parse_upstream, with_indexes
from balancer.pool.board import (
    ADMIN_DRAIN,
    B_SESSIONS,
    W_ADDRESS,
    W_ADDRESSES,
    W_ADMIN_STATE,
    W_PORT,
    W_TENANT,
    W_TENANT_KEY,
    W_WEIGHT,
    Board,
)
from balancer.pool.spares import Added, added_to, with_spares
from balancer.pool.targets import pack_addresses, tenant_key
from balancer.pool.verdicts import VerdictWriter
from balancer.shm.layout import FIRST_LEASE, MASTER_RELOADS, MASTER_ROW
from tests.unit.balancer.pool.boards import make_board


class Clock:
    """The console's loop; what is called later runs in `advance`."""

    def __init__(self) -> None:
        self.now = 100.0
        self._later: list[Callable[[], object]] = []

    def call_later(self, seconds: float, act: Callable[[], object]) -> None:
        self._later.append(act)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due, self._later = self._later, []
        for act in due:
            act()


class SpareFixture:
    """A pool of one backend, one found by DNS and two spare slots."""

    def __init__(self) -> None:
        self.board, self.loop = make_board(), Clock()
        given = (
            parse_upstream("10.0.0.1:80 name=web"),
            *parse_upstream("dns:web.test:80 slots=1 name=d").expanded(),
        )
        pool = with_spares(Pool("main", given, spare_slots=2, index=0))
        names = [backend.identity for backend in pool.backends]
        self.pool = replace(
            pool, backends=with_indexes(pool.backends, {name: at for at, name in enumerate(names)})
        )
        self.board.assign_pool(0, range(4))
        writer = VerdictWriter(self.board, FIRST_LEASE)
        for backend in self.pool.backends:
            writer.restore(backend, 0.0)
        self.told: list[dict[str, object]] = []
        self.answers: list[dict[str, Any]] = []
        self.slots = SpareSlots(
            self.board, self.loop,  # type: ignore[arg-type]
            lambda backend, done, **about: {"text": done, "name": backend.identity, **about},
        )  # fmt: skip

    def tell(self, **about: object) -> None:
        self.told.append(about)

    def move_in(self, index: int, host: str, port: int = 80) -> None:
        """As the prober does; "" empties the slot."""
        words = [(W_ADDRESSES, int(bool(host)))]
        if host:
            words += [(W_TENANT_KEY, tenant_key(host, port)), (W_PORT, port)]
            words += list(enumerate(pack_addresses([host]), W_ADDRESS))
        self.board.write_verdict(index, words)

    def add(self, address: str, weight: str = "1") -> None:
        self.slots.add(self.pool, address, weight, self.tell, self.answers.append)

    def remove(self, text: str) -> None:
        self.slots.remove(self.pool, text, self.tell, self.answers.append)

    def wanted(self) -> list[str]:
        return [str(added_to(self.board, index) or "-") for index in (2, 3)]


@pytest.fixture
def fix() -> SpareFixture:
    return SpareFixture()


def test_the_answer_comes_when_the_prober_has_done_it(fix: SpareFixture) -> None:
    fix.add("10.0.0.9:80", "3")
    assert (fix.wanted(), added_to(fix.board, 2)) == (["10.0.0.9:80", "-"], Added("10.0.0.9", 80, 3))
    fix.loop.advance(0.1)
    assert fix.answers == []
    fix.move_in(2, "10.0.0.9")
    fix.loop.advance(0.1)
    [answer] = fix.answers
    assert (answer["name"], answer["address"]) == ("spare-1", "10.0.0.9:80")
    assert "weight 3 until the next reload" in answer["text"]
    fix.remove("spare-1")
    fix.loop.advance(0.1)
    assert len(fix.answers) == 1
    fix.move_in(2, "")
    fix.loop.advance(0.1)
    assert fix.answers[1]["text"] == "10.0.0.9:80 takes no new sessions (removed from pool main)"
    assert fix.wanted() == ["-", "-"]
    assert [each["after"] for each in fix.told] == ["10.0.0.9:80 weight 3", "empty"]


def test_what_comes_in_between_ends_the_wait_for_the_prober(fix: SpareFixture) -> None:
    def reload() -> None:
        fix.board.shared.rows.row(MASTER_ROW)[MASTER_RELOADS] += 1

    for between in (reload, lambda: fix.remove("10.0.0.9:80")):
        fix.answers.clear()
        fix.add("10.0.0.9:80")
        between()
        fix.loop.advance(0.1)
        [error] = [one["error"] for one in fix.answers if "error" in one]
        assert error == "spare-1: not done, a reload or another command has come in between; ask again"


def test_a_backend_is_removed_also_where_another_gets_its_slot_at_once(fix: SpareFixture) -> None:
    fix.add("10.0.0.9:80")
    fix.move_in(2, "10.0.0.9")
    fix.loop.advance(0.1)
    fix.remove("10.0.0.9:80")
    fix.add("10.0.0.8:80")
    assert fix.wanted()[0] == "10.0.0.8:80"
    fix.move_in(2, "10.0.0.8")
    fix.loop.advance(0.1)
    assert [one.get("error") for one in fix.answers] == [None] * 3
    fix.remove("10.0.0.8:80")
    fix.add("10.0.0.8:80")
    fix.loop.advance(0.1)
    assert "come in between" in fix.answers[-1]["error"] or "come in between" in fix.answers[-2]["error"]


def test_an_answer_without_a_prober_says_so(fix: SpareFixture) -> None:
    fix.add("10.0.0.9:80")
    fix.loop.advance(DEADLINE + 0.1)
    assert "not done within 3 s" in fix.answers[0]["error"] and fix.wanted()[0] == "10.0.0.9:80"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("web.test:80", "only a numeric address can be added by hand, names are not resolved"),
        ("unix:/run/web.sock", "put a unix socket into the configuration"),
        ("10.0.0.9:0", "port 0 cannot be dialled"),
        ("10.0.0.9", "port"),
        ("0.0.0.0:80", "no machine"),
        ("[::]:80", "no machine"),
        ("[fe80::1]:80", "no machine"),
        ("224.0.0.1:80", "no machine"),
        ("10.0.0.9:99999", "99999"),
    ],
)
def test_what_is_no_address_to_dial_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        added_of(text)


def test_an_address_has_one_spelling(fix: SpareFixture) -> None:
    assert added_of("[2001:DB8:0::9]:80") == Added("2001:db8::9", 80)
    assert added_of("[::ffff:10.0.0.9]:80") == Added("10.0.0.9", 80), "as the board holds it"
    fix.add("[2001:DB8:0::9]:80")
    with pytest.raises(CommandRefused, match="in pool main already, as spare-1"):
        fix.add("[2001:db8::9]:80")
    fix.remove("[2001:db8::0009]:80")
    assert fix.wanted() == ["-", "-"]


def test_refusals(fix: SpareFixture) -> None:
    fix.move_in(1, "10.0.0.5")
    for address, name in (("10.0.0.1:80", "web"), ("10.0.0.5:80", "d-1")):
        with pytest.raises(CommandRefused, match=f"in pool main already, as {name}"):
            fix.add(address)
    for text, why in (
        ("10.0.0.1:80", "web is from the configuration, and cannot be removed by hand: use drain or maint"),
        ("main/web", "web is from the configuration"),
        ("d-1", "d-1 is found by dns:web.test:80, and cannot be removed"),
        ("10.0.0.5:80", "d-1 is found by dns:web.test:80, and cannot be removed"),
        ("spare-1", "no backend of pool main was added as 'spare-1'"),
        ("10.0.0.9:80", "no backend of pool main was added as '10.0.0.9:80'"),
    ):
        with pytest.raises(CommandRefused, match=why):
            fix.remove(text)
    fix.add("10.0.0.8:80")
    fix.add("10.0.0.9:80")
    with pytest.raises(CommandRefused, match="none of its 2 spare slots left"):
        fix.add("10.0.0.7:80")
    assert fix.wanted() == ["10.0.0.8:80", "10.0.0.9:80"]


def test_a_backend_that_comes_back_has_its_slot_and_no_wish_of_before(fix: SpareFixture) -> None:
    fix.move_in(3, "10.0.0.9")
    fix.move_in(3, "")
    fix.board.set_admin_state(3, ADMIN_DRAIN)
    fix.board.set_weight(3, 0)
    fix.add("10.0.0.9:80")
    assert fix.wanted() == ["-", "10.0.0.9:80"]
    assert [fix.board.admin_word(3, word) for word in (W_ADMIN_STATE, W_WEIGHT)] == [0, 0]


@pytest.mark.parametrize("parity", [0, 1])
def test_another_takes_the_slot_whose_gauge_is_free(fix: SpareFixture, parity: int) -> None:
    """The sessions that a former backend still has are not counted as those of the next one."""
    fix.board.write_verdict(2, [(W_TENANT, parity)])
    gauge = Board.backend_at(2) + B_SESSIONS + (10 if not parity else 0)  # of the next tenant
    fix.board.shared.rows.row(FIRST_LEASE)[gauge] = 1
    fix.add("10.0.0.9:80")
    assert fix.wanted() == ["-", "10.0.0.9:80"]


def test_a_reload_frees_the_slots(fix: SpareFixture) -> None:
    fix.add("10.0.0.8:80")
    fix.board.shared.rows.row(MASTER_ROW)[MASTER_RELOADS] += 1
    assert fix.wanted() == ["-", "-"]
    fix.add("10.0.0.8:80")
    assert fix.wanted() == ["10.0.0.8:80", "-"]
