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
    is_sampled,
    unpack,
)

KEY = SessionKey(4711, 123_456_789, 9)


def election(key: SessionKey = KEY, at_ms: int = 5, backends: int = 2) -> Election:
    seen = tuple(
        SeenBackend(1 << 31 | place, place, "up", place == 0, 1, 7 * place) for place in range(backends)
    )
    return Election(at_ms, key, 3, None if at_ms == 6 else 1, 40, seen)


@pytest.mark.parametrize("state", STATES)
def test_a_backend_fits_a_cell(state: str) -> None:
    for tried in (False, True):
        seen = SeenBackend((1 << 32) - 1, (1 << 18) - 1, state, tried, (1 << 16) - 1, (1 << 24) - 1)
        assert all(0 <= cell < 1 << 63 for cell in seen.pack()) and unpack(*seen.pack()) == seen
    crowd = SeenBackend(0, 1, state, False, 1 << 20, 1 << 30)
    assert unpack(*crowd.pack())[4:] == ((1 << 16) - 1, (1 << 24) - 1), "and not another field's bits"


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
    log.cells[8 + 2 * MOST_BACKENDS] = 0  # as its writer begins
    assert log.find(KEY) == []


def test_a_session_in_n_is_chosen_by_its_id_whatever_the_rhythm_of_the_clients() -> None:
    """Of one accept time, of one descriptor, and of clients that come once a second: about one in N each."""
    one_turn = [SessionKey(4711, 123_456_789, descriptor) for descriptor in range(5, 4005)]
    one_by_one = [SessionKey(4711, 123_456_789 + number * 1_000_000, 9) for number in range(4000)]
    for keys in (one_turn, one_by_one):
        for every in (1, 2, 10, 64, 100):
            chosen = sum(is_sampled(key, every) for key in keys)
            assert 0.5 * len(keys) / every < chosen <= (len(keys) if every == 1 else 1.6 * len(keys) / every)
