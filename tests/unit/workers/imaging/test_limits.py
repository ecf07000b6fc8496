"""Each limit refuses a value above it, allows the limit itself, and states the measure and the limit."""

import pytest

from workers.imaging import limits
from workers.imaging.job import FORMATS, ResizeJob, check_job, parse_format
from workers.imaging.limits import PictureLimits, PictureRefused

BOUNDS = PictureLimits(
    max_bytes=100, max_pixels=400, max_side=40, max_target_pixels=300, max_frames=5, max_scans=3
)


@pytest.mark.parametrize(
    ("check", "arguments", "status", "words"),
    [
        (limits.check_bytes, (101,), 413, "101 bytes is over the limit of 100"),
        (limits.check_source, (41, 1), 422, "41x1 has a side over the limit of 40"),
        (limits.check_source, (21, 20), 422, "420 pixels, over the limit of 400"),
        (limits.check_source, (0, 20), 422, "no pixels"),
        (limits.check_request, (0, 0), 400, "0x0 names no side"),
        (limits.check_request, (-1, 5), 400, "negative"),
        (limits.check_request, (10**9, 0), 422, "1000000000x0"),
        (limits.check_request, (20, 16), 422, "320 pixels, over the limit of 300"),
        (limits.check_target, (1, 41), 422, "over the limit of 40"),
        (limits.check_target, (20, 16), 422, "320 pixels, over the limit of 300"),
        (limits.check_frames, (6, 1), 422, "limit of 5 frames"),
        (limits.check_frames, (5, 321), 422, "1605 pixels in all, over the limit of 1600"),
        (limits.check_scans, (4,), 422, "limit of 3 scans"),
    ],
)
def test_refused(check, arguments, status, words):
    with pytest.raises(PictureRefused) as refusal:
        check(*arguments, BOUNDS)
    assert refusal.value.status == status
    assert words in refusal.value.sentence


@pytest.mark.parametrize(
    ("check", "arguments"),
    [
        (limits.check_bytes, (100,)),
        (limits.check_source, (20, 20)),
        (limits.check_source, (40, 1)),
        (limits.check_request, (40, 0)),
        (limits.check_request, (15, 20)),
        (limits.check_target, (15, 20)),
        (limits.check_frames, (5, 320)),
        (limits.check_frames, (1, 100_000)),
        (limits.check_scans, (3,)),
    ],
)
def test_allowed(check, arguments):
    check(*arguments, BOUNDS)


@pytest.mark.parametrize(
    "job", [ResizeJob(1, 1, fit="fill"), ResizeJob(1, 1, icc="adobe"), ResizeJob(1, 1, quality=101)]
)
def test_an_invalid_job(job):
    with pytest.raises(PictureRefused) as refusal:
        check_job(job)
    assert refusal.value.status == 400


@pytest.mark.parametrize("word", ["JPG", ".jpeg", "image/jpeg", " Jpeg "])
def test_a_format_has_many_names(word):
    assert parse_format(word) == "jpeg"


@pytest.mark.parametrize("word", ["tiff", "", "image/", "../png"])
def test_an_unknown_format(word):
    with pytest.raises(PictureRefused) as refusal:
        parse_format(word)
    assert refusal.value.status == 400
    assert all(name in refusal.value.sentence for name in FORMATS)


def test_sides_that_only_bound_the_result_may_be_longer_than_it_may() -> None:
    limits.check_request(limits.LONGEST_ASKED, 1000, BOUNDS, is_exact=False)
    with pytest.raises(PictureRefused, match="over the limit of 999999999"):
        limits.check_request(limits.LONGEST_ASKED + 1, 1, BOUNDS, is_exact=False)


@pytest.mark.parametrize(
    ("source", "target", "limit", "is_refused"),
    [
        ((8, 8), (32, 32), 4, False),
        ((8, 8), (33, 8), 4, True),
        ((8, 8), (8, 33), 4, True),
        ((100 / 3, 8), (400 // 3, 8), 4, False),
        ((8, 8), (5656, 5656), 0, False),
    ],
)
def test_an_enlargement_is_measured_by_the_side_that_grows_most(
    source: tuple[float, float], target: tuple[int, int], limit: int, is_refused: bool
) -> None:
    if is_refused:
        with pytest.raises(PictureRefused, match="enlarge=no") as caught:
            limits.check_enlargement(source, target, limit)
        assert caught.value.status == 422
    else:
        limits.check_enlargement(source, target, limit)
