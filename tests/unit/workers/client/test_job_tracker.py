"""What becomes of jobs: counted once each, whatever ends the run."""

import errno
import os

import pytest

from balancer.eventloop.errnos import OUTPUT_IS_GONE
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.client.job_tracker import JobTracker, RunSpec
from workers.client.jobs import ClientJob, request_of
from workers.client.options import parse_client
from workers.client.scan import Picture
from workers.wire.messages import Response


class FailingOutput:
    """An output directory whose every save fails with `number`, or none when it is 0."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.saved: list[str] = []

    def save(self, target: str, data: bytes, note: object, mtime_ns: int | None) -> None:
        if self.number:
            raise OSError(self.number, os.strerror(self.number), target)
        self.saved.append(target)


class TrackerFixture:
    """A tracker of `total` jobs over a loop that never runs."""

    def __init__(self, total: int, number: int = 0) -> None:
        options = parse_client(["--input", "/", "-w", "8", "--report", "r.json"], {})
        self.output = FailingOutput(number)
        spec = RunSpec(options, (), [], {}, self.output, None, False)  # type: ignore[arg-type]
        self.tracker = JobTracker(spec, Loop(), Log("test", "/dev/null"), total)
        self.statistics = self.tracker.statistics
        self.jobs = [ClientJob(Picture(f"{n}.gif", 10, 1, "gif"), f"{n}-8x0.gif") for n in range(total)]
        for job in self.jobs:
            job.request = request_of(options, job.picture)

    def answer(self, number: int, status: int = 200, note: str = "") -> None:
        data = b"GIF89a\x08\0\x06\0" if status == 200 else b""
        response = Response(data=data, status=status, error="not a picture", server="s", note=note)
        self.tracker.answer(self.jobs[number], response)

    def errors(self) -> dict[str, str]:
        return {row["picture"]: row["error"] for row in self.statistics.rows}


def test_results_are_saved_under_the_name_of_their_size() -> None:
    fixture = TrackerFixture(1)
    fixture.answer(0)
    assert fixture.output.saved == [fixture.jobs[0].target] == ["0-8x6.gif"]
    assert fixture.statistics.saved == 1
    assert fixture.tracker.left == 0


@pytest.mark.parametrize("number", sorted(OUTPUT_IS_GONE))
def test_a_full_or_lost_disk_ends_the_run_in_one_sentence(number: int) -> None:
    fixture = TrackerFixture(5)
    fixture.answer(0)
    fixture.output.number = number
    fixture.answer(1)
    fixture.answer(2)  # in the same turn
    assert fixture.tracker.is_ending
    fixture.tracker.finish(fixture.jobs[3:])
    statistics = fixture.statistics
    assert (statistics.failed, statistics.failures, statistics.unfinished) == (0, [], 4)
    assert statistics.stops == [f"cannot save 1-8x6.gif: {os.strerror(number)}"]
    assert list(fixture.errors()) == [job.picture.path for job in fixture.jobs]
    assert [error.partition(":")[0] for error in fixture.errors().values()] == [
        "", "cannot save", "cannot save", "not done", "not done",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.ENOENT, errno.ENAMETOOLONG, errno.EFBIG, errno.EISDIR]
)
def test_a_result_that_alone_cannot_be_saved_fails_alone(number: int) -> None:
    fixture = TrackerFixture(2, number)
    fixture.answer(0)
    assert not fixture.tracker.is_ending
    assert fixture.statistics.failures == [("0.gif", f"cannot save: {os.strerror(number)}")]


def test_abandoned_jobs_are_told_once_and_have_their_rows() -> None:
    fixture = TrackerFixture(4)
    fixture.answer(0, note="first of 2 frames")
    fixture.tracker.abandon(fixture.jobs[1:], "cannot connect to 127.0.0.1:9: Connection refused")
    fixture.tracker.finish([])
    statistics = fixture.statistics
    assert (statistics.failed, statistics.unfinished, len(statistics.stops), fixture.tracker.left) == (
        0,
        3,
        1,
        0,
    )
    assert set(list(fixture.errors().values())[1:]) == {
        "not done: cannot connect to 127.0.0.1:9: Connection refused"
    }
    assert statistics.notes == {"first of 2 frames": 1}
    assert statistics.rows[0]["note"] == "first of 2 frames"


def test_every_job_is_counted_once_after_a_signal() -> None:
    fixture = TrackerFixture(6)
    fixture.answer(0)
    fixture.answer(1, 422)
    fixture.tracker.on_signal(2, None)
    fixture.answer(2)  # in the same turn
    fixture.tracker.finish(fixture.jobs[3:])
    statistics = fixture.statistics
    assert (statistics.failed, statistics.unfinished) == (1, 3)
    assert (statistics.exit_code(), statistics.stops) == (130, ["stopped by SIGINT"])
    assert len(fixture.errors()) == 6


def test_a_signal_after_the_last_job_changes_nothing() -> None:
    fixture = TrackerFixture(1)
    fixture.answer(0)
    fixture.tracker.on_signal(2, None)
    fixture.tracker.finish([])
    assert (fixture.statistics.exit_code(), fixture.statistics.stops) == (0, [])
