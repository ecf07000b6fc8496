"""The codec on types encoded by Go that it does not know, and on hostile bytes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.wire import gob, numbers, skip, types
from workers.wire.gob import StructCodec
from workers.wire.numbers import MAX_INT, MAX_UINT, GobError
from workers.wire.types import (
    BOOL,
    BYTES,
    COMPLEX,
    FLOAT,
    INT,
    INTERFACE,
    MAP,
    SLICE,
    STRING,
    UINT,
    StructType,
)

# Written by tests/system/go/peer.go: structs with maps, arrays, slices, chains and whatever else gob has.
STRANGE = {
    row["Name"]: bytes.fromhex(row["Hex"])
    for row in json.loads((Path(__file__).parent / "strange.json").read_text())
}

INNER = StructType(
    "ImgInfo",
    65,
    (("OriginalName", STRING), ("Typ", INT), ("Width", UINT), ("Height", UINT), ("ImgData", BYTES)),
)
PICTURE = StructType(
    "Picture", 64, (("ImgInfo", INNER), ("TargetWidth", UINT), ("TargetHeight", UINT), ("After", STRING))
)
EVERY = StructType(
    "Every", 70, (("B", BOOL), ("I", INT), ("U", UINT), ("F", FLOAT), ("D", BYTES), ("S", STRING))
)


def test_unknown_fields_of_every_type_are_skipped() -> None:
    values = StructCodec(PICTURE).decode(STRANGE["strange"])
    assert [*values[:4], bytes(values[4]), *values[5:]] == [
        "s.png",
        1,
        0,
        0,
        b"\x01\x02\x03",
        7,
        1 << 40,
        "end",
    ]
    zero = StructCodec(PICTURE).decode(STRANGE["strange-zero"])
    assert [*zero[:4], bytes(zero[4]), *zero[5:]] == ["s.png", 1, 0, 0, b"\x01\x02\x03", 0, 0, ""]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("interface", "interfaces"),
        ("interface-in-slice", "interfaces"),
        ("marshaler", "cannot be decoded"),
        ("wrong-type", "another type"),
        ("nothing-in-common", "no field"),
        ("not-a-struct", "expected"),
        ("number", "expected"),
        ("scalar-imginfo", "expected"),
    ],
)
def test_types_that_cannot_be_decoded_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(GobError, match=sentence):
        StructCodec(PICTURE).decode(STRANGE[name])


def test_every_prefix_and_every_longer_payload_is_refused() -> None:
    for name in ("strange", "strange-zero"):
        whole = STRANGE[name]
        for end in range(len(whole)):
            with pytest.raises(GobError):
                StructCodec(PICTURE).decode(whole[:end])
        with pytest.raises(GobError):
            StructCodec(PICTURE).decode(whole + b"\x00")


@given(st.binary(max_size=120), st.integers(0, 400))
def test_mutations_end_in_a_value_or_a_gob_error(noise: bytes, at: int) -> None:
    whole = bytearray(STRANGE["strange"])
    whole[at : at + len(noise)] = noise
    for damaged in (bytes(whole), noise, STRANGE["strange"][:at] + noise):
        try:
            StructCodec(PICTURE).decode(damaged)
        except GobError:
            pass


@given(st.integers(0, 600), st.integers(0, 255))
def test_one_wrong_byte(at: int, byte: int) -> None:
    damaged = bytearray(STRANGE["strange"])
    damaged[at % len(damaged)] = byte
    try:
        StructCodec(PICTURE).decode(damaged)
    except GobError:
        pass


# -- numbers -------------------------------------------------------------------------------------------------


@given(st.integers(0, MAX_UINT))
@example(127)
@example(128)
@example(MAX_UINT)
def test_unsigned_round_trip(value: int) -> None:
    out = bytearray()
    numbers.put_uint(out, value)
    assert numbers.take_uint(out, 0) == (value, len(out))


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "00"), (127, "7f"), (128, "ff80"), (256, "fe0100"), (MAX_UINT, "f8" + "ff" * 8)],
)
def test_unsigned_as_in_the_specification(value: int, written: str) -> None:
    out = bytearray()
    numbers.put_uint(out, value)
    assert out.hex() == written


@given(st.integers(-MAX_INT - 1, MAX_INT))
@example(-1)
@example(-MAX_INT - 1)
def test_signed_round_trip(value: int) -> None:
    out = bytearray()
    numbers.put_int(out, value)
    assert numbers.take_int(out, 0) == (value, len(out))


def test_a_longer_form_than_needed_is_read() -> None:
    assert numbers.take_uint(bytes.fromhex("f80000000000000005"), 0) == (5, 9)


@pytest.mark.parametrize("written", ["", "ff", "fe01", "f7" + "00" * 9, "80" + "00" * 128])
def test_broken_numbers(written: str) -> None:
    with pytest.raises(GobError):
        numbers.take_uint(bytes.fromhex(written), 0)


@pytest.mark.parametrize("value", [-1, MAX_UINT + 1])
def test_what_is_not_unsigned_cannot_be_encoded(value: int) -> None:
    with pytest.raises(GobError):
        numbers.put_uint(bytearray(), value)


@pytest.mark.parametrize("value", [-MAX_INT - 2, MAX_INT + 1])
def test_what_is_not_signed_cannot_be_encoded(value: int) -> None:
    with pytest.raises(GobError):
        numbers.put_int(bytearray(), value)


def test_floats_as_in_the_specification() -> None:
    out = bytearray()
    numbers.put_float(out, 17.0)
    assert out.hex() == "fe3140"


# -- whole structs -------------------------------------------------------------------------------------------


@given(
    st.tuples(
        st.booleans(),
        st.integers(-MAX_INT - 1, MAX_INT),
        st.integers(0, MAX_UINT),
        st.floats(allow_nan=False),
        st.binary(max_size=400),
        st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    )
)
def test_a_struct_round_trip(values: tuple[Any, ...]) -> None:
    codec = StructCodec(EVERY)
    back = codec.decode(b"".join(codec.encode(values)))
    back[4] = bytes(back[4])
    assert tuple(back) == values


def test_content_is_never_copied() -> None:
    codec = StructCodec(EVERY)
    content = bytes(1000)
    _, out, _ = codec.encode((False, 0, 0, 0.0, content, ""))
    assert out is content
    payload = b"".join(codec.encode((False, 0, 0, 0.0, content, "x")))
    assert codec.decode(payload)[4].obj is payload


# -- bounds --------------------------------------------------------------------------------------------------


def message(body: bytes) -> bytes:
    out = bytearray()
    numbers.put_uint(out, len(body))
    return bytes(out) + body


def integer(value: int) -> bytes:
    out = bytearray()
    numbers.put_int(out, value)
    return bytes(out)


def unsigned(value: int) -> bytes:
    out = bytearray()
    numbers.put_uint(out, value)
    return bytes(out)


def outer_with(type_id: int) -> bytes:
    """Struct 64{S string, U <type_id>}: the known S, and an unknown field of that type."""
    fields = b"\x01\x01S\x01\x0c\x00" + b"\x01\x01X\x01" + integer(type_id) + b"\x00"
    return message(integer(-64) + b"\x03\x02" + b"\x02" + fields + b"\x00\x00")


def list_of(own: int, elem: int) -> bytes:
    return message(integer(-own) + b"\x02\x02" + integer(elem) + b"\x00\x00")


def map_of(own: int, key: int, elem: int) -> bytes:
    return message(integer(-own) + b"\x04\x02" + integer(key) + b"\x01" + integer(elem) + b"\x00\x00")


def value(body: bytes) -> bytes:
    return message(integer(64) + body)


SMALL = StructType("Small", 64, (("S", STRING),))


def test_the_definitions_made_here_are_valid() -> None:
    payload = outer_with(65) + list_of(65, UINT) + value(b"\x01\x02hi\x01" + b"\x03\x01\x02\x03" + b"\x00")
    assert StructCodec(SMALL).decode(payload) == ["hi"]
    payload = outer_with(65) + map_of(65, STRING, INT) + value(b"\x02\x01" + b"\x01k\x08" + b"\x00")
    assert StructCodec(SMALL).decode(payload) == [""]


def test_recursive_types_are_legal_and_deep_values_are_not() -> None:
    nested = outer_with(65) + list_of(65, 65)
    assert StructCodec(SMALL).decode(nested + value(b"\x02" + b"\x01" * 10 + b"\x00" + b"\x00")) == [""]
    with pytest.raises(GobError, match="deep"):
        StructCodec(SMALL).decode(nested + value(b"\x02" + b"\x01" * 5000 + b"\x00" + b"\x00"))


def test_skipping_is_bounded_in_time() -> None:
    zeros = 1 << 20
    payload = outer_with(65) + list_of(65, UINT) + value(b"\x02" + unsigned(zeros) + bytes(zeros) + b"\x00")
    began = time.process_time()
    with pytest.raises(GobError, match="too many"):
        StructCodec(SMALL).decode(payload)
    assert time.process_time() - began < 0.5
    allowed = skip.MAX_SKIPPED - 2
    payload = (
        outer_with(65) + list_of(65, UINT) + value(b"\x02" + unsigned(allowed) + bytes(allowed) + b"\x00")
    )
    assert StructCodec(SMALL).decode(payload) == [""]


@pytest.mark.parametrize("count", [5, 2**31, 2**63, 2**64 - 1])
def test_more_elements_than_bytes(count: int) -> None:
    with pytest.raises(GobError, match="elements where"):
        StructCodec(SMALL).decode(
            outer_with(65) + list_of(65, UINT) + value(b"\x02" + unsigned(count) + b"\x00")
        )


@pytest.mark.parametrize("size", [3, 2**31, 2**63])
def test_texts_longer_than_the_payload(size: int) -> None:
    with pytest.raises(GobError):
        StructCodec(SMALL).decode(outer_with(BYTES) + value(b"\x01" + unsigned(size) + b"x" + b"\x00"))
    with pytest.raises(GobError):
        StructCodec(SMALL).decode(outer_with(BYTES) + value(b"\x02" + unsigned(size) + b"x" + b"\x00"))


def test_too_many_types_and_types_twice() -> None:
    many = b"".join(list_of(65 + n, UINT) for n in range(types.MAX_TYPES))
    with pytest.raises(GobError, match="more than"):
        StructCodec(SMALL).decode(outer_with(65) + many + value(b"\x00"))
    with pytest.raises(GobError, match="twice"):
        StructCodec(SMALL).decode(outer_with(65) + list_of(65, UINT) * 2 + value(b"\x00"))


def test_definitions_are_bounded_in_bytes() -> None:
    long = message(integer(-65) + b"\x02\x02" + integer(UINT) + b"\x00" + bytes(types.MAX_DEFINITIONS))
    with pytest.raises(GobError, match="over"):
        StructCodec(SMALL).decode(outer_with(65) + long + value(b"\x00"))


@pytest.mark.parametrize("type_id", [0, 99, -3, INTERFACE])
def test_fields_of_undefined_types(type_id: int) -> None:
    with pytest.raises(GobError):
        StructCodec(SMALL).decode(outer_with(type_id) + value(b"\x00"))


def test_complex_numbers_are_skipped() -> None:
    assert StructCodec(SMALL).decode(outer_with(COMPLEX) + value(b"\x02\x01\x02\x00")) == [""]


@pytest.mark.parametrize("delta", [3, 100, 2**40])
def test_fields_beyond_the_struct(delta: int) -> None:
    with pytest.raises(GobError, match="no field"):
        StructCodec(SMALL).decode(outer_with(UINT) + value(unsigned(delta) + b"\x01\x00"))


def test_the_plan_cache_is_bounded() -> None:
    codec = StructCodec(SMALL)
    for number in range(gob.MAX_PLANS * 2):
        codec.decode(
            outer_with(65) + list_of(65, UINT) + map_of(66 + number, INT, INT) + value(b"\x01\x01a\x00")
        )
    assert len(codec.plan_cache) == gob.MAX_PLANS
    assert SLICE != MAP


def test_the_encoded_definitions_equal_those_of_go() -> None:
    assert StructCodec(PICTURE).definitions.endswith(types.write_definitions(INNER))


def test_a_value_followed_by_bytes_of_its_own_message() -> None:
    with pytest.raises(GobError, match="after the value"):
        StructCodec(SMALL).decode(outer_with(UINT) + value(b"\x01\x01a\x00\x00"))


def test_a_value_whose_length_is_not_that_of_its_fields() -> None:
    body = integer(64) + b"\x01\x01a\x00"
    for lie in (len(body) - 1, len(body) + 1):
        with pytest.raises(GobError):
            StructCodec(SMALL).decode(outer_with(UINT) + unsigned(lie) + body)


def struct_with(count: int, name: bytes) -> bytes:
    fields = (b"\x01" + unsigned(len(name)) + name + b"\x01\x0c\x00") * count
    return message(integer(-64) + b"\x03\x02" + unsigned(count) + fields + b"\x00\x00")


def test_structs_are_bounded_in_fields_and_names() -> None:
    assert StructCodec(SMALL).decode(struct_with(types.MAX_FIELDS, b"S") + value(b"\x01\x01a\x00")) == ["a"]
    with pytest.raises(GobError, match="a struct of"):
        StructCodec(SMALL).decode(struct_with(types.MAX_FIELDS + 1, b"S") + value(b"\x01\x01a\x00"))
    with pytest.raises(GobError, match="a name of"):
        StructCodec(SMALL).decode(struct_with(1, b"S" * (types.MAX_NAME + 1)) + value(b"\x01\x01a\x00"))
    with pytest.raises(GobError, match="a struct of"):
        StructCodec(SMALL).decode(message(integer(-64) + b"\x03\x02" + unsigned(2**60)) + value(b"\x00"))
