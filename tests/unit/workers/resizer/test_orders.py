"""Packets between a front and its CPU processes: messages survive encoding, any other packet is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.resizer.orders import (
    FITS,
    LONGEST,
    LONGEST_TEXT,
    Bye,
    Hello,
    Order,
    OrderError,
    Ping,
    Result,
    Transfer,
    decode,
    encode,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
WORDS = st.text("abcdefghijklmnopqrstuvwxyz", max_size=12)
MESSAGES = st.one_of(
    st.builds(
        Order,
        U32,
        U32,
        U64,
        st.integers(0, 255),
        U64,
        U32,
        U32,
        st.sampled_from(FITS),
        st.integers(0, 255),
        st.booleans(),
        WORDS,
    ),
    st.builds(Result, U32, U64, st.integers(0, 65_535), U32, U32, U32, U32, U32, U64, WORDS),
    st.builds(Hello, U32, U32),
    st.builds(Ping, U32),
    st.builds(Transfer, U32, U64),
    st.builds(Bye, U32),
)


@given(MESSAGES)
def test_a_message_survives_encoding(message: Order | Result | Hello | Ping | Transfer | Bye) -> None:
    packet = encode(message)
    assert len(packet) <= LONGEST
    assert decode(packet) == message


@given(st.binary(max_size=200))
def test_any_other_packet_is_refused(packet: bytes) -> None:
    try:
        message = decode(packet)
    except OrderError:
        return
    assert isinstance(message, Order | Result | Hello | Ping | Transfer | Bye)


def test_a_long_sentence_is_cut_and_a_long_format_refused() -> None:
    found = decode(encode(Result(1, 2, 422, text="ä" * 1000)))
    assert isinstance(found, Result) and len(found.text.encode()) <= LONGEST_TEXT + 2
    with pytest.raises(OrderError):
        encode(Order(1, 2, 3, 1, 5, 7, 8, "stretch", 75, False, "x" * 13))
    with pytest.raises(OrderError):
        encode(Order(1, 2, 3, 1, 5, 7, 8, "sideways", 75, False, ""))
    with pytest.raises(OrderError):
        encode(Order(1, 2, 3, 1, 5, 2**40, 8, "stretch", 75, False, ""))


def test_a_note_travels_with_the_format() -> None:
    result = Result(1, 2, 200, text="png", note="first of 3 frames")
    assert decode(encode(result)) == result


def test_nothing_in_a_result_can_end_a_header() -> None:
    result = decode(encode(Result(1, 2, 200, text="png\r\nX: 1", note="a\nb")))
    assert isinstance(result, Result) and (result.text, result.note) == ("png\\r\\nX: 1", "a\\nb")


def test_parameters_travel_with_an_order() -> None:
    order = Order(1, 2, 3, 1, 5, 7, 8, "cover", 9, True, "auto", "gravity=north&keep=exif,xmp")
    assert decode(encode(order)) == order
