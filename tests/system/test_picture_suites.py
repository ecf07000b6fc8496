"""Test pictures of other projects: each is shown as a browser or ImageMagick shows it. A soak test, by hand:

apt-get install chromium imagemagick golang-1.19-src        # the sources of Go have pngsuite and others
pip download --no-deps --no-binary :all: pillow && tar xf pillow-*.tar.gz
PICTURE_SUITES=pillow-13.0.0/Tests/images pytest -m soak tests/system/test_picture_suites.py
"""

import glob
import io
import os
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.system import picture_decoders
from workers import imaging
from workers.imaging import PictureLimits, PictureRefused, ResizeJob, formats

MOST_DIFFERENCE = 2.0  # mean of a band, in steps of 255
KNOWN = {
    "1_trns.png": "a key beyond the file's depth: its lower bits count, as the specification has it",
    "star.avifs": "alpha of limited range: libavif expands it, Chromium does not",
    "exif_imagemagick_orientation.png": "a gamma of 1/2.2 counts as sRGB's curve; Chromium takes it by the letter",
    "broken_data_stream.png": "what is missing is black; in Chromium it is transparent",
    "truncated_image.png": "what is missing is black; in Chromium it is transparent",
    "anim_orient6.webp": "EXIF counts in WebP too; Chromium and ImageMagick do not turn animations",
}


def suites() -> list[Path]:
    named = [path for path in os.environ.get("PICTURE_SUITES", "").split(os.pathsep) if path]
    return [Path(path) for path in named or glob.glob("/usr/share/go-*/src/image")]


def pictures() -> list[tuple[str, bytes]]:
    """Name and content of each file that is of a format read here, by its first bytes."""
    found = []
    for suite in suites():
        for path in sorted(suite.rglob("*")):
            data = path.read_bytes() if path.is_file() else b""
            try:
                formats.sniff(data)
            except PictureRefused:
                continue
            found.append((path.name, data))
    return found


def seen_here(data: bytes) -> Image.Image | str:
    """The picture at its own size, or the refusal."""
    job = ResizeJob(
        16_000, 16_000, "contain", "png", orient=True, enlarge=False, tolerant=True, original=True
    )
    try:
        made = imaging.resize(data, job, PictureLimits())
    except PictureRefused as refused:
        return refused.sentence
    image = Image.open(io.BytesIO(made.data))
    if image.mode == "I;16":
        image = Image.frombytes("L", image.size, image.tobytes()[1::2])
    return image.convert("RGBA")


def difference(one: Image.Image, other: Image.Image | None) -> float:
    """Mean difference of the band that differs most, on white or on black; 255 for another size or no picture."""
    if other is None or one.size != other.size:
        return 255.0
    worst = 0.0
    for colour in ("white", "black"):
        grounds = [Image.alpha_composite(Image.new("RGBA", each.size, colour), each) for each in (one, other)]
        worst = max(
            worst, *ImageStat.Stat(ImageChops.difference(*(each.convert("RGB") for each in grounds))).mean
        )
    return worst


@pytest.mark.soak
def test_pictures_are_shown_as_other_decoders_show_them() -> None:
    if not picture_decoders.browser() or not picture_decoders.imagemagick():
        pytest.skip("Chromium or ImageMagick is not installed")
    files = pictures()
    if not files:
        pytest.skip("no suite: name directories in PICTURE_SUITES, or install golang-1.19-src")
    imaging.prepare()
    browser = picture_decoders.seen_in_browser([data for _, data in files], 600)
    wrong = []
    for (name, data), shown in zip(files, browser, strict=True):
        ours = seen_here(data)
        if name in KNOWN or (isinstance(ours, str) and shown is None):
            continue
        if isinstance(ours, str):
            wrong.append(f"{name}: refused ({ours}), and the browser shows it")
        elif difference(ours, shown) > MOST_DIFFERENCE:
            other = picture_decoders.seen_by_imagemagick(data)
            if difference(ours, other) > MOST_DIFFERENCE and (shown or other):
                wrong.append(
                    f"{name}: differs by {difference(ours, shown):.1f} and {difference(ours, other):.1f}"
                )
    print(f"{len(files)} pictures")
    assert not wrong, "\n".join(wrong)
