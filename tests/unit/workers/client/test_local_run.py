"""A run of --local over CPU processes that the test plays, on the other end of real sockets in the same loop."""

import mmap
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.client.job_tracker import RunSpec
from workers.client.journal import Journal
from workers.client.local_orders import LONGEST, ORDER, PLACES, READY, LocalProcess, LocalReply, decode_reply
from workers.client.local_process import readiness
from workers.client.local_run import START_FAILURES, LocalRun
from workers.client.naming import target_names
from workers.client.options import parse_client
from workers.client.output import OutputDirectory
from workers.client.report import Statistics
from workers.client.scan import scan
from workers.sandbox import Sandbox

PLACE = 4096
LIBRARY = LocalReply(READY, text="a library")


def gif(width: int, height: int) -> bytes:
    """As much of a picture as the run reads."""
    return b"GIF89a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")


class PlayedProcess:
    """The other end of one CPU process. `behave(process, serial, content)` answers an order, or does not."""

    def __init__(self, loop: Loop, behave: "Behaviour") -> None:
        self.loop = loop
        self.memory = mmap.mmap(-1, PLACES * PLACE)
        self.ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)
        self.sock.setblocking(False)
        self.behave = behave
        self.is_alive = True
        self.is_stuck = False
        self.waiting = 0  # orders not answered
        self.most_waiting = 0
        loop.watch_level(self.sock.fileno(), lambda mask: self.on_order())

    def on_order(self) -> None:
        try:
            packet, fds, _flags, _address = socket.recv_fds(self.sock, ORDER.size, 1)
        except BlockingIOError:  # an event of the socket that had this number before
            return
        if not packet:
            self.die()
            return
        with open(fds[0], "rb") as source:
            content = source.read()
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        (serial,) = ORDER.unpack(packet)
        # Answered in the next turn, so that the run has time to send more than it should.
        self.loop.call_next_turn(lambda: self.answer(serial, content))

    def answer(self, serial: int, content: bytes) -> None:
        self.waiting -= 1
        if self.is_alive and not self.is_stuck:
            self.behave(self, serial, content)

    def ready(self, reply: LocalReply) -> None:
        self.sock.send(reply.encode())

    def result(self, serial: int, data: bytes, note: str = "") -> None:
        start = serial % PLACES * PLACE
        self.memory[start : start + len(data)] = data
        self.sock.send(LocalReply(serial, 200, len(data), text=note).encode())

    def die(self) -> None:
        if self.is_alive:
            self.is_alive = False
            self.loop.forget(self.sock.fileno())
            self.sock.close()


Behaviour = Callable[[PlayedProcess, int, bytes], None]


def behave_well(process: PlayedProcess, serial: int, content: bytes) -> None:
    process.result(serial, gif(8, 6))


def fail() -> None:
    raise AssertionError("the run does not end")


class LocalFixture:
    """A directory of files, and a run of it."""

    def __init__(self, directory: Path) -> None:
        self.input, self.output = directory / "in", directory / "out"
        self.input.mkdir()
        self.processes: list[PlayedProcess] = []
        self.reaped: list[LocalProcess] = []

    def fill(self, count: int) -> None:
        for number in range(count):
            (self.input / f"{number}.gif").write_bytes(gif(40, 30) + b"%d" % number)

    def run(
        self,
        behave: Behaviour = behave_well,
        count: int = 1,
        words: tuple[str, ...] = (),
        clock: Callable[[], float] | None = None,
        is_ready: bool = True,
        first: LocalReply = LIBRARY,
    ) -> Statistics:
        arguments = ["--input", str(self.input), "--output", str(self.output), "--local", "-w", "8"]
        arguments += ["--cpus", str(count)]
        options = parse_client([*arguments, "--report", str(self.output / "r.json"), *words], {})
        found = scan(str(self.input))
        targets = target_names({picture.path: picture.format for picture in found.pictures}, 8, 0)
        output = OutputDirectory(str(self.output))
        spec = RunSpec(options, (), found.pictures, targets, output, Journal(output, "job"), False)
        loop = Loop(clock) if clock else Loop()
        loop.call_later(10_000 if clock else 30, fail)
        loop.at_turn_end(lambda: fail() if loop.turns > 10_000 else None)

        def spawn() -> LocalProcess:
            process = PlayedProcess(loop, behave)
            self.processes.append(process)
            loop.call_next_turn(partial(process.ready, first) if is_ready else process.die)
            return LocalProcess(len(self.processes), process.ours, process.memory)

        def reap(process: LocalProcess) -> str:
            self.reaped.append(process)
            self.processes[process.pid - 1].die()
            process.sock.close()
            return "SIGSEGV"

        try:
            return LocalRun(spec, loop, Log("test", "/dev/null"), spawn, reap).go()
        finally:
            loop.close()

    def saved(self) -> list[str]:
        return sorted(path.name for path in self.output.glob("*.gif"))


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalFixture]:
    fixture = LocalFixture(tmp_path)
    (tmp_path / "out").mkdir()
    yield fixture
    assert len(fixture.reaped) == len(fixture.processes), "every process is waited for"


def names(count: int) -> list[str]:
    return sorted(f"{number}-8x6.gif" for number in range(count))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_picture_is_resized_once(local: LocalFixture, count: int) -> None:
    local.fill(20)
    seen = []

    def note_content(process: PlayedProcess, serial: int, content: bytes) -> None:
        seen.append(content[10:])
        process.result(serial, gif(8, 6), "first of 2 frames")

    statistics = local.run(note_content, count)
    assert local.saved() == names(20)
    assert sorted(seen) == sorted(b"%d" % number for number in range(20))
    assert len(local.processes) == count
    assert max(process.most_waiting for process in local.processes) == PLACES, "the next one is sent ahead"
    assert statistics.exit_code() == 0
    assert (statistics.replies, statistics.saved, statistics.retries) == (20, 20, 0)
    assert statistics.notes == {"first of 2 frames": 20}
    assert statistics.servers.keys() == {f"cpu {number}" for number in range(count)}
    assert statistics.received == 20 * len(gif(8, 6))
    assert {row["error"] for row in statistics.rows} == {""}


def test_the_last_pictures_do_not_wait_behind_others(local: LocalFixture) -> None:
    local.fill(4)
    local.run(behave_well, 2)
    assert max(process.most_waiting for process in local.processes) == 1


def test_a_picture_that_kills_its_process_fails_alone(local: LocalFixture) -> None:
    local.fill(12)

    def die_of_7(process: PlayedProcess, serial: int, content: bytes) -> None:
        process.die() if content[10:] == b"7" else process.result(serial, gif(8, 6))

    statistics = local.run(die_of_7, 2)
    assert statistics.failures == [("7.gif", "lost: its CPU process died (SIGSEGV)")]
    assert (statistics.retries, statistics.unfinished) == (3, 0)
    assert local.saved() == [name for name in names(12) if name != "7-8x6.gif"]


def test_a_process_that_dies_once_costs_nothing(local: LocalFixture) -> None:
    local.fill(12)
    died: list[int] = []

    def die_once(process: PlayedProcess, serial: int, content: bytes) -> None:
        if serial == 3 and not died:
            died.append(serial)
            process.die()
        else:
            process.result(serial, gif(8, 6))

    statistics = local.run(die_once, 2)
    assert local.saved() == names(12)
    assert (statistics.exit_code(), statistics.retries) == (0, 1)
    assert len(local.processes) == 3


def test_a_picture_that_takes_too_long_is_killed_and_final(local: LocalFixture) -> None:
    local.fill(6)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    def stick_at_2(process: PlayedProcess, serial: int, content: bytes) -> None:
        process.is_stuck = content.endswith(b"2")
        if not process.is_stuck:
            process.result(serial, gif(8, 6))

    statistics = local.run(stick_at_2, words=("--timeout", "20"), clock=clock)
    assert statistics.failures == [("2.gif", "timeout: no result in 20 s")]
    assert (statistics.retries, len(local.saved())) == (0, 5)
    assert len(local.processes) == 2


def test_the_time_of_a_picture_begins_with_its_own_work(local: LocalFixture) -> None:
    local.fill(40)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    statistics = local.run(words=("--timeout", "20"), clock=clock)
    assert now[0] > 60
    assert statistics.exit_code() == 0, statistics.failures


@pytest.mark.parametrize(
    "reply",
    [
        b"x",
        LocalReply(READY).encode(),
        LocalReply(99, 200, 10).encode(),
        LocalReply(2, 200, PLACE + 1).encode(),
        LocalReply(2, 200, 1 << 60).encode(),
    ],
    ids=["short", "ready again", "another serial", "too long", "far too long"],
)
def test_a_process_that_sends_nonsense_is_replaced(local: LocalFixture, reply: bytes) -> None:
    local.fill(5)

    def lie_in_the_second(process: PlayedProcess, serial: int, content: bytes) -> None:
        process.sock.send(reply) if content.endswith(b"1") else process.result(serial, gif(8, 6))

    statistics = local.run(lie_in_the_second)
    assert statistics.failures == [("1.gif", "protocol: its CPU process sent nonsense")]
    assert local.saved() == [name for name in names(5) if name != "1-8x6.gif"]


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0", gif(9, 6), b"<svg>"])
def test_what_is_not_the_result_is_not_saved(local: LocalFixture, data: bytes) -> None:
    local.fill(2)
    statistics = local.run(lambda process, serial, content: process.result(serial, data))
    assert statistics.failed == 2
    assert statistics.reasons.keys() == {"wrong reply"}
    assert local.saved() == []


def test_a_refusal_is_the_picture_s(local: LocalFixture) -> None:
    local.fill(3)

    def refuse(process: PlayedProcess, serial: int, content: bytes) -> None:
        process.sock.send(LocalReply(serial, 422, text="truncated").encode())

    statistics = local.run(refuse)
    assert [sentence for _, sentence in statistics.failures] == ["422: truncated"] * 3
    assert len(local.processes) == 1


def test_processes_that_do_not_start_end_the_run(local: LocalFixture) -> None:
    local.fill(3)
    statistics = local.run(is_ready=False)
    assert statistics.stops == ["CPU processes do not start: SIGSEGV"]
    assert (statistics.failed, statistics.unfinished, statistics.exit_code()) == (0, 3, 1)
    assert len(local.processes) == START_FAILURES
    assert len(statistics.rows) == 3


def test_a_sandbox_that_is_required_and_not_there_ends_the_run(local: LocalFixture) -> None:
    local.fill(3)
    entered = Sandbox(["landlock"], {"seccomp": "no libseccomp"})
    assert (
        readiness(entered, False).status
        == readiness(Sandbox(missing={"net_namespace": "no"}), True).status
        == 200
    )
    statistics = local.run(first=readiness(entered, True))
    assert statistics.stops == [
        "sandbox landlock without seccomp: no libseccomp; --sandbox auto starts without"
    ]
    assert (statistics.unfinished, statistics.exit_code()) == (3, 1)
    assert local.saved() == []


def test_a_source_that_is_gone_fails_alone(local: LocalFixture) -> None:
    local.fill(5)

    def remove_4(process: PlayedProcess, serial: int, content: bytes) -> None:
        (local.input / "4.gif").unlink(missing_ok=True)
        process.result(serial, gif(8, 6))

    statistics = local.run(remove_4)
    assert statistics.failures == [("4.gif", "cannot read: No such file or directory")]
    assert local.saved() == names(4)


def test_replies_survive_the_way() -> None:
    reply = LocalReply(7, 422, 1 << 40, 65_535, 1, "e\u0301 \udce9")
    packet = reply.encode()
    assert len(packet) <= LONGEST
    assert decode_reply(packet) == LocalReply(7, 422, 1 << 40, 65_535, 1, "e\u0301 \\udce9")
    assert len(LocalReply(1, text="x" * 10_000).encode()) == LONGEST
