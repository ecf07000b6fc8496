"""Frames of one connection, in pieces of any size."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.resizer.frame_assembler import SMALL, SPARE, FrameAssembler, FrameStep
from workers.wire.frames import HEADER, MAGIC, FrameError, frame

LIMIT = 100_000


def run(stream: bytes, cuts: list[int]) -> list[bytes]:
    """The payloads of a stream that arrives cut at these places; big ones land in a place of their own."""
    frames, found = FrameAssembler(LIMIT), []
    edges = sorted({0, *(cut % (len(stream) + 1) for cut in cuts), len(stream)})
    for begin, end in pairwise(edges):
        piece = memoryview(stream)[begin:end]
        while len(piece):
            place = frames.place()
            count = len(piece) if place is None else min(len(place), len(piece))
            if place is not None:
                place[:count] = piece[:count]
            frames.received(piece[:count])
            piece = piece[count:]
            while (step := frames.step()) is not FrameStep.READ:
                if step is FrameStep.HEAD:
                    assert frames.length > SMALL
                    frames.provide(memoryview(bytearray(frames.length + 50)))
                elif step is FrameStep.SMALL:
                    found.append(frames.small())
                else:
                    found.append(bytes(frames.full()))
    assert frames.is_between_frames()
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
def test_a_length_is_checked_before_anything_is_kept_for_it(length: int) -> None:
    frames = FrameAssembler(LIMIT)
    frames.received(memoryview(MAGIC + struct.pack(">Q", length)))
    with pytest.raises(FrameError):
        frames.step()


@pytest.mark.parametrize("wrong", [b"G", b"\xaaX", MAGIC[:7] + b"\x00", b"GET / HTTP/1.1\r\n\r\n"])
def test_a_wrong_magic_is_found_at_its_first_wrong_byte(wrong: bytes) -> None:
    frames = FrameAssembler(LIMIT)
    frames.received(memoryview(wrong))
    with pytest.raises(FrameError):
        frames.step()


def test_nothing_more_is_to_be_read_until_there_is_a_place() -> None:
    frames = FrameAssembler(LIMIT)
    frames.received(memoryview(frame(b"z" * 9000))[:5000])
    assert frames.step() is FrameStep.HEAD is frames.step()
    assert frames.head() == b"z" * SMALL and not frames.is_between_frames()
    buffer = memoryview(bytearray(9000))
    frames.provide(buffer)
    place = frames.place()
    assert frames.step() is FrameStep.READ and place is not None and len(place) == 9000 - (5000 - 16)
    assert bytes(buffer[:4984]) == b"z" * 4984


def test_a_place_is_asked_for_when_the_whole_head_is_here() -> None:
    frames = FrameAssembler(LIMIT)
    frames.received(memoryview(frame(b"z" * 9000))[: 16 + SMALL - 1])
    assert frames.step() is FrameStep.READ
    frames.received(memoryview(b"z"))
    assert frames.step() is FrameStep.HEAD


def test_a_dropped_frame_leaves_no_place_behind() -> None:
    frames = FrameAssembler(LIMIT)
    frames.received(memoryview(frame(b"z" * 9000))[: 16 + SMALL])
    assert frames.step() is FrameStep.HEAD
    frames.provide(memoryview(bytearray(9000)))
    frames.drop()
    assert frames.place() is None


def test_bytes_read_beyond_the_end_belong_to_the_next_frame() -> None:
    stream = frame(b"x" * 9000) + frame(b"y" * 20)
    frames = FrameAssembler(LIMIT)
    frames.received(memoryview(stream)[:5000])
    assert frames.step() is FrameStep.HEAD
    frames.provide(memoryview(bytearray(20_000)))
    place = frames.place()
    assert place is not None and len(place) == HEADER + 9000 - 5000 + SPARE
    rest = stream[5000:]
    place[: len(rest)] = rest
    assert frames.received(place[: len(rest)]) and frames.step() is FrameStep.FULL
    assert bytes(frames.full()) == b"x" * 9000
    assert frames.step() is FrameStep.SMALL and frames.small() == b"y" * 20
    assert frames.is_between_frames()
