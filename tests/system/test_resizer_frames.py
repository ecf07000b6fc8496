"""The resizer over frames: requests with and without an ID, every way a frame can arrive, every way it can be wrong."""

import os
import re
import socket
import statistics
import struct
import time

import psutil
import pytest

from scripts.lab.waiting import wait_for
from tests.system.harness import Resizer
from tests.system.resizer_peer import Peer, framed, picture, size_of
from workers.wire.frames import MAGIC


def test_pictures_have_exactly_the_asked_size_and_keep_their_format() -> None:
    with Resizer(cpus=2) as resizer, Peer(resizer.address) as peer:
        for kind, typ in (("JPEG", 0), ("PNG", 1), ("GIF", 2)):
            reply = peer.ask(
                original_name="p", typ=typ, data=picture(300, 200, kind), target_width=90, target_height=70
            )
            assert size_of(reply.data) == (90, 70) == (reply.resized_width, reply.resized_height)
            found = (reply.typ, reply.status, reply.id, reply.server)
            assert found == (typ, 0, 0, ""), "no field beyond the original protocol"
        reply = peer.ask(id=5, data=picture(300, 200), target_width=150)
        assert size_of(reply.data) == (150, 100)
        assert (reply.id, reply.status, reply.server, reply.workers) == (5, 200, "backend-1", 2)


def test_replies_without_an_id_keep_their_order_and_replies_with_one_do_not() -> None:
    asks = (
        {"original_name": "big", "data": picture(4000, 3000), "target_width": 1900},
        {"original_name": "dry"},
    )
    with Resizer(cpus=1) as resizer, Peer(resizer.address) as peer:
        peer.say(**asks[0])
        peer.say(**asks[1], dry_run=True, target_width=7)
        assert [reply.original_name for reply in peer.hear_all(2)] == ["big", "dry"]
        peer.say(**asks[0], id=1)
        peer.say(**asks[1], id=2, dry_run=True, target_width=7)
        assert [reply.original_name for reply in peer.hear_all(2)] == ["dry", "big"]


def test_a_refused_picture_is_a_reply_with_an_id_and_ends_the_connection_of_an_original_peer() -> None:
    good = picture(60, 40)
    wrong = [
        (400, {"data": good, "target_width": 0}),
        (400, {"data": good, "target_width": 9, "fit": "nonsense"}),
        (400, {"data": good, "target_width": 9, "format": "tiff"}),
        (415, {"data": b"", "target_width": 9}),
        (415, {"data": b"%!PS-Adobe-3.0 EPSF-3.0\n" * 500, "target_width": 9}),
        (422, {"data": good, "target_width": 65_535, "target_height": 65_535}),
        (422, {"data": good, "target_width": 10**9}),
        (422, {"data": good[: len(good) // 2], "target_width": 9}),
    ]
    with Resizer(cpus=1) as resizer:
        with Peer(resizer.address) as peer:
            for number, (status, fields) in enumerate(wrong, 1):
                reply = peer.ask(id=number, **fields)
                assert (reply.id, reply.status) == (number, status), reply.error
                assert reply.error and not reply.data
            assert peer.ask(id=99, data=good, target_width=9).status == 200
        for _, fields in wrong:
            with Peer(resizer.address) as peer:
                peer.say(original_name="good", data=good, target_width=9)
                peer.say(**fields)
                first = peer.hear()
                assert first is not None and first.original_name == "good", "what came before is answered"
                assert peer.hear() is None


def test_a_frame_may_arrive_in_any_pieces() -> None:
    dry = framed(original_name="dry", dry_run=True, target_width=3)
    real = framed(original_name="real", data=picture(400, 300), target_width=20)
    with Resizer(cpus=1) as resizer:
        with Peer(resizer.address) as peer:
            for at in range(1, len(dry)):
                peer.sock.sendall(dry[:at])
                peer.sock.sendall(dry[at:])
                reply = peer.hear()
                assert reply is not None and reply.resized_width == 3
            cuts = [1, 15, 16, 17, 200, 4095, 4096, 4112, 16_384, len(real) - 1]
            for at in cuts:
                peer.sock.sendall(real[:at])
                time.sleep(0.002)
                peer.sock.sendall(real[at:])
                reply = peer.hear()
                assert reply is not None and size_of(reply.data) == (20, 15)
        with Peer(resizer.address) as peer:
            stream = dry * 5 + real * 2
            middle = len(dry) * 5 // 2
            peer.sock.sendall(stream[:middle])
            peer.sock.sendall(stream[middle:])
            names = [reply.original_name for reply in peer.hear_all(7)]
            assert names == ["dry"] * 5 + ["real"] * 2


@pytest.mark.parametrize("length", [0, (32 << 20) + 1, 2**31, 2**32 - 1, 2**63])
def test_a_length_over_the_limit_ends_the_connection_and_costs_nothing(length: int) -> None:
    header = MAGIC + struct.pack(">Q", length)
    with Resizer(cpus=1) as resizer:
        front = next(p for p, title in resizer.titles().items() if ": front" in title)
        before = resizer.memory([front])
        took = []
        for _ in range(300):
            with Peer(resizer.address) as peer:
                began = time.monotonic()
                peer.sock.sendall(header)
                assert peer.hear() is None
                took.append(time.monotonic() - began)
        assert statistics.median(took) < 0.1, sorted(took)[-30:]
        assert resizer.memory([front]) - before < 1 << 20
        with Peer(resizer.address) as peer:
            assert peer.ask(id=1, dry_run=True).status == 200


def test_every_prefix_of_a_frame_may_be_the_end() -> None:
    frame = framed(original_name="p", data=picture(60, 40), target_width=9)
    with Resizer(cpus=1) as resizer:
        before = {pid for pid, title in resizer.titles().items()}
        for at in [*range(260), *range(260, len(frame), 97)]:
            with Peer(resizer.address) as peer:
                peer.sock.sendall(frame[:at])
                if at % 2:
                    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    peer.sock.shutdown(socket.SHUT_WR)
                    assert peer.hear() is None
        with Peer(resizer.address) as peer:
            assert peer.ask(id=1, data=picture(60, 40), target_width=9).status == 200
        assert {pid for pid, title in resizer.titles().items()} == before


def test_a_client_that_has_shut_down_its_side_is_still_answered() -> None:
    with Resizer(cpus=1) as resizer, Peer(resizer.address) as peer:
        peer.say(data=picture(2000, 1500), target_width=300)
        peer.sock.shutdown(socket.SHUT_WR)
        reply = peer.hear()
        assert reply is not None and size_of(reply.data) == (300, 225)
        assert peer.hear() is None


def test_a_client_that_stalls_in_a_frame_is_cut_and_an_idle_one_is_closed() -> None:
    options = {"frame_timeout": "1s", "idle_timeout": "2s"}
    with Resizer(cpus=1, **options) as resizer, Peer(resizer.address) as slow, Peer(resizer.address) as idle:
        idle.ask(id=1, dry_run=True)
        slow.sock.sendall(framed(data=picture(400, 300), target_width=20)[:2000])
        began = time.monotonic()
        assert slow.hear() is None
        assert 0.9 < time.monotonic() - began < 30
        resizer.wait_line(r"cut client=\S+ reason=\"slow sender\"")
        assert idle.hear() is None
        assert 1.5 < time.monotonic() - began < 30


def test_a_client_that_does_not_read_is_not_read_and_loses_nothing() -> None:
    data = picture(500, 400)
    with Resizer(cpus=2) as resizer, Peer(resizer.address) as peer:
        peer.sock.setblocking(False)
        frames = b"".join(framed(id=n, data=data, target_width=400) for n in range(1, 401))
        sent = 0
        quiet = time.monotonic()
        while time.monotonic() - quiet < 0.5:
            try:
                sent += peer.sock.send(frames[sent : sent + 65_536])
                quiet = time.monotonic()
            except BlockingIOError:
                time.sleep(0.01)
        assert sent < len(frames), "the front has read it all: it is not bounded"
        ids = set()
        peer.sock.settimeout(15)
        while len(ids) < 400:
            if sent < len(frames):
                peer.sock.setblocking(False)
                try:
                    sent += peer.sock.send(frames[sent : sent + 262_144])
                except BlockingIOError:
                    pass
                peer.sock.settimeout(15)
            reply = peer.hear()
            assert reply is not None and reply.id not in ids
            ids.add(reply.id)


def test_no_client_ever_gets_bytes_meant_for_another() -> None:
    with Resizer(cpus=2) as resizer:
        for number in range(1, 300):
            with Peer(resizer.address) as gone:
                gone.say(id=10**6 + number, original_name="gone", data=picture(400, 300), target_width=390)
                gone.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with Peer(resizer.address) as peer:
                reply = peer.ask(id=number, original_name=f"{number}", data=picture(60, 40), target_width=33)
                assert (reply.id, reply.original_name) == (number, f"{number}")
                assert size_of(reply.data) == (33, 22)


def test_titles_name_every_process() -> None:
    with Resizer(cpus=2) as resizer, Peer(resizer.address) as peer:
        peer.ask(id=1, dry_run=True)

        def shown() -> bool:
            titles = sorted(resizer.titles().values())
            return titles == [
                "resizer backend-1: cpu 0",
                "resizer backend-1: cpu 1",
                "resizer backend-1: express",
                "resizer backend-1: front [1 client, 0 queued]",
                "resizer backend-1: master [1 front]",
            ]

        try:
            wait_for(shown, "the titles", 10)
        except AssertionError:
            raise AssertionError(resizer.titles()) from None


def test_cpu_processes_have_a_nice_value_and_front_and_express_have_none() -> None:
    with Resizer(cpus=2, nice=7) as resizer:
        resizer.wait_line(r"cpu 1 pid=\d+ ready")
        own = os.getpriority(os.PRIO_PROCESS, 0)

        def more() -> dict[str, int]:
            return {
                re.sub(r".*: | \[.*", "", title): os.getpriority(os.PRIO_PROCESS, pid) - own
                for pid, title in resizer.titles().items()
            }

        due = {"master": 0, "front": 0, "express": 0, "cpu 0": 7, "cpu 1": 7}
        try:
            wait_for(lambda: more() == due, "every process's nice value", 5)
        except AssertionError:
            raise AssertionError(more()) from None


def test_memory_stays_flat_over_many_dry_runs() -> None:
    frame = framed(original_name="x", dry_run=True, target_width=3)
    with Resizer(cpus=1) as resizer, Peer(resizer.address) as peer:
        front = next(p for p, title in resizer.titles().items() if ": front" in title)

        def many(count: int) -> None:
            for _ in range(count // 20):
                peer.sock.sendall(frame * 20)
                peer.hear_all(20)

        many(5_000)
        before = psutil.Process(front).memory_info().rss
        many(20_000)
        assert psutil.Process(front).memory_info().rss - before < 1 << 20
