"""resize(): every kind of picture to every format, exact sizes, orientation, colours, metadata."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from workers.imaging import FORMATS, PictureLimits, PictureRefused, ResizeJob, resize
from workers.imaging.resample import psnr

SIZE = (33, 21)
# format and mode of the source, options of Pillow's save()
STORED = [
    ("JPEG", "L", {"quality": 95}),
    ("JPEG", "RGB", {"quality": 95}),
    ("JPEG", "RGB", {"quality": 95, "progressive": True}),
    ("JPEG", "CMYK", {"quality": 95}),
    ("PNG", "1", {}),
    ("PNG", "L", {}),
    ("PNG", "LA", {}),
    ("PNG", "P", {}),
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "I;16", {}),
    ("GIF", "P", {}),
    ("WEBP", "RGB", {"quality": 95}),
    ("WEBP", "RGBA", {"lossless": True}),
    ("AVIF", "RGB", {"quality": 90, "speed": 10}),
    ("AVIF", "RGBA", {"quality": 90, "speed": 10}),
]


def in_eight_bits(image):
    return (
        image.convert("I").point([step >> 8 for step in range(65536)], "L") if image.mode == "I;16" else image
    )


def on_white(image):
    """The picture on white, in RGB."""
    shown = in_eight_bits(image).convert("RGBA") if image.mode != "CMYK" else image.convert("RGB")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(shown.convert("RGB"), mask=shown.getchannel("A") if shown.mode == "RGBA" else None)
    return ground


def by_pillow(image, size):
    """Pillow's LANCZOS on the same picture, converted to a mode that can be resampled."""
    plain = {"1": "L", "P": "RGBA" if "transparency" in image.info else "RGB"}.get(image.mode, image.mode)
    return on_white(image.convert(plain).resize(size, Image.Resampling.LANCZOS))


@pytest.mark.parametrize("out", ["", *FORMATS])
@pytest.mark.parametrize(("kind", "mode", "options"), STORED)
def test_every_kind_to_every_format(draw, save, load, kind, mode, options, out):
    data = save(draw((97, 61), mode), kind, **options)
    result = resize(data, ResizeJob(*SIZE, format=out, quality=90), PictureLimits())
    answer = load(result.data)
    assert result.format == (out or kind.lower()) == answer.format.lower()
    assert (result.width, result.height) == answer.size == SIZE
    assert (result.source_width, result.source_height) == (97, 61)
    assert psnr(on_white(answer), by_pillow(load(data), SIZE)) > 24


@pytest.mark.parametrize(
    ("mode", "kept", "floor"),
    [
        ("1", "L", 40),
        ("L", "L", 40),
        ("LA", "LA", 40),
        ("P", "RGB", 40),
        ("RGB", "RGB", 40),
        ("RGBA", "RGBA", 35),
    ],
)
def test_a_lossless_answer_is_pillows_lanczos(draw, save, load, mode, kept, floor):
    data = save(draw((97, 61), mode), "PNG")
    answer = load(resize(data, ResizeJob(*SIZE), PictureLimits()).data)
    assert answer.mode == kept
    assert psnr(on_white(answer), by_pillow(load(data), SIZE)) > floor


def test_sixteen_bits_stay_sixteen_bits(draw, save, load):
    answer = load(resize(save(draw((97, 61), "I;16"), "PNG"), ResizeJob(*SIZE), PictureLimits()).data)
    assert answer.mode == "I;16"
    assert answer.getextrema()[1] > 60_000


def test_cmyk_stays_cmyk_in_a_jpeg_and_becomes_rgb_elsewhere(draw, save, load):
    data = save(draw((97, 61), "CMYK"), "JPEG", quality=95)
    answer = load(resize(data, ResizeJob(*SIZE, quality=95), PictureLimits()).data)
    assert answer.mode == "CMYK"
    assert psnr(answer, load(data).resize(SIZE, Image.Resampling.LANCZOS)) > 40
    assert [layer[1:3] for layer in answer.layer] == [(1, 1)] * 4
    assert load(resize(data, ResizeJob(*SIZE, format="png"), PictureLimits()).data).mode == "RGB"


@pytest.mark.parametrize(("mode", "transparent"), [("L", 0), ("RGB", (0, 0, 40)), ("P", 0)])
def test_a_transparent_colour_becomes_alpha(save, load, mode, transparent):
    ground = {"L": 0, "RGB": (0, 0, 40), "P": 0}[mode]
    image = Image.new(mode, (40, 40), ground)
    if mode == "P":
        image.putpalette([0, 0, 40, 250, 200, 100])
    image.paste({"L": 200, "RGB": (250, 200, 100), "P": 1}[mode], (0, 0, 20, 40))
    answer = load(
        resize(save(image, "PNG", transparency=transparent), ResizeJob(10, 10), PictureLimits()).data
    )
    alpha = answer.getchannel("A")
    assert (alpha.getpixel((1, 5)), alpha.getpixel((8, 5))) == (255, 0)
    assert "transparency" not in answer.info


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 90),
    st.integers(0, 90),
    st.sampled_from(["stretch", "contain", "cover"]),
    st.sampled_from(["JPEG", "PNG", "GIF"]),
)
def test_the_stated_size_is_the_size_of_the_picture(source, width, height, fit, kind):
    if width == height == 0:
        width = 1
    out = io.BytesIO()
    Image.radial_gradient("L").resize(source).convert("RGB").save(out, kind)
    result = resize(out.getvalue(), ResizeJob(width, height, fit=fit), PictureLimits())
    assert Image.open(io.BytesIO(result.data)).size == (result.width, result.height)
    if fit != "contain" or not (width and height):
        assert result.width == width or not width
        assert result.height == height or not height


def with_orientation(draw, save, value, kind="JPEG"):
    tags = Image.Exif()
    tags[0x0112] = value
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    return save(draw((96, 64)), kind, exif=tags.tobytes(), **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_a_picture_is_turned_upright(draw, save, load, value, kind):
    data = with_orientation(draw, save, value, kind)
    upright = ImageOps.exif_transpose(load(data)).convert("RGB")
    result = resize(data, ResizeJob(24, 0, orient=True, format="png"), PictureLimits())
    answer = load(result.data)
    assert answer.size == (result.width, result.height) == ((24, 36) if value > 4 else (24, 16))
    assert psnr(answer, upright.resize(answer.size, Image.Resampling.LANCZOS)) > 36
    assert not answer.getexif()


@pytest.mark.parametrize("value", [6, 8])
def test_a_turned_picture_is_cropped_in_the_middle(draw, save, load, value):
    data = with_orientation(draw, save, value)
    upright = ImageOps.exif_transpose(load(data))
    answer = load(
        resize(data, ResizeJob(20, 20, fit="cover", orient=True, format="png"), PictureLimits()).data
    )
    assert psnr(answer, ImageOps.fit(upright, (20, 20), Image.Resampling.LANCZOS)) > 36


@pytest.mark.parametrize("value", [6, 9, 0])
def test_without_orient_a_picture_is_not_turned(draw, save, value):
    result = resize(with_orientation(draw, save, value), ResizeJob(24, 0, orient=value != 6), PictureLimits())
    assert (result.width, result.height) == (24, 16)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_orientation_tag_is_ignored(draw, save):
    data = save(draw(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff" + b"\xff" * 20)
    assert resize(data, ResizeJob(10, 10, orient=True), PictureLimits()).width == 10


def test_cover_keeps_the_middle(draw, save, load):
    data = save(draw((120, 60)), "PNG")
    answer = load(resize(data, ResizeJob(20, 20, fit="cover"), PictureLimits()).data)
    middle = load(data).resize((20, 20), Image.Resampling.LANCZOS, box=(30, 0, 90, 60))
    assert psnr(answer, middle) > 40


@pytest.mark.parametrize("out", FORMATS)
def test_metadata_is_not_copied_to_the_result(draw, save, load, out):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "secret place")
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = save(draw(), "PNG", pnginfo=text, exif=exif.tobytes(), icc_profile=profile, dpi=(300, 300))
    answer = resize(data, ResizeJob(*SIZE, format=out), PictureLimits()).data
    assert b"secret" not in answer
    assert not {"exif", "icc_profile", "Comment", "dpi"} & set(load(answer).info)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_colour_profile_is_kept_on_request(draw, save, load, kind):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = save(draw(), kind, icc_profile=profile)
    assert (
        load(resize(data, ResizeJob(*SIZE, icc="keep"), PictureLimits()).data).info["icc_profile"] == profile
    )
    assert "icc_profile" not in load(resize(data, ResizeJob(*SIZE, icc="srgb"), PictureLimits()).data).info


def test_a_profile_of_cmyk_is_dropped_from_rgb(draw, save, load):
    data = save(draw((97, 61), "CMYK"), "JPEG", icc_profile=b"not even a profile")
    assert (
        "icc_profile"
        not in load(resize(data, ResizeJob(*SIZE, icc="keep", format="png"), PictureLimits()).data).info
    )
    assert resize(data, ResizeJob(*SIZE, icc="srgb"), PictureLimits()).format == "jpeg"


def test_a_memoryview_is_read_as_bytes_are(draw, save):
    data = save(draw(), "PNG")
    assert resize(memoryview(bytearray(data)), ResizeJob(5, 5), PictureLimits()) == resize(
        data, ResizeJob(5, 5), PictureLimits()
    )


@pytest.mark.parametrize("fit", ["contain", "cover"])
@pytest.mark.parametrize("asked", [(8000, 8000), (20_000, 300), (20_000, 30_000)])
def test_a_target_over_the_limits_is_fine_when_the_result_is_not(draw, save, fit, asked):
    """The sides of contain, and those of both without enlarging, only bound the result."""
    data = save(draw((97, 61), "RGB"), "PNG")
    result = resize(data, ResizeJob(*asked, fit=fit, enlarge=False), PictureLimits())
    assert result.width <= 97 and result.height <= 61
    if fit == "contain":
        assert resize(data, ResizeJob(20_000, 30, fit=fit), PictureLimits()).height == 30


@pytest.mark.parametrize(
    ("size", "options", "is_refused"),
    [
        ((388, 244), {}, False),
        ((389, 0), {}, True),
        ((0, 245), {}, True),
        ((97, 245), {}, True),
        ((1000, 244), {"fit": "contain"}, False),
        ((244, 244), {"fit": "cover"}, False),
        ((245, 245), {"fit": "cover"}, True),
        ((4000, 4000), {"enlarge": False}, False),
    ],
)
def test_an_enlargement_over_the_limit_is_refused_before_a_pixel_is_decoded(
    draw, save, size, options, is_refused
):
    data, job = save(draw((97, 61), "RGB"), "PNG"), ResizeJob(*size, max_enlarge=4, **options)
    if is_refused:
        damaged = data[: len(data) // 2]
        with pytest.raises(PictureRefused, match="enlarges"):
            resize(damaged, job, PictureLimits())
    else:
        resize(data, job, PictureLimits())
