"""Animations of every format: frames, times, repetitions, orientation, what is cleared between frames."""

import io
import re
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from workers.imaging import PictureLimits, PictureRefused, ResizeJob, avif, gif, png, resize
from workers.imaging.animation import CLEAR, KEEP, RESTORE, Canvas, whole_delays
from workers.imaging.resample import psnr

SIZE = (48, 32)
COLOURS = ["red", "lime", "blue", "yellow"]
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def corners(count=3, mode="RGB"):
    """Frames with an area in the upper left corner whose colour changes."""
    frames = [Image.new(mode, SIZE, "white") for _ in range(count)]
    for frame, colour in zip(frames, COLOURS, strict=False):
        frame.paste(colour, (0, 0, 24, 16))
    return frames


def frames_of(data):
    """(mode-free picture, time) of each frame, as Pillow's decoders show it."""
    with Image.open(io.BytesIO(data)) as image:
        found = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            found.append((image.convert("RGBA"), image.info.get("duration", 0)))
        return found


def gif_of(parts, size=SIZE, head=b""):
    """A GIF of (colour, box, delay in 1/100 s, disposal) parts; None as the colour is transparent."""
    out = [b"GIF89a" + struct.pack("<2H", *size) + b"\x80\0\0" + b"\xff\xff\xff" * 2 + head]
    for colour, (left, top, right, bottom), delay, disposal in parts:
        single = io.BytesIO()
        part = Image.new("P", (right - left, bottom - top), 1)
        part.putpalette([255, 255, 255, *(Image.new("RGB", (1, 1), colour or "white").getpixel((0, 0)))])
        part.save(single, "GIF", optimize=False)
        body = single.getvalue()
        frame = gif.read(body, 1).frames[0]
        palette = body[slice(*frame.palette)]
        out += [
            b"\x21\xf9\x04" + struct.pack("<BHBB", disposal << 2 | (colour is None), delay, 1, 0),
            b"\x2c" + struct.pack("<4H", left, top, right - left, bottom - top),
            bytes((0x80 | (len(palette) // 3).bit_length() - 2 | frame.flags & 0x40,)),
            palette + body[slice(*frame.data)],
        ]
    return b"".join([*out, b"\x3b"])


def apng_of(frames, parts=(), plays=0, default=None):
    """An APNG. `parts`: (place, disposal, blend, numerator, denominator) of each frame."""
    chunks, sequence = [], 0
    size = (default or frames[0]).size

    def chunk(kind, body):
        chunks.append(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))

    def pixels(image):
        rows = [b"\0" + image.crop((0, y, image.width, y + 1)).tobytes() for y in range(image.height)]
        return zlib.compress(b"".join(rows))

    chunk(b"IHDR", struct.pack(">2I5B", *size, 8, 6 if frames[0].mode == "RGBA" else 2, 0, 0, 0))
    chunk(b"acTL", struct.pack(">2I", len(frames), plays))
    if default is not None:
        chunk(b"IDAT", pixels(default))
    for index, frame in enumerate(frames):
        at, disposal, blend, number, of = parts[index] if parts else ((0, 0), 0, 0, 4, 100)
        chunk(b"fcTL", struct.pack(">5I2H2B", sequence, *frame.size, *at, number, of, disposal, blend))
        sequence += 1
        if index or default is not None:
            chunk(b"fdAT", struct.pack(">I", sequence) + pixels(frame))
            sequence += 1
        else:
            chunk(b"IDAT", pixels(frame))
    chunk(b"IEND", b"")
    return png.SIGNATURE + b"".join(chunks)


def saved(frames, kind, **options):
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], **options)
    return out.getvalue()


def of_kind(kind, frames, **options):
    if kind == "PNG":
        options.setdefault("duration", 40)
    if kind == "AVIF":
        options |= {"speed": 10, "quality": 95, "subsampling": "4:4:4"}
        options.setdefault("duration", 40)
    if kind == "WEBP":
        options |= {"lossless": True}
    return saved(frames, kind, **options)


def close(one, other):
    return psnr(one.convert("RGB"), other.convert("RGB")) > 25


# -- orientation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["gif", "webp"])
@pytest.mark.parametrize("kind", ["WEBP", "PNG"])  # libavif ends the process that writes a turned sequence
@pytest.mark.parametrize("value", range(1, 9))
def test_every_frame_is_turned_upright(kind, value, out):
    exif = Image.Exif()
    exif[0x0112] = value
    frames = corners()
    data = of_kind(kind, frames, exif=exif.tobytes(), duration=[40, 60, 80])
    result = resize(data, ResizeJob(0, 24, orient=True, format=out), PictureLimits())
    found = frames_of(result.data)
    expected = (16, 24) if value > 4 else (36, 24)
    assert (result.width, result.height) == expected
    assert len(found) == 3
    for (shown, _), frame in zip(found, frames, strict=True):
        upright = frame.transpose(TURNS[value]) if value in TURNS else frame
        assert shown.size == expected
        assert close(shown, upright.resize(expected, Image.Resampling.LANCZOS))


def test_an_animation_is_not_turned_unless_asked():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = of_kind("WEBP", corners(), exif=exif.tobytes())
    assert resize(data, ResizeJob(24, 0), PictureLimits()).height == 16


# -- what is drawn and cleared -----------------------------------------------------------------------------------


def alpha_at(shown, *places):
    return [shown.getpixel(place)[3] for place in places]


@pytest.mark.parametrize("out", ["gif", "webp", "png", "jpeg"])
def test_to_background_clears_to_transparent(out):
    whole = (0, 0, *SIZE)
    data = gif_of([("red", (0, 0, 16, 16), 5, 2), ("blue", (32, 16, 48, 32), 5, 2), (None, whole, 5, 0)])
    result = resize(data, ResizeJob(*SIZE, format=out), PictureLimits())
    shown = [frame for frame, _ in frames_of(result.data)]
    if out in ("png", "jpeg"):
        assert len(shown) == 1
        return
    assert alpha_at(shown[0], (4, 4), (40, 24), (24, 16)) == [255, 0, 0]
    assert alpha_at(shown[1], (4, 4), (40, 24), (24, 16)) == [0, 255, 0]
    assert shown[2].getextrema()[3] == (0, 0)


@pytest.mark.parametrize("out", ["gif", "webp"])
def test_what_was_there_before_a_frame_is_restored(out):
    data = gif_of(
        [
            ("red", (0, 0, *SIZE), 5, 1),
            ("blue", (8, 8, 24, 24), 5, 3),
            ("lime", (30, 8, 40, 24), 5, 1),
            ("white", (0, 0, 4, 4), 5, 0),
        ]
    )
    shown = [
        frame for frame, _ in frames_of(resize(data, ResizeJob(*SIZE, format=out), PictureLimits()).data)
    ]
    colours = [[shown[i].getpixel(place)[:3] for place in ((16, 16), (35, 16))] for i in (1, 2, 3)]
    red, blue, lime = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    for found, expected in zip(colours, [[blue, red], [red, lime], [red, lime]], strict=True):
        for one, other in zip(found, expected, strict=True):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < 30


@pytest.mark.parametrize("out", ["", "webp", "png"])
def test_what_no_frame_covers_is_transparent(out):
    data = gif_of([("red", (8, 8, 24, 24), 5, 0)])
    shown = frames_of(resize(data, ResizeJob(*SIZE, format=out), PictureLimits()).data)[0][0]
    assert alpha_at(shown, (2, 2), (16, 16), (40, 30)) == [0, 255, 0]


def test_a_frame_beyond_the_canvas_is_cut_off():
    data = gif_of([("red", (0, 0, *SIZE), 5, 1), ("blue", (40, 24, 80, 64), 5, 0)])
    result = resize(data, ResizeJob(*SIZE), PictureLimits())
    assert (result.source_width, result.source_height) == SIZE
    assert frames_of(result.data)[1][0].getpixel((45, 30))[2] > 200


def test_the_canvas_of_an_apng_is_blended_replaced_and_cleared():
    half = Image.new("RGBA", (16, 16), (0, 0, 255, 0))
    dotted = half.copy()
    dotted.paste("white", (0, 0, 4, 4))
    frames = [Image.new("RGBA", SIZE, "red"), dotted, half, Image.new("RGBA", (16, 16), "lime")]
    data = apng_of(
        frames,
        [((0, 0), 0, 0, 1, 20), ((0, 0), 0, 1, 1, 20), ((16, 0), 1, 0, 1, 20), ((32, 0), 2, 0, 1, 20)],
    )
    shown = [
        frame for frame, _ in frames_of(resize(data, ResizeJob(*SIZE, format="webp"), PictureLimits()).data)
    ]
    assert alpha_at(shown[1], (8, 8)) == [255]  # blended over red
    assert alpha_at(shown[2], (24, 8)) == [0]  # put in its place
    assert shown[3].getpixel((40, 8))[1] > 200
    assert alpha_at(shown[3], (24, 8), (8, 8)) == [0, 255]  # cleared, kept


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20),
            st.integers(0, 20),
            st.integers(1, 12),
            st.integers(1, 12),
            st.sampled_from([KEEP, CLEAR, RESTORE]),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_a_canvas_is_what_its_rules_say(parts):
    """Against the rules written down pixel by pixel."""
    canvas, pixels = Canvas((20, 14)), {}
    for index, (left, top, width, height, disposal, over, is_clear) in enumerate(parts):
        colour = (10 + index, 200, 30, 0 if is_clear else 255)
        shown = canvas.draw(Image.new("RGBA", (width, height), colour), (left, top), disposal, over)
        area = [(x, y) for x in range(left, min(left + width, 20)) for y in range(top, min(top + height, 14))]
        before = dict(pixels)
        if not (over and is_clear):
            pixels |= dict.fromkeys(area, colour)
        seen = shown.convert("RGBA")
        for x in range(20):
            for y in range(14):
                expected = pixels.get((x, y), (0, 0, 0, 0))
                found = seen.getpixel((x, y))
                assert found == expected or found[3] == expected[3] == 0
        if disposal == CLEAR:
            pixels = {place: value for place, value in pixels.items() if place not in area}
        elif disposal == RESTORE:
            pixels = before


# -- times and repetitions ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(20, 5000), min_size=1, max_size=60))
def test_rounded_delays_keep_step_with_the_source(delays):
    made = [10 * units for units in whole_delays(delays, 10, 65_535)]
    assert all(units >= 20 for units in made)
    told = shown = 0.0
    for delay, units in zip(delays, made, strict=True):
        told, shown = told + delay, shown + units
        assert abs(told - shown) <= 10 * len(delays) if min(delays) < 25 else 5.001


@pytest.mark.parametrize(
    ("delays", "unit", "expected"),
    [
        ([33, 33, 33, 33], 10, [3, 4, 3, 3]),
        ([25] * 4, 10, [2, 3, 2, 3]),
        ([0, 10, 5], 10, [0, 1, 0]),
        ([17] * 3, 10, [2, 2, 2]),
        ([100 / 3] * 3, 1, [33, 34, 33]),
        ([1_000_000, 40], 10, [65_535, 4]),
        ([15, 15], 1, [15, 15]),
    ],
)
def test_delays(delays, unit, expected):
    assert whole_delays(delays, unit, 65_535) == expected


NETSCAPE = b"\x21\xff\x0bNETSCAPE2.0\x03\x01%s\0"


def stated_plays(data):
    """How often the file says that it is played, read from its own bytes."""
    if data[:3] == b"GIF":
        at = data.find(b"NETSCAPE2.0")
        loops = int.from_bytes(data[at + 13 : at + 15], "little")
        return 1 if at < 0 else loops and loops + 1
    if data[:4] == b"RIFF":
        return int.from_bytes(data[data.index(b"ANIM") + 12 :][:2], "little")
    if data[4:8] == b"ftyp":
        whole = {data[at.start() + 32 :][:8] for at in re.finditer(b"tkhd", data)}
        once = int.from_bytes(data[data.index(b"elst") + 12 :][:8], "big")
        assert len(whole) == 1
        return 0 if whole == {b"\xff" * 8} else int.from_bytes(whole.pop(), "big") / once
    return int.from_bytes(data[data.index(b"acTL") + 8 :][:4], "big")


@pytest.mark.parametrize("plays", [0, 1, 2, 3, 7, 65_535])
@pytest.mark.parametrize("out", ["gif", "webp", "avif"])
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_is_played_as_often_as_its_source(kind, out, plays):
    frames = corners(2)
    if kind == "GIF":
        head = NETSCAPE % (plays - 1 if plays else 0).to_bytes(2, "little") if plays != 1 else b""
        data = gif_of([("red", (0, 0, *SIZE), 5, 0), ("blue", (0, 0, 9, 9), 5, 0)], head=head)
    elif kind == "WEBP":
        data = of_kind(kind, frames, loop=plays, duration=40)
    elif kind == "AVIF":
        data = avif.with_plays(of_kind(kind, frames, duration=40), plays)
    else:
        data = apng_of(frames, plays=plays)
    assert stated_plays(data) == plays
    assert stated_plays(resize(data, ResizeJob(24, 16, format=out), PictureLimits()).data) == plays


def test_a_webp_plays_at_most_as_often_as_it_can_say():
    data = apng_of(corners(2), plays=70_000)
    assert stated_plays(resize(data, ResizeJob(24, 16, format="webp"), PictureLimits()).data) == 65_535
    assert stated_plays(resize(data, ResizeJob(24, 16, format="gif"), PictureLimits()).data) == 65_536


@pytest.mark.parametrize(("total", "expected"), [(80, 1), (160, 2), (200, 3), (None, 0)])
def test_the_repetitions_of_an_image_sequence(total, expected):
    data = bytearray(of_kind("AVIF", corners(2)))
    once = data.index(b"elst") + 12
    track = data.index(b"tkhd") + 32
    assert avif.plays(bytes(data)) == 0
    if total is not None:
        factor = int.from_bytes(data[once : once + 8], "big") // 80
        data[track : track + 8] = (total * factor).to_bytes(8, "big")
    assert avif.plays(bytes(data)) == expected


def test_an_image_sequence_that_does_not_repeat():
    data = bytearray(of_kind("AVIF", corners(2)))
    data[data.index(b"elst") + 7] = 0
    assert avif.plays(bytes(data)) == 1
    assert avif.plays(b"") == avif.plays(b"moov tkhd") == 0


@pytest.mark.parametrize("out", ["gif", "webp", "png"])
def test_times_of_an_apng_are_fractions(out):
    parts = [((0, 0), 0, 0, 1, 30)] * 3 + [((0, 0), 0, 0, 2, 0)]
    data = apng_of(corners(4), parts)
    job = ResizeJob(24, 16, format=out)
    times = [time for _, time in frames_of(resize(data, job, PictureLimits()).data)]
    assert times == {"gif": [30, 40, 30, 20], "webp": [33, 34, 33, 20], "png": [33, 33, 33, 20]}[out]


@pytest.mark.parametrize("out", ["gif", "webp", "png"])
def test_the_longest_times_are_clamped(out):
    data = apng_of(corners(3), [((0, 0), 0, 0, 65_535, 1)] * 3)
    times = [time for _, time in frames_of(resize(data, ResizeJob(24, 16, format=out), PictureLimits()).data)]
    assert times == [{"gif": 655_350, "webp": 16_777_215, "png": 65_535_000}[out]] * 3


def test_frames_without_a_time_stay_frames():
    data = gif_of([(colour, (0, 0, *SIZE), 0, 0) for colour in COLOURS])
    assert len(frames_of(resize(data, ResizeJob(24, 16, format="webp"), PictureLimits()).data)) == 4


# -- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
@pytest.mark.parametrize("out", ["", "gif", "webp", "png", "jpeg", "avif"])
def test_animations_of_every_kind_to_every_format(kind, out):
    frames = corners(4)
    result = resize(
        of_kind(kind, frames, duration=[40, 60, 80, 100]), ResizeJob(24, 16, format=out), PictureLimits()
    )
    found = frames_of(result.data)
    if out in ("", "gif", "webp", "avif", kind.lower()):
        assert [time for _, time in found] == [40, 60, 80, 100]
        assert result.note == ""
    else:
        assert len(found) == 1
        assert "first of 4 frames" in result.note
    for (shown, _), frame in zip(found, frames, strict=False):
        assert close(shown, frame.resize((24, 16), Image.Resampling.LANCZOS))


def test_a_default_picture_outside_the_animation_is_not_shown():
    data = apng_of(corners(2), default=Image.new("RGB", SIZE, "black"))
    for out in ("webp", "jpeg"):
        shown = frames_of(resize(data, ResizeJob(*SIZE, format=out), PictureLimits()).data)
        assert shown[0][0].getpixel((40, 30))[0] > 240


@pytest.mark.parametrize(
    ("blocks", "plays"),
    [
        (NETSCAPE % b"\3\0", 4),
        (NETSCAPE.replace(b"NETSCAPE2.0", b"ANIMEXTS1.0") % b"\0\0", 0),
        (NETSCAPE.replace(b"\3\1", b"\5\2\0\0\0\0\3\1") % b"\2\0", 3),  # a size of buffer before it
        (NETSCAPE.replace(b"\3\1", b"\3\2") % b"\2\0", 1),
        (NETSCAPE.replace(b"NETSCAPE2.0", b"ELSEWHO 2.0") % b"\2\0", 1),
        (b"\x21\xff\x0bNETSCAPE2.0\0", 1),
    ],
)
def test_the_repetitions_of_a_gif(blocks, plays):
    data = gif_of([("red", (0, 0, *SIZE), 5, 0)])
    assert gif.read(data[:19] + blocks + data[19:], 2).plays == plays
    assert gif.read(data[:-1] + blocks, 2).plays == plays  # behind the frames


@pytest.mark.parametrize("damage", ["sequence", "outside", "count"])
def test_an_apng_that_breaks_the_rules_is_a_still(damage):
    data = bytearray(apng_of(corners(3)))
    second = data.index(b"fcTL", data.index(b"fcTL") + 4)
    at, value = {
        "sequence": (second + 4, 9),
        "outside": (second + 12, 40),
        "count": (data.index(b"acTL") + 4, 0),
    }[damage]
    data[at : at + 4] = struct.pack(">I", value)
    result = resize(bytes(data), ResizeJob(*SIZE, format="webp"), PictureLimits())
    assert len(frames_of(result.data)) == 1
    assert result.note == ""


def test_semitransparent_pixels_are_blended_once():
    glass = Image.new("RGBA", SIZE, (0, 0, 255, 128))
    data = apng_of([glass, glass], [((0, 0), 0, 0, 1, 20), ((0, 0), 0, 1, 1, 20)])
    shown = frames_of(resize(data, ResizeJob(24, 16, format="webp"), PictureLimits()).data)
    assert [frame.getpixel((9, 9))[3] for frame, _ in shown] == pytest.approx([128, 192], abs=2)


# -- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["gif", "webp", "jpeg"])
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_a_limit_of_frames_is_the_number_it_says(kind, out, monkeypatch):
    frames = [Image.new("RGB", (8, 8), (9 * index, 0, 0)) for index in range(6)]
    data = of_kind(kind, frames, duration=50)
    assert resize(data, ResizeJob(8, 8, format=out), PictureLimits(max_frames=6)).width == 8
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(PictureRefused) as refusal:
        resize(data, ResizeJob(8, 8, format=out), PictureLimits(max_frames=5))
    assert refusal.value.status == 422
    assert "5 frames" in refusal.value.sentence


# -- the file that is written ------------------------------------------------------------------------------------


def test_a_still_background_is_written_once():
    ground = Image.radial_gradient("L").resize((200, 150)).convert("RGB")
    frames = []
    for index in range(8):
        frames.append(ground.copy())
        frames[-1].paste("red", (20 * index, 60, 20 * index + 15, 75))
    data = of_kind("WEBP", frames, duration=50)
    answer = resize(data, ResizeJob(100, 75, format="gif"), PictureLimits()).data
    assert len(answer) < 2 * len(
        resize(of_kind("WEBP", frames[:1]), ResizeJob(100, 75, format="gif"), PictureLimits()).data
    )
    for (shown, _), frame in zip(frames_of(answer), frames, strict=True):
        assert psnr(shown.convert("RGB"), frame.resize((100, 75), Image.Resampling.LANCZOS)) > 30


@pytest.mark.parametrize("modes", ["OTO", "TOT", "OOT", "TTO", "OTT", "OOO", "TTT"])
def test_opaque_and_transparent_frames_in_any_order(modes):
    """O: opaque, T: with a transparent area, which must show nothing of the frame before."""
    frames = []
    for index, letter in enumerate(modes):
        frame = Image.new("RGBA", SIZE, COLOURS[index])
        if letter == "T":
            frame.paste((0, 0, 0, 0), (8 * index, 4, 8 * index + 16, 28))
        frames.append(frame)
    for out in ("gif", "webp"):
        answer = resize(
            of_kind("WEBP", frames, duration=50), ResizeJob(*SIZE, format=out), PictureLimits()
        ).data
        # Pillow's decoder of GIF forgets that a frame was transparent when those before it were not
        shots = gif.shots(answer, gif.read(answer, 9)) if out == "gif" else frames_of(answer)
        for (shown, _), frame in zip(shots, frames, strict=True):
            alpha = shown.convert("RGBA").getchannel("A")
            assert ImageChops.difference(alpha, frame.getchannel("A")).getbbox() is None
