"""Frames of one connection, in pieces of any size."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.resizer.intake import SMALL, SPARE, Intake, Step
from workers.wire.frames import HEADER, MAGIC, FrameError, frame

LIMIT = 100_000


def run(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The payloads of a stream that arrives cut at these places; big ones land in a place of their own."""
    intake, found = Intake(LIMIT), []
    edges = sorted({0, *(cut % (len(stream) + 1) for cut in cuts), len(stream)})
    for begin, end in pairwise(edges):
        piece = memoryview(stream)[begin:end]
        while len(piece):
            room = intake.room()
            if room is None:
                intake.take(piece)
                piece = piece[len(piece) :]
            else:
                count = min(len(room), len(piece))
                room[:count] = piece[:count]
                intake.fill(count)
                piece = piece[count:]
            while (step := intake.step()) is not Step.READ:
                if step is Step.HEAD:
                    assert intake.length > SMALL
                    intake.provide(memoryview(bytearray(intake.length + 50)))
                elif step is Step.SMALL:
                    found.append(intake.small())
                else:
                    found.append(bytes(intake.full()))
    assert intake.is_between_frames()
    return found


@given(
    st.lists(st.sampled_from([1, 200, SMALL - 1, SMALL, SMALL + 1, 20_000]), max_size=5),
    st.lists(st.integers(0, 10**6), max_size=20),
)
def test_payloads_are_whole_however_they_arrive(lengths: list[int], cuts: list[int]) -> None:
    payloads = [bytes([number]) * length for number, length in enumerate(lengths)]
    assert run(b"".join(map(frame, payloads)), cuts) == payloads


def test_every_split_of_two_frames() -> None:
    payloads = [b"x" * 30, b"y" * (SMALL + 10)]
    stream = b"".join(map(frame, payloads))
    for cut in [*range(100), *range(100, len(stream), 37)]:
        assert run(stream, [cut]) == payloads


@pytest.mark.parametrize("length", [0, LIMIT + 1, 2**31, 2**32 - 1, 2**63])
def test_a_length_is_judged_before_anything_is_kept_for_it(length: int) -> None:
    intake = Intake(LIMIT)
    intake.take(memoryview(MAGIC + struct.pack(">Q", length)))
    with pytest.raises(FrameError):
        intake.step()


@pytest.mark.parametrize("wrong", [b"G", b"\xaaX", MAGIC[:7] + b"\x00", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_wrong_magic_is_found_at_its_first_wrong_byte(wrong: bytes) -> None:
    intake = Intake(LIMIT)
    intake.take(memoryview(wrong))
    with pytest.raises(FrameError):
        intake.step()


def test_nothing_more_is_asked_for_until_there_is_a_place() -> None:
    intake = Intake(LIMIT)
    intake.take(memoryview(frame(b"z" * 9000))[:5000])
    assert intake.step() is Step.HEAD is intake.step()
    assert intake.head() == b"z" * SMALL and not intake.is_between_frames()
    place = memoryview(bytearray(9000))
    intake.provide(place)
    room = intake.room()
    assert intake.step() is Step.READ and room is not None and len(room) == 9000 - (5000 - 16)
    assert bytes(place[:4984]) == b"z" * 4984


def test_a_place_is_asked_for_when_the_whole_head_is_here() -> None:
    intake = Intake(LIMIT)
    intake.take(memoryview(frame(b"z" * 9000))[: 16 + SMALL - 1])
    assert intake.step() is Step.READ
    intake.take(memoryview(b"z"))
    assert intake.step() is Step.HEAD


def test_a_dropped_frame_leaves_no_place_behind() -> None:
    intake = Intake(LIMIT)
    intake.take(memoryview(frame(b"z" * 9000))[: 16 + SMALL])
    assert intake.step() is Step.HEAD
    intake.provide(memoryview(bytearray(9000)))
    intake.drop()
    assert intake.room() is None


def test_what_was_read_beyond_the_end_is_the_next_frames() -> None:
    stream = frame(b"x" * 9000) + frame(b"y" * 20)
    intake = Intake(LIMIT)
    intake.take(memoryview(stream)[:5000])
    assert intake.step() is Step.HEAD
    intake.provide(memoryview(bytearray(20_000)))
    room = intake.room()
    assert room is not None and len(room) == HEADER + 9000 - 5000 + SPARE
    rest = stream[5000:]
    room[: len(rest)] = rest
    assert intake.fill(len(rest)) and intake.step() is Step.FULL
    assert bytes(intake.full()) == b"x" * 9000
    assert intake.step() is Step.SMALL and intake.small() == b"y" * 20
    assert intake.is_between_frames()
