"""Conversations as transcripts: `>` a request goes out, `<` replies come in, what they answer, what breaks it."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.client.connection import Conversation
from workers.wire.frames import FrameReader, frame, header
from workers.wire.messages import Request, Response, decode_request, encode_response


def conversation(jobs: str) -> Conversation[str]:
    """With one request under way for each letter; IDs count from 1, names are the letters."""
    talk: Conversation[str] = Conversation(count(1).__next__, 10_000)
    for job in jobs:
        talk.put(job, Request(original_name=job))
    return talk


def reply(id: int, name: str = "") -> bytes:
    return frame(encode_response(Response(name, id=id)))


def test_a_request_goes_out_with_its_id() -> None:
    talk = conversation("")
    (payload,) = FrameReader().feed(b"".join(talk.put("a", Request("x.jpg", data=b"123"))))
    sent = decode_request(payload)
    assert (sent.original_name, bytes(sent.data), sent.id) == ("x.jpg", b"123", 1)
    assert talk.in_flight() == ["a"]


def test_replies_in_any_order_find_their_jobs() -> None:
    talk = conversation("abc")
    answers = talk.receive(reply(3) + reply(1) + reply(2))
    assert [job for job, _ in answers] == ["c", "a", "b"]
    assert (len(talk), talk.violation) == (0, "")


def test_replies_without_id_answer_the_oldest() -> None:
    talk = conversation("abc")
    assert [job for job, _ in talk.receive(reply(0, "a") + reply(0, "b"))] == ["a", "b"]
    assert talk.in_flight() == ["c"]


@pytest.mark.parametrize(
    ("bytes_in", "answered", "sentence"),
    [
        (reply(1) + reply(1) + reply(2), ["a"], "repeated ID 1"),
        (reply(9), [], "unknown ID 9"),
        (reply(2) + reply(0, "a"), ["b"], "with and without"),
        (reply(0, "a") + reply(2), ["a"], "with and without"),
        (reply(0, "../a"), [], "without ID for '../a' where 'a' is next"),
        (reply(1) + reply(2) + reply(3) + reply(4), ["a", "b", "c"], "nobody waits"),
        (header(10_001), [], "over the limit"),
        (reply(1) + b"HTTP/1.1", ["a"], "not a frame"),
        (reply(1) + frame(b"\x00" * 30), ["a"], "not a response"),
    ],
)
def test_violations_end_it(bytes_in: bytes, answered: list[str], sentence: str) -> None:
    talk = conversation("abc")
    assert [job for job, _ in talk.receive(bytes_in)] == answered
    assert sentence in talk.violation
    assert talk.receive(reply(3)) == []


@given(st.permutations([1, 2, 3, 4, 5]), st.lists(st.integers(1, 60)))
def test_any_order_any_split(order: list[int], cuts: list[int]) -> None:
    talk = conversation("abcde")
    stream = b"".join(map(reply, order))
    got, at = [], 0
    for cut in cuts:
        got += talk.receive(stream[at : at + cut])
        at += cut
    got += talk.receive(stream[at:])
    assert ["abcde".index(job) + 1 for job, _ in got] == order
    assert talk.answered == 5
