"""Requests in flight: what a reply answers, and what violates the protocol."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.client.pipeline import RequestPipeline
from workers.wire.frames import FrameReader, frame, header
from workers.wire.messages import Request, Response, decode_request, encode_response


def pipeline_with(jobs: str) -> RequestPipeline[str]:
    """A pipeline with one request in flight for each letter; IDs count from 1, names are the letters."""
    pipeline: RequestPipeline[str] = RequestPipeline(count(1).__next__, 10_000)
    for job in jobs:
        pipeline.add(job, Request(original_name=job))
    return pipeline


def reply(id: int, name: str = "") -> bytes:
    return frame(encode_response(Response(name, id=id)))


def test_a_request_goes_out_with_its_id() -> None:
    pipeline = pipeline_with("")
    (payload,) = FrameReader().feed(b"".join(pipeline.add("a", Request("x.jpg", data=b"123"))))
    sent = decode_request(payload)
    assert (sent.original_name, bytes(sent.data), sent.id) == ("x.jpg", b"123", 1)
    assert pipeline.in_flight() == ["a"]


def test_replies_in_any_order_find_their_jobs() -> None:
    pipeline = pipeline_with("abc")
    answers = pipeline.receive(reply(3) + reply(1) + reply(2))
    assert [job for job, _ in answers] == ["c", "a", "b"]
    assert (len(pipeline), pipeline.violation) == (0, "")


def test_replies_without_id_answer_the_oldest() -> None:
    pipeline = pipeline_with("abc")
    assert [job for job, _ in pipeline.receive(reply(0, "a") + reply(0, "b"))] == ["a", "b"]
    assert pipeline.in_flight() == ["c"]


@pytest.mark.parametrize(
    ("bytes_in", "answered", "sentence"),
    [
        (reply(1) + reply(1) + reply(2), ["a"], "repeated ID 1"),
        (reply(9), [], "unknown ID 9"),
        (reply(2) + reply(0, "a"), ["b"], "with and without"),
        (reply(0, "a") + reply(2), ["a"], "with and without"),
        (reply(0, "../a"), [], "without ID for '../a' where 'a' is next"),
        (reply(1) + reply(2) + reply(3) + reply(4), ["a", "b", "c"], "without a request"),
        (header(10_001), [], "over the limit"),
        (reply(1) + b"HTTP/1.1", ["a"], "not a frame"),
        (reply(1) + frame(b"\x00" * 30), ["a"], "not a response"),
    ],
)
def test_violations_end_it(bytes_in: bytes, answered: list[str], sentence: str) -> None:
    pipeline = pipeline_with("abc")
    assert [job for job, _ in pipeline.receive(bytes_in)] == answered
    assert sentence in pipeline.violation
    assert pipeline.receive(reply(3)) == []


@pytest.mark.parametrize(
    ("pieces", "is_foreign"),
    [
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], True),
        ([b"S", b"SH-2.0"], True),
        ([reply(1) + b"SSH-2.0-"], False),
        ([reply(1), b"SSH-2.0-"], False),
        ([header(10_001)], False),
        ([reply(9)], False),
    ],
)
def test_another_protocol_is_one_from_its_first_byte_on(pieces: list[bytes], is_foreign: bool) -> None:
    pipeline = pipeline_with("abc")
    for piece in pieces:
        pipeline.receive(piece)
    assert pipeline.violation
    assert pipeline.is_foreign is is_foreign


@given(st.permutations([1, 2, 3, 4, 5]), st.lists(st.integers(1, 60)))
def test_any_order_any_split(order: list[int], cuts: list[int]) -> None:
    pipeline = pipeline_with("abcde")
    stream = b"".join(map(reply, order))
    got, at = [], 0
    for cut in cuts:
        got += pipeline.receive(stream[at : at + cut])
        at += cut
    got += pipeline.receive(stream[at:])
    assert ["abcde".index(job) + 1 for job, _ in got] == order
    assert pipeline.answered == 5
