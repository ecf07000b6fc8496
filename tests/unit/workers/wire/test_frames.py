"""Frames in any segments; lengths that are wrong."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.wire.frames import HEADER, MAGIC, FrameError, FrameReader, frame, header, parse_header

PAYLOADS = [b"a", b"bc" * 700, b"\x00", bytes(range(256)) * 40]


def test_split_at_every_byte() -> None:
    stream = b"".join(map(frame, PAYLOADS[:3]))
    for cut in range(len(stream) + 1):
        reader = FrameReader()
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == PAYLOADS[:3]
        assert reader.is_between_frames()


def test_one_byte_at_a_time() -> None:
    reader = FrameReader()
    taken = [payload for byte in b"".join(map(frame, PAYLOADS)) for payload in reader.feed(bytes([byte]))]
    assert taken == PAYLOADS


def test_two_and_a_half_frames_in_a_segment() -> None:
    stream = frame(b"first") + frame(b"second") + frame(b"0123456789") + frame(b"last")
    middle = len(frame(b"first") + frame(b"second")) + HEADER + 5
    reader = FrameReader()
    assert reader.feed(stream[:middle]) == [b"first", b"second"]
    assert not reader.is_between_frames()
    assert reader.wanted == 5
    assert reader.feed(stream[middle:]) == [b"0123456789", b"last"]
    assert reader.is_between_frames()
    assert reader.wanted == HEADER


@pytest.mark.parametrize("length", [0, 1025, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_a_length_outside_the_limits_is_refused_without_allocating(length: int) -> None:
    announced = header(length)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError):
            FrameReader(max_frame=1024).feed(announced)
        with pytest.raises(FrameError):
            parse_header(announced, 1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


def test_a_frame_of_the_limit_is_accepted() -> None:
    assert FrameReader(max_frame=1024).feed(frame(b"x" * 1024)) == [b"x" * 1024]


def test_an_announced_length_takes_no_memory_before_it_arrives() -> None:
    reader = FrameReader(max_frame=2**30)
    tracemalloc.start()
    try:
        assert reader.feed(header(2**30) + b"x" * 1000) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


@pytest.mark.parametrize("at", range(len(MAGIC)))
def test_a_wrong_byte_in_the_magic_is_found_at_once(at: int) -> None:
    wrong = bytearray(MAGIC[: at + 1])
    wrong[at] ^= 0x40
    with pytest.raises(FrameError, match="begins with"):
        FrameReader().feed(wrong)


def test_a_wrong_magic_after_a_good_frame() -> None:
    reader = FrameReader()
    reader.feed(frame(b"good"))
    with pytest.raises(FrameError):
        reader.feed(b"GET / HTTP/1.1\r\n\r\n")


def test_payloads_before_an_error_are_kept() -> None:
    with pytest.raises(FrameError) as caught:
        FrameReader().feed(frame(b"one") + frame(b"two") + b"noise")
    assert caught.value.before == (b"one", b"two")


def test_a_short_header_cannot_be_parsed() -> None:
    with pytest.raises(FrameError):
        parse_header(MAGIC)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.lists(st.integers(1, 400), max_size=30))
def test_any_split_gives_the_same_payloads(payloads: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(map(frame, payloads))
    reader, taken, at = FrameReader(), [], 0
    for size in sizes:
        taken += reader.feed(memoryview(stream)[at : at + size])
        at += size
    taken += reader.feed(stream[at:])
    assert taken == payloads
    assert reader.is_between_frames()


@given(st.binary(max_size=80))
def test_noise_is_an_error_or_incomplete(noise: bytes) -> None:
    try:
        taken = FrameReader(64).feed(noise)
    except FrameError:
        return
    assert taken == [] or noise.startswith(MAGIC)
