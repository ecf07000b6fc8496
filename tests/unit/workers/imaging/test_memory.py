"""What a picture is reckoned to take of memory, and its refusal; tests/system/test_resizer_memory.py measures it."""

import io

import pytest
from PIL import Image

from workers.imaging import PictureLimits, PictureRefused, ResizeJob, memory, resize


def test_a_picture_that_would_take_too_much_is_refused_with_both_numbers() -> None:
    out = io.BytesIO()
    Image.new("RGB", (400, 300)).save(out, "WEBP")
    data = out.getvalue()
    with pytest.raises(PictureRefused) as refused:
        resize(data, ResizeJob(4000, 3000, format="avif"), PictureLimits(max_memory=100 << 20))
    assert refused.value.status == 422
    assert "takes about 385 MiB of memory" in refused.value.sentence
    assert "over the limit of 100 MiB" in refused.value.sentence
    resize(data, ResizeJob(40, 30, format="avif"), PictureLimits(max_memory=100 << 20))


def test_a_reduced_jpeg_takes_what_its_result_asks_for() -> None:
    assert memory.reckon("jpeg", 50_000_000, "jpeg", 20_000) < 10 << 20
    assert memory.reckon("jpeg", 50_000_000, "jpeg", 20_000, is_multi_scan=True) > 300_000_000


def test_frames_that_wait_count() -> None:
    one, many = (memory.reckon("gif", 10_000, "webp", 1_000_000, True, kept_frames=n) for n in (1, 100))
    assert many - one == 99 * 4_000_000
