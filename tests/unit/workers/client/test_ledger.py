"""What becomes of jobs: counted once each, whatever ends the run."""

import errno
import os
from collections.abc import Callable

import pytest

from balancer.eventloop.errnos import OUTPUT_IS_GONE
from balancer.eventloop.log import Log
from balancer.eventloop.loop import Loop
from workers.client.jobs import ClientJob
from workers.client.ledger import Ledger, RunSpec
from workers.client.options import parse_client
from workers.client.scan import Picture


class LedgerFixture:
    """A ledger of `total` jobs over a loop that never runs."""

    def __init__(self, total: int, *words: str) -> None:
        options = parse_client(["--input", "/", "-w", "8", "--report", "r.json", *words], {})
        self.loop = Loop()
        spec = RunSpec(options, (), [], {}, None, None, False)
        self.ledger = Ledger(spec, self.loop, Log("test", "/dev/null"), total)
        self.statistics = self.ledger.statistics
        self.jobs = [ClientJob(Picture(f"{n}.jpg", 10, 1, "jpeg"), f"{n}-8x0.jpg") for n in range(total)]

    def errors(self) -> dict[str, str]:
        return {row["picture"]: row["error"] for row in self.statistics.rows}


def failing(number: int) -> Callable[..., None]:
    def write(target: str, note: object) -> None:
        raise OSError(number, os.strerror(number), target)

    return write


def test_results_are_saved_under_the_name_of_their_size() -> None:
    fixture = LedgerFixture(1)
    saved = []
    assert fixture.ledger.save(fixture.jobs[0], (8, 6), lambda target, note: saved.append(target)) == ""
    assert saved == [fixture.jobs[0].target] == ["0-8x6.jpg"]
    assert fixture.statistics.saved == 1


@pytest.mark.parametrize("number", sorted(OUTPUT_IS_GONE))
def test_a_full_or_lost_disk_ends_the_run_in_one_sentence(number: int) -> None:
    fixture = LedgerFixture(5)
    fixture.ledger.settle(fixture.jobs[0], "")
    for job in fixture.jobs[1:3]:  # the second was answered in the same turn
        fixture.ledger.settle(job, fixture.ledger.save(job, (8, 6), failing(number)))
    assert fixture.ledger.is_ending
    fixture.ledger.finish(fixture.jobs[3:])
    statistics = fixture.statistics
    assert (statistics.failed, statistics.failures, statistics.unfinished) == (0, [], 4)
    assert statistics.stops == [f"cannot save 1-8x6.jpg: {os.strerror(number)}"]
    assert list(fixture.errors()) == [job.picture.path for job in fixture.jobs]
    assert [error.partition(":")[0] for error in fixture.errors().values()] == [
        "", "cannot save", "cannot save", "not done", "not done",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "number", [errno.EACCES, errno.ENOENT, errno.ENAMETOOLONG, errno.EFBIG, errno.EISDIR]
)
def test_a_result_that_alone_cannot_be_saved_fails_alone(number: int) -> None:
    fixture = LedgerFixture(2)
    job = fixture.jobs[0]
    fixture.ledger.settle(job, fixture.ledger.save(job, (8, 6), failing(number)))
    assert not fixture.ledger.is_ending
    assert fixture.statistics.failures == [("0.jpg", f"cannot save: {os.strerror(number)}")]


def test_abandoned_jobs_are_told_once_and_have_their_rows() -> None:
    fixture = LedgerFixture(4)
    fixture.ledger.settle(fixture.jobs[0], "", note="first of 2 frames")
    fixture.ledger.abandon(fixture.jobs[1:], "cannot connect to 127.0.0.1:9: Connection refused")
    fixture.ledger.finish([])
    statistics = fixture.statistics
    assert (statistics.failed, statistics.unfinished, len(statistics.stops), fixture.ledger.left) == (
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
    fixture = LedgerFixture(6)
    fixture.ledger.settle(fixture.jobs[0], "")
    fixture.ledger.settle(fixture.jobs[1], "422: not a picture")
    fixture.ledger.on_signal(2, None)
    fixture.ledger.settle(fixture.jobs[2], "")  # its reply came in the same turn
    fixture.ledger.finish(fixture.jobs[3:])
    statistics = fixture.statistics
    assert (statistics.failed, statistics.unfinished) == (1, 3)
    assert (statistics.exit_code(), statistics.stops) == (130, ["stopped by SIGINT"])
    assert len(fixture.errors()) == 6


def test_a_signal_after_the_last_job_changes_nothing() -> None:
    fixture = LedgerFixture(1)
    fixture.ledger.settle(fixture.jobs[0], "")
    fixture.ledger.on_signal(2, None)
    fixture.ledger.finish([])
    assert (fixture.statistics.exit_code(), fixture.statistics.stops) == (0, [])
