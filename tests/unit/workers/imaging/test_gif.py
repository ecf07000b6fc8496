"""Animations: every frame, its duration, its transparency; frames are counted before decoding."""

import time

import pytest
from PIL import Image, ImageChops

from workers.imaging import PictureLimits, PictureRefused, ResizeJob, gif, resize
from workers.imaging.resample import psnr


def moving(draw, count, mode="RGB"):
    return [ImageChops.offset(draw((60, 40), mode), 3 * index, 0) for index in range(count)]


def animated(save, frames, kind="GIF", **options):
    return save(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def many_frames(count):
    """A GIF of `count` frames of 1x1, 28 bytes each."""
    head = b"GIF89a\x10\x00\x10\x00\x80\x00\x00" + b"\x00\x00\x00\xff\xff\xff"
    frame = (
        b"\x21\xf9\x04\x00\x01\x00\x00\x00"
        + b"\x2c\x00\x00\x00\x00\x01\x00\x01\x00\x00"
        + b"\x02\x02\x44\x01\x00"
    )
    return head + frame * count + b"\x3b"


@pytest.mark.parametrize("count", [1, 2, 7])
def test_frames_are_counted_as_pillow_finds_them(draw, save, load, count):
    data = animated(save, moving(draw, count), comment=b"x" * 300)
    assert len(gif.read(data, 100).frames) == load(data).n_frames == count


@pytest.mark.parametrize("cut", range(6, 60, 7))
def test_a_truncated_file_is_counted_up_to_its_end(cut):
    assert len(gif.read(many_frames(3)[:cut], 100).frames) <= 3


def test_counting_stops_at_the_most():
    assert len(gif.read(many_frames(50), 10).frames) == 10


def test_twenty_thousand_frames_are_refused_at_once():
    data, started = many_frames(20_000), time.process_time()
    with pytest.raises(PictureRefused) as refusal:
        resize(data, ResizeJob(8, 8), PictureLimits())
    assert "1000 frames" in refusal.value.sentence
    assert time.process_time() - started < 0.1


def test_the_pixels_of_all_frames_together_are_limited():
    with pytest.raises(PictureRefused) as refusal:
        resize(many_frames(100), ResizeJob(100, 100), PictureLimits(max_pixels=1000))
    assert "in all" in refusal.value.sentence


def test_all_frames_their_durations_and_the_loop_are_kept(draw, save, load):
    frames, times = moving(draw, 4), [40, 100, 250, 60]
    answer = load(
        resize(animated(save, frames, duration=times, loop=3), ResizeJob(30, 20), PictureLimits()).data
    )
    assert (answer.format, answer.size, answer.n_frames, answer.info["loop"]) == ("GIF", (30, 20), 4, 3)
    for index, (frame, duration) in enumerate(zip(frames, times, strict=True)):
        answer.seek(index)
        assert answer.info["duration"] == duration
        assert psnr(answer.convert("RGB"), frame.resize((30, 20), Image.Resampling.LANCZOS)) > 25


def test_an_animation_that_plays_once_still_does(draw, save, load):
    data = animated(save, moving(draw, 2), duration=50)
    assert "loop" not in load(resize(data, ResizeJob(30, 20), PictureLimits()).data).info


def test_transparent_and_opaque_pixels_stay_so(draw, save, load):
    data = animated(save, moving(draw, 3, "RGBA"), duration=50, disposal=2)
    answer = load(resize(data, ResizeJob(30, 20), PictureLimits()).data)
    for index in range(3):
        answer.seek(index)
        alpha = answer.convert("RGBA").getchannel("A")
        assert alpha.getpixel((20 + index, 2)) == 0
        assert alpha.getpixel((5, 15)) == 255


def test_an_opaque_frame_before_a_transparent_one_stays_opaque(draw, save, load):
    frames = [moving(draw, 1)[0].convert("RGBA"), moving(draw, 2, "RGBA")[1]]
    answer = load(
        resize(animated(save, frames, duration=50, disposal=2), ResizeJob(30, 20), PictureLimits()).data
    )
    assert answer.convert("RGBA").getchannel("A").getextrema() == (255, 255)
    answer.seek(1)
    assert answer.convert("RGBA").getchannel("A").getextrema() == (0, 255)


def test_alpha_below_one_half_becomes_transparent(draw):
    image = Image.new("RGBA", (2, 1), (200, 10, 10, 127))
    image.putpixel((1, 0), (200, 10, 10, 128))
    made = gif.indexed(image).convert("RGBA")
    assert [made.getpixel((x, 0))[3] for x in (0, 1)] == [0, 255]


@pytest.mark.parametrize("out", ["jpeg", "png"])
def test_formats_without_animation_get_the_first_frame(draw, save, load, out):
    frames = moving(draw, 3)
    answer = load(resize(animated(save, frames), ResizeJob(30, 20, format=out), PictureLimits()).data)
    assert getattr(answer, "n_frames", 1) == 1
    assert psnr(answer.convert("RGB"), frames[0].resize((30, 20), Image.Resampling.LANCZOS)) > 25


@pytest.mark.parametrize(("source", "out"), [("GIF", "webp"), ("WEBP", "gif"), ("WEBP", "webp")])
def test_animations_are_converted_between_gif_and_webp(draw, save, load, source, out):
    data = animated(save, moving(draw, 3), source, duration=[40, 100, 60])
    answer = load(resize(data, ResizeJob(30, 20, format=out), PictureLimits()).data)
    assert (answer.format.lower(), answer.n_frames, answer.size) == (out, 3, (30, 20))
    answer.seek(1)
    answer.load()
    assert answer.info["duration"] == 100
