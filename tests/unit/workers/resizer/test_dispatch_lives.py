"""Whatever happens, and in whatever order: one hand for each slot, one answer for each picture, work for who may work."""

import pytest

from tests.unit.workers.resizer.town import Town
from workers.resizer.crew import SLOW_SECONDS
from workers.resizer.seats import State


def check(town: Town) -> None:
    """What must hold at any time."""
    desk, crew, roster, small = town.desk, town.desk.crew, town.desk.crew.roster, town.desk.waiting._small
    work = [(task, seat) for seat in crew.seats for task in (seat.task, seat.behind) if task is not None]
    waiting = [*small, *desk.waiting._big]
    held = [task.slot for task in [*(task for task, _ in work), *waiting]] + town.sending + town.hoarded
    assert sorted(held + desk.shelf._free) == [*range(town.settings.slots)], "each in one hand"
    assert town.tasks.keys() <= {*(task for task, _ in work), *waiting}, "nobody is forgotten"
    for one in town.processes:
        if one.order is not None and one.life >= 0 and not crew.has_suspects:
            assert (one.order.slot, one.pid) in [(task.slot, seat.pid) for task, seat in work]
    cpus = [seat for seat in crew.seats if not seat.is_express]
    idle = sorted(id(seat) for seat in crew.seats if seat.state is State.IDLE)
    assert sorted(map(id, [*roster.cpus, *roster.express])) == idle
    assert {*roster.open} == {seat for seat in cpus if seat.is_short and seat.behind is None}
    assert roster.workers == sum(seat.state is not State.ABSENT for seat in cpus)
    assert roster.short == sum(seat.is_short for seat in cpus) and (not roster.short or crew._is_looking)
    assert not (roster.cpus and waiting) and not (roster.express and roster.wants_express and small)
    assert not (roster.open and small and not desk.waiting._big), "nobody waits for nothing"


@pytest.mark.parametrize("seed", range(40))
def test_every_picture_is_answered_once_and_every_slot_comes_back(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    town = Town(monkeypatch, seed)
    for _ in range(1000):
        town.live()
        check(town)
    for turn in range(200):
        town.calm(turn)
        check(town)
    town.pass_time(2 * SLOW_SECONDS)
    crew = town.desk.crew
    assert not town.tasks and {seat.state for seat in crew.seats} == {State.IDLE}
    assert len(town.desk.shelf) == town.settings.slots and not town.desk.queued and not crew._is_looking
    town.leave()
