"""Streams of frames with damage, cut anywhere: the requests are the whole frames before it, and nothing behind it is one.

The client reads from a pipe, by its descriptor or through a stream as TLS makes one, and its requests go to a pool that
answers them at some time.
"""

import os
import random
from types import SimpleNamespace
from typing import Any

import pytest

from balancer.eventloop.loop import READ, READ_HANGUP
from balancer.options import MAIN, Pool
from balancer.relay import ends
from balancer.relay.framed.client import FramedClient, FramedLane
from balancer.relay.framed.frame_format import parse_frame_format
from balancer.relay.framed.requests import FramedRequest
from balancer.relay.framed.stream_client import StreamClient
from balancer.relay.stream import RawStream

FORMATS = [
    (parse_frame_format(text), text)
    for text in ("gowork", "length=u16 le offset=3", "magic=7e7e length=u32 be counts-header")
]
MOST, ORDINARY = 600, 80  # bytes of a payload


class Pieces(RawStream):
    """Takes all that the descriptor has and returns it in pieces: of those that it still has no event comes."""

    __slots__ = ("_frame", "_has_ended", "_rng", "_taken", "is_shut")

    def __init__(self, fd: int, rng: random.Random, frame: int) -> None:
        super().__init__(fd)
        self._frame = frame  # bytes of an ordinary one
        self._rng = rng
        self._taken = b""
        self._has_ended = self.is_shut = False

    def read(self, size: int) -> tuple[bytes, bool]:
        if not self._taken and not self._has_ended:
            self._taken, _ = super().read(size)
            self._has_ended = not self._taken
        cut = self._rng.choice([1, self._frame, self._frame, size])
        data, self._taken = self._taken[:cut], self._taken[cut:]
        return data, not self._taken

    def shut(self) -> None:
        self.is_shut = True


class Mutation:
    """One client, one stream of bytes."""

    def __init__(self, rng: random.Random, heads: dict[str, dict[int, bytes]], in_pieces: bool) -> None:
        self.rng = rng
        format, text = rng.choice(FORMATS)
        self.format = format
        self.size_of = format.sizer(MOST)
        self.heads = heads.setdefault(text, {})
        self.begun: list[FramedRequest] = []
        self.waiting: list[FramedRequest] = []
        self.refused: list[str] = []
        self.ends: list[str] = []
        self.acts: list[Any] = []
        self.source, self.sink = os.pipe2(os.O_NONBLOCK)
        loop: Any = SimpleNamespace(
            now=1.0,
            call_next_turn=lambda act, fd=-1: self.acts.append(act),
            watch_reading=lambda fd, handler: None,
        )
        pool: Any = SimpleNamespace(
            size_of=self.size_of,
            heads=self.heads,
            header=format.header,
            begin=self.begin,
            learn=self.learn,
            queue=None,
        )
        options = Pool(MAIN, (), pipeline=rng.choice([1, 2, 32]), order=rng.choice(["strict", "any"]))
        log, account = SimpleNamespace(level=0), SimpleNamespace()
        lane = FramedLane(loop, log, options, pool, account, self.refuse, "", FramedClient)  # type: ignore[arg-type]
        self.session: Any = SimpleNamespace(
            client_fd=self.source, source_ip="", closed=False, end="", is_watched=False, early=0, first=b"",
            connected_at=0.0, close=self.close, peer_name=lambda: "client",
        )  # fmt: skip
        self.stream_of_client = Pieces(self.source, rng, format.header + ORDINARY) if in_pieces else None
        if self.stream_of_client is None:
            self.client = FramedClient(self.session, lane)
        else:
            self.client = StreamClient(self.stream_of_client, self.session, lane)

    def begin(self, request: FramedRequest) -> None:
        self.begun.append(request)
        self.waiting.append(request)

    def learn(self, frame: bytes) -> None:
        self.heads[len(frame)] = frame[: self.format.header]

    def refuse(self, **fields: str) -> None:
        self.refused.append(fields["reason"])

    def close(self, end: str, reason: str = "") -> None:
        self.session.closed = True
        self.ends.append(end)

    def frame(self) -> bytes:
        format, payload = self.format, self.rng.randbytes(self.rng.choice([1, 5, ORDINARY, ORDINARY, MOST]))
        length = len(payload) + (format.header if format.counts_header else 0)
        gap = self.rng.randbytes(format.offset - len(format.magic)) if self.rng.random() < 0.5 else bytes(3)
        width = int(format.width[1:]) // 8
        coded = length.to_bytes(width, "big" if format.is_big else "little")
        return format.magic + gap[: format.offset - len(format.magic)] + coded + payload

    def stream(self) -> bytes:
        data = bytearray(b"".join(self.frame() for _ in range(self.rng.randint(1, 4))))
        for _ in range(self.rng.randint(0, 3)):
            at = self.rng.randrange(len(data) + 1)
            kind = self.rng.randrange(4)
            if kind == 0:
                data[at : at + 1] = self.rng.randbytes(1)
            elif kind == 1:
                del data[at : at + self.rng.randint(1, 20)]
            elif kind == 2:
                data[at:at] = self.rng.randbytes(self.rng.randint(1, 20))
            else:
                del data[at:]
        return bytes(data)

    def wanted(self, data: bytes) -> tuple[list[bytes], bool]:
        """The whole frames, and whether what follows them is no frame. Reads as its description says, without a sizer."""
        format, frames = self.format, []
        while data:
            magic = data[: len(format.magic)]
            if not format.magic.startswith(magic):
                return frames, True
            if len(data) < format.header:
                break
            size = int.from_bytes(data[format.offset : format.header], "big" if format.is_big else "little")
            size += 0 if format.counts_header else format.header
            if not format.least <= size - format.header <= MOST:
                return frames, True
            if len(data) < size:
                break
            frames.append(data[:size])
            data = data[size:]
        return frames, bool(data)

    def run(self) -> None:
        data = self.stream()
        frames, is_refused = self.wanted(data)
        cuts = sorted(self.rng.randrange(len(data) + 1) for _ in range(self.rng.choice([0, 0, 1, 3])))
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        self.client.begin()
        for part in parts:
            os.write(self.sink, part)
            self.client.on_client(READ)
            self.go_on(self.rng.randrange(3))
        if self.rng.random() < 0.5:  # all of it is read without an event that follows
            while self.waiting or self.acts:
                self.go_on(1)
            assert [request.data for request in self.begun] == frames, (data, self.format)
        os.close(self.sink)
        self.client.on_client(READ | READ_HANGUP)
        while self.waiting or self.acts:
            self.go_on(1)
        os.close(self.source)
        assert [request.data for request in self.begun] == frames, (data, self.format)
        assert len(self.refused) == is_refused
        assert self.ends == [ends.DENIED if is_refused else ends.CLEAN]
        assert self.stream_of_client is None or self.stream_of_client.is_shut, "it is told the end"

    def go_on(self, answers: int) -> None:
        for _ in range(min(answers, len(self.waiting))):
            self.client.answered(self.waiting.pop(0), 1)
        acts, self.acts = self.acts, []
        for act in acts:
            if not self.session.closed:
                act()


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("streams", [4000, pytest.param(200_000, marks=pytest.mark.soak)])
def test_the_requests_of_a_damaged_stream_are_the_frames_before_the_damage(
    streams: int, in_pieces: bool
) -> None:
    heads: dict[str, dict[int, bytes]] = {}  # of all clients, as a worker's
    for seed in range(streams):
        try:
            Mutation(random.Random(seed), heads, in_pieces).run()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
