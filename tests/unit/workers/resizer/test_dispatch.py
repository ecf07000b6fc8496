"""The two-class queue, read as stories of who waits and who is idle."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from workers.resizer.dispatch import Waiting, pairs


@dataclass(frozen=True)
class Ask:
    serial: int
    is_small: bool


@dataclass(frozen=True)
class Chair:
    name: str
    is_express: bool = False


@dataclass
class Hall:
    """Seats as a roster offers them."""

    cpus: list[Chair] = field(default_factory=list)
    express: list[Chair] = field(default_factory=list)
    open: dict[Chair, None] = field(default_factory=dict)
    wants_express: bool = True


CPU0, CPU1, EXPRESS = Chair("cpu 0"), Chair("cpu 1"), Chair("express", True)


def queue_of(words: str, limit: int = 100) -> Waiting[Ask]:
    """ "sbb": a small one, then two big ones."""
    waiting: Waiting[Ask] = Waiting(limit)
    for serial, letter in enumerate(words):
        assert waiting.put(Ask(serial, letter == "s"))
    return waiting


def story(
    words: str, cpus: list[Chair], express: list[Chair], behind: tuple[Chair, ...] = (), wants: bool = True
) -> dict[int, str]:
    """serial -> seat that got it."""
    hall = Hall(list(cpus), list(express), dict.fromkeys(behind), wants)
    return {ask.serial: chair.name for ask, chair in pairs(queue_of(words), hall)}


def test_a_small_one_takes_an_idle_cpu_rather_than_express() -> None:
    assert story("s", [CPU0], [EXPRESS]) == {0: "cpu 0"}


def test_a_small_one_takes_express_when_every_cpu_is_busy() -> None:
    assert story("bs", [], [EXPRESS]) == {1: "express"}


def test_a_big_one_never_takes_express() -> None:
    assert story("bbb", [], [EXPRESS]) == {}


def test_the_last_idle_cpu_goes_to_the_big_one_when_express_can_take_the_small() -> None:
    assert story("sb", [CPU0], [EXPRESS]) == {1: "cpu 0", 0: "express"}


def test_without_express_the_older_goes_first() -> None:
    assert story("sb", [CPU0], []) == {0: "cpu 0"}
    assert story("bs", [CPU0], []) == {0: "cpu 0"}


def test_everyone_idle_everyone_busy() -> None:
    assert story("bbss", [CPU0, CPU1], [EXPRESS]) == {0: "cpu 1", 1: "cpu 0", 2: "express"}


def test_big_ones_cannot_fill_the_queue() -> None:
    waiting: Waiting[Ask] = Waiting(8)
    assert [waiting.put(Ask(n, False)) for n in range(8)] == [True] * 6 + [False] * 2
    assert [waiting.put(Ask(n, True)) for n in range(8, 11)] == [True, True, False]
    assert len(waiting) == 8


def test_a_cancelled_one_is_gone_and_cancelled_once() -> None:
    waiting = queue_of("sbs")
    middle = Ask(1, False)
    assert waiting.cancel(middle) and not waiting.cancel(middle)
    assert [ask.serial for ask, _ in pairs(waiting, Hall([CPU0, CPU1]))] == [0, 2]


def test_a_queue_of_one_takes_either() -> None:
    for small in (True, False):
        waiting: Waiting[Ask] = Waiting(1)
        assert waiting.put(Ask(0, small)) and not waiting.put(Ask(1, small))


def test_express_that_is_not_wanted_gets_nothing() -> None:
    assert story("ss", [], [EXPRESS], wants=False) == {}
    assert story("ss", [CPU0], [EXPRESS], wants=False) == {0: "cpu 0"}


def test_behind_short_work_goes_what_nobody_can_begin_at_once() -> None:
    assert story("sss", [], [EXPRESS], (CPU0, CPU1)) == {0: "express", 1: "cpu 0", 2: "cpu 1"}
    assert story("sss", [CPU0], [EXPRESS], (CPU1,), wants=False) == {0: "cpu 0", 1: "cpu 1"}


def test_big_ones_go_behind_nothing_and_nothing_goes_before_their_turn() -> None:
    assert story("b", [], [], (CPU0,)) == {}
    assert story("ssb", [], [EXPRESS], (CPU0,)) == {0: "express"}


@given(st.text("sb", max_size=40), st.integers(0, 5), st.integers(0, 2), st.integers(0, 3), st.booleans())
def test_order_within_a_class_no_loss_no_double(
    words: str, cpus: int, express: int, busy: int, wants: bool
) -> None:
    waiting = queue_of(words)
    behind = [Chair(f"busy {n}") for n in range(busy)]
    hall = Hall(
        [Chair(f"cpu {n}") for n in range(cpus)],
        [Chair(f"express {n}", True) for n in range(express)],
        dict.fromkeys(behind),
        wants,
    )
    given_out = list(pairs(waiting, hall))
    chairs = [chair for _, chair in given_out]
    assert len(set(chairs)) == len(chairs)
    assert not any((chair.is_express or chair in behind) and not ask.is_small for ask, chair in given_out)
    for small in (True, False):
        serials = [ask.serial for ask, _ in given_out if ask.is_small is small]
        assert serials == sorted(serials)
        assert serials == [n for n, letter in enumerate(words) if (letter == "s") is small][: len(serials)]
    assert len(given_out) + len(waiting) == len(words)
    assert not hall.cpus or not len(waiting), "nobody idles while somebody waits whom he may serve"
    has_small = waiting.pop_small() is not None
    assert not (has_small and hall.express and wants)
    assert not (has_small and hall.open) or waiting.has_big
