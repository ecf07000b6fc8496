"""Request and Response encoded and decoded, with and without extension fields."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.wire import messages
from workers.wire.frames import FrameReader
from workers.wire.messages import MessageError, Request, Response

uints = st.integers(0, 2**64 - 1)
ints = st.integers(-(2**63), 2**63 - 1)
texts = st.text(max_size=20)
names = st.binary(max_size=30).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
data = st.binary(max_size=300)
requests = st.builds(
    Request,
    names,
    st.integers(0, 2),
    uints,
    uints,
    data,
    uints,
    uints,
    ints,
    st.booleans(),
    uints,
    texts,
    texts,
    uints,
)
responses = st.builds(
    Response,
    names,
    ints,
    uints,
    uints,
    data,
    uints,
    uints,
    ints,
    ints,
    uints,
    uints,
    texts,
    texts,
    uints,
    uints,
)


def plain(message: Any) -> Any:
    return dataclasses.replace(message, data=bytes(message.data))


@given(requests)
def test_a_request_round_trip(request: Request) -> None:
    payload = messages.encode_request(request)
    assert plain(messages.decode_request(payload)) == request
    assert plain(messages.decode_request(memoryview(bytearray(payload)))) == request
    assert FrameReader().feed(b"".join(messages.encode_request_parts(request))) == [payload]


@given(responses)
def test_a_response_round_trip(response: Response) -> None:
    payload = messages.encode_response(response)
    assert plain(messages.decode_response(payload)) == response
    assert FrameReader().feed(b"".join(messages.encode_response_parts(response))) == [payload]


@given(requests, st.integers(0, 700))
def test_an_extended_request_is_decoded_from_its_head(request: Request, cut: int) -> None:
    request.data = bytes(request.data) + bytes(1000)
    request.id = request.id or 1
    payload = messages.encode_request(request)
    data_at = payload.index(bytes(request.data))
    found = messages.decode_request_head(memoryview(payload)[:cut], len(payload))
    if cut < data_at:
        assert found is None
        return
    assert found is not None
    decoded, start, stop = found
    assert (start, stop) == (data_at, data_at + len(request.data))
    assert plain(decoded) == dataclasses.replace(request, data=b"")
    view = memoryview(bytearray(payload))
    messages.check_request_tail(view)
    view[-1] = 1
    with pytest.raises(MessageError):
        messages.check_request_tail(view)


@given(requests, st.integers(0, 999))
def test_a_request_with_fields_after_its_data_is_not_decoded_from_its_head(
    request: Request, cut: int
) -> None:
    request.data = bytes(1000)
    request.id = request.quality = 0
    request.fit = request.format = ""
    request.target_width = request.target_width or 1
    payload = messages.encode_request(request)
    assert messages.decode_request_head(payload[:cut], len(payload)) is None


@given(requests, st.integers(1, 999))
def test_a_head_with_a_wrong_length_is_not_decoded(request: Request, less: int) -> None:
    request.data = bytes(2000)
    request.id = request.id or 1
    payload = messages.encode_request(request)
    for length in (len(payload) - less, len(payload) + less):
        assert messages.decode_request_head(payload[:900], length) is None


@given(st.binary(max_size=200))
def test_noise_is_a_message_error(noise: bytes) -> None:
    for decode in (messages.decode_request, messages.decode_response):
        with pytest.raises(MessageError):
            decode(noise)


@given(requests, st.data())
def test_a_damaged_request_is_a_request_or_a_message_error(request: Request, draw: st.DataObject) -> None:
    payload = bytearray(messages.encode_request(request))
    at = draw.draw(st.integers(0, len(payload) - 1))
    payload[at] = draw.draw(st.integers(0, 255))
    try:
        messages.decode_request(payload)
    except MessageError:
        pass


def test_extended_definitions_are_sent_only_with_an_extension_field() -> None:
    base = messages.encode_request(Request("x.jpg", target_width=5))
    assert b"Quality" not in base
    for field in ({"id": 1}, {"fit": "contain"}, {"format": "png"}, {"quality": 3}):
        assert b"Quality" in messages.encode_request(Request("x.jpg", target_width=5, **field))  # type: ignore[arg-type]
    assert b"Workers" not in messages.encode_response(Response("x.jpg"))
    assert b"Workers" in messages.encode_response(Response("x.jpg", workers=1))


def test_a_response_decoded_as_a_request_sets_only_shared_fields() -> None:
    request = messages.decode_request(messages.encode_response(Response("x.jpg", resized_width=7)))
    assert (request.original_name, request.target_width) == ("x.jpg", 0)


def test_data_is_a_view_of_the_payload_and_is_not_copied_into_parts() -> None:
    picture = bytes(5000)
    payload = messages.encode_request(Request("x.jpg", data=picture, id=9))
    view = messages.decode_request(payload).data
    assert isinstance(view, memoryview)
    assert view.obj is payload
    _, middle, _ = messages.encode_response_parts(Response(data=view, id=9))
    assert middle is view


def test_what_does_not_fit_is_a_message_error() -> None:
    for broken in (Request(width=-1), Request(created_at=2**63), Request(original_name="\ud800")):
        with pytest.raises(MessageError):
            messages.encode_request(broken)


@pytest.mark.parametrize(
    ("status", "is_ok"), [(0, True), (200, True), (429, False), (503, False), (422, False)]
)
def test_statuses(status: int, is_ok: bool) -> None:
    assert Response(status=status).is_ok() is is_ok
    assert (status in messages.RETRYABLE) == (status in (429, 503))
