"""The resizer when processes die, hang or are too slow, under too many requests, and at a stop or a reload."""

import contextlib
import io
import os
import random
import signal
import statistics
import threading
import time
import zlib
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from scripts.lab.waiting import best_of, wait_for
from tests.system.harness import Resizer
from tests.system.resizer_peer import ENDLESS, LONG, SLOW, Peer, picture, size_of
from workers.wire.messages import Response

pids = Resizer.pids


def busy_cpu(resizer: Resizer, dead: Collection[int] = ()) -> int:
    """The CPU process that works on a picture, according to the status; not one of the `dead`, which stand there until
    the master has reaped them."""

    def found() -> int:
        processes = resizer.status()["processes"]
        busy = (p["pid"] for p in processes if p["role"] != "front" and p["load"])
        return next((pid for pid in busy if pid not in dead), 0)

    return wait_for(found, "a busy CPU process", 5)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_cpu_process_that_dies_costs_one_retryable_answer(how: signal.Signals) -> None:
    with Resizer(cpus=2) as resizer, Peer(resizer.address) as peer, Peer(resizer.address) as other:
        resizer.expect("reap|death|died")
        killed: list[int] = []

        def kill_one() -> float:
            number = 10 * len(killed)
            data = picture(300, 200, seed=1 + number)  # one that kills again is refused
            peer.say(id=number + 1, data=data, **ENDLESS)
            killed.append(busy_cpu(resizer, killed))
            os.kill(killed[-1], how)
            began = time.monotonic()
            reply = peer.hear()
            took = time.monotonic() - began
            assert reply is not None and (reply.id, reply.status) == (number + 1, 503), reply
            assert other.ask(id=number + 2, data=data, target_width=30).status == 200
            wait_for(
                lambda: len(pids(resizer, "cpu")) == 2 and not {*killed} & {*pids(resizer, "cpu")}, "back", 10
            )
            assert peer.ask(id=number + 3, data=data, target_width=30).status == 200
            return took

        best_of(kill_one, 0.2, "the answer", 3)


def test_small_pictures_prefetched_behind_slow_ones_are_done_elsewhere() -> None:
    with (
        Resizer(cpus=len(os.sched_getaffinity(0)), job_timeout="5s") as resizer,
        Peer(resizer.address) as peer,
    ):
        resizer.expect("reap")
        cpus = len(pids(resizer, "cpu"))
        for number in range(1, cpus + 1):
            peer.say(id=number, data=picture(300, 200), **ENDLESS)
        for number in range(101, 101 + 2 * cpus):
            peer.say(id=number, data=picture(300, 200), target_width=30)
        replies = peer.hear_all(2 * cpus)
        assert all(reply.status == 200 and size_of(reply.data) == (30, 20) for reply in replies)
        assert min(reply.id for reply in replies) > 100, "before any of the slow ones was done or cut"
        assert {reply.id for reply in peer.hear_all(cpus)} == set(range(1, cpus + 1))


def test_cpu_processes_that_leave_lose_nothing() -> None:
    with Resizer(cpus=2, recycle=400) as resizer, ThreadPoolExecutor(3) as crowd:
        resizer.expect("reap")
        enough = threading.Event()

        def client() -> Counter[int]:
            found: list[Response] = []
            with Peer(resizer.address) as peer:
                for number in range(1, 17):
                    peer.say(id=number, data=picture(300, 200), target_width=30)
                while not enough.is_set() and number < 30_000:
                    number += 1
                    peer.say(id=number, data=picture(300, 200), target_width=30)
                    found += peer.hear_all(1)
                found += peer.hear_all(16)
            assert sorted(reply.id for reply in found) == list(range(1, number + 1))
            return Counter(reply.status for reply in found)

        running = [crowd.submit(client) for _ in range(3)]
        for _ in range(3):
            victims = set(pids(resizer, "cpu") + pids(resizer, "express"))
            for pid in victims:
                with contextlib.suppress(ProcessLookupError):  # recycled meanwhile
                    os.kill(pid, signal.SIGTERM)
            wait_for(lambda victims=victims: not victims & set(resizer.titles()), "they are gone", 5)
            wait_for(lambda: len(pids(resizer, "cpu")) == 2, "others are there", 10)
        enough.set()
        statuses = sum((one.result() for one in running), Counter())
        assert set(statuses) == {200}, statuses


def test_an_original_peer_loses_its_connection_when_the_cpu_process_dies() -> None:
    with Resizer(cpus=1) as resizer, Peer(resizer.address) as peer:
        resizer.expect("reap|death")
        peer.say(data=picture(300, 200), **ENDLESS)
        os.kill(busy_cpu(resizer), signal.SIGKILL)
        assert peer.hear() is None


def test_a_picture_over_its_time_is_cut_and_the_next_one_works() -> None:
    with Resizer(cpus=1, job_timeout="1s") as resizer, Peer(resizer.address) as peer:
        resizer.expect("reap")
        peer.ask(id=9, data=picture(300, 200), target_width=30)

        def cut() -> float:
            began = time.monotonic()
            reply = peer.ask(id=1, data=picture(300, 200), **ENDLESS)
            assert reply.status == 504 and "1 s" in reply.error
            assert time.monotonic() - began > 0.9
            return time.monotonic() - began

        best_of(cut, 1.6, "the answer", 3)
        for number in range(2, 12):
            assert peer.ask(id=number, data=picture(300, 200), target_width=30).status == 200


def test_a_hung_cpu_process_is_treated_like_a_slow_one() -> None:
    with Resizer(cpus=1, job_timeout="1s") as resizer, Peer(resizer.address) as peer:
        resizer.expect("reap")
        peer.ask(id=9, data=picture(300, 200), target_width=30)
        stopped = pids(resizer, "cpu") + pids(resizer, "express")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        replies = [peer.ask(id=number, data=picture(300, 200), target_width=30) for number in (1, 2)]
        assert {reply.status for reply in replies} <= {504, 200}
        assert replies[0].status == 504
        for pid in set(stopped) & set(resizer.titles()):
            os.kill(pid, signal.SIGCONT)
        assert len(pids(resizer, "front")) == 1


def test_a_picture_that_kills_again_and_again_is_refused() -> None:
    with Resizer(cpus=1) as resizer, Peer(resizer.address) as peer:
        resizer.expect("reap|death")
        killed: list[int] = []
        for number in (1, 2, 3):
            peer.say(id=number, data=picture(300, 200), **ENDLESS)
            killed.append(busy_cpu(resizer, killed))
            os.kill(killed[-1], signal.SIGKILL)
            reply = peer.hear()
            assert reply is not None and reply.status == 503
        assert peer.ask(id=4, data=picture(300, 200), **ENDLESS).status == 422
        assert peer.ask(id=5, data=picture(200, 200), target_width=9).status == 200


def test_a_front_that_dies_is_replaced_and_no_client_gets_the_answers_of_its_clients() -> None:
    with Resizer(cpus=1) as resizer:
        resizer.expect("reap")
        resizer.expected_exit = None  # the work of the lost front is replaced, or cut by the stop
        with Peer(resizer.address) as lost:
            lost.say(id=1, data=picture(300, 200), **ENDLESS)
            busy_cpu(resizer)
            os.kill(pids(resizer, "front")[0], signal.SIGKILL)
            assert lost.hear() is None

        def served() -> bool:
            try:
                with Peer(resizer.address) as peer:
                    for number in range(2, 20):
                        reply = peer.ask(
                            id=number, original_name=f"{number}", data=picture(300, 200), target_width=30
                        )
                        assert (reply.id, reply.status) == (number, 200)
                        assert size_of(reply.data) == (30, 20)
                return True
            except OSError:
                return False

        wait_for(served, "the new front", 10)


def test_a_new_front_serves_at_once_whatever_an_older_cpu_process_does_or_does_not_do() -> None:
    with Resizer(cpus=2, job_timeout="2m", frame_timeout="2m") as resizer:
        resizer.expect("reap|death|kill")
        stopped = resizer.pids("express") + resizer.pids("cpu")[:1]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            os.kill(pids(resizer, "front")[0], signal.SIGKILL)

            def served() -> bool:
                try:
                    with Peer(resizer.address) as peer:
                        return peer.ask(id=1, data=picture(300, 200), target_width=30).status == 200
                except OSError:
                    return False

            # Well below the time that the stopped processes may take for a picture.
            wait_for(served, "a picture, by the CPU process that is not stopped", 30)
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("is_stopped", [True, False], ids=["stopped", "busy"])
def test_a_new_front_does_not_wait_for_processes_that_do_not_answer(is_stopped: bool) -> None:
    with Resizer(cpus=1, job_timeout="2m", frame_timeout="2m") as resizer:
        resizer.expect("reap|death|kill")
        before = resizer.pids("express") + resizer.pids("cpu")
        with Peer(resizer.address) as lost:
            # Else it is still in the kernel's queue, which outlives the front: the new one accepts it.
            assert lost.ask(id=9, data=picture(30, 20), target_width=10).status == 200
            if not is_stopped:
                lost.say(id=1, data=picture(600, 400), **ENDLESS)
                before = [busy_cpu(resizer)]
            for pid in before:
                os.kill(pid, signal.SIGSTOP)  # so that it is busy for as long as it takes
            os.kill(pids(resizer, "front")[0], signal.SIGKILL)
            assert lost.hear() is None

        def served() -> bool:
            try:
                with Peer(resizer.address) as peer:
                    return peer.ask(id=1, data=picture(300, 200), target_width=30).status == 200
            except OSError:
                return False

        wait_for(served, "a picture, by a process that was forked meanwhile", 30)
        wait_for(lambda: not set(before) & set(resizer.titles()), "the silent ones to be replaced", 30)


def test_every_cpu_process_killed_at_random_and_every_request_answered() -> None:
    with Resizer(cpus=2) as resizer:
        resizer.expect("reap|death")
        stop = threading.Event()

        def killer() -> None:
            dice = random.Random(7)
            while not stop.wait(0.6):
                candidates = pids(resizer, "cpu") + pids(resizer, "express")
                if candidates:
                    try:
                        os.kill(dice.choice(candidates), signal.SIGKILL)
                    except ProcessLookupError:
                        pass

        thread = threading.Thread(target=killer)
        thread.start()
        statuses: Counter[int] = Counter()
        try:
            with Peer(resizer.address) as peer:
                for number in range(1, 701):
                    reply = peer.ask(
                        id=number,
                        original_name=f"{number}",
                        data=picture(600, 400, seed=number),
                        target_width=50,
                    )
                    assert reply.id == number
                    statuses[reply.status] += 1
        finally:
            stop.set()
            thread.join()
        assert set(statuses) <= {200, 503}
        assert statuses[200] > 600, statuses


def test_beyond_the_queue_requests_with_an_id_are_refused_at_once_and_original_peers_wait() -> None:
    data = picture(1500, 1000)
    with Resizer(cpus=1, queue=8, job_timeout="60s") as resizer:
        with Peer(resizer.address) as peer:
            peer.say(id=1, data=data, **LONG)
            peer.say(id=2, data=data, **LONG)
            for number in range(3, 30):
                peer.say(id=number, data=data, target_width=20)
            first = peer.hear()
            assert first is not None and first.status == 429, "before a long one was done"
            assert first.queue == 8 and first.workers == 1
            replies = [first, *peer.hear_all(28)]
            statuses = Counter(reply.status for reply in replies)
            assert statuses[200] >= 10 and statuses[200] + statuses[429] == 29
        with ThreadPoolExecutor(24) as pool:

            def original(number: int) -> Response:
                with Peer(resizer.address) as one:
                    return one.ask(original_name=f"{number}", data=data, target_width=20)

            names = {reply.original_name for reply in pool.map(original, range(24))}
            assert len(names) == 24


def test_a_full_service_still_answers_dry_runs() -> None:
    with Resizer(cpus=1, queue=2, drain_timeout="1s") as resizer, Peer(resizer.address) as dry:
        resizer.expected_exit = None  # what is under way is done in time, or cut
        crowd = [Peer(resizer.address) for _ in range(40)]
        try:
            for peer in crowd:
                peer.say(data=picture(1500, 1000), **SLOW)

            def twenty_dry_runs() -> float:
                began = time.monotonic()
                for number in range(1, 21):
                    assert dry.ask(id=number, dry_run=True).status == 200
                return time.monotonic() - began

            best_of(twenty_dry_runs, 0.5, "dry runs")
        finally:
            for peer in crowd:
                peer.sock.close()


def test_too_many_clients_are_refused_work_but_not_health() -> None:
    with Resizer(cpus=1, maxconns=3) as resizer:
        first = [Peer(resizer.address) for _ in range(3)]
        for peer in first:
            assert peer.ask(id=1, dry_run=True).status == 200
        with Peer(resizer.address) as late:
            assert late.ask(id=1, dry_run=True).status == 200
            assert late.ask(id=2, data=picture(60, 40), target_width=9).status == 429
        for peer in first:
            assert peer.ask(id=3, data=picture(60, 40), target_width=9).status == 200
            peer.sock.close()


def test_a_stop_answers_what_is_in_flight_and_refuses_the_rest() -> None:
    with (
        Resizer(cpus=1, drain_timeout="60s", job_timeout="60s") as resizer,
        Peer(resizer.address) as peer,
        Peer(resizer.address) as idle,
    ):
        idle.ask(id=1, dry_run=True)
        peer.say(id=1, original_name="under way", data=picture(300, 200), **LONG)
        busy_cpu(resizer)
        resizer.signal(signal.SIGTERM)
        assert idle.hear() is None
        peer.say(id=2, original_name="too late", data=picture(300, 200), target_width=9)
        replies = {reply.original_name: reply for reply in peer.hear_all(2)}
        assert replies["too late"].status == 503
        assert replies["under way"].status == 200 and size_of(replies["under way"].data) == (5600, 5600)
        assert peer.hear() is None
        assert resizer.wait_exit() == 0


def test_a_reload_under_load_loses_nothing() -> None:
    data = picture(600, 400)
    with Resizer(cpus=2).with_file() as resizer:
        stop = threading.Event()
        failures: list[object] = []
        done = Counter[str]()

        def client(number: int) -> None:
            while not stop.is_set():
                try:
                    with Peer(resizer.address) as peer:
                        for turn in range(20):
                            reply = peer.ask(id=turn + 1, data=data, target_width=50)
                            if reply.status == 503:
                                done["draining"] += 1
                                break
                            assert reply.status == 200, reply
                            done["ok"] += 1
                except AssertionError as error:
                    if "connection ended" in str(error):
                        done["ended"] += 1  # between two requests: the client may retry
                    else:
                        failures.append(error)
                except OSError as error:
                    failures.append(error)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            before = set(pids(resizer, "front"))
            resizer.change_file()
            resizer.signal(signal.SIGHUP)
            wait_for(
                lambda before=before: not before & set(pids(resizer, "front")), "the next generation", 15
            )
        stop.set()
        for thread in threads:
            thread.join()
        assert not failures, failures
        assert done["ok"] > 100, done


def bomb_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its few bytes cannot have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def bomb_gif(frames: int) -> bytes:
    """An animation of many tiny frames."""
    out = io.BytesIO()
    first = Image.new("L", (16, 16), 0)
    others = [Image.new("L", (16, 16), number % 255 + 1) for number in range(frames - 1)]
    first.save(out, "GIF", save_all=True, append_images=others)
    return out.getvalue()


def test_bombs_are_refused_quickly_and_the_next_picture_works() -> None:
    bombs = [
        bomb_png(50_000, 50_000),
        bomb_png(1, 2**31 - 1),
        b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;",
        bomb_gif(3000),
    ]
    with Resizer(cpus=1) as resizer, Peer(resizer.address) as peer:
        for number, bomb in enumerate(bombs, 1):

            def refusal(number: int = number, bomb: bytes = bomb) -> float:
                began = time.monotonic()
                reply = peer.ask(id=number, data=bomb, target_width=50)
                assert reply.status in (415, 422), reply
                return time.monotonic() - began

            best_of(refusal, 1.0, "refused")
        assert peer.ask(id=99, data=picture(60, 40), target_width=9).status == 200
        assert resizer.memory(pids(resizer, "cpu")) < 300 << 20


def test_other_file_formats_are_refused_and_execute_nothing() -> None:
    other_formats = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n" + b"showpage\n" * 1000,
        "pdf": b"%PDF-1.4\n" + b"1 0 obj\n<<>>\nendobj\n" * 500,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>' * 100,
    }
    tiff = io.BytesIO()
    Image.new("RGB", (50, 50)).save(tiff, "TIFF")
    other_formats["tiff"] = tiff.getvalue()
    with Resizer(cpus=1) as resizer, Peer(resizer.address) as peer:
        before = set(resizer.titles())
        for number, data in enumerate(other_formats.values(), 1):
            assert peer.ask(id=number, original_name="x.jpg", data=data, target_width=9).status == 415
        assert set(resizer.titles()) == before


def test_small_pictures_pass_while_big_ones_keep_every_cpu_busy() -> None:
    small, big = picture(300, 200), picture(5200, 3900)
    with Resizer(cpus=2) as resizer:
        stop = threading.Event()
        long: list[float] = []

        def send_big() -> None:
            with Peer(resizer.address) as peer:
                number = 0
                while not stop.is_set():
                    number, began = number + 1, time.monotonic()
                    assert peer.ask(id=number, data=big, target_width=4000, target_height=3000).status == 200
                    long.append(time.monotonic() - began)

        threads = [threading.Thread(target=send_big) for _ in range(2)]
        for thread in threads:
            thread.start()
        times: list[float] = []
        try:
            with Peer(resizer.address) as peer:
                for number in range(1, 60):
                    began = time.monotonic()
                    assert peer.ask(id=number, data=small, target_width=30).status == 200
                    times.append(time.monotonic() - began)
                    time.sleep(0.02)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        # Waiting behind even one big picture would show in the median.
        assert statistics.median(times) < statistics.median(long) / 3, (times, long)


def test_two_fronts_share_the_cpu_processes_and_there_is_no_third() -> None:
    with Resizer(cpus=2, fronts=2) as resizer:
        resizer.signal(signal.SIGTTIN)
        for number in range(1, 21):
            with Peer(resizer.address) as peer:
                reply = peer.ask(id=number, data=picture(300, 200), target_width=30)
                assert (reply.status, reply.workers) == (200, 1)
        assert len(pids(resizer, "front")) == 2 == len(pids(resizer, "express"))


def test_cpu_processes_are_recycled_without_effect_on_clients() -> None:
    with Resizer(cpus=1, recycle=10) as resizer, Peer(resizer.address) as peer:
        first = set(pids(resizer, "cpu") + pids(resizer, "express"))
        for number in range(1, 101):
            assert peer.ask(id=number, data=picture(300, 200), target_width=30).status == 200
        assert not first & set(pids(resizer, "cpu"))
