"""What is cheap enough for the express process: by pixels and formats of source and result, not by bytes."""

import io
from functools import cache

import pytest
from PIL import Image

from workers.imaging.job import ResizeJob
from workers.resizer.cost import is_light


@cache
def picture(kind: str, width: int, height: int, frames: int = 1) -> bytes:
    out = io.BytesIO()
    images = [Image.new("RGB", (width, height), (number, 99, 200)) for number in range(frames)]
    more = {"save_all": True, "append_images": images[1:]} if frames > 1 else {}
    images[0].save(out, kind, **more)
    return out.getvalue()


@pytest.mark.parametrize(
    ("source", "job", "expected"),
    [
        (("JPEG", 640, 480), {"width": 160, "height": 120}, True),
        (("JPEG", 2400, 1800), {"width": 800}, True),
        (("JPEG", 640, 480), {"width": 1600, "height": 1200}, True),
        (("PNG", 640, 480), {"width": 320}, True),
        (("PNG", 8, 8), {"width": 5656, "height": 5656, "format": "avif"}, False),
        (("PNG", 8, 8), {"width": 5656, "format": "avif"}, False),
        (("PNG", 8, 8), {"width": 5656, "format": "avif", "enlarge": False}, True),
        (("PNG", 8, 8), {"width": 5656, "height": 5656, "fit": "contain"}, False),
        (("PNG", 6000, 6000), {"width": 20}, False),
        (("GIF", 3000, 2000), {"width": 20}, False),
        (("WEBP", 3000, 2000), {"width": 20}, False),
        (("JPEG", 640, 480), {"width": 1200, "height": 1000, "format": "png"}, False),
        (("JPEG", 640, 480), {"width": 1200, "height": 1000, "format": "auto", "accepts": ("avif",)}, False),
        (("JPEG", 640, 480), {"width": 1200, "height": 1000, "format": "auto"}, True),
        (("GIF", 100, 100, 3), {"width": 50}, True),
        (("GIF", 600, 400, 200), {"width": 50}, False),
        (("PNG", 600, 400, 200), {"width": 50}, False),
        (("WEBP", 600, 400, 200), {"width": 50}, False),
        (("AVIF", 60, 40, 3), {"width": 50}, False),
    ],
)
def test_pictures(source: tuple[str, int, int], job: dict[str, object], expected: bool) -> None:
    data = picture(*source)
    assert len(data) < 512 << 10, "small by its bytes"
    asked = ResizeJob(**{"width": 0, "height": 0, **job})  # type: ignore[arg-type]
    assert is_light(memoryview(data), asked) is expected


def test_what_is_no_picture_is_refused_at_once_and_what_hides_its_size_is_not_trusted() -> None:
    job = ResizeJob(9, 9)
    assert is_light(memoryview(b"%PDF-1.4"), job) and is_light(memoryview(b""), job)
    assert not is_light(memoryview(b"\0\0\0\x20ftypmif1\0\0\0\0miafMA1Bavif"), job)
    assert not is_light(memoryview(b"\xff\xd8\xff\xdb\0\x02"), job)
    many_segments = b"\xff\xd8" + b"\xff\xfe\0\x02" * 100_000 + picture("JPEG", 60, 40)[2:]
    assert not is_light(memoryview(many_segments), job), "nobody counts them all"
