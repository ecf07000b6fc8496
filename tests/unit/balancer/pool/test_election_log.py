"""Records of elections: packed and found again, the last thousand of each row, and never a torn one."""

import pytest

from balancer.pool.election_log import (
    KEPT,
    MOST_BACKENDS,
    STATES,
    Election,
    ElectionLog,
    SeenBackend,
    SessionKey,
    unpack,
)

KEY = SessionKey(4711, 123_456_789, 9)


def election(key: SessionKey = KEY, at_ms: int = 5, backends: int = 2) -> Election:
    seen = tuple(SeenBackend(place, "up", place == 0, 1, 7 * place) for place in range(backends))
    return Election(at_ms, key, 3, None if at_ms == 6 else 1, 40, seen)


@pytest.mark.parametrize("state", STATES)
def test_a_backend_fits_a_cell(state: str) -> None:
    for tried in (False, True):
        seen = SeenBackend((1 << 18) - 1, state, tried, (1 << 16) - 1, (1 << 24) - 1)
        assert 0 <= seen.pack() < 1 << 63 and unpack(seen.pack()) == seen
    crowd = SeenBackend(1, state, False, 1 << 20, 1 << 30)
    assert unpack(crowd.pack())[3:] == ((1 << 16) - 1, (1 << 24) - 1), "and not another field's bits"


def test_the_elections_of_a_session_are_found_in_their_order() -> None:
    log = ElectionLog(4)
    log.append(2, election(at_ms=7))
    log.append(2, election(SessionKey(4711, 123_456_789, 10)))
    log.append(2, election(SessionKey(4712, 123_456_789, 9)))
    log.append(2, election(at_ms=6))
    assert log.find(KEY) == [election(at_ms=6), election(at_ms=7)]
    assert log.find(SessionKey(4711, 1, 9)) == []
    assert len(log.find(SessionKey(4712, 123_456_789, 9))) == 1


def test_a_record_holds_so_many_backends() -> None:
    log = ElectionLog(1)
    log.append(0, election(backends=MOST_BACKENDS + 9))
    [found] = log.find(KEY)
    assert len(found.backends) == MOST_BACKENDS and found.of == 40


def test_a_ring_keeps_the_last_ones() -> None:
    log = ElectionLog(2)
    for number in range(2 * KEPT):
        log.append(1, election(SessionKey(1, number, 1)))
    assert not log.find(SessionKey(1, KEPT, 1)), "the oldest may be overwritten while it is read"
    assert log.find(SessionKey(1, KEPT + 2, 1)) and log.find(SessionKey(1, 2 * KEPT - 1, 1))


def test_what_is_being_written_is_left_out() -> None:
    log = ElectionLog(1)
    log.append(0, election())
    log.cells[24] = 0  # as its writer begins
    assert log.find(KEY) == []
