"""The checks before any work, replies, derived options."""

import pytest

from workers.imaging.limits import PictureLimits, PictureRefused
from workers.resizer.cpu import job_of
from workers.resizer.options import HEADROOM, ResizerOptions
from workers.resizer.orders import Result
from workers.resizer.replies import response_to, task_of
from workers.resizer.task import Task, job_for, order_of, refusal
from workers.wire.messages import PNG, Request, encode_response


@pytest.mark.parametrize(
    ("width", "height", "fit", "format_name", "quality", "status"),
    [
        (0, 0, "", "", 0, 400),
        (10, 10, "nonsense", "", 0, 400),
        (10, 10, "", "tiff", 0, 400),
        (10, 10, "", "", 101, 400),
        (65_535, 65_535, "", "", 0, 422),
        (10**9, 0, "", "", 0, 422),
        (16_000, 16_000, "", "", 0, 422),
    ],
)
def test_refused_before_the_picture_is_read(
    width: int, height: int, fit: str, format_name: str, quality: int, status: int
) -> None:
    with pytest.raises(PictureRefused) as caught:
        job_for(width, height, fit, format_name, quality, False, "icc=drop", PictureLimits())
    assert caught.value.status == status


def test_the_job_of_a_request() -> None:
    job = job_for(200, 0, "", "JPG", 0, True, "icc=keep", PictureLimits())
    assert (job.width, job.height, job.fit, job.format, job.orient, job.icc) == (
        200,
        0,
        "stretch",
        "jpeg",
        True,
        "keep",
    )


def test_a_reply_to_an_original_peer_has_no_field_of_ours() -> None:
    request = Request(original_name="a.png", typ=PNG, target_width=5)
    response = response_to(request, Result(1, 2, 200, 9, 5, 4, 50, 40, 123, text="png"), ("backend-1", 3, 2))
    assert (response.resized_width, response.resized_height, response.processing_time) == (5, 4, 123)
    assert b"Server" not in encode_response(response) and b"backend-1" not in encode_response(response)


def test_a_reply_with_an_id_has_server_queue_and_workers() -> None:
    request = Request(original_name="a.png", id=8)
    response = response_to(request, refusal(429, "busy"), ("backend-1", 3, 2))
    found = (response.id, response.status, response.error, response.server, response.queue, response.workers)
    assert found == (8, 429, "busy", "backend-1", 3, 2)
    assert response_to(request, Result(1, 2, 200), ("b", 0, 1)).error == ""
    assert response_to(request, Result(1, 2, 200, note="no colours"), ("b", 0, 1)).note == "no colours"
    request.id = 0
    assert response_to(request, Result(1, 2, 200, note="no colours"), ("b", 0, 1)).note == ""


def test_slots_follow_from_the_other_options() -> None:
    options = ResizerOptions(cpus=4, fronts=2, queue=10, max_frame=1 << 20)
    assert options.slots >= options.queue + 3
    assert options.slot_bytes == (1 << 20) + HEADROOM


@pytest.mark.parametrize(
    ("word", "with_id", "original"), [("auto", True, False), ("yes", True, True), ("no", False, False)]
)
def test_pictures_that_are_turned_upright(word: str, with_id: bool, original: bool) -> None:
    options = ResizerOptions(orient=word)
    assert (options.wants_upright(True), options.wants_upright(False)) == (with_id, original)


def test_parameters_survive_the_way_to_a_cpu_process() -> None:
    text = "icc=keep&subsampling=444&enlarge=no&tolerant=yes&gravity=south&keep=exif,xmp&accepts=avif&original=yes"
    job = job_for(9, 9, "cover", "auto", 0, True, text, PictureLimits())
    task = Task(1, None, job)  # type: ignore[arg-type]
    assert job_of(order_of(task, 0, 1, 2)) == job
    plain = job_for(9, 9, "cover", "", 0, True, "icc=srgb", PictureLimits())
    assert order_of(Task(1, None, plain), 0, 1, 2).parameters == ""  # type: ignore[arg-type]


def test_a_peer_of_the_original_is_known_by_its_missing_id() -> None:
    for number in (0, 7):
        request = Request(original_name="a.png", id=number, target_width=9)
        task = task_of(request, 99, None, 1, ResizerOptions())  # type: ignore[arg-type]
        assert task.job.original is (number == 0)
    request = Request(id=7, target_width=9, parameters="icc=drop&enlarge=no")
    job = task_of(request, 99, None, 1, ResizerOptions()).job  # type: ignore[arg-type]
    assert (job.icc, job.enlarge) == ("drop", False)
