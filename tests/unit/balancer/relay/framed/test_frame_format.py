"""A frame's description as people write it, and the sizes that follow from header bytes, however they are split."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.relay.framed.frame_format import PRESETS, FrameFormat, FrameRefused, parse_frame_format
from workers.wire import frames

GOWORK = PRESETS["gowork"]
MOST = 1000


@pytest.mark.parametrize(
    ("text", "wanted", "printed"),
    [
        ("gowork", GOWORK, "gowork"),
        ("magic=aade07a60257c2d0 length=u64 be least=1", GOWORK, "gowork"),
        ("be length=u32", FrameFormat(b"", "u32", True, 0), "length=u32 be"),
        ("length=u8", FrameFormat(b"", "u8", True, 0), "length=u8 be"),
        (
            "magic=CAFE length=u16 le offset=6 counts-header",
            FrameFormat(b"\xca\xfe", "u16", False, 6, True),
            "magic=cafe length=u16 le offset=6 counts-header",
        ),
    ],
)
def test_what_people_write(text: str, wanted: FrameFormat, printed: str) -> None:
    assert parse_frame_format(text) == wanted
    assert str(wanted) == printed


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no length="),
        ("http", "'http' is not understood"),
        ("magic=aa", "no length="),
        ("length=u24 be", "no length="),
        ("length=u32", "byte order"),
        ("length=u32 be le", "'le' is given twice"),
        ("length=u32 be be", "'be' is given twice"),
        ("magic=aax length=u32 be", "not hexadecimal"),
        ("magic= length=u32 be offset=x", "offset=x is not a number"),
        ("magic=aabb length=u32 be offset=1", "offset 1 is not between"),
        ("length=u32 be offset=257", "offset 257 is not between"),
        ("gowork be", "'gowork' is not understood"),
        (f"magic={'aa' * 33} length=u8", "more than 32 bytes"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        parse_frame_format(text)


formats = st.builds(
    lambda magic, width, is_big, gap, counts, least: FrameFormat(
        magic, width, is_big, len(magic) + gap, counts, least
    ),
    st.binary(max_size=8),
    st.sampled_from(["u8", "u16", "u32", "u64"]),
    st.booleans(),
    st.integers(0, 9),
    st.booleans(),
    st.integers(0, 5),
)


def framed(format: FrameFormat, payload: int, filler: bytes = b"\x55") -> bytes:
    """A header of this format for a payload of so many bytes."""
    length = payload + (format.header if format.counts_header else 0)
    gap = filler * (format.offset - len(format.magic))
    width = format.header - format.offset
    return format.magic + gap + length.to_bytes(width, "big" if format.is_big else "little")


@given(formats)
def test_a_printed_format_is_read_back(format: FrameFormat) -> None:
    assert parse_frame_format(str(format)) == format


@given(formats, st.integers(0, 200), st.binary(max_size=40))
def test_a_frame_has_its_size_once_its_header_is_whole(
    format: FrameFormat, payload: int, rest: bytes
) -> None:
    size_of = format.sizer(150)
    header = framed(format, payload)
    for cut in range(len(header)):
        assert size_of(header[:cut]) == size_of(b"any" + header[:cut], 3) == -1
    if format.least <= payload <= 150:
        assert size_of(header + rest) == size_of(b"any" + header + rest, 3) == len(header) + payload
    else:
        with pytest.raises(FrameRefused):
            size_of(header + rest)


@given(st.binary(min_size=1, max_size=64))
def test_bytes_of_a_stranger_are_a_frame_or_refused_at_the_first_wrong_byte(data: bytes) -> None:
    """The same judgement as the resizer's own reader of the format."""
    size_of = GOWORK.sizer(MOST)
    try:
        frames.FrameReader(MOST).feed(data)
    except frames.FrameError:
        with pytest.raises(FrameRefused):
            size_of(data)
    else:
        assert size_of(data) in (-1, 16 + int.from_bytes(data[8:16], "big"))


@pytest.mark.parametrize("payload", [1, 2, MOST - 1, MOST])
def test_payloads_within_the_limits(payload: int) -> None:
    assert GOWORK.sizer(MOST)(frames.header(payload)) == 16 + payload


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (0, "frame of 0 bytes is below its least of 1"),
        (MOST + 1, "frame of 1001 bytes is over max-frame 1000"),
        (2**32, "over max-frame"),
        (2**63, "over max-frame"),
        (2**64 - 1, "over max-frame"),
    ],
)
def test_payloads_outside_the_limits(payload: int, sentence: str) -> None:
    with pytest.raises(FrameRefused, match=sentence):
        GOWORK.sizer(MOST)(frames.header(payload))


def test_a_length_that_counts_the_header_is_not_below_it() -> None:
    with pytest.raises(FrameRefused):
        parse_frame_format("length=u32 be counts-header").sizer(MOST)(b"\0\0\0\3")


def test_a_wrong_magic_is_named() -> None:
    with pytest.raises(FrameRefused, match="no frame: begins with 47 45 54 20"):
        GOWORK.sizer(MOST)(b"GET ")
