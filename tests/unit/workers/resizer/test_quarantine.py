"""Pictures that crash processes: counted in a row, refused, forgotten."""

from workers.resizer.quarantine import (
    QUARANTINE_CRASHES,
    QUARANTINE_SECONDS,
    REMEMBERED,
    Quarantine,
    fingerprint_of,
)


def test_a_picture_is_quarantined_after_so_many_crashes_and_forgiven_when_it_was_resized() -> None:
    quarantine = Quarantine()
    for number in range(QUARANTINE_CRASHES):
        assert not quarantine.is_quarantined(7)
        quarantine.record(7, float(number))
    quarantine.record(8, 9.0)
    assert quarantine.is_quarantined(7) and not quarantine.is_quarantined(8)
    quarantine.forgive(7)
    assert not quarantine.is_quarantined(7) and len(quarantine.crashes) == 1


def test_a_crash_is_forgotten_some_time_after_the_last_one() -> None:
    quarantine = Quarantine()
    for now, fingerprint in ((0.0, 7), (0.4, 8), (0.8, 7)):
        quarantine.record(fingerprint, now * QUARANTINE_SECONDS)
    quarantine.expire(1.2 * QUARANTINE_SECONDS)
    assert (quarantine.crashes_of(7), quarantine.crashes_of(8)) == (2, 1)
    quarantine.expire(1.5 * QUARANTINE_SECONDS)
    assert (quarantine.crashes_of(7), quarantine.crashes_of(8)) == (2, 0)
    quarantine.expire(1.9 * QUARANTINE_SECONDS)
    assert not quarantine.crashes


def test_it_remembers_a_bounded_number_of_pictures() -> None:
    quarantine = Quarantine()
    for fingerprint in range(REMEMBERED + 1):
        quarantine.record(fingerprint, 1.0)
    assert len(quarantine.crashes) == REMEMBERED and not quarantine.crashes_of(0)


def test_fingerprints_differ_by_content_and_by_length() -> None:
    pictures = [b"", b"a", b"b", b"aa", bytes(100), bytes(101)]
    assert len({fingerprint_of(memoryview(picture)) for picture in pictures}) == len(pictures)
